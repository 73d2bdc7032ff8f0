//! The session on the source that holds the tables' locks and the snapshot that every worker reads under.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Error;
use crate::model::{Lsn, SnapshotSet, TableName};
use crate::schema::lock_holders;
use crate::wire::{self, Endpoint, Session};

/// A request that waits for ACCESS SHARE makes nobody wait by itself, but an ALTER that queues behind it would: short,
/// and often.
const LOCK_TIMEOUT_MS: u32 = 2_000;
const LOCK_ATTEMPTS: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// Tables named in one LOCK.
const LOCK_COUNT: usize = 500;
/// SQLSTATE of a `lock_timeout` that ran out.
const LOCK_NOT_AVAILABLE: &str = "55P03";

pub(super) struct Holder {
    session: Session,
    /// What `SET TRANSACTION SNAPSHOT` takes.
    pub(super) exported: String,
    pub(super) snapshot: SnapshotSet,
    /// The end of the source's log after the snapshot was taken. What the snapshot sees was committed before it.
    pub(super) until: Lsn,
}

impl Holder {
    /// Locks come first: TRUNCATE and rewriting ALTERs are not MVCC-safe, and a table changed by one between snapshot
    /// and lock would be read as empty. LOCK takes no snapshot ("SET TRANSACTION" and "LOCK" in the documentation), so
    /// the first query after it does.
    pub(super) async fn open(source: &Endpoint, tables: &[TableName], stop: &CancellationToken) -> Result<Self, Error> {
        let session = wire::connect(source, "snapshot").await.map_err(Error::Connect)?;
        lock_with_patience(&session, tables, stop).await?;
        let doing = || Error::query("export a snapshot of the source");
        let sql = "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()::text";
        let row = session.query_one(sql, &[]).await.map_err(doing())?;
        let (exported, snapshot): (String, String) = (row.get(0), row.get(1));
        let sql = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
        let until: String = session.query_one(sql, &[]).await.map_err(doing())?.get(0);
        let malformed = |found: &str| Error::MalformedSnapshot { found: found.to_owned() };
        let (snapshot, until) =
            (snapshot.parse().map_err(|_| malformed(&snapshot))?, until.parse().map_err(|_| malformed(&until))?);
        info!(%snapshot, %until, tables = tables.len(), "snapshot taken");
        Ok(Self { session, exported, snapshot, until })
    }

    /// Whether locks and snapshot have been held all along. A worker asks after it has read a table, whose lock its own
    /// COPY has taken: if this session is alive now, no moment was left between the two.
    pub(super) async fn confirm(&self) -> Result<(), Error> {
        self.session.simple_query("SELECT").await.map(drop).map_err(Error::SnapshotLost)
    }

    /// Lets go of the snapshot, which holds back vacuum on the source.
    pub(super) async fn release(self) -> Result<(), Error> {
        self.session.batch_execute("COMMIT").await.map_err(Error::SnapshotLost)
    }
}

async fn lock_with_patience(session: &Session, tables: &[TableName], stop: &CancellationToken) -> Result<(), Error> {
    let mut blocker = String::new();
    for _ in 0..LOCK_ATTEMPTS {
        match lock(session, tables).await {
            Err(error) if error.code().is_some_and(|code| code.code() == LOCK_NOT_AVAILABLE) => {
                session.batch_execute("ROLLBACK").await.map_err(Error::query("lock the source's tables"))?;
                blocker = lock_holders(session, tables).await;
                warn!(blocker, "waiting for the source's tables");
            }
            outcome => return outcome.map_err(Error::query("lock the source's tables")),
        }
        tokio::select! {
            () = stop.cancelled() => return Err(Error::Stopped),
            () = tokio::time::sleep(LOCK_PAUSE) => {}
        }
    }
    Err(Error::Locked { blocker })
}

/// `ONLY`: children are tables of their own, in the list or not wanted.
async fn lock(session: &Session, tables: &[TableName]) -> Result<(), tokio_postgres::Error> {
    session
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"
        ))
        .await?;
    for chunk in tables.chunks(LOCK_COUNT) {
        let names: Vec<String> = chunk.iter().map(|table| format!("ONLY {}", table.quoted())).collect();
        session.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))).await?;
    }
    Ok(())
}
