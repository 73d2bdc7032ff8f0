//! What operators and programs are told about a running migration: `GET /api/v1/status`, `changeover status --json`.
//!
//! Names are a contract; every duration and size carries its unit.

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, SinkName};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub migration: String,
    pub version: String,
    pub phase: Phase,
    /// Which side owns the applications' writes.
    pub owner: Owner,
    /// Set by `pause`: no part of a table is begun, and the target takes no changes, until `resume`.
    pub paused: bool,
    /// Why a part stands still, and what to do; the rest goes on.
    pub halted: Vec<Trouble>,
    /// What is being retried right now (a dropped connection, a dead broker).
    pub retrying: Vec<Trouble>,
    /// What does not stop anything and should not be: somebody else who writes to the target. `since_us` is when last.
    #[serde(default)]
    pub warnings: Vec<Trouble>,
    pub started_at_us: i64,
    pub source: SourceStatus,
    /// Bytes of the source's log that the target has not applied.
    pub lag_bytes: u64,
    /// How old the oldest change is that the target has not applied; 0 when idle and caught up.
    pub lag_seconds: f64,
    /// From commit on the source to visible on the target, since the phase became streaming.
    pub latency: LatencyStatus,
    pub sinks: Vec<SinkStatus>,
    pub spool: SpoolStatus,
    pub snapshot: SnapshotStatus,
    /// How the copy spares the source.
    pub throttle: ThrottleStatus,
    /// Statements of the schema that are under way on the target: index builds, keys, ANALYZE, constraints.
    pub steps: Vec<StepStatus>,
    pub tables: Vec<TableStatus>,
    pub verification: Option<VerificationStatus>,
    pub cutover: Option<CutoverStatus>,
    /// Tables that are copied again, or have joined and are being copied, while the others stream.
    #[serde(default)]
    pub resync: Option<ResyncStatus>,
}

/// How far the migration has come. `changeover.migration.phase` holds the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Publication and slot are being made. Left when the slot's first position is recorded.
    Preparing,
    /// Schema and rows are being copied. Left when every table's rows are there.
    Copying,
    /// Keys and indexes are being built. Left when all of them are there.
    Indexing,
    /// The stream is applied, but has not passed the newest snapshot of the copy: the target is not yet any one state of
    /// the source.
    CatchingUp,
    /// What a reader of the target sees is the source as of some commit.
    Streaming,
    /// A cutover is under way.
    CuttingOver,
    /// The commit point is passed: green owns the writes.
    CutOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Blue,
    Green,
}

