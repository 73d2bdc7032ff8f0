//! How far a pass has come, for `status`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the pass, read by whoever shows it. Starts over with each pass.
#[derive(Debug, Default)]
pub struct Progress {
    tables_total: AtomicU64,
    tables_done: AtomicU64,
    blocks_total: AtomicU64,
    blocks_done: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgressCounts {
    pub tables_total: u64,
    pub tables_done: u64,
    /// Blocks of both sides together.
    pub blocks_total: u64,
    pub blocks_done: u64,
}

impl Progress {
    pub fn read(&self) -> ProgressCounts {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ProgressCounts {
            tables_total: load(&self.tables_total),
            tables_done: load(&self.tables_done),
            blocks_total: load(&self.blocks_total),
            blocks_done: load(&self.blocks_done),
        }
    }

    pub(super) fn restart(&self, table_count: usize) {
        self.tables_total.store(table_count as u64, Ordering::Relaxed);
        for count in [&self.tables_done, &self.blocks_total, &self.blocks_done] {
            count.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn expect_blocks(&self, blocks: u64) {
        self.blocks_total.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(super) fn blocks_done(&self, blocks: u64) {
        self.blocks_done.fetch_add(blocks, Ordering::Relaxed);
    }

    pub(super) fn table_done(&self) {
        self.tables_done.fetch_add(1, Ordering::Relaxed);
    }
}
