//! What the parts report, in one place, and the status composed from it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::flow::Flow;
use super::options::throttle_options;
use super::prepare::Prepared;
use super::resync::Desk;
use super::status::{
    CutoverStatus, LatencyStatus, Owner, Phase, ResyncStatus, SinkStatus, SnapshotStatus, SourceStatus, SpoolStatus,
    Status, TableState, TableStatus, TableVerdictStatus, ThrottleStatus, VerificationStatus, printed,
};
use super::troubles::Troubles;
use crate::config::Config;
use crate::model::{RowCounts, Settled, SinkName, SourceIdentity, TableName};
use crate::schema::Steps;
use crate::snapshot::{CopyState, Progress, TableProgress, Throttle};
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
    /// When the copy began: rates are read from here.
    copy_began: OnceLock<Instant>,
    indexes: Arc<Steps>,
    stream: OnceLock<Stream>,
    slot_retained_bytes: AtomicU64,
    verification: Arc<verify::Progress>,
    verifying: AtomicBool,
    report: Mutex<Option<verify::Report>>,
    cutover: Mutex<Option<CutoverStatus>>,
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
            progress: Arc::default(),
            throttle: Arc::new(Throttle::new(throttle_options(config))),
            copy_began: OnceLock::new(),
            indexes: Arc::default(),
            stream: OnceLock::new(),
            slot_retained_bytes: AtomicU64::new(0),
            verification: Arc::default(),
            verifying: AtomicBool::new(false),
            report: Mutex::new(None),
            cutover: Mutex::new(None),
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

    /// The copy's progress; its clock starts with the first call.
    pub(super) fn copying(&self) -> Arc<Progress> {
        self.0.copy_began.get_or_init(Instant::now);
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

    pub(super) fn status(&self) -> Status {
        let inner = &*self.0;
        let phase = self.phase();
        let (halted, retrying) = inner.troubles.read();
        let sinks: Vec<SinkStatus> = inner.sinks.iter().map(|(name, settled)| self.sink(*name, settled)).collect();
        let target = sinks.iter().find(|sink| sink.sink == SinkName::Target).expect("the target is always a sink");
        let tables = self.tables(phase);
        let throttle = inner.throttle.read();
        Status {
            migration: inner.migration.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase,
            owner: if phase == Phase::CutOver { Owner::Green } else { Owner::Blue },
            paused: inner.paused.load(Ordering::Relaxed),
            halted,
            retrying,
            started_at_us: inner.started_at_us,
            source: self.source(),
            lag_bytes: target.lag_bytes,
            lag_seconds: target.lag_seconds,
            latency: self.latencies(),
            spool: self.spool(),
            snapshot: self.snapshot(phase, &tables),
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

    fn tables(&self, phase: Phase) -> Vec<TableStatus> {
        let Some(stream) = self.0.stream.get() else { return Vec::new() };
        let copied = self.0.progress.read().tables;
        let streamed = self.0.tally.read();
        let report = lock(&self.0.report).clone();
        let verdicts: BTreeMap<String, TableVerdictStatus> =
            report.iter().flat_map(|report| report.tables.iter().map(|table| verdict(report, table))).collect();
        let elapsed = self.0.copy_began.get().map_or(0.0, |began| began.elapsed().as_secs_f64());
        let status = |name: &TableName| {
            let counts = streamed.get(name).copied().unwrap_or_default();
            let apart = self.0.resync.table(name);
            let progress = apart.and_then(|(_, progress)| progress).or_else(|| copied.get(name).copied());
            let mut status = table_status(name, phase, progress.as_ref(), counts, elapsed);
            let sink = if apart.is_some() { SinkName::Resync } else { SinkName::Target };
            status.state = apart.map_or(status.state, |(state, _)| state);
            let before = stream.row_estimates.get(name).copied().unwrap_or_default();
            status.rows = (status.rows_copied.max(before) + counts.inserts).saturating_sub(counts.deletes);
            status.lag_seconds = stream.flow.lag(sink).map_or(0.0, |lag| lag.seconds);
            status.verdict = verdicts.get(&status.table).cloned();
            status
        };
        stream.tables.iter().map(status).collect()
    }

    fn snapshot(&self, phase: Phase, tables: &[TableStatus]) -> SnapshotStatus {
        let sum = |value: fn(&TableStatus) -> u64| tables.iter().map(value).sum::<u64>();
        let (copied, total) = (sum(|table| table.bytes_copied), sum(|table| table.bytes_total));
        let elapsed = self.0.copy_began.get().map_or(0.0, |began| began.elapsed().as_secs_f64());
        let copying = phase == Phase::Copying;
        let rate = if copying && elapsed > 0.0 { copied as f64 / elapsed } else { 0.0 };
        let steps = self.0.indexes.read();
        SnapshotStatus {
            tables_total: tables.len() as u64,
            tables_done: tables.iter().filter(|table| table.state as u8 >= TableState::Copied as u8).count() as u64,
            rows_copied: sum(|table| table.rows_copied),
            bytes_copied: copied,
            bytes_total: total.max(copied),
            bytes_per_second: rate,
            eta_seconds: (rate > 0.0).then(|| total.saturating_sub(copied) as f64 / rate),
            indexes_total: steps.total,
            indexes_done: steps.done,
        }
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

fn table_status(
    name: &TableName,
    phase: Phase,
    copied: Option<&TableProgress>,
    counts: RowCounts,
    elapsed_seconds: f64,
) -> TableStatus {
    let done = |progress: &TableProgress| progress.state == CopyState::Copied;
    let rows_copied = copied.map_or(0, |progress| progress.rows_copied);
    let bytes_copied = copied.map_or(0, |progress| progress.bytes_copied);
    let bytes_total = copied.map_or(0, |progress| progress.bytes_total);
    let rate = if elapsed_seconds > 0.0 { bytes_copied as f64 / elapsed_seconds } else { 0.0 };
    let finished = copied.is_some_and(done);
    TableStatus {
        table: name.to_string(),
        state: table_state(phase, copied),
        rows_copied,
        rows_estimated: copied.map_or(0, |progress| progress.rows_estimated),
        bytes_copied,
        bytes_total: if finished { bytes_copied } else { bytes_total.max(bytes_copied) },
        eta_seconds: (!finished && rate > 0.0).then(|| bytes_total.saturating_sub(bytes_copied) as f64 / rate),
        inserts: counts.inserts,
        updates: counts.updates,
        deletes: counts.deletes,
        truncates: counts.truncates,
        rows: 0,
        lag_seconds: 0.0,
        verdict: None,
    }
}

fn table_state(phase: Phase, copied: Option<&TableProgress>) -> TableState {
    match phase {
        Phase::Preparing => TableState::Waiting,
        Phase::Copying => match copied.map(|progress| progress.state) {
            None | Some(CopyState::Waiting) => TableState::Waiting,
            Some(CopyState::Copying) => TableState::Copying,
            Some(CopyState::Copied) => TableState::Copied,
        },
        Phase::Indexing => TableState::Indexing,
        Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => TableState::Streaming,
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
