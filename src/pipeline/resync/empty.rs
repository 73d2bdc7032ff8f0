//! Emptying a table on the target, although others refer to it.

use crate::apply::{MemberStep, entering};
use crate::model::{MigrationName, TableName, quote_literal};
use crate::pipeline::error::Error;
use crate::wire::{Session, sqlstate};

/// Whoever queues behind us, the applier of other tables included, waits for as long as we do.
const LOCK_TIMEOUT_MS: u32 = 2_000;

/// How the target holds a table.
pub(super) struct Place {
    pub(super) table: TableName,
    partitioned: bool,
    /// A foreign key of another table refers to it.
    referenced: bool,
    /// Foreign keys on either end of it, or triggers: what an ordinary session would be checked by, or fire.
    guarded: bool,
}

const PLACES: &str = "
SELECT n.nspname::text, c.relname::text, c.relkind = 'p',
       EXISTS (SELECT FROM pg_catalog.pg_constraint
               WHERE contype = 'f' AND confrelid = c.oid AND conrelid <> c.oid),
       EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE contype = 'f' AND c.oid IN (conrelid, confrelid))
           OR EXISTS (SELECT FROM pg_catalog.pg_trigger
                      WHERE tgrelid = c.oid AND NOT tgisinternal AND tgenabled IN ('O', 'A')
                        AND NOT pg_catalog.starts_with(tgname::text, 'changeover_watch_'))
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.oid = ANY (
    SELECT pg_catalog.to_regclass(name)::oid FROM pg_catalog.unnest($1::text[]) AS name)";

/// Where `tables` are on the target; those that have no table of their own there are missing.
pub(super) async fn places(target: &Session, tables: &[TableName]) -> Result<Vec<Place>, Error> {
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let failed = |source| Error::State { what: "look for the tables on the target", source };
    let rows = target.query(PLACES, &[&names]).await.map_err(failed)?;
    let place = |row: &tokio_postgres::Row| Place {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        partitioned: row.get(2),
        referenced: row.get(3),
        guarded: row.get(4),
    };
    Ok(rows.iter().map(place).collect())
}

/// Whether the session may act as a replica does; it stays one.
pub(super) async fn acts_as_replica(target: &Session) -> Result<bool, Error> {
    match target.batch_execute("SET session_replication_role = replica").await {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == sqlstate::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(source) => Err(Error::State { what: "see what the target's role may do", source }),
    }
}

impl Place {
    /// Whether an ordinary session would be refused, or change other tables with it.
    pub(super) fn needs_replica(&self) -> bool {
        self.guarded
    }

    /// Removes its rows and what is recorded of their copy, and records that it is ready.
    pub(super) async fn empty(&self, target: &Session, migration: &MigrationName, epoch: i64) -> Result<(), Error> {
        let name = self.table.quoted();
        let only = if self.partitioned { "" } else { "ONLY " };
        let emptying = if self.referenced {
            // TRUNCATE refuses a table that a foreign key refers to.
            format!("LOCK TABLE {only}{name} IN SHARE ROW EXCLUSIVE MODE; DELETE FROM {only}{name}")
        } else {
            format!("TRUNCATE {only}{name}")
        };
        let of_table = format!(
            "migration = '{migration}' AND table_schema = {} AND table_name = {}",
            quote_literal(&self.table.schema),
            quote_literal(&self.table.name)
        );
        let ready = entering(migration, epoch, std::slice::from_ref(&self.table), MemberStep::Ready);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; {emptying}; \
             DELETE FROM changeover.unit WHERE {of_table}; DELETE FROM changeover.split WHERE {of_table}; \
             DELETE FROM changeover.dead_letter WHERE {of_table}; {ready}; COMMIT"
        );
        let outcome = target.batch_execute(&sql).await;
        if outcome.is_err() {
            // The first error is the one to tell; a connection that is gone has rolled back by itself.
            drop(target.batch_execute("ROLLBACK").await);
        }
        outcome.map_err(|source| Error::State { what: "empty a table that is copied again", source })
    }
}
