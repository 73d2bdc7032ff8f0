//! What a cutover needs of the rest, and what the rest makes of its outcome.

use std::sync::Arc;

use tracing::info;

use super::board::Board;
use super::error::Error;
use super::flow::Flow;
use super::handle::{CutoverRequest, Refused};
use super::machine::Input;
use super::membership::restricted;
use super::migrate::store_phase;
use super::requests::{Requests, refused};
use super::status::{CutoverStatus, Phase};
use crate::config::{self, Config, SnapshotMode};
use crate::cutover::{self, Command, Http, Lacking, Lag, Outcome, Owner, PgBouncer, PortFuture, Ports, Report, Router};
use crate::model::{Lsn, SinkName};
use crate::schema::{self, Catalog, Described, DifferenceKind};
use crate::wire::Session;

/// What the cutover asks of the pipeline.
struct Ends {
    config: Arc<Config>,
    board: Board,
    flow: Arc<Flow>,
    catalog: Arc<Catalog>,
    sequence_margin: u32,
}

impl Ports for Ends {
    fn streaming(&self) -> Result<(), String> {
        if let Some(why) = self.board.resync().why_not_whole() {
            return Err(format!("tables are being copied ({why})"));
        }
        let status = self.board.status();
        match (status.phase, status.halted.first()) {
            (_, Some(trouble)) => Err(format!("{} stands still: {}", trouble.part, trouble.error)),
            (Phase::Streaming | Phase::CuttingOver, None) => Ok(()),
            (phase, None) => Err(format!("the migration is {}", phase.as_str())),
        }
    }

    fn lag(&self) -> Lag {
        let lags = [SinkName::Target, SinkName::Kafka].into_iter().filter_map(|sink| self.flow.lag(sink));
        lags.fold(Lag::default(), |worst, lag| Lag {
            bytes: worst.bytes.max(lag.bytes),
            seconds: worst.seconds.max(lag.seconds),
        })
    }

    fn drained(&self, barrier: Lsn) -> PortFuture<'_, ()> {
        Box::pin(async move {
            self.flow.drained(barrier).await;
            Ok(())
        })
    }

    fn lacking<'a>(&'a self, source: &'a Session, target: &'a Session) -> PortFuture<'a, Vec<Lacking>> {
        Box::pin(async move { Ok(lacking(&self.config, &self.catalog, source, target).await?) })
    }

    fn set_sequences<'a>(&'a self, source: &'a Session, target: &'a Session) -> PortFuture<'a, usize> {
        Box::pin(async move {
            let sequences = &self.catalog.sequences;
            Ok(schema::copy_sequences(source, target, sequences, self.sequence_margin).await?)
        })
    }
}

/// The tables that `known` has not, and what green lacks of the others.
async fn lacking(
    config: &Config,
    known: &Catalog,
    source: &Session,
    target: &Session,
) -> Result<Vec<Lacking>, schema::Error> {
    let (here, there) =
        tokio::try_join!(schema::read_catalog(source, &config.tables), schema::read_catalog(target, &config.tables))?;
    // Partitions of a table that green keeps otherwise have a gate of their own.
    let is_below_gathered = |table: &schema::Table| {
        here.parents_of(table).any(|parent| known.table(parent).is_some_and(schema::Table::is_gathered))
    };
    let new = here.row_tables().filter(|table| known.table(&table.name).is_none() && !is_below_gathered(table));
    let mut lacking: Vec<Lacking> = new
        .map(|table| Lacking {
            what: format!("table {} came since the daemon started, and is not migrated", table.name),
            remedy: "start the daemon again: it copies what came; or take it out with [tables] exclude".to_owned(),
        })
        .collect();
    let shared = restricted(&here, |name| known.table(name).is_some_and(|table| !table.is_gathered()));
    let (ours, theirs) = tokio::try_join!(schema::read_design(source, &shared), schema::read_design(target, &there))?;
    let source = Described { catalog: &shared, design: &ours };
    let target = Described { catalog: &there, design: &theirs };
    // Who prepared the schema may have left out what is no matter of rows.
    let is_copied = config.snapshot.mode == SnapshotMode::Full;
    let differences = schema::compare(source, target, true);
    let missed = differences.into_iter().filter(|it| it.breaks() || (is_copied && is_missed(&it.kind)));
    lacking.extend(missed.map(|it| Lacking { what: it.to_string(), remedy: it.remedy }));
    Ok(lacking)
}

