//! One pair of snapshots that show both sides at one position.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::align::{AlignError, Aligner};
use super::error::{Error, Side};
use crate::model::{Lsn, Misaligned, SnapshotSet, marker_prefix};
use crate::wire::{self, Endpoint, Session};

/// A snapshot that cannot be reached is rare and says nothing about the next one.
const ATTEMPTS_MAX: u32 = 30;
const WAIT_FIRST: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_secs(1);

const EXPORT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
                      SELECT pg_current_snapshot()::text, pg_export_snapshot()";

/// The sessions a pass needs besides its workers. The exporters sit in their transaction while snapshots are in use;
/// the others are never in one.
pub(super) struct Control {
    pub(super) sessions: [Session; 2],
    pub(super) exporters: [Session; 2],
}

/// Both sides at one position. The snapshots live until [`Control::give_up_snapshots`].
#[derive(Clone, Debug)]
pub(super) struct Aligned {
    /// Snapshot identifiers, as `SET TRANSACTION SNAPSHOT` takes them.
    pub(super) snapshots: [String; 2],
    pub(super) position: Lsn,
    /// How long the applier stood still, failed attempts included.
    pub(super) held: Duration,
}

impl Control {
    pub(super) async fn open(source: &Endpoint, target: &Endpoint) -> Result<Self, Error> {
        let (source, target) = tokio::try_join!(open_side(source, Side::Source), open_side(target, Side::Target))?;
        let ([source, source_exporter], [target, target_exporter]) = (source, target);
        let control = Self { sessions: [source, target], exporters: [source_exporter, target_exporter] };
        control.compare_hashes().await?;
        Ok(control)
    }

    async fn compare_hashes(&self) -> Result<(), Error> {
        let probe = |side: Side| async move {
            let row = self.sessions[side.index()].query_one(super::sql::HASH_PROBE, &[]).await;
            let text: Result<String, _> = row.and_then(|row| row.try_get(0));
            text.map_err(|source| Error::Query { side, what: "try the hash function", source })
        };
        let (source, target) = tokio::try_join!(probe(Side::Source), probe(Side::Target))?;
        if source == target { Ok(()) } else { Err(Error::ForeignHash) }
    }

    /// Takes an aligned pair. `while_held` runs at the very position, while the applier stands still.
    pub(super) async fn align(&self, aligner: &dyn Aligner, mut while_held: impl FnMut()) -> Result<Aligned, Error> {
        let mut held = Duration::ZERO;
        let mut wait = WAIT_FIRST;
        let mut last = Misaligned::Passed;
        for attempt in 1..=ATTEMPTS_MAX {
            let since = Instant::now();
            aligner.hold().await?;
            let outcome = self.attempt(aligner, &mut while_held).await;
            let released = aligner.release().await;
            held += since.elapsed();
            match outcome {
                Ok((snapshots, position)) => {
                    released?;
                    return Ok(Aligned { snapshots, position, held });
                }
                Err(Error::Align(AlignError::Misaligned(why))) => {
                    debug!(attempt, %why, "this snapshot cannot be reached, taking another");
                    last = why;
                }
                Err(error) => {
                    self.give_up_snapshots().await;
                    return Err(error);
                }
            }
            self.give_up_snapshots().await;
            sleep(wait).await;
            wait = (wait * 2).min(WAIT_MAX);
        }
        Err(Error::NeverAligned { attempts: ATTEMPTS_MAX, last })
    }

    async fn attempt(&self, aligner: &dyn Aligner, while_held: &mut impl FnMut()) -> Result<([String; 2], Lsn), Error> {
        let (seen, source) = self.export(Side::Source).await?;
        let seen: SnapshotSet =
            seen.parse().map_err(|_| Error::Answer { side: Side::Source, what: "pg_current_snapshot()" })?;
        let until = self.mark().await?;
        let reached = aligner.advance_to(seen, until).await?;
        while_held();
        let (_, target) = self.export(Side::Target).await?;
        Ok(([source, target], reached.position))
    }

    /// `pg_current_snapshot()` and the exported identifier of one and the same snapshot.
    async fn export(&self, side: Side) -> Result<(String, String), Error> {
        let what = "export a snapshot";
        let failed = |source| Error::Query { side, what, source };
        let messages = self.exporters[side.index()].simple_query(EXPORT).await.map_err(failed)?;
        let row = wire_rows(&messages).next().ok_or(Error::Answer { side, what })?;
        let text = |column: usize| row.try_get(column).ok().flatten().map(str::to_owned);
        text(0).zip(text(1)).ok_or(Error::Answer { side, what })
    }

    /// Writes a marker into the source's log, which also wakes a walsender that has nothing else to send. From a
    /// session of its own, as the exporter may not write.
    async fn mark(&self) -> Result<Lsn, Error> {
        let (side, what) = (Side::Source, "write a marker into the log");
        let failed = |source| Error::Query { side, what, source };
        let sql = "SELECT pg_logical_emit_message(true, $1, 'align')::text";
        let row = self.sessions[side.index()].query_one(sql, &[&marker_prefix()]).await.map_err(failed)?;
        let text: String = row.try_get(0).map_err(failed)?;
        text.parse().map_err(|_| Error::Answer { side, what })
    }

    /// Ends both transactions. An open snapshot keeps the server from clearing dead rows, so this is not left to the
    /// end of the session; if it fails, the session is gone and the snapshot with it.
    pub(super) async fn give_up_snapshots(&self) {
        let end = |side: Side| self.exporters[side.index()].batch_execute("ROLLBACK");
        let (source, target) = tokio::join!(end(Side::Source), end(Side::Target));
        for error in [source.err(), target.err()].into_iter().flatten() {
            debug!(error = crate::telemetry::chain(&error), "the snapshot went with its session");
        }
    }
}

async fn open_side(endpoint: &Endpoint, side: Side) -> Result<[Session; 2], Error> {
    let (session, exporter) = tokio::try_join!(open(endpoint, side), open(endpoint, side))?;
    Ok([session, exporter])
}

/// A session fit for comparing.
pub(super) async fn open(endpoint: &Endpoint, side: Side) -> Result<Session, Error> {
    let session = wire::connect(endpoint, "verify").await.map_err(|source| Error::Connect { side, source })?;
    let what = "set up a session for verification";
    session.batch_execute(super::sql::SESSION_SETUP).await.map_err(|source| Error::Query { side, what, source })?;
    Ok(session)
}

/// The rows among the answers to a simple query.
pub(super) fn wire_rows(
    messages: &[tokio_postgres::SimpleQueryMessage],
) -> impl Iterator<Item = &tokio_postgres::SimpleQueryRow> {
    messages
        .iter()
        .filter_map(|message| if let tokio_postgres::SimpleQueryMessage::Row(row) = message { Some(row) } else { None })
}
