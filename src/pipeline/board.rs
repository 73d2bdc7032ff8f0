//! What the parts report, in one place, and the status composed from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;
use tracing::info;

use super::flow::Flow;
use super::options::throttle_options;
use super::prepare::Prepared;
use super::resync::Desk;
use super::status::{
    CutoverStatus, LatencyStatus, Owner, Phase, ResyncStatus, SinkStatus, SnapshotStatus, SourceStatus, SpoolStatus,
    Status, StepStatus, TableState, TableStatus, TableVerdictStatus, ThrottleStatus, Trouble, VerificationStatus,
    WorkUnit, printed,
};
use super::troubles::Troubles;
use crate::apply::Stranger;
use crate::config::Config;
use crate::model::{Lsn, RowCounts, Settled, SinkName, SourceIdentity, TableName};
use crate::schema::{self, Steps, StepsRead};
use crate::snapshot::{CopyState, Progress, ProgressRead, TableProgress, Throttle};
use crate::source::SessionState;
use crate::spool::Spool;
use crate::telemetry::{Latency, Tally, clock};
use crate::verify;

/// Shared by every part. Clones are the same board.
#[derive(Clone)]
pub(super) struct Board(Arc<Inner>);

struct Inner {
    migration: String,
    slot: String,
    publication: String,
    started_at_us: i64,
    phase: Mutex<Phase>,
    paused: AtomicBool,
    troubles: Troubles,
    tally: Arc<Tally>,
    latency: Arc<Latency>,
    sinks: BTreeMap<SinkName, watch::Sender<Settled>>,
    progress: Arc<Progress>,
    throttle: Arc<Throttle>,
    indexes: Arc<Steps>,
    stream: OnceLock<Stream>,
    slot_retained_bytes: AtomicU64,
    verification: Arc<verify::Progress>,
    verifying: AtomicBool,
    report: Mutex<Option<verify::Report>>,
    cutover: Mutex<Option<CutoverStatus>>,
    strangers: Mutex<Vec<Stranger>>,
    resync: Arc<Desk>,
}

/// Known once the migration is prepared.
struct Stream {
    identity: SourceIdentity,
    server_version_num: u32,
    tables: Vec<TableName>,
    row_estimates: BTreeMap<TableName, u64>,
    flow: Arc<Flow>,
    spool: Spool,
    session: watch::Receiver<SessionState>,
}

impl Board {
    pub(super) fn new(config: &Config) -> Self {
        let mut sinks = BTreeMap::from([(SinkName::Target, watch::Sender::new(Settled::default()))]);
        if config.kafka.is_some() {
            sinks.insert(SinkName::Kafka, watch::Sender::new(Settled::default()));
        }
        Self(Arc::new(Inner {
            migration: config.migration.to_string(),
            slot: config.source.slot.name.clone(),
            publication: config.source.publication.name.clone(),
            started_at_us: clock::unix_us(),
            phase: Mutex::new(Phase::Preparing),
            paused: AtomicBool::new(false),
            troubles: Troubles::default(),
            tally: Arc::default(),
            latency: Arc::default(),
            sinks,
            progress: Arc::new(Progress::new(config.snapshot.workers, config.snapshot.split_bytes)),
            throttle: Arc::new(Throttle::new(throttle_options(config))),
            indexes: Arc::default(),
            stream: OnceLock::new(),
            slot_retained_bytes: AtomicU64::new(0),
            verification: Arc::default(),
            verifying: AtomicBool::new(false),
            report: Mutex::new(None),
            cutover: Mutex::new(None),
            strangers: Mutex::new(Vec::new()),
            resync: Arc::default(),
        }))
    }

    /// The stream is there from now on.
    pub(super) fn attach(
        &self,
        prepared: &Prepared,
        flow: Arc<Flow>,
        spool: Spool,
        session: watch::Receiver<SessionState>,
    ) {
        self.enter(prepared.phase);
        let stream = Stream {
            identity: prepared.identity.clone(),
            server_version_num: prepared.server_version_num,
            tables: prepared.wanted.row_tables().map(|table| table.name.clone()).collect(),
            row_estimates: prepared.row_estimates.clone(),
            flow,
            spool,
            session,
        };
        assert!(self.0.stream.set(stream).is_ok(), "a daemon is prepared once");
    }

    pub(super) fn enter(&self, phase: Phase) {
        let mut now = lock(&self.0.phase);
        if *now != phase {
            info!(from = now.as_str(), to = phase.as_str(), "phase");
            *now = phase;
            if phase == Phase::Streaming {
                // What waited in the spool for the copy to end says nothing about the stream.
                self.0.latency.clear();
            }
        }
    }

    pub(super) fn phase(&self) -> Phase {
        *lock(&self.0.phase)
    }

