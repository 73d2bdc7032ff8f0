//! What makes writes to blue impossible: a statement trigger on every table that refuses ordinary sessions. Sessions
//! under `session_replication_role = replica` pass, which the reverse stream will need.
//!
//! The triggers are made while `SHARE ROW EXCLUSIVE` is held on every table. That lock waits for every transaction
//! that has written (prepared ones included: they keep their locks) and lets no new one in, so when the transaction
//! commits, all writes to these tables have committed before the logical message it carries, and none can follow. The
//! message's position is the fence's position.
//!
//! Each attempt has a function of its own, and lifting the fence replaces its body by nothing: one catalog row, no lock
//! on any table. Nor can a fence that commits late (its session was thought lost) then refuse anything. The triggers are
//! dropped afterwards, when nobody waits.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tracing::warn;

use super::error::{BLUE, Error, query};
use super::journal::rows;
use crate::model::{Lsn, MigrationName, TableName, marker_prefix, quote_identifier, quote_literal};
use crate::telemetry::chain;
use crate::wire::Session;

/// How long writers may queue behind our request for a lock before we let them through and ask again.
const LOCK_TIMEOUT: Duration = Duration::from_millis(250);
const ATTEMPTS_MAX: u32 = 20;
const WAIT: Duration = Duration::from_millis(20);

/// When nobody waits, dropping a trigger gives way sooner.
const DROP_LOCK_TIMEOUT_MS: u32 = 100;
const DROP_ATTEMPTS_MAX: u32 = 50;

/// Everything the fence needs, made before the pause.
#[derive(Clone, Debug)]
pub(super) struct Fence {
    migration: MigrationName,
    attempt: i32,
    tables: Vec<TableName>,
    statement: String,
}

impl Fence {
    /// Finds what has to be fenced for `tables` (they, their partitions, and what they are partitions of), removes what
    /// an earlier attempt left, and makes the function that refuses. Nobody is refused before [`Self::raise`].
    pub(super) async fn prepare(
        blue: &Session,
        migration: &MigrationName,
        attempt: i32,
        tables: &[TableName],
    ) -> Result<Self, Error> {
        drop_triggers(blue, migration).await?;
        let what = "prepare the fence";
        blue.batch_execute(include_str!("../../schemas/source.sql")).await.map_err(query(BLUE, what))?;
        blue.batch_execute(&function(migration, attempt, REFUSE)).await.map_err(query(BLUE, what))?;
        let tables = find(blue, tables).await?;
        let statement = raise_statement(migration, attempt, &tables);
        Ok(Self { migration: migration.clone(), attempt, tables, statement })
    }

    pub(super) fn table_count(&self) -> usize {
        self.tables.len()
    }

    /// Puts the fence up, proves it, and answers with its position. One round trip when the locks are free.
    pub(super) async fn raise(&self, blue: &Session) -> Result<Lsn, Error> {
        for _ in 0..ATTEMPTS_MAX {
            match blue.simple_query(&self.statement).await {
                Ok(messages) => return self.proven(&messages),
                Err(error) => {
                    blue.batch_execute("ROLLBACK").await.map_err(query(BLUE, "take back the fence"))?;
                    // Deadlock: somebody locks the same tables in another order; he goes first.
                    let busy = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
                    if !error.code().is_some_and(|code| busy.contains(code)) {
                        return Err(query(BLUE, "put up the fence")(error));
                    }
                }
            }
            sleep(WAIT).await;
        }
        Err(Error::NoLocks { attempts: ATTEMPTS_MAX })
    }

    fn proven(&self, messages: &[tokio_postgres::SimpleQueryMessage]) -> Result<Lsn, Error> {
        let what = "put up the fence";
        // The lock's answer stands before it.
        let row = rows(messages).last().ok_or(Error::Answer { side: BLUE, what })?;
        let text = |column: usize| row.try_get(column).ok().flatten();
        let found: usize = text(0).and_then(|text| text.parse().ok()).ok_or(Error::Answer { side: BLUE, what })?;
        if found != self.tables.len() {
            return Err(Error::Unproven { found, wanted: self.tables.len() });
        }
        text(1).and_then(|text| text.parse().ok()).ok_or(Error::Answer { side: BLUE, what })
    }

    /// Lifts the fence, whether or not it is up: from the commit on, nobody is refused.
    pub(super) async fn lower(&self, blue: &Session) -> Result<(), Error> {
        lower(blue, &self.migration, self.attempt).await
    }

    /// What putting up the fence costs, measured on a scratch table in a transaction that is rolled back.
    pub(super) async fn rehearse(&self, blue: &Session) -> Result<Duration, Error> {
        const SAMPLE: usize = 10;
        let triggers: Vec<String> = (0..SAMPLE)
            .map(|number| {
                trigger(&format!("rehearsal_{number}"), "changeover.rehearsal", &self.migration, self.attempt)
            })
            .collect();
        let statement = format!(
            "BEGIN; CREATE TABLE changeover.rehearsal (); {}; SELECT pg_logical_emit_message(false, {}, 'rehearsal'); ROLLBACK",
            triggers.join("; "),
            quote_literal(marker_prefix())
        );
        let started = Instant::now();
        blue.batch_execute(&statement).await.map_err(query(BLUE, "rehearse the fence"))?;
        Ok(started.elapsed().mul_f64(self.tables.len().max(1) as f64 / SAMPLE as f64))
    }
}

