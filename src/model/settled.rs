//! What a sink tells about itself. All counts are totals since the start, so a reader that misses a value loses nothing.

use std::collections::BTreeMap;

use super::{Lsn, SnapshotSet, TableName};

/// The newest durable position of a sink and what it took to get there. Sent over a `tokio::sync::watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Durable through here. `None` until the sink has read its own position.
    pub through: Option<Lsn>,
    /// Commit time of the last settled transaction, microseconds since the Unix epoch by the source's clock.
    pub committed_at_us: Option<i64>,
    pub transactions_total: u64,
    pub rows_total: u64,
}

/// Row changes of one table since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
    /// Commit time of the table's last settled change, microseconds since the Unix epoch by the source's clock.
    pub committed_at_us: i64,
}

pub type RowCountsByTable = BTreeMap<TableName, RowCounts>;

/// How one table's copied rows are handed over to the stream: a transaction that ends at or before `until` is applied to
/// this table iff `snapshot` does not see it. After `until` everything is applied: `until` was the end of the source's log
/// after the snapshot had been taken, so what the snapshot sees ends there at the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableHandover {
    /// Name on the source.
    pub table: TableName,
    pub snapshot: SnapshotSet,
    pub until: Lsn,
}
