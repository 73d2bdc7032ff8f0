//! How far the copy has come, for `status` and the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::record::Recorded;
use super::worker::Moved;
use crate::model::TableName;
use crate::schema::{Catalog, Table};

/// Shared between the copy's workers, which count, and whoever reports. Empty until the copy has been planned.
#[derive(Debug, Default)]
pub struct Progress {
    tables: OnceLock<BTreeMap<TableName, Arc<Counts>>>,
}

/// One table's counts, written by its workers.
#[derive(Debug, Default)]
pub(super) struct Counts {
    bytes_total: u64,
    rows_estimated: u64,
    bytes: AtomicU64,
    rows: AtomicU64,
    state: AtomicU8,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProgressRead {
    /// By the name on the source.
    pub tables: BTreeMap<TableName, TableProgress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableProgress {
    pub state: CopyState,
    /// As they travelled. A text or binary row is not as wide as in the heap, so this is no share of `bytes_total`
    /// until the table is done.
    pub bytes_copied: u64,
    pub rows_copied: u64,
    /// Heap and TOAST on the source.
    pub bytes_total: u64,
    /// The planner's estimate on the source.
    pub rows_estimated: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// No part of it has been begun.
    Waiting,
    Copying,
    /// Every row is on the target and recorded there.
    Copied,
}

impl Progress {
    /// What is known now.
    pub fn read(&self) -> ProgressRead {
        let tables = self.tables.get().into_iter().flatten();
        ProgressRead { tables: tables.map(|(name, counts)| (name.clone(), counts.read())).collect() }
    }

    /// Called once the tables are known, by every attempt; the first one decides which tables there are.
    pub(super) fn plan(&self, catalog: &Catalog, recorded: &Recorded) {
        let tables = self.tables.get_or_init(|| {
            let row_tables = catalog.row_tables();
            row_tables.map(|table| (table.name.clone(), Arc::new(Counts::of(table)))).collect()
        });
        for (name, counts) in tables {
            match (recorded.complete.get(name), recorded.partial.get(name)) {
                (Some((rows, bytes)), _) => counts.reset(*rows, *bytes, CopyState::Copied),
                (None, Some(partial)) => counts.reset(partial.rows, partial.bytes, CopyState::Waiting),
                (None, None) => counts.reset(0, 0, CopyState::Waiting),
            }
        }
    }

    /// The counts of a table; of nobody when it was not there at the first plan.
    pub(super) fn table(&self, name: &TableName) -> Arc<Counts> {
        self.tables.get().and_then(|tables| tables.get(name)).cloned().unwrap_or_default()
    }
}

impl Counts {
    fn of(table: &Table) -> Self {
        Self {
            bytes_total: table.size_bytes,
            rows_estimated: table.row_estimate.unwrap_or_default(),
            ..Self::default()
        }
    }

    pub(super) fn add(&self, bytes: u64, frames: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.rows.fetch_add(frames, Ordering::Relaxed);
    }

    /// Puts the server's count of rows in place of the messages that were counted on the way.
    pub(super) fn settle(&self, moved: &Moved, rows: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.rows.fetch_sub(moved.frames, Ordering::Relaxed);
    }

    /// Takes back what came to nothing.
    pub(super) fn take_back(&self, moved: &Moved) {
        self.bytes.fetch_sub(moved.bytes, Ordering::Relaxed);
        self.rows.fetch_sub(moved.frames, Ordering::Relaxed);
    }

    /// What an earlier attempt did of it came to nothing.
    pub(super) fn start_anew(&self) {
        self.reset(0, 0, CopyState::Waiting);
    }

    /// Some rows went and others came when the table was brought to one snapshot.
    pub(super) fn settle_table(&self, rows: u64) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    fn reset(&self, rows: u64, bytes: u64, state: CopyState) {
        self.rows.store(rows, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.enter(state);
    }

    pub(super) fn enter(&self, state: CopyState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> CopyState {
        let states = [CopyState::Waiting, CopyState::Copying, CopyState::Copied];
        states[usize::from(self.state.load(Ordering::Relaxed))]
    }

    fn read(&self) -> TableProgress {
        TableProgress {
            state: self.state(),
            bytes_copied: self.bytes.load(Ordering::Relaxed),
            rows_copied: self.rows.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            rows_estimated: self.rows_estimated,
        }
    }
}
