//! Somebody else's writes to the target's tables, noticed by the server as they commit: a statement trigger that fires for
//! ordinary sessions only. Ours are replicas (`session_replication_role`) or known by a setting that each of them has.
//!
//! The trigger writes a note at most once a second for each writer, in the writer's own transaction, and reads the
//! cutover's journal first: once green owns the writes, it says nothing any more.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::model::{MigrationName, TableName, quote_identifier, quote_literal};
use crate::wire::{Session, sqlstate};

use super::error::Error;
use super::members::in_one;

/// How long a writer may queue behind our request for a lock.
const LOCK_TIMEOUT_MS: u64 = 50;

/// Somebody who writes to a table of the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    pub table: TableName,
    pub role: String,
    /// `application_name`; may be empty.
    pub application: String,
    /// Empty for a Unix socket.
    pub address: String,
    /// Microseconds since the Unix epoch, by the target's clock.
    pub last_at_us: i64,
}

/// Tables (partitions and partitioned ones included) that are watched after a call of [`watch`], and those that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    pub begun: usize,
    /// In use just now: to be tried again.
    pub busy: usize,
    /// Our role may make no trigger there.
    pub forbidden: Vec<TableName>,
}

fn trigger_name(migration: &MigrationName) -> String {
    format!("changeover_watch_{migration}")
}

fn function_name(migration: &MigrationName) -> String {
    format!("changeover.{}", quote_identifier(&format!("watch_{migration}")))
}

fn function(migration: &MigrationName) -> String {
    let (function, name) = (function_name(migration), quote_literal(migration.as_str()));
    format!(
        "CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
         SET search_path = pg_catalog, pg_temp AS $watch$
         DECLARE
             writer text := current_setting('application_name');
             place text := coalesce(host(inet_client_addr()), '');
         BEGIN
             IF current_setting('changeover.session', true) = 'on' OR EXISTS (SELECT FROM changeover.journal AS j
                 WHERE j.migration = {name} AND j.step = 'committed')
                OR EXISTS (SELECT FROM changeover.stranger_note AS n WHERE n.migration = {name}
                    AND n.table_schema = TG_TABLE_SCHEMA AND n.table_name = TG_TABLE_NAME AND n.role = session_user
                    AND n.application = writer AND n.address = place AND n.at > clock_timestamp() - interval '1 s')
             THEN RETURN NULL; END IF;
             INSERT INTO changeover.stranger_note (migration, table_schema, table_name, role, application, address)
             VALUES ({name}, TG_TABLE_SCHEMA, TG_TABLE_NAME, session_user, writer, place);
             RETURN NULL;
         EXCEPTION WHEN OTHERS THEN
             -- Whoever watches refuses nobody.
             RAISE WARNING 'changeover has not noted this write: %', SQLERRM;
             RETURN NULL;
         END $watch$"
    )
}

/// The migration's tables on the target, their partitions among them, that have no trigger of ours.
const UNWATCHED: &str = "
WITH named AS (SELECT pg_catalog.to_regclass(name)::pg_catalog.oid AS oid FROM pg_catalog.unnest($1::text[]) AS name)
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p')
  AND c.oid IN (SELECT oid FROM named UNION SELECT relid FROM named, pg_catalog.pg_partition_tree(named.oid))
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = c.oid AND tgname = $2)
ORDER BY 1, 2";

/// Begins to watch those of `tables` that are not watched yet. Waits for no writer, ours included: what is busy is left
/// to the next call.
pub async fn watch(target: &Session, migration: &MigrationName, tables: &[TableName]) -> Result<Watched, Error> {
    let what = "watch for other writers on the target";
    let failed = |source| Error::Query { what, source };
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let missing = target.query(UNWATCHED, &[&names, &trigger_name(migration)]).await.map_err(failed)?;
    if missing.is_empty() {
        return Ok(Watched::default());
    }
    target.batch_execute(&function(migration)).await.map_err(failed)?;
    let mut watched = Watched::default();
    for row in missing {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; CREATE TRIGGER {} AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE \
             ON {} FOR EACH STATEMENT EXECUTE FUNCTION {}(); COMMIT",
            quote_identifier(&trigger_name(migration)),
            table.quoted(),
            function_name(migration)
        );
        match in_one(target, &sql, what).await {
            Ok(()) => watched.begun += 1,
            Err(error) if failed_with(&error, sqlstate::LOCK_NOT_AVAILABLE) => watched.busy += 1,
            Err(error) if failed_with(&error, sqlstate::INSUFFICIENT_PRIVILEGE) => watched.forbidden.push(table),
            Err(error) => return Err(error),
        }
    }
    Ok(watched)
}