async fn lower(blue: &Session, migration: &MigrationName, attempt: i32) -> Result<(), Error> {
    let what = "lift the fence";
    if !attempts(blue, migration).await?.contains(&attempt) {
        // Somebody has lifted it and tidied up; a fence that is still on its way then finds no function to call.
        return Ok(());
    }
    let statement =
        format!("BEGIN; SET LOCAL synchronous_commit = on; {}; COMMIT", function(migration, attempt, ALLOW));
    let lowered = blue.batch_execute(&statement).await;
    if lowered.is_err() {
        blue.batch_execute("ROLLBACK").await.map_err(query(BLUE, what))?;
    }
    lowered.map_err(query(BLUE, what))?;
    let noted = "INSERT INTO changeover.journal (migration, attempt, step) VALUES ($1, $2, 'unfenced')";
    if let Err(error) = blue.execute(noted, &[&migration.as_str(), &attempt]).await {
        // It decides nothing: what is lifted is lifted.
        warn!(error = chain(&error), "the lifting of the fence is not in blue's journal");
    }
    Ok(())
}

/// Lifts every fence of the migration that is up, by whichever attempt.
pub(super) async fn lower_all(blue: &Session, migration: &MigrationName) -> Result<bool, Error> {
    let attempts = attempts(blue, migration).await?;
    for attempt in &attempts {
        lower(blue, migration, *attempt).await?;
    }
    Ok(!attempts.is_empty())
}

/// Removes everything of the fence and its journal from blue. Gives way to whoever uses the tables.
pub async fn remove_fence(blue: &Session, migration: &MigrationName) -> Result<(), Error> {
    loop {
        drop_triggers(blue, migration).await?;
        let attempts = attempts(blue, migration).await?;
        match drop_functions(blue, migration, &attempts).await {
            Ok(()) => return super::journal::remove_journal(blue, migration).await,
            // A fence that was on its way came in between; its triggers are dropped like the others.
            Err(error) if error.code() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {}
            Err(error) => return Err(query(BLUE, "remove the fence")(error)),
        }
    }
}

/// Under a lock that a fence on its way also takes, so that none makes triggers for a function that is being dropped.
async fn drop_functions(
    blue: &Session,
    migration: &MigrationName,
    attempts: &[i32],
) -> Result<(), tokio_postgres::Error> {
    if attempts.is_empty() {
        return Ok(());
    }
    let drops: Vec<String> = attempts
        .iter()
        .map(|attempt| format!("DROP FUNCTION IF EXISTS {}()", function_name(migration, *attempt)))
        .collect();
    let key = advisory_key(migration);
    let statement = format!("BEGIN; SELECT pg_advisory_xact_lock({key}); {}; COMMIT", drops.join("; "));
    let dropped = blue.batch_execute(&statement).await;
    if dropped.is_err() {
        blue.batch_execute("ROLLBACK").await?;
    }
    dropped
}

/// Drops the triggers table by table, each with a lock that gives way soon: nobody waits for us.
pub(super) async fn drop_triggers(blue: &Session, migration: &MigrationName) -> Result<(), Error> {
    let what = "remove the fence's triggers";
    let listed = "SELECT n.nspname, c.relname FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid \
         JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE t.tgname = $1 AND NOT t.tgisinternal";
    let rows = blue.query(listed, &[&trigger_name(migration)]).await.map_err(query(BLUE, what))?;
    for row in rows {
        let read = || Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
        let table = read().map_err(query(BLUE, what))?;
        drop_trigger(blue, migration, &table).await?;
    }
    Ok(())
}

async fn drop_trigger(blue: &Session, migration: &MigrationName, table: &TableName) -> Result<(), Error> {
    let name = quote_identifier(&trigger_name(migration));
    let statement = format!(
        "BEGIN; SET LOCAL lock_timeout = {DROP_LOCK_TIMEOUT_MS}; DROP TRIGGER IF EXISTS {name} ON {}; COMMIT",
        table.quoted()
    );
    for _ in 0..DROP_ATTEMPTS_MAX {
        let Err(error) = blue.batch_execute(&statement).await else { return Ok(()) };
        blue.batch_execute("ROLLBACK").await.map_err(query(BLUE, "remove the fence's triggers"))?;
        if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
            return Err(query(BLUE, "remove the fence's triggers")(error));
        }
        sleep(WAIT).await;
    }
    warn!(%table, "the table is never free long enough to remove the lifted fence's trigger");
    Err(Error::NoLocks { attempts: DROP_ATTEMPTS_MAX })
}

