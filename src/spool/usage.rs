//! How full the log is and who holds it: for `status` and the metrics.

use crate::model::SinkName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Batches in memory. A batch that a sink still works on counts until that sink releases it.
    pub memory_bytes: u64,
    pub memory_capacity_bytes: u64,
    /// Bytes in files: segments and stashed transactions.
    pub disk_bytes: u64,
    pub disk_capacity_bytes: u64,
    /// Of `disk_bytes`, what transactions in progress take.
    pub stash_bytes: u64,
    /// Since when the stream has been held up for want of room, microseconds since the Unix epoch.
    pub full_since_us: Option<i64>,
    pub cursors: Vec<CursorUsage>,
}

/// How far one sink is behind the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorUsage {
    pub sink: SinkName,
    /// Not read yet.
    pub batches_behind: u64,
    pub bytes_behind: u64,
    /// Read, but not released.
    pub batches_unsettled: u64,
    pub bytes_unsettled: u64,
}

impl Usage {
    pub fn full(&self) -> bool {
        self.full_since_us.is_some()
    }

    /// The sink that everything is kept for.
    pub fn slowest(&self) -> Option<SinkName> {
        let held = |cursor: &&CursorUsage| cursor.bytes_behind + cursor.bytes_unsettled;
        self.cursors.iter().max_by_key(held).map(|cursor| cursor.sink)
    }
}
