//! The schema `changeover` on the target: made from `schemas/target.sql`, gone with its last migration.

use super::Error;
use crate::model::MigrationName;
use crate::wire::Session;

const TARGET_SQL: &str = include_str!("../../schemas/target.sql");

/// Of `pg_advisory_xact_lock`: two daemons that install at once would both find nothing and collide. "chngover" in
/// ASCII.
const INSTALL_LOCK: i64 = 0x6368_6e67_6f76_6572;

/// Makes the schema `changeover` and its tables where they are missing.
pub async fn install_state(target: &Session) -> Result<(), Error> {
    let sql = format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({INSTALL_LOCK}); {TARGET_SQL}; COMMIT;");
    in_one(target, &sql, "install the schema changeover").await
}

/// Removes what is kept for one migration, and the schema when no other migration is left in it. Without effect where
/// there is none.
pub async fn drop_state(target: &Session, migration: &MigrationName) -> Result<(), Error> {
    let doing = "remove the state of the migration";
    let present = target.query_one("SELECT pg_catalog.to_regclass('changeover.migration') IS NOT NULL", &[]).await;
    if !present.map_err(Error::query(doing))?.get::<_, bool>(0) {
        return Ok(());
    }
    // A migration's name needs no quoting: `[a-z0-9_]`.
    let sql = format!(
        "BEGIN;
         SELECT pg_catalog.pg_advisory_xact_lock({INSTALL_LOCK});
         DELETE FROM changeover.migration WHERE name = '{migration}';
         DELETE FROM changeover.position WHERE migration = '{migration}';
         DELETE FROM changeover.unit WHERE migration = '{migration}';
         DELETE FROM changeover.split WHERE migration = '{migration}';
         DELETE FROM changeover.member WHERE migration = '{migration}';
         DELETE FROM changeover.gathered WHERE migration = '{migration}';
         DELETE FROM changeover.step WHERE migration = '{migration}';
         DELETE FROM changeover.dead_letter WHERE migration = '{migration}';
         DELETE FROM changeover.stranger WHERE migration = '{migration}';
         DELETE FROM changeover.stranger_note WHERE migration = '{migration}';
         DELETE FROM changeover.journal WHERE migration = '{migration}';
         DO $$ BEGIN
             IF NOT EXISTS (SELECT FROM changeover.migration) THEN DROP SCHEMA changeover CASCADE; END IF;
         END $$;
         COMMIT;"
    );
    in_one(target, &sql, doing).await
}

/// Runs a transaction written as one text; a failed one is rolled back, so that the session stays usable.
async fn in_one(session: &Session, sql: &str, doing: &str) -> Result<(), Error> {
    let outcome = session.batch_execute(sql).await;
    if outcome.is_err() {
        // The first error is the one to tell; a connection that is gone has rolled back by itself.
        drop(session.batch_execute("ROLLBACK").await);
    }
    outcome.map_err(Error::query(doing))
}
