//! What the applier is told, and what it is connected to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::Receiver;
use crate::model::{
    AheadEvent, ApplyCommand, Batch, GatheredLeaves, Lsn, MigrationName, Settled, TableFilter, TableHandover,
    TableName, Touched,
};
use crate::telemetry::{Latency, Tally};
use crate::wire::Endpoint;

use super::lanes::Lane;

/// Decided by the caller; there are no defaults.
#[derive(Clone, Debug)]
pub struct Options {
    /// The target.
    pub endpoint: Endpoint,
    pub migration: MigrationName,
    /// Which of the tables, and which position.
    pub lane: Lane,
    /// Ours, from `changeover.migration`. A daemon with a newer one makes us stop before we commit anything more.
    pub epoch: i64,
    /// Transactions that end here or before are skipped. The target's own position counts too: the later one wins.
    pub start: Option<Lsn>,
    /// Tables of the migration, by their names on the source. Changes of any other table are skipped.
    pub filter: TableFilter,
    /// Source name to target name, for tables whose names differ.
    pub renames: BTreeMap<TableName, TableName>,
    /// Partitions of the source that are one table on the target: all the rest (handovers, lanes, renames) goes by the name
    /// of that.
    pub gathered: GatheredLeaves,
    /// How copied tables are handed over to the stream. A table that is not here takes every change.
    pub handovers: Vec<TableHandover>,
    /// Bytes of source changes in one target transaction. A larger source transaction is sent in pieces of this size
    /// inside one target transaction. Up to three times this is held for each session: one group that executes and its
    /// messages, and the next that is gathered meanwhile.
    pub group_bytes: usize,
    /// Sessions on the target, at most: while we are behind, so many groups are executed at once, and committed one after
    /// the other. 1 or more.
    pub sessions: usize,
    /// How long a group may wait to be filled while we are behind. When we are not, a transaction never waits.
    pub group_delay: Duration,
    /// A row that the target refuses is set aside in `changeover.dead_letter`; otherwise it is an error.
    pub dead_letters: bool,
    /// Bytes that may be held back while standing still for verification or cutover.
    pub held_bytes: usize,
}

/// Where transactions come from that are applied ahead of their commits.
pub struct AheadPort {
    pub input: Receiver<AheadEvent>,
    /// Whether the target is such that they can be.
    pub able: watch::Sender<bool>,
}

/// What the applier is connected to.
pub struct Ports {
    pub input: Receiver<Arc<Batch>>,
    pub commands: Receiver<ApplyCommand>,
    /// Transactions to be applied ahead of their commits; `None` when whatever else is told of the stream has to have
    /// them too.
    pub ahead: Option<AheadPort>,
    pub settled: watch::Sender<Settled>,
    /// Told of each row just before its group commits.
    pub touched: Option<Arc<dyn Touched>>,
    pub tally: Arc<Tally>,
    /// From commit on the source to visible on the target, a transaction at a time.
    pub latency: Arc<Latency>,
    /// Ends [`super::run`] after the group under way; what waits is left to the next run.
    pub stop: CancellationToken,
}
