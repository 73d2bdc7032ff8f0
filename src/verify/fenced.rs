//! The last look, inside the cutover's pause: the source is fenced, the target has drained, nothing moves, so no
//! alignment is needed. Few round trips, all prepared beforehand.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_postgres::Statement;

use super::digest::Digest;
use super::dirty::{Check, Dirty, DirtyKeys};
use super::error::{Error, Side};
use super::incremental::{KEYS_PER_STATEMENT, digest_keys, prepare};
use super::report::{Report, TableVerdict};
use super::shape;
use super::snapshots::open;
use super::sql::{self, From};
use super::table::Table;
use super::worker::digest_by;
use crate::model::Lsn;
use crate::wire::{Endpoint, Session};

/// A statement planned once and for all: planning would cost more than running it, and a plan for a handful of keys is
/// right for any number of them (a loop over the key's index).
const SETUP: &str = "SET plan_cache_mode = force_generic_plan";

/// Open sessions with everything prepared.
pub struct Fenced {
    tables: Arc<[Table]>,
    sides: [Arc<Prepared>; 2],
}

struct Prepared {
    side: Side,
    session: Session,
    from: Vec<From>,
    /// `None` for tables without a key: those are compared in full if anything in them changed.
    statements: Vec<Option<Statement>>,
}

impl Fenced {
    /// Connects, prepares, and runs every statement once so that both servers have planned it. Before the pause.
    pub async fn prepare(source: &Endpoint, target: &Endpoint, tables: &Arc<[Table]>) -> Result<Self, Error> {
        let (source, target) =
            tokio::try_join!(Prepared::new(source, Side::Source, tables), Prepared::new(target, Side::Target, tables))?;
        Ok(Self { tables: Arc::clone(tables), sides: [Arc::new(source), Arc::new(target)] })
    }

    /// What one round trip on these sessions takes, for the forecast.
    pub async fn round_trip(&self) -> Result<Duration, Error> {
        let started = Instant::now();
        let ask = |prepared: Arc<Prepared>| async move {
            let failed = |source| Error::Query { side: prepared.side, what: "measure a round trip", source };
            prepared.session.simple_query("SELECT 1").await.map(drop).map_err(failed)
        };
        tokio::try_join!(ask(Arc::clone(&self.sides[0])), ask(Arc::clone(&self.sides[1])))?;
        Ok(started.elapsed())
    }

    /// Compares what changed since the last aligned pass. `position` is the fence's: nothing may be written to either
    /// side any more, and the applier must have settled past it.
    pub async fn judge(&self, dirty: &DirtyKeys, position: Lsn) -> Result<Report, Error> {
        let started = Instant::now();
        let taken = dirty.take().map_err(|table| Error::NotVerified { table })?;
        let digests = self.digests(&taken).await?;
        let mut verdicts = Vec::with_capacity(taken.len());
        for ((check, verdict), digests) in taken.iter().zip(&digests) {
            let verdict = verdict.clone().after(check, digests, position);
            if verdict.equal {
                dirty.confirm(check.table, position);
            } else {
                dirty.refute(check.table);
            }
            verdicts.push(verdict);
        }
        let compared = digests.iter().map(|[source, _]| source.row_count).sum();
        Ok(Report::new(position, verdicts, compared, Duration::ZERO, started.elapsed()))
    }

    /// All statements of both sides are sent at once and answered in one round trip each side.
    async fn digests(&self, taken: &[(Check, TableVerdict)]) -> Result<Vec<[Digest; 2]>, Error> {
        let mut running = JoinSet::new();
        let changed = taken.iter().enumerate().filter(|(_, (check, _))| !check.is_empty());
        for (index, (check, _)) in changed {
            for prepared in &self.sides {
                let (prepared, tables, check) = (Arc::clone(prepared), Arc::clone(&self.tables), check.clone());
                running.spawn(async move {
                    let digest = prepared.digest(&tables[check.table], &check).await;
                    digest.map(|digest| (index, prepared.side, digest))
                });
            }
        }
        let mut digests = vec![[Digest::default(); 2]; taken.len()];
        while let Some(finished) = running.join_next().await {
            let (index, side, digest) = finished.map_err(Error::Worker)??;
            digests[index][side.index()] = digest;
        }
        Ok(digests)
    }
}

impl Prepared {
    async fn new(endpoint: &Endpoint, side: Side, tables: &[Table]) -> Result<Self, Error> {
        let session = open(endpoint, side).await?;
        let failed = |source| Error::Query { side, what: "set up a session for verification", source };
        session.batch_execute(SETUP).await.map_err(failed)?;
        let listed: Vec<&Table> = tables.iter().collect();
        let shapes = shape::read(&session, side, &listed).await?;
        let from: Vec<From> = shapes.into_iter().map(|shape| shape.from).collect();
        let mut statements = Vec::with_capacity(tables.len());
        for (table, from) in tables.iter().zip(&from) {
            if table.key.is_empty() {
                statements.push(None);
                continue;
            }
            let statement = prepare(&session, &session, side, table, from).await?;
            digest_keys(&session, side, table, &statement, &[]).await?;
            statements.push(Some(statement));
        }
        Ok(Self { side, session, from, statements })
    }

    async fn digest(&self, table: &Table, check: &Check) -> Result<Digest, Error> {
        match (&*check.what, &self.statements[check.table]) {
            (Dirty::Whole, _) | (Dirty::Keys(_), None) => {
                let query = sql::digest(table, &self.from[check.table], None);
                digest_by(&self.session, self.side, table, &query).await
            }
            (Dirty::Keys(keys), Some(statement)) => {
                let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
                let mut digest = Digest::default();
                for chunk in keys.chunks(KEYS_PER_STATEMENT) {
                    digest += digest_keys(&self.session, self.side, table, statement, chunk).await?;
                }
                Ok(digest)
            }
        }
    }
}
