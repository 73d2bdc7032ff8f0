//! The durable record. The row `committed` on green is the commit point: it alone says who owns the writes.
//!
//! A commit whose answer was lost may still be on its way to the server, and a daemon that was thought dead may still
//! send one. So nobody turns back on having seen no such row: the row `aborted` is written first, under the same lock,
//! and a commit that comes after it is refused.

use tokio_postgres::SimpleQueryMessage;

use super::error::{BLUE, Error, GREEN, query};
use crate::model::{Lsn, MigrationName, quote_literal};
use crate::wire::Session;

/// The commit point, as the statement that answers with a row iff it was passed. One round trip.
pub(super) fn commit_statement(migration: &MigrationName, attempt: i32, barrier: Lsn) -> String {
    let name = quote_literal(migration.as_str());
    let detail = quote_literal(&serde_json::json!({ "fence": barrier.to_string() }).to_string());
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; {lock}; \
         INSERT INTO changeover.journal (migration, attempt, step, detail) \
         SELECT {name}, {attempt}, 'committed', {detail}::jsonb WHERE NOT EXISTS \
           (SELECT FROM changeover.journal WHERE migration = {name} AND attempt >= {attempt} AND step = 'aborted') \
         RETURNING 'committed'; COMMIT",
        lock = lock(migration),
    )
}

/// Makes sure of the outcome of every attempt up to `attempt`: either one is committed, or none ever will be. Answers
/// with the committed attempt.
pub(super) async fn resolve(green: &Session, migration: &MigrationName, attempt: i32) -> Result<Option<i32>, Error> {
    let name = quote_literal(migration.as_str());
    let statement = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = on; {lock}; \
         INSERT INTO changeover.journal (migration, attempt, step) SELECT {name}, {attempt}, 'aborted' WHERE NOT EXISTS \
           (SELECT FROM changeover.journal WHERE migration = {name} \
              AND (step = 'committed' OR (step = 'aborted' AND attempt >= {attempt}))); \
         SELECT max(attempt)::text FROM changeover.journal WHERE migration = {name} AND step = 'committed'; COMMIT",
        lock = lock(migration),
    );
    let what = "read the cutover's outcome";
    let outcome = green.simple_query(&statement).await;
    if outcome.is_err() {
        end(green).await;
    }
    let messages = outcome.map_err(query(GREEN, what))?;
    // The lock's answer is a row too, and stands first.
    let row = rows(&messages).nth(1).ok_or(Error::Answer { side: GREEN, what })?;
    let text = row.try_get(0).map_err(query(GREEN, what))?;
    text.map(|text| text.parse().map_err(|_| Error::Answer { side: GREEN, what })).transpose()
}

/// Whether the statement of [`commit_statement`] passed the commit point.
pub(super) fn committed(messages: &[SimpleQueryMessage]) -> bool {
    rows(messages).any(|row| row.try_get(0).ok().flatten() == Some("committed"))
}

/// Opens a new attempt and answers with its number.
pub(super) async fn begin(green: &Session, migration: &MigrationName) -> Result<i32, Error> {
    let what = "write the cutover's journal";
    let statement = "INSERT INTO changeover.journal (migration, attempt, step) \
         SELECT $1, coalesce(max(attempt), 0) + 1, 'begun' FROM changeover.journal WHERE migration = $1 RETURNING attempt";
    let row = green.query_one(statement, &[&migration.as_str()]).await.map_err(query(GREEN, what))?;
    row.try_get(0).map_err(query(GREEN, what))
}

/// The newest attempt on record, 0 if there is none (or no journal yet).
pub(super) async fn newest(green: &Session, migration: &MigrationName) -> Result<i32, Error> {
    let what = "read the cutover's journal";
    let there = "SELECT to_regclass('changeover.journal') IS NOT NULL";
    let there: bool = green.query_one(there, &[]).await.and_then(|row| row.try_get(0)).map_err(query(GREEN, what))?;
    if !there {
        return Ok(0);
    }
    let statement = "SELECT coalesce(max(attempt), 0) FROM changeover.journal WHERE migration = $1";
    let row = green.query_one(statement, &[&migration.as_str()]).await.map_err(query(GREEN, what))?;
    row.try_get(0).map_err(query(GREEN, what))
}

/// Whether the journal has a row for `step` of `attempt`.
pub(super) async fn has(green: &Session, migration: &MigrationName, attempt: i32, step: &str) -> Result<bool, Error> {
    let what = "read the cutover's journal";
    let statement =
        "SELECT EXISTS (SELECT FROM changeover.journal WHERE migration = $1 AND attempt = $2 AND step = $3)";
    let row = green.query_one(statement, &[&migration.as_str(), &attempt, &step]).await.map_err(query(GREEN, what))?;
    row.try_get(0).map_err(query(GREEN, what))
}

/// A step that decides nothing.
pub(super) async fn note(green: &Session, migration: &MigrationName, attempt: i32, step: &str) -> Result<(), Error> {
    let statement = "INSERT INTO changeover.journal (migration, attempt, step) VALUES ($1, $2, $3)";
    let noted = green.execute(statement, &[&migration.as_str(), &attempt, &step]).await;
    noted.map(drop).map_err(query(GREEN, "write the cutover's journal"))
}

/// Removes the migration's record from blue, and with the last one the table and the schema.
pub async fn remove_journal(blue: &Session, migration: &MigrationName) -> Result<(), Error> {
    let what = "remove the cutover's journal";
    let there = "SELECT to_regclass('changeover.journal') IS NOT NULL";
    let there: bool = blue.query_one(there, &[]).await.and_then(|row| row.try_get(0)).map_err(query(BLUE, what))?;
    if !there {
        return Ok(());
    }
    let delete = "DELETE FROM changeover.journal WHERE migration = $1";
    blue.execute(delete, &[&migration.as_str()]).await.map_err(query(BLUE, what))?;
    blue.batch_execute(DROP_WHAT_IS_EMPTY).await.map_err(query(BLUE, what))
}

/// Other migrations may share the schema.
const DROP_WHAT_IS_EMPTY: &str = "DO $$ BEGIN \
       IF NOT EXISTS (SELECT FROM changeover.journal) \
          AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'changeover'::regnamespace) THEN DROP TABLE changeover.journal; END IF; \
       IF NOT EXISTS (SELECT FROM pg_class WHERE relnamespace = 'changeover'::regnamespace) \
          AND NOT EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'changeover'::regnamespace) \
       THEN DROP SCHEMA changeover; END IF; \
     END $$";

/// One decision at a time.
fn lock(migration: &MigrationName) -> String {
    let key = quote_literal(&format!("changeover cutover {migration}"));
    format!("SELECT 'locked' FROM pg_advisory_xact_lock(hashtextextended({key}, 0))")
}

/// Ends a transaction that an error left open.
async fn end(session: &Session) {
    if let Err(error) = session.batch_execute("ROLLBACK").await {
        tracing::debug!(error = crate::telemetry::chain(&error), "the transaction ended with its session");
    }
}

pub(super) fn rows(messages: &[SimpleQueryMessage]) -> impl Iterator<Item = &tokio_postgres::SimpleQueryRow> {
    messages.iter().filter_map(|message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
}