/// What nothing of the copy leaves out: a foreign key may refer to a table that is not migrated.
fn is_missed(kind: &DifferenceKind) -> bool {
    matches!(kind, DifferenceKind::MissingIndex { .. } | DifferenceKind::MissingUniqueKey { .. })
}

impl Requests {
    /// Answers with a [`Report`], also for an attempt that was refused by its gates or taken back.
    pub(super) async fn cut_over(&self, request: CutoverRequest) -> Result<serde_json::Value, Refused> {
        self.streaming("cutover")?;
        let _turn = self.turn()?;
        self.strangers.look().await;
        if !request.dry_run {
            self.enter(Input::CutoverBegan);
        }
        let result = self.attempt(&request).await;
        let report = match result {
            Ok(report) => report,
            Err(error) => {
                if !request.dry_run {
                    self.enter(Input::CutoverUndone);
                }
                return Err(refused(&error.into()));
            }
        };
        self.tell(&report);
        if !request.dry_run {
            self.conclude(&report).await;
        }
        Ok(serde_json::to_value(&report).expect("a report is plain data"))
    }

    async fn attempt(&self, request: &CutoverRequest) -> Result<Report, cutover::Error> {
        let ends = Ends {
            config: Arc::clone(&self.config),
            board: self.board.clone(),
            flow: Arc::clone(&self.flow),
            catalog: Arc::clone(&self.catalog),
            sequence_margin: u32::try_from(self.config.cutover.sequence_margin).unwrap_or(u32::MAX),
        };
        let options = cutover::Options {
            verify: self.verify_options(),
            max_pause: request.max_pause_ms.map_or(self.config.cutover.max_pause, std::time::Duration::from_millis),
            max_lag_bytes: self.config.cutover.max_lag_bytes,
            dry_run: request.dry_run,
        };
        let routers = routers(&self.config);
        let parts = cutover::Parts {
            ports: &ends,
            aligner: &self.commands,
            dirty: self.listeners.all(),
            routers: &routers,
            cancel: self.supervisor.stop.clone(),
        };
        cutover::run(&options, parts).await
    }

    /// The phase follows the record on green, which decides; it is stored so that `complete` and `abort` need not ask.
    async fn conclude(&self, report: &Report) {
        match report.owner {
            Owner::Blue => self.enter(Input::CutoverUndone),
            Owner::Green => {
                let storing = || store_phase(&self.config, self.epoch, Phase::CutOver);
                self.supervisor.keep("phase", storing).await;
                self.enter(Input::CutoverCommitted);
            }
        }
    }

    fn enter(&self, input: Input) {
        let next = self.board.phase().on(input).expect("a cutover begins while streaming and ends once");
        self.board.enter(next);
    }

    fn tell(&self, report: &Report) {
        let outcome = match report.outcome {
            Outcome::DryRun => "dry run",
            Outcome::Refused => "refused",
            Outcome::Aborted => "aborted",
            Outcome::CutOver => "cut over",
        };
        self.board.cutover(CutoverStatus {
            attempt: u32::try_from(report.attempt).unwrap_or_default(),
            step: outcome.to_owned(),
            pause_ms: report.pause_ms,
            forecast_ms: Some(report.forecast_ms),
        });
        info!(outcome, pause_ms = report.pause_ms, forecast_ms = report.forecast_ms, "cutover");
    }
}

/// After a crash: who owns the writes, with everything that an interrupted attempt left undone or unfinished done.
pub(super) async fn recover(config: &Config) -> Result<Owner, Error> {
    let routers = routers(config);
    let (source, target) = (&config.source.endpoint, &config.target.endpoint);
    Ok(cutover::recover(source, target, &config.migration, &routers).await?.owner)
}

fn routers(config: &Config) -> Vec<Box<dyn Router>> {
    let migration = || config.migration.clone();
    let router = |router: &config::Router| -> Box<dyn Router> {
        match router.clone() {
            config::Router::PgBouncer(it) => {
                Box::new(PgBouncer::new(it.admin, it.databases_file, it.database, it.green))
            }
            config::Router::Command(it) => Box::new(Command::new(migration(), it.program, it.arguments, it.timeout)),
            config::Router::Http(it) => Box::new(Http::new(migration(), it.url, it.timeout)),
        }
    };
    config.cutover.routers.iter().map(router).collect()
}