    pub(super) fn troubles(&self) -> Troubles {
        self.0.troubles.clone()
    }

    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.0.tally)
    }

    pub(super) fn latency(&self) -> Arc<Latency> {
        Arc::clone(&self.0.latency)
    }

    pub(super) fn settled(&self, sink: SinkName) -> watch::Sender<Settled> {
        self.0.sinks.get(&sink).expect("asked only for sinks that are configured").clone()
    }

    pub(super) fn copying(&self) -> Arc<Progress> {
        Arc::clone(&self.0.progress)
    }

    pub(super) fn throttle(&self) -> Arc<Throttle> {
        Arc::clone(&self.0.throttle)
    }

    pub(super) fn indexing(&self) -> Arc<Steps> {
        Arc::clone(&self.0.indexes)
    }

    pub(super) fn slot_retains(&self, bytes: u64) {
        self.0.slot_retained_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Where the source's log ends, asked beside the stream.
    pub(super) fn source_ends(&self, at: Lsn) {
        if let Some(stream) = self.0.stream.get() {
            stream.flow.source_ends(at);
        }
    }

    pub(super) fn paused(&self, paused: bool) {
        self.0.paused.store(paused, Ordering::Relaxed);
    }

    pub(super) fn verification(&self) -> Arc<verify::Progress> {
        Arc::clone(&self.0.verification)
    }

    pub(super) fn verifying(&self, running: bool) {
        self.0.verifying.store(running, Ordering::Relaxed);
    }

    pub(super) fn verified(&self, report: verify::Report) {
        *lock(&self.0.report) = Some(report);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Relaxed)
    }

    pub(super) fn resync(&self) -> Arc<Desk> {
        Arc::clone(&self.0.resync)
    }

    pub(super) fn cutover(&self, status: CutoverStatus) {
        *lock(&self.0.cutover) = Some(status);
    }

    /// Who else has written to tables of the target that were not found equal since.
    pub(super) fn strangers(&self, strangers: Vec<Stranger>) {
        *lock(&self.0.strangers) = strangers;
    }

    pub(super) fn status(&self) -> Status {
        let inner = &*self.0;
        let phase = self.phase();
        let (halted, retrying) = inner.troubles.read();
        let sinks: Vec<SinkStatus> = inner.sinks.iter().map(|(name, settled)| self.sink(*name, settled)).collect();
        let target = sinks.iter().find(|sink| sink.sink == SinkName::Target).expect("the target is always a sink");
        let (copied, steps) = (inner.progress.read(), inner.indexes.read());
        let tables = self.tables(phase, &copied, &steps);
        let throttle = inner.throttle.read();
        Status {
            migration: inner.migration.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase,
            owner: if phase == Phase::CutOver { Owner::Green } else { Owner::Blue },
            paused: inner.paused.load(Ordering::Relaxed),
            halted,
            retrying,
            warnings: lock(&inner.strangers).iter().map(stranger_warning).collect(),
            started_at_us: inner.started_at_us,
            source: self.source(),
            lag_bytes: target.lag_bytes,
            lag_seconds: target.lag_seconds,
            latency: self.latencies(),
            spool: self.spool(),
            snapshot: snapshot_status(phase, &copied, &steps, &tables),
            steps: steps.running.values().map(step_status).collect(),
            throttle: ThrottleStatus {
                held: throttle.reasons,
                held_since_us: throttle.held_since_us,
                held_seconds_total: throttle.held_total.as_secs_f64(),
                max_rate_bytes: throttle.rate_max,
            },
            tables,
            verification: self.verification_status(),
            cutover: lock(&inner.cutover).clone(),
            resync: self.resync_status(),
            sinks,
        }
    }

    fn sink(&self, name: SinkName, settled: &watch::Sender<Settled>) -> SinkStatus {
        let settled = settled.borrow().clone();
        let flow = self.0.stream.get().map(|stream| &stream.flow);
        let lag = flow.and_then(|flow| flow.lag(name));
        SinkStatus {
            sink: name,
            through: printed(flow.and_then(|flow| flow.settled_through(name)).or(settled.through)),
            lag_bytes: lag.map_or(0, |lag| lag.bytes),
            lag_seconds: lag.map_or(0.0, |lag| lag.seconds),
            transactions_total: settled.transactions_total,
            rows_total: settled.rows_total,
        }
    }

    fn source(&self) -> SourceStatus {
        let inner = &*self.0;
        let mut status = SourceStatus {
            slot: inner.slot.clone(),
            publication: inner.publication.clone(),
            ..SourceStatus::default()
        };
        let Some(stream) = inner.stream.get() else { return status };
        status.system_identifier.clone_from(&stream.identity.system_identifier);
        status.timeline = stream.identity.timeline;
        status.server_version_num = stream.server_version_num;
        status.connected = matches!(*stream.session.borrow(), SessionState::Streaming { .. });
        status.received = printed(stream.flow.decoded_through());
        status.wal_end = printed(stream.flow.wal_end());
        status.confirmed = printed(*stream.flow.confirmed().borrow());
        let retained = inner.slot_retained_bytes.load(Ordering::Relaxed);
        status.slot_retained_bytes = (retained > 0).then_some(retained);
        status
    }

    fn latencies(&self) -> LatencyStatus {
        let ms = |share| self.0.latency.quantile(share).map(|duration| duration.as_secs_f64() * 1000.0);
        LatencyStatus { p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }

    fn spool(&self) -> SpoolStatus {
        let Some(stream) = self.0.stream.get() else { return SpoolStatus::default() };
        let usage = stream.spool.usage();
        SpoolStatus {
            memory_bytes: usage.memory_bytes,
            disk_bytes: usage.disk_bytes,
            disk_capacity_bytes: usage.disk_capacity_bytes,
            full: usage.full(),
            releases_source_wal: stream.spool.is_durable(),
            released_bytes: stream.flow.released_bytes(),
        }
    }

    fn tables(&self, phase: Phase, copied: &ProgressRead, steps: &StepsRead) -> Vec<TableStatus> {
        let Some(stream) = self.0.stream.get() else { return Vec::new() };
        let streamed = self.0.tally.read();
        let report = lock(&self.0.report).clone();
        let verdicts: BTreeMap<String, TableVerdictStatus> =
            report.iter().flat_map(|report| report.tables.iter().map(|table| verdict(report, table))).collect();
        let indexing: BTreeSet<&TableName> = steps.running.values().filter_map(|step| step.table.as_ref()).collect();
        let indexes = |name: &TableName| match () {
            () if steps.indexed.contains(name) => Indexes::There,
            () if indexing.contains(name) => Indexes::UnderWay,
            () => Indexes::Awaited,
        };
        let status = |name: &TableName| {
            let counts = streamed.get(name).copied().unwrap_or_default();
            let apart = self.0.resync.table(name);
            let progress = apart.and_then(|(_, progress)| progress).or_else(|| copied.tables.get(name).copied());
            let ordinary = || table_state(phase, progress.as_ref(), indexes(name));
            let state = apart.map_or_else(ordinary, |(state, _)| state);
            let mut status = table_status(name, state, progress.as_ref(), counts);
            let sink = if apart.is_some() { SinkName::Resync } else { SinkName::Target };
            let before = stream.row_estimates.get(name).copied().unwrap_or_default();
            status.rows = (status.rows_copied.max(before) + counts.inserts).saturating_sub(counts.deletes);
            status.lag_seconds = stream.flow.lag(sink).map_or(0.0, |lag| lag.seconds);
            status.verdict = verdicts.get(&status.table).cloned();
            status
        };
        stream.tables.iter().map(status).collect()
    }

    fn resync_status(&self) -> Option<ResyncStatus> {
        let tables = self.0.resync.tables();
        let stage = self.0.resync.stage()?;
        let lag = self.0.stream.get().and_then(|stream| stream.flow.lag(SinkName::Resync));
        Some(ResyncStatus {
            tables: tables.iter().map(TableName::to_string).collect(),
            stage,
            lag_bytes: lag.map_or(0, |lag| lag.bytes),
            lag_seconds: lag.map_or(0.0, |lag| lag.seconds),
        })
    }

    fn verification_status(&self) -> Option<VerificationStatus> {
        let running = self.0.verifying.load(Ordering::Relaxed);
        let report = lock(&self.0.report);
        let counts = self.0.verification.read();
        let share = counts.blocks_done as f64 / counts.blocks_total.max(1) as f64;
        (running || report.is_some()).then(|| VerificationStatus {
            running,
            ratio: if running { share.min(1.0) } else { 1.0 },
            equal: report.as_ref().map(|report| report.verdict == verify::Verdict::Equal),
            position: report.as_ref().map(|report| report.position.to_string()),
        })
    }
}