/// The attempts whose function exists.
async fn attempts(blue: &Session, migration: &MigrationName) -> Result<Vec<i32>, Error> {
    let what = "look for a fence";
    let statement = "SELECT substr(p.proname, length($1) + 1) FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace \
         WHERE n.nspname = 'changeover' AND starts_with(p.proname, $1)";
    let prefix = format!("fence_{migration}_");
    let rows = blue.query(statement, &[&prefix]).await.map_err(query(BLUE, what))?;
    let names = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>();
    // A name that goes on with something else belongs to a migration whose name begins like ours.
    Ok(names.map_err(query(BLUE, what))?.iter().filter_map(|name| name.parse().ok()).collect())
}

async fn find(blue: &Session, tables: &[TableName]) -> Result<Vec<TableName>, Error> {
    let what = "find the tables to fence";
    let statement = "WITH named AS (SELECT to_regclass(name) AS oid FROM unnest($1::text[]) AS name) \
         SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.oid IN (SELECT oid FROM named \
           UNION SELECT relid FROM named, pg_partition_ancestors(named.oid) \
           UNION SELECT relid FROM named, pg_partition_tree(named.oid)) ORDER BY 1, 2";
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let rows = blue.query(statement, &[&names]).await.map_err(query(BLUE, what))?;
    let read =
        |row: &tokio_postgres::Row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
    rows.iter().map(read).collect::<Result<_, _>>().map_err(query(BLUE, what))
}

fn raise_statement(migration: &MigrationName, attempt: i32, tables: &[TableName]) -> String {
    // `ONLY`: partitions are listed themselves, and children by inheritance are tables of their own.
    let locked: Vec<String> = tables.iter().map(|table| format!("ONLY {}", table.quoted())).collect();
    let name = trigger_name(migration);
    let triggers: Vec<String> =
        tables.iter().map(|table| trigger(&name, &table.quoted(), migration, attempt)).collect();
    let lock = if locked.is_empty() {
        String::new()
    } else {
        format!("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; {};", locked.join(", "), triggers.join("; "))
    };
    let key = advisory_key(migration);
    let (migration, name) = (quote_literal(migration.as_str()), quote_literal(&name));
    format!(
        "BEGIN; SET LOCAL lock_timeout = {timeout}; SET LOCAL synchronous_commit = on; \
         SELECT pg_advisory_xact_lock_shared({key}); {lock} \
         INSERT INTO changeover.journal (migration, attempt, step) VALUES ({migration}, {attempt}, 'fenced'); \
         SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = {name} AND tgenabled = 'O')::text, \
                pg_logical_emit_message(true, {prefix}, 'fence:{attempt}')::text; COMMIT",
        timeout = LOCK_TIMEOUT.as_millis(),
        prefix = quote_literal(marker_prefix()),
    )
}

fn trigger(name: &str, table: &str, migration: &MigrationName, attempt: i32) -> String {
    format!(
        "CREATE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT \
         EXECUTE FUNCTION {}()",
        quote_identifier(name),
        function_name(migration, attempt)
    )
}

fn advisory_key(migration: &MigrationName) -> String {
    format!("hashtextextended({}, 0)", quote_literal(&format!("changeover fence {migration}")))
}

fn trigger_name(migration: &MigrationName) -> String {
    format!("changeover_fence_{migration}")
}

fn function_name(migration: &MigrationName, attempt: i32) -> String {
    format!("changeover.{}", quote_identifier(&format!("fence_{migration}_{attempt}")))
}

/// 25006 is `read_only_sql_transaction`, which drivers that know several hosts take as "look for the writable one".
const REFUSE: &str = "RAISE EXCEPTION USING ERRCODE = '25006', \
     MESSAGE = 'writes are refused here: this database is being handed over to another server', \
     HINT = 'Connect again: new connections are routed to the server that takes writes.'";
const ALLOW: &str = "RETURN NULL";

fn function(migration: &MigrationName, attempt: i32, body: &str) -> String {
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS $fence$ BEGIN {body}; END $fence$",
        function_name(migration, attempt)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fence_locks_everything_before_it_makes_the_first_trigger() {
        let migration: MigrationName = "shop".parse().unwrap();
        let tables = ["a", "b"].map(|name| TableName::new("public", name));
        let statement = raise_statement(&migration, 3, &tables);
        let at = |part: &str| statement.find(part).unwrap_or_else(|| panic!("{part} in {statement}"));
        assert!(at(r#"LOCK TABLE ONLY "public"."a", ONLY "public"."b""#) < at("CREATE TRIGGER"));
        assert!(at("CREATE TRIGGER") < at("pg_logical_emit_message"));
        assert!(at("pg_logical_emit_message") < at("COMMIT"));
        assert_eq!(statement.matches("CREATE TRIGGER").count(), 2);
        assert!(statement.contains("fence_shop_3"));
    }

    #[test]
    fn the_longest_migration_name_leaves_room_for_trigger_and_function() {
        let migration: MigrationName = "x".repeat(40).parse().unwrap();
        assert!(trigger_name(&migration).len() <= 63);
        assert!(format!("fence_{migration}_{}", i32::MAX).len() <= 63);
    }
}
