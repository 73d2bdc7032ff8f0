//! The target's own position in the source's stream: one row a lane, written in the transaction that holds the rows.

use crate::model::{Lsn, MigrationName};
use crate::wire::Session;

use super::error::Error;
use super::lanes::Lane;

/// Moves the position and fails, by a division by zero, when the row is no longer ours: it stands first in each group,
/// so that a daemon that was taken over, or that does not know of a new division of the tables, fails before it writes
/// a row; and it holds the row's lock until the commit.
pub(super) const MOVE: &str = "WITH moved AS (UPDATE changeover.position SET commit_end = $1, committed_at = coalesce($2, committed_at) \
     WHERE migration = $3 AND lane = $4 AND epoch = $5 AND generation = $6 RETURNING 1) \
     SELECT 1 / pg_catalog.count(*) FROM moved";

/// Where a lane stands, and what makes it ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) position: Option<Lsn>,
    /// Of the division of the tables among the lanes.
    pub(super) generation: i64,
}

/// The position of the target, `None` before the first adoption or when nothing has been applied yet.
pub async fn read_position(session: &Session, migration: &MigrationName) -> Result<Option<Lsn>, Error> {
    read_lane_position(session, migration, Lane::Main).await
}

/// The position of one lane; `None` when there is no such lane, or nothing has been applied yet.
pub async fn read_lane_position(
    session: &Session,
    migration: &MigrationName,
    lane: Lane,
) -> Result<Option<Lsn>, Error> {
    let sql = "SELECT commit_end::text FROM changeover.position WHERE migration = $1 AND lane = $2";
    let row = session.query_opt(sql, &[&migration.as_str(), &lane.number()]).await;
    let row = row.map_err(|source| Error::Query { what: "read the position", source })?;
    Ok(row.and_then(|row| lsn_of(row.get(0))))
}

/// Makes the position of the main lane ours under `epoch` and returns where it stands. A row that is not there yet begins
/// at `start`. Fails with [`Error::Superseded`] when a newer daemon holds it.
pub async fn adopt_position(
    session: &Session,
    migration: &MigrationName,
    epoch: i64,
    start: Option<Lsn>,
) -> Result<Option<Lsn>, Error> {
    Ok(adopt(session, migration, Lane::Main, epoch, start).await?.position)
}

/// The same for any lane. The row of one that is set apart is not made here: without it there is no such lane.
pub(super) async fn adopt(
    session: &Session,
    migration: &MigrationName,
    lane: Lane,
    epoch: i64,
    start: Option<Lsn>,
) -> Result<Held, Error> {
    // What an applier before us has sent and not heard of must not commit any more once we know where we stand: its
    // groups, too, name the generation.
    let insert = "INSERT INTO changeover.position AS position (migration, lane, epoch, commit_end) \
                  VALUES ($1, $4, $2, $3::text::pg_lsn) \
                  ON CONFLICT (migration, lane) DO UPDATE \
                  SET epoch = EXCLUDED.epoch, generation = position.generation + 1 \
                  WHERE position.epoch <= EXCLUDED.epoch RETURNING commit_end::text, generation";
    let update = "UPDATE changeover.position SET epoch = $2, commit_end = greatest(commit_end, $3::text::pg_lsn) \
                  WHERE migration = $1 AND lane = $4 AND epoch <= $2 RETURNING commit_end::text, generation";
    let sql = match lane {
        Lane::Main => insert,
        Lane::Apart => update,
    };
    let start = start.map_or_else(|| "0/0".to_owned(), |start| start.to_string());
    let row = session.query_opt(sql, &[&migration.as_str(), &epoch, &start, &lane.number()]).await;
    match row.map_err(|source| Error::Query { what: "adopt the position", source })? {
        Some(row) => Ok(Held { position: lsn_of(row.get(0)), generation: row.get(1) }),
        None => Err(Error::Superseded { migration: migration.to_string(), epoch }),
    }
}

/// `0/0` stands for "nothing applied yet": the column is NOT NULL.
pub(super) fn lsn_of(text: &str) -> Option<Lsn> {
    text.parse().ok()
}