/// Of one table.
#[derive(Clone, Copy)]
enum Indexes {
    Awaited,
    UnderWay,
    There,
}

/// A share that is an estimate is never told as the whole.
const RATIO_BEFORE_DONE: f64 = 0.999;

fn stranger_warning(stranger: &Stranger) -> Trouble {
    let Stranger { table, role, application, address, last_at_us } = stranger;
    let name = if application.is_empty() { "unnamed" } else { application };
    let from = if address.is_empty() { "the target's own machine" } else { address };
    Trouble {
        part: "target".to_owned(),
        error: format!("somebody else writes to {table} on the target: {name} as {role}, from {from}"),
        hint: Some(format!(
            "stop it; `changeover verify --table {table}` shows what it changed, `changeover resync {table}` copies the table again"
        )),
        since_us: *last_at_us,
    }
}

fn table_status(name: &TableName, state: TableState, copied: Option<&TableProgress>, counts: RowCounts) -> TableStatus {
    let bytes_copied = copied.map_or(0, |progress| progress.bytes_copied);
    // Past every estimate the total is not known: what is there is all that can be told.
    let expected = copied.map_or(0, |progress| progress.bytes_expected.unwrap_or_default()).max(bytes_copied);
    TableStatus {
        table: name.to_string(),
        state,
        rows_copied: copied.map_or(0, |progress| progress.rows_copied),
        rows_estimated: copied.map_or(0, |progress| progress.rows_estimated),
        bytes_copied,
        bytes_total: expected,
        progress_ratio: match state {
            TableState::Waiting => 0.0,
            TableState::Copying => ratio(bytes_copied, expected).min(RATIO_BEFORE_DONE),
            TableState::Copied
            | TableState::Indexing
            | TableState::Indexed
            | TableState::CatchingUp
            | TableState::Streaming => 1.0,
        },
        bytes_per_second: copied.and_then(|progress| progress.bytes_per_second).unwrap_or_default(),
        rows_per_second: copied.and_then(|progress| progress.rows_per_second).unwrap_or_default(),
        eta_seconds: copied.and_then(|progress| progress.seconds_left),
        inserts: counts.inserts,
        updates: counts.updates,
        deletes: counts.deletes,
        truncates: counts.truncates,
        rows: 0,
        lag_seconds: 0.0,
        verdict: None,
    }
}

