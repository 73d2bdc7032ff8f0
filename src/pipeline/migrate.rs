//! Carries a migration through its phases: schema, rows, indexes, catching up, constraints.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use super::board::Board;
use super::cutover::recover;
use super::error::Error;
use super::flow::Flow;
use super::machine::Input;
use super::prepare::{Prepared, copies_rows};
use super::sinks::TargetSink;
use super::status::Phase;
use super::supervise::Supervisor;
use crate::config::{Config, SnapshotMode};
use crate::cutover::Owner;
use crate::model::{SinkName, TableHandover};
use crate::schema::{self, CopyOptions, Rows};
use crate::snapshot::{self, Throttle};
use crate::spool::Cursor;
use crate::wire;

/// Often enough for a rate over half a minute.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

pub(super) struct Migrate {
    pub(super) config: Arc<Config>,
    pub(super) board: Board,
    pub(super) flow: Arc<Flow>,
    pub(super) supervisor: Supervisor,
}

impl Migrate {
    /// Runs until the daemon stops: the target's sink is the last thing it starts, and outlives the phases.
    pub(super) async fn run(self, prepared: Prepared, target: TargetSink, cursor: Cursor) {
        if self.bring_rows(&prepared).await.is_none() || self.settle_ownership(&prepared).await.is_none() {
            return;
        }
        // Asked for while the copy came to its end.
        self.board.throttle().unpaused(&self.supervisor.stop).await;
        let loading = || self.handovers();
        let Some(handovers) = self.supervisor.keep("hand-over", loading).await else { return };
        let newest = handovers.iter().map(|handover| handover.until).max().unwrap_or(prepared.consistent_point);
        let mut target = target;
        target.options.handovers = handovers;
        let finishing = async {
            if self.board.phase() == Phase::CatchingUp {
                info!(until = %newest, "catching up with the copy's newest snapshot");
                tokio::select! {
                    () = self.supervisor.stop.cancelled() => return,
                    () = self.flow.settled_past(SinkName::Target, newest) => {}
                }
                self.finish(&prepared).await;
            }
        };
        tokio::join!(target.run(cursor), finishing);
    }

    /// A cutover may have been interrupted by the crash before this start. `None` when the daemon stops.
    async fn settle_ownership(&self, prepared: &Prepared) -> Option<()> {
        let owner = self.supervisor.keep("cutover", || recover(&self.config)).await?;
        match (owner, self.board.phase()) {
            (Owner::Green, Phase::Streaming) => self.advance(prepared, Input::CutoverCommitted).await,
            (Owner::Green, phase) => {
                assert_eq!(phase, Phase::CutOver, "green owns the writes of a migration that never streamed");
                Some(())
            }
            (Owner::Blue, _) => Some(()),
        }
    }

    /// Everything before the stream may be applied. `None` when the daemon stops.
    async fn bring_rows(&self, prepared: &Prepared) -> Option<()> {
        if self.board.phase() == Phase::Preparing {
            self.advance(prepared, Input::SlotReady { copies_rows: copies_rows(&self.config) }).await?;
        }
        if self.board.phase() == Phase::Copying {
            self.supervisor.keep("copy", || self.copy_schema(prepared)).await?;
            let rows = Rows::Arriving(self.board.copying().complete());
            let (copying, building) = (self.bring_all_rows(prepared), self.build_indexes(prepared, rows));
            let (copied, built) = tokio::join!(Box::pin(copying), Box::pin(building));
            copied.and(built)?;
            self.advance(prepared, Input::IndexesBuilt).await?;
        }
        if self.board.phase() == Phase::Indexing {
            self.build_indexes(prepared, Rows::Complete).await?;
            self.advance(prepared, Input::IndexesBuilt).await?;
        }
        Some(())
    }

    /// The indexes of tables whose rows are there are built meanwhile; the phase tells what is left without them.
    async fn bring_all_rows(&self, prepared: &Prepared) -> Option<()> {
        tokio::select! {
            copied = self.supervisor.keep("copy", || self.copy(prepared)) => copied?,
            never = self.sample() => match never {},
        }
        self.advance(prepared, Input::RowsCopied).await
    }