/// An error as operators read it: the chain on one line, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// The part it happened in: source, target, kafka, spool, snapshot, …
    pub part: String,
    pub error: String,
    pub hint: Option<String>,
    pub since_us: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    pub system_identifier: String,
    pub timeline: u32,
    pub server_version_num: u32,
    pub slot: String,
    pub publication: String,
    pub connected: bool,
    /// Decoded through here.
    pub received: Option<String>,
    /// The end of the source's log as last heard.
    pub wal_end: Option<String>,
    /// What the slot was told it may forget.
    pub confirmed: Option<String>,
    /// Log the slot keeps from being removed (`restart_lsn` to the end).
    pub slot_retained_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyStatus {
    pub p50_ms: Option<f64>,
    pub p99_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SinkStatus {
    pub sink: SinkName,
    pub through: Option<String>,
    pub lag_bytes: u64,
    pub lag_seconds: f64,
    pub transactions_total: u64,
    pub rows_total: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub memory_bytes: u64,
    pub disk_bytes: u64,
    pub disk_capacity_bytes: u64,
    /// The stream has stopped reading until a sink has caught up.
    pub full: bool,
    /// The spool is durable, and the source is told to forget what is in it (`[spool] release_source_wal`).
    pub releases_source_wal: bool,
    /// Log that the source need not keep because the spool holds it for a sink that is behind.
    pub released_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    pub tables_total: u64,
    pub tables_done: u64,
    pub rows_copied: u64,
    pub bytes_copied: u64,
    /// Estimated from the tables' sizes on the source and from what was copied so far.
    pub bytes_total: u64,
    /// `bytes_copied` of `bytes_total`, 1 when every row is there.
    pub progress_ratio: f64,
    /// Over the last half minute.
    pub bytes_per_second: f64,
    pub rows_per_second: f64,
    /// Until the last row is copied, at the rate of the last half minute: no less than what the slowest table needs by
    /// itself. `None` before a rate is known, when nobody can tell, and when done.
    pub eta_seconds: Option<f64>,
    /// Steps of the schema after the rows: index builds, keys, statistics; while catching up constraints and the rest.
    pub indexes_total: u64,
    pub indexes_done: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ThrottleStatus {
    /// Why load on the source holds the copy; empty when it does not.
    pub held: Vec<String>,
    pub held_since_us: Option<i64>,
    /// How long load has held the copy altogether.
    pub held_seconds_total: f64,
    /// What all workers together may read in a second; `None` is no limit.
    pub max_rate_bytes: Option<u64>,
}

/// A statement under way on the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepStatus {
    /// `INDEX public.orders_by_customer`
    pub step: String,
    pub table: Option<String>,
    pub running_seconds: f64,
    /// Who holds the lock that it needs.
    pub waits_for: Option<String>,
    /// What the server says it is doing; `None` for what it does not report on.
    pub phase: Option<String>,
    /// What `done` and `total` count in this phase: blocks or tuples. A phase that is not counted has a total of 0.
    pub unit: Option<WorkUnit>,
    pub done: u64,
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkUnit {
    Blocks,
    Tuples,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    pub table: String,
    pub state: TableState,
    /// Rows the copy read; `rows_estimated` is the planner's count beforehand.
    pub rows_copied: u64,
    pub rows_estimated: u64,
    pub bytes_copied: u64,
    /// What `bytes_copied` will come to, as far as one can tell.
    pub bytes_total: u64,
    /// Share of the copy, 0 to 1; below 1 until every row is there.
    pub progress_ratio: f64,
    /// Over the last half minute, while it is copied.
    pub bytes_per_second: f64,
    pub rows_per_second: f64,
    /// Until its last row is copied; `None` when it is not in work, and when nobody can tell.
    pub eta_seconds: Option<f64>,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
    /// Rows copied plus inserts minus deletes since. After a restart: the target's own estimate plus the same.
    /// Verification tells the exact count.
    pub rows: u64,
    pub lag_seconds: f64,
    pub verdict: Option<TableVerdictStatus>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableState {
    Waiting,
    Copying,
    /// Every row is there; its indexes have not been begun.
    Copied,
    Indexing,
    /// Copied while the others streamed: what was committed since is being applied.
    CatchingUp,
    /// Its indexes are there too; other tables are not ready yet.
    Indexed,
    Streaming,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableVerdictStatus {
    pub equal: bool,
    pub rows: u64,
    pub differing_rows: u64,
    pub position: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VerificationStatus {
    pub running: bool,
    /// Share of the tables (by rows) compared so far, 0 to 1.
    pub ratio: f64,
    /// Of the last finished verification.
    pub equal: Option<bool>,
    pub position: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CutoverStatus {
    pub attempt: u32,
    pub step: String,
    pub pause_ms: Option<f64>,
    pub forecast_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncStatus {
    pub tables: Vec<String>,
    pub stage: ResyncStage,
    /// What they have not been given of the source's log, of which the target has given the others more.
    pub lag_bytes: u64,
    pub lag_seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResyncStage {
    /// Set apart, or about to be as soon as the migration streams.
    Waiting,
    /// Being emptied or, for a table that joins, published and made.
    Preparing,
    /// Waiting for transactions that were open, then for their rows.
    Copying,
    /// A table that joined gets its indexes.
    Indexing,
    /// What was committed since is applied, until they are where the others are.
    CatchingUp,
    /// Back among the others, which have yet to come where they are; constraints and statistics.
    Finishing,
}

impl ResyncStage {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Indexing => "indexing",
            Self::CatchingUp => "catching_up",
            Self::Finishing => "finishing",
        }
    }
}

impl Phase {
    /// Whether rows are still to be copied, or being copied.
    pub const fn copies(self) -> bool {
        match self {
            Self::Preparing | Self::Copying => true,
            Self::Indexing | Self::CatchingUp | Self::Streaming | Self::CuttingOver | Self::CutOver => false,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Indexing => "indexing",
            Self::CatchingUp => "catching_up",
            Self::Streaming => "streaming",
            Self::CuttingOver => "cutting_over",
            Self::CutOver => "cut_over",
        }
    }

    /// Reads the word stored in `changeover.migration.phase`.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Preparing,
            Self::Copying,
            Self::Indexing,
            Self::CatchingUp,
            Self::Streaming,
            Self::CuttingOver,
            Self::CutOver,
        ]
        .into_iter()
        .find(|phase| phase.as_str() == text)
    }
}

/// A log position as it is printed, for the fields above.
pub(super) fn printed(lsn: Option<Lsn>) -> Option<String> {
    lsn.map(|lsn| lsn.to_string())
}
