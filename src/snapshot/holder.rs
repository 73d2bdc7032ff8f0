//! A session on the source that holds the tables' locks and the snapshot that workers read under.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Error;
use crate::model::{Lsn, SnapshotSet, TableName};
use crate::schema::lock_holders;
use crate::wire::{self, Endpoint, Session, sqlstate};

/// A request that waits for ACCESS SHARE makes nobody wait by itself, but an ALTER that queues behind it would: short,
/// and often.
const LOCK_TIMEOUT_MS: u32 = 2_000;
const LOCK_ATTEMPTS: u32 = 30;
const LOCK_PAUSE: Duration = Duration::from_millis(500);
/// While an older snapshot's locks are held, whoever waits for those (a TRUNCATE, and everybody behind it) waits for us: so
/// long, and no longer.
const NEXT_LOCK_TIMEOUT_MS: u32 = 200;
/// Tables named in one LOCK.
const LOCK_COUNT: usize = 500;

pub(super) struct Holder {
    session: Session,
    /// What `SET TRANSACTION SNAPSHOT` takes.
    pub(super) exported: String,
    pub(super) snapshot: SnapshotSet,
    /// The end of the source's log after the snapshot was taken. What the snapshot sees was committed before it.
    pub(super) until: Lsn,
    /// `pg_relation_filenode()` of every locked table. TRUNCATE and whatever rewrites a table change it, and need a lock
    /// that ours excludes.
    filenodes: BTreeMap<TableName, u32>,
    opened: Instant,
}

impl Holder {
    /// Locks come first: TRUNCATE and rewriting ALTERs are not MVCC-safe, and a table changed by one between snapshot
    /// and lock would be read as empty. LOCK takes no snapshot ("SET TRANSACTION" and "LOCK" in the documentation), so
    /// the first query after it does.
    pub(super) async fn open(source: &Endpoint, tables: &[TableName], stop: &CancellationToken) -> Result<Self, Error> {
        let session = wire::connect(source, "snapshot").await.map_err(Error::Connect)?;
        lock_with_patience(&session, tables, stop).await?;
        Self::take(session, tables).await
    }

    /// The same while an older one is held; `None` when somebody waits for a lock that excludes ours.
    pub(super) async fn open_next(source: &Endpoint, tables: &[TableName]) -> Result<Option<Self>, Error> {
        let session = wire::connect(source, "snapshot").await.map_err(Error::Connect)?;
        match lock(&session, tables, NEXT_LOCK_TIMEOUT_MS).await {
            Ok(()) => Self::take(session, tables).await.map(Some),
            Err(error) if is_timeout(&error) => Ok(None),
            Err(error) => Err(Error::query("lock the source's tables")(error)),
        }
    }

    async fn take(session: Session, tables: &[TableName]) -> Result<Self, Error> {
        let doing = || Error::query("export a snapshot of the source");
        let sql = "SELECT pg_catalog.pg_export_snapshot(), pg_catalog.pg_current_snapshot()::text";
        let opened = Instant::now();
        let row = session.query_one(sql, &[]).await.map_err(doing())?;
        let (exported, snapshot): (String, String) = (row.get(0), row.get(1));
        let sql = "SELECT pg_catalog.pg_current_wal_insert_lsn()::text";
        let until: String = session.query_one(sql, &[]).await.map_err(doing())?.get(0);
        let malformed = |found: &str| Error::MalformedSnapshot { found: found.to_owned() };
        let (snapshot, until) =
            (snapshot.parse().map_err(|_| malformed(&snapshot))?, until.parse().map_err(|_| malformed(&until))?);
        let filenodes = filenodes(&session, tables).await?;
        info!(%snapshot, %until, tables = tables.len(), "snapshot taken");
        Ok(Self { session, exported, snapshot, until, filenodes, opened })
    }

    /// Whether locks and snapshot have been held all along. A worker asks after it has read a table, whose lock its own
    /// COPY has taken: if this session is alive now, no moment was left between the two.
    pub(super) async fn confirm(&self) -> Result<(), Error> {
        self.session.simple_query("SELECT").await.map(drop).map_err(Error::SnapshotLost)
    }

    /// The file that holds `table`'s rows; `None` when the table is not among those locked.
    pub(super) fn filenode(&self, table: &TableName) -> Option<u32> {
        self.filenodes.get(table).copied()
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Lets go of the snapshot, which holds back vacuum on the source.
    pub(super) async fn release(self) -> Result<(), Error> {
        self.session.batch_execute("COMMIT").await.map_err(Error::SnapshotLost)
    }
}

/// The session has nothing to show.
impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Holder({} until {})", self.snapshot, self.until)
    }
}

async fn filenodes(session: &Session, tables: &[TableName]) -> Result<BTreeMap<TableName, u32>, Error> {
    let sql = "SELECT at, pg_catalog.pg_relation_filenode(pg_catalog.to_regclass(name))
               FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS t (name, at)";
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let rows =
        session.query(sql, &[&names]).await.map_err(Error::query("see which files the source's tables are in"))?;
    let found = rows.iter().filter_map(|row| {
        let at = usize::try_from(row.get::<_, i64>(0) - 1).expect("ordinality counts from 1");
        row.get::<_, Option<u32>>(1).map(|filenode| (tables[at].clone(), filenode))
    });
    Ok(found.collect())
}

async fn lock_with_patience(session: &Session, tables: &[TableName], stop: &CancellationToken) -> Result<(), Error> {
    let mut blocker = String::new();
    for _ in 0..LOCK_ATTEMPTS {
        match lock(session, tables, LOCK_TIMEOUT_MS).await {
            Err(error) if is_timeout(&error) => {
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

fn is_timeout(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == sqlstate::LOCK_NOT_AVAILABLE)
}

/// `ONLY`: children are tables of their own, in the list or not wanted.
async fn lock(session: &Session, tables: &[TableName], timeout_ms: u32) -> Result<(), tokio_postgres::Error> {
    session
        .batch_execute(&format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL lock_timeout = {timeout_ms}"
        ))
        .await?;
    for chunk in tables.chunks(LOCK_COUNT) {
        let names: Vec<String> = chunk.iter().map(|table| format!("ONLY {}", table.quoted())).collect();
        session.batch_execute(&format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", "))).await?;
    }
    Ok(())
}