/// The partitions below each of `tables` on the target, by the nearest of these that they are in.
pub async fn parts_of(target: &Session, tables: &[TableName]) -> Result<BTreeMap<TableName, TableName>, Error> {
    let sql = "SELECT place, n.nspname::text, c.relname::text
               FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS named (name, place),
                    pg_catalog.pg_partition_tree(pg_catalog.to_regclass(name)) AS t
               JOIN pg_catalog.pg_class AS c ON c.oid = t.relid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
               WHERE t.level > 0 ORDER BY t.level DESC";
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let rows = target.query(sql, &[&names]).await.map_err(|source| Error::Query { what: READING, source })?;
    let part = |row: &tokio_postgres::Row| {
        let place = usize::try_from(row.get::<_, i64>(0) - 1).expect("ordinality counts from 1");
        (TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)), tables[place].clone())
    };
    Ok(rows.iter().map(part).collect())
}

const READING: &str = "look for other writers on the target";

/// Takes what the triggers have noted since into the record.
pub async fn fold_notes(target: &Session, migration: &MigrationName) -> Result<(), Error> {
    const FOLD: &str = "
        WITH taken AS (DELETE FROM changeover.stranger_note WHERE migration = $1 RETURNING *)
        INSERT INTO changeover.stranger AS s (migration, table_schema, table_name, role, application, address, last_at)
        SELECT migration, table_schema, table_name, role, application, address, max(at) FROM taken GROUP BY 1, 2, 3, 4, 5, 6
        ON CONFLICT (migration, table_schema, table_name, role, application, address)
        DO UPDATE SET last_at = greatest(s.last_at, EXCLUDED.last_at)";
    let folded = target.execute(FOLD, &[&migration.as_str()]).await;
    folded.map(drop).map_err(|source| Error::Query { what: READING, source })
}

/// Everybody on record.
pub async fn read_strangers(target: &Session, migration: &MigrationName) -> Result<Vec<Stranger>, Error> {
    const READ: &str = "
        SELECT table_schema, table_name, role, application, address, (extract(epoch FROM last_at) * 1000000)::int8
        FROM changeover.stranger WHERE migration = $1 ORDER BY 1, 2, 3, 4, 5";
    let read = target.query(READ, &[&migration.as_str()]).await;
    let stranger = |row: &tokio_postgres::Row| Stranger {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        role: row.get(2),
        application: row.get(3),
        address: row.get(4),
        last_at_us: row.get(5),
    };
    Ok(read.map_err(|source| Error::Query { what: READING, source })?.iter().map(stranger).collect())
}

/// Ends the watch and removes what it needed. Gives way to whoever uses the tables; answers how many are left.
pub async fn unwatch(target: &Session, migration: &MigrationName) -> Result<usize, Error> {
    const WATCHED: &str = "
        SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_trigger AS t
        JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE t.tgname = $1 AND NOT t.tgisinternal";
    let failed = |source| Error::Query { what: UNWATCHING, source };
    let mut busy = 0;
    for row in target.query(WATCHED, &[&trigger_name(migration)]).await.map_err(failed)? {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        busy += usize::from(!drop_trigger(target, migration, &table).await?);
    }
    if busy == 0 {
        // Not there when the migration never came as far as streaming.
        let there = "SELECT pg_catalog.to_regnamespace('changeover') IS NOT NULL";
        if target.query_one(there, &[]).await.map_err(failed)?.get::<_, bool>(0) {
            let sql = format!("DROP FUNCTION IF EXISTS {}()", function_name(migration));
            target.batch_execute(&sql).await.map_err(failed)?;
        }
    }
    Ok(busy)
}

const UNWATCHING: &str = "end the watch for other writers on the target";

/// False when the table was never free.
async fn drop_trigger(target: &Session, migration: &MigrationName, table: &TableName) -> Result<bool, Error> {
    const ATTEMPTS_MAX: u32 = 100;
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; DROP TRIGGER IF EXISTS {} ON {}; COMMIT",
        quote_identifier(&trigger_name(migration)),
        table.quoted()
    );
    for _ in 0..ATTEMPTS_MAX {
        match in_one(target, &sql, UNWATCHING).await {
            Err(error) if failed_with(&error, sqlstate::LOCK_NOT_AVAILABLE) => {
                tokio::time::sleep(Duration::from_millis(LOCK_TIMEOUT_MS)).await;
            }
            dropped => return dropped.map(|()| true),
        }
    }
    Ok(false)
}

/// Of a transaction that [`in_one`] ran.
fn failed_with(error: &Error, code: &str) -> bool {
    matches!(error, Error::Query { source, .. } if source.code().is_some_and(|found| found.code() == code))
}
