//! How far the copy has come, for `status` and the metrics, and for whoever waits for the rows of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::estimate::{self, Capacity, Counted, Known, Rate, Window};
use super::plan::TID_RANGES_SINCE;
use super::record::Recorded;
use super::worker::Moved;
use crate::model::TableName;
use crate::schema::{Catalog, Table};

/// Pages of a heap, unless the server was built with another size: good enough to tell TOAST from heap.
const BLOCK_BYTES: u64 = 8192;

/// Shared between the copy's workers, which count, and whoever reports. Empty until the copy has been planned.
#[derive(Debug)]
pub struct Progress {
    workers: usize,
    split_bytes: u64,
    source_version_num: AtomicU32,
    tables: OnceLock<BTreeMap<TableName, Arc<Counts>>>,
    complete: Arc<watch::Sender<BTreeSet<TableName>>>,
    /// Of all tables together.
    window: Mutex<Window>,
}

/// One table's counts, written by its workers.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// `None`: nobody's.
    name: Option<TableName>,
    size_bytes: u64,
    toast_bytes: u64,
    rows_estimated: u64,
    bytes: AtomicU64,
    rows: AtomicU64,
    state: AtomicU8,
    window: Mutex<Window>,
    complete: Arc<watch::Sender<BTreeSet<TableName>>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProgressRead {
    /// By the name on the source.
    pub tables: BTreeMap<TableName, TableProgress>,
    /// Of all workers together over the last half minute; `None` before there is enough to tell.
    pub bytes_per_second: Option<f64>,
    pub rows_per_second: Option<f64>,
    /// Until the last table is complete; `None` when nobody can tell.
    pub seconds_left: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TableProgress {
    pub state: CopyState,
    /// As they travelled.
    pub bytes_copied: u64,
    pub rows_copied: u64,
    /// As they are expected to have travelled when the table is complete; `None` when it has passed every estimate.
    pub bytes_expected: Option<u64>,
    /// Heap and TOAST on the source.
    pub bytes_total: u64,
    /// The planner's estimate on the source; 0 when it has none.
    pub rows_estimated: u64,
    pub bytes_per_second: Option<f64>,
    pub rows_per_second: Option<f64>,
    pub seconds_left: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// No part of it has been begun.
    Waiting,
    Copying,
    /// Every row is on the target and recorded there.
    Copied,
}

/// Of a copy whose capacity does not matter: nobody asks it how long it will take.
impl Default for Progress {
    fn default() -> Self {
        Self::new(1, u64::MAX)
    }
}

impl Progress {
    /// Of a copy with so many workers, which share tables that are larger than `split_bytes`.
    pub fn new(workers: usize, split_bytes: u64) -> Self {
        Self {
            workers,
            split_bytes,
            source_version_num: AtomicU32::new(0),
            tables: OnceLock::new(),
            complete: Arc::default(),
            window: Mutex::default(),
        }
    }

    /// What is known now.
    pub fn read(&self) -> ProgressRead {
        let Some(tables) = self.tables.get() else { return ProgressRead::default() };
        let known: Vec<Known> = tables.values().map(|counts| counts.known()).collect();
        let (capacity, all) = (self.capacity(), lock(&self.window).rate());
        let (width, rate) = (estimate::width(&known), all.unwrap_or_default());
        let per_worker = estimate::per_worker(rate, capacity);
        let read = |known: &Known| TableProgress {
            state: known.state,
            bytes_copied: known.copied.bytes,
            rows_copied: known.copied.rows,
            bytes_expected: known.bytes_expected(width).map(|bytes| bytes as u64),
            bytes_total: known.size_bytes,
            rows_estimated: known.rows_estimated,
            bytes_per_second: known.rate.map(|rate| rate.bytes_per_second),
            rows_per_second: known.rate.map(|rate| rate.rows_per_second),
            seconds_left: known.seconds_left(width, capacity, per_worker),
        };
        ProgressRead {
            tables: tables.keys().cloned().zip(known.iter().map(read)).collect(),
            bytes_per_second: all.map(|rate| rate.bytes_per_second),
            rows_per_second: all.map(|rate| rate.rows_per_second),
            seconds_left: all.and_then(|rate| estimate::seconds_left(&known, capacity, rate)),
        }
    }

    /// Tables whose rows are all there, as far as this process knows.
    pub fn complete(&self) -> watch::Receiver<BTreeSet<TableName>> {
        self.complete.subscribe()
    }

    /// Notes what has been counted so far, for the rates. To be called every second while rows are copied.
    pub fn sample(&self, now: Instant) {
        let mut all = Counted::default();
        for counts in self.tables.get().into_iter().flat_map(BTreeMap::values) {
            let counted = counts.counted();
            all.bytes += counted.bytes;
            all.rows += counted.rows;
            if counts.state() == CopyState::Copying {
                lock(&counts.window).push(now, counted);
            }
        }
        lock(&self.window).push(now, all);
    }

    /// Called once the tables are known, by every attempt; the first one decides which tables there are.
    pub(super) fn plan(&self, catalog: &Catalog, recorded: &Recorded) {
        self.source_version_num.store(catalog.server_version_num, Ordering::Relaxed);
        let tables = self.tables.get_or_init(|| {
            let counts = |table: &Table| Arc::new(Counts::of(table, Arc::clone(&self.complete)));
            catalog.row_tables().map(|table| (table.name.clone(), counts(table))).collect()
        });
        for (name, counts) in tables {
            match (recorded.complete.get(name), recorded.partial.get(name)) {
                (Some((rows, bytes)), _) => counts.reset(*rows, *bytes, CopyState::Copied),
                (None, Some(partial)) => counts.reset(partial.rows, partial.bytes, CopyState::Waiting),
                (None, None) => counts.reset(0, 0, CopyState::Waiting),
            }
        }
        self.complete.send_replace(recorded.complete.keys().cloned().collect());
    }

    /// The counts of a table; of nobody when it was not there at the first plan.
    pub(super) fn table(&self, name: &TableName) -> Arc<Counts> {
        self.tables.get().and_then(|tables| tables.get(name)).cloned().unwrap_or_default()
    }

    fn capacity(&self) -> Capacity {
        // Else one worker reads all of a table.
        let splits = self.source_version_num.load(Ordering::Relaxed) >= TID_RANGES_SINCE;
        Capacity { workers: self.workers, split_bytes: splits.then_some(self.split_bytes) }
    }
}

impl Counts {
    fn of(table: &Table, complete: Arc<watch::Sender<BTreeSet<TableName>>>) -> Self {
        Self {
            name: Some(table.name.clone()),
            size_bytes: table.size_bytes,
            toast_bytes: table.size_bytes.saturating_sub(table.block_count.saturating_mul(BLOCK_BYTES)),
            rows_estimated: table.row_estimate.unwrap_or_default(),
            complete,
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
        self.state.store(state as u8, Ordering::Relaxed);
        *lock(&self.window) = Window::default();
    }

    pub(super) fn enter(&self, state: CopyState) {
        self.state.store(state as u8, Ordering::Relaxed);
        if let (CopyState::Copied, Some(name)) = (state, &self.name) {
            self.complete.send_if_modified(|complete| complete.insert(name.clone()));
        }
    }

    pub(super) fn state(&self) -> CopyState {
        let states = [CopyState::Waiting, CopyState::Copying, CopyState::Copied];
        states[usize::from(self.state.load(Ordering::Relaxed))]
    }

    fn counted(&self) -> Counted {
        Counted { bytes: self.bytes.load(Ordering::Relaxed), rows: self.rows.load(Ordering::Relaxed) }
    }

    fn known(&self) -> Known {
        let state = self.state();
        let rate: Option<Rate> = match state {
            CopyState::Copying => lock(&self.window).rate(),
            CopyState::Waiting | CopyState::Copied => None,
        };
        Known {
            state,
            copied: self.counted(),
            size_bytes: self.size_bytes,
            toast_bytes: self.toast_bytes,
            rows_estimated: self.rows_estimated,
            rate,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