fn table_state(phase: Phase, copied: Option<&TableProgress>, indexes: Indexes) -> TableState {
    let with_rows = || match indexes {
        Indexes::Awaited => TableState::Copied,
        Indexes::UnderWay => TableState::Indexing,
        Indexes::There => TableState::Indexed,
    };
    match phase {
        Phase::Preparing => TableState::Waiting,
        Phase::Copying => match copied.map(|progress| progress.state) {
            None | Some(CopyState::Waiting) => TableState::Waiting,
            Some(CopyState::Copying) => TableState::Copying,
            Some(CopyState::Copied) => with_rows(),
        },
        Phase::Indexing => with_rows(),
        Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => TableState::Streaming,
    }
}

fn snapshot_status(phase: Phase, copied: &ProgressRead, steps: &StepsRead, tables: &[TableStatus]) -> SnapshotStatus {
    let sum = |value: fn(&TableStatus) -> u64| tables.iter().map(value).sum::<u64>();
    let (bytes_copied, bytes_total) = (sum(|table| table.bytes_copied), sum(|table| table.bytes_total));
    let copying = phase == Phase::Copying;
    SnapshotStatus {
        tables_total: tables.len() as u64,
        tables_done: tables.iter().filter(|table| has_rows(table.state)).count() as u64,
        rows_copied: sum(|table| table.rows_copied),
        bytes_copied,
        bytes_total,
        progress_ratio: match phase {
            Phase::Preparing => 0.0,
            Phase::Copying => ratio(bytes_copied, bytes_total).min(RATIO_BEFORE_DONE),
            Phase::Indexing | Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => 1.0,
        },
        bytes_per_second: copied.bytes_per_second.filter(|_| copying).unwrap_or_default(),
        rows_per_second: copied.rows_per_second.filter(|_| copying).unwrap_or_default(),
        eta_seconds: copied.seconds_left.filter(|_| copying),
        indexes_total: steps.total,
        indexes_done: steps.done,
    }
}

fn has_rows(state: TableState) -> bool {
    match state {
        TableState::Waiting | TableState::Copying => false,
        TableState::Copied
        | TableState::Indexing
        | TableState::Indexed
        | TableState::CatchingUp
        | TableState::Streaming => true,
    }
}

/// Nothing of nothing is no share yet.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

fn step_status(step: &schema::RunningStep) -> StepStatus {
    let unit = |work: &schema::ServerWork| match work.unit {
        schema::WorkUnit::Blocks => WorkUnit::Blocks,
        schema::WorkUnit::Tuples => WorkUnit::Tuples,
    };
    StepStatus {
        step: step.title.clone(),
        table: step.table.as_ref().map(TableName::to_string),
        running_seconds: step.began.elapsed().as_secs_f64(),
        waits_for: step.waits_for.clone(),
        phase: step.work.as_ref().map(|work| work.phase.clone()),
        unit: step.work.as_ref().map(unit),
        done: step.work.as_ref().map_or(0, |work| work.done),
        total: step.work.as_ref().map_or(0, |work| work.total),
    }
}

fn verdict(report: &verify::Report, table: &verify::TableVerdict) -> (String, TableVerdictStatus) {
    let status = TableVerdictStatus {
        equal: table.equal,
        rows: table.rows_source,
        differing_rows: table.differing_rows,
        position: report.position.to_string(),
    };
    (table.table.clone(), status)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