    /// What rates and estimates are taken from. Whoever asks for the status asks when they like.
    async fn sample(&self) -> std::convert::Infallible {
        let progress = self.board.copying();
        loop {
            progress.sample(Instant::now());
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    }

    async fn copy_schema(&self, prepared: &Prepared) -> Result<(), Error> {
        if self.config.snapshot.mode == SnapshotMode::Full {
            schema::copy_pre_data(&self.schema_options(prepared).await?, &prepared.catalog).await?;
        }
        Ok(())
    }

    async fn copy(&self, prepared: &Prepared) -> Result<(), Error> {
        let throttle = self.board.throttle();
        let options = snapshot_options(&self.config, Arc::clone(&throttle));
        let stop = self.supervisor.stop.child_token();
        let copying = snapshot::run(options, &prepared.catalog, self.board.copying(), stop.clone());
        throttle.beside(Box::pin(copying)).await?;
        // Nothing that comes after the copy can be paused before the stream is applied.
        throttle.unpaused(&stop).await;
        if self.config.snapshot.mode == SnapshotMode::Full && prepared.catalog.large_object_count > 0 {
            let stop = self.supervisor.stop.child_token();
            let count = schema::copy_large_objects(&self.schema_options(prepared).await?, stop).await?;
            info!(count, "large objects copied");
        }
        Ok(())
    }

    /// Of each table as soon as `rows` says that it may. `None` when the daemon stops.
    async fn build_indexes(&self, prepared: &Prepared, rows: Rows) -> Option<()> {
        let building = || async {
            if self.config.snapshot.mode == SnapshotMode::Full {
                let stop = self.supervisor.stop.child_token();
                let options = self.schema_options(prepared).await?;
                schema::copy_indexes(&options, &prepared.catalog, &self.board.indexing(), rows.clone(), stop).await?;
            }
            Ok(())
        };
        self.supervisor.keep("indexes", building).await
    }

    /// What needs the target to be one state of the source: foreign keys hold, and materialised views mean something.
    async fn finish(&self, prepared: &Prepared) {
        if self.config.snapshot.mode == SnapshotMode::Full {
            let finishing = || async {
                let stop = self.supervisor.stop.child_token();
                let options = self.schema_options(prepared).await?;
                schema::copy_post_data(&options, &prepared.catalog, &self.board.indexing(), stop).await?;
                Ok(())
            };
            if self.supervisor.keep("constraints", finishing).await.is_none() {
                return;
            }
        }
        self.advance(prepared, Input::CaughtUp).await;
    }

    async fn handovers(&self) -> Result<Vec<TableHandover>, Error> {
        let session = wire::connect(&self.config.target.endpoint, "hand-over").await.map_err(Error::Target)?;
        Ok(snapshot::handovers(&session, &self.config.migration).await?)
    }

    /// Stores the next phase, then enters it. `None` when the daemon stops.
    async fn advance(&self, prepared: &Prepared, input: Input) -> Option<()> {
        let next = self.board.phase().on(input).expect("the phases are gone through in order");
        let storing = || store_phase(&self.config, prepared.epoch, next);
        self.supervisor.keep("phase", storing).await?;
        self.board.enter(next);
        Some(())
    }

    async fn schema_options(&self, prepared: &Prepared) -> Result<CopyOptions, Error> {
        schema_options(&self.config, prepared.catalog.major()).await
    }
}

/// Over a session of its own: the one that leads may have broken, and whether we still lead is told by the epoch.
pub(super) async fn store_phase(config: &Config, epoch: i64, phase: Phase) -> Result<(), Error> {
    let session = wire::connect(&config.target.endpoint, "phase").await.map_err(Error::Target)?;
    schema::set_phase(&session, &config.migration, epoch, phase.as_str()).await?;
    Ok(())
}

pub(super) fn snapshot_options(config: &Config, throttle: Arc<Throttle>) -> snapshot::Options {
    snapshot::Options {
        source: config.source.endpoint.clone(),
        target: config.target.endpoint.clone(),
        migration: config.migration.clone(),
        workers: config.snapshot.workers,
        split_bytes: config.snapshot.split_bytes,
        snapshot_age_max: Some(config.snapshot.snapshot_age_max),
        rows: config.rows.clone(),
        throttle,
    }
}

pub(super) async fn schema_options(config: &Config, source_major: u32) -> Result<CopyOptions, Error> {
    let memory = config.snapshot.maintenance_work_mem_bytes;
    Ok(CopyOptions {
        source: config.source.endpoint.clone(),
        target: config.target.endpoint.clone(),
        migration: config.migration.clone(),
        pg_dump: schema::find_pg_dump(source_major, config.snapshot.pg_dump.as_deref()).await?,
        post_data: Arc::default(),
        workers: config.snapshot.index_workers,
        maintenance_work_mem: memory.map(|bytes| format!("{}kB", bytes / 1024)),
        parallel_maintenance_workers: config.snapshot.index_parallel_workers,
    })
}
