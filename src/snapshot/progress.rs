//! How far the copy has come, for `status` and the metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::model::TableName;
use crate::schema::Catalog;

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

    /// Called once the tables are known. A second attempt counts on where the first one ended.
    pub(super) fn plan(&self, catalog: &Catalog) {
        self.tables.get_or_init(|| {
            catalog
                .row_tables()
                .map(|table| {
                    let counts = Counts {
                        bytes_total: table.size_bytes,
                        rows_estimated: table.row_estimate.unwrap_or_default(),
                        ..Counts::default()
                    };
                    (table.name.clone(), Arc::new(counts))
                })
                .collect()
        });
    }

    /// The counts of a table; of nobody when it was not there at the first plan.
    pub(super) fn table(&self, name: &TableName) -> Arc<Counts> {
        self.tables.get().and_then(|tables| tables.get(name)).cloned().unwrap_or_default()
    }
}

impl Counts {
    pub(super) fn add(&self, bytes: u64, rows: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.rows.fetch_add(rows, Ordering::Relaxed);
    }

    /// Takes back what an attempt counted that came to nothing.
    pub(super) fn reset(&self, bytes: u64, rows: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, state: CopyState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn read(&self) -> TableProgress {
        let states = [CopyState::Waiting, CopyState::Copying, CopyState::Copied];
        TableProgress {
            state: states[usize::from(self.state.load(Ordering::Relaxed))],
            bytes_copied: self.bytes.load(Ordering::Relaxed),
            rows_copied: self.rows.load(Ordering::Relaxed),
            bytes_total: self.bytes_total,
            rows_estimated: self.rows_estimated,
        }
    }
}
