//! How far a copy of the schema has come, for `status`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use crate::model::TableName;

/// Counts of one call of `copy_indexes` or `copy_post_data`. Shared with whoever reports them.
#[derive(Debug, Default)]
pub struct Steps {
    inner: Mutex<StepsRead>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepsRead {
    pub total: u64,
    /// Those of an earlier run included.
    pub done: u64,
    /// Under way right now, in the order in which they were begun.
    pub running: BTreeMap<u64, RunningStep>,
    /// Tables whose keys, indexes and statistics are all there.
    pub indexed: BTreeSet<TableName>,
    begun: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningStep {
    /// `INDEX public.orders_by_customer`.
    pub title: String,
    pub table: Option<TableName>,
    pub began: Instant,
    /// The backend on the target that is at work.
    pub backend_pid: i32,
    /// Who held the lock that it needs when it last gave up waiting; until the server counts its work.
    pub waits_for: Option<String>,
    /// `None` until the server has been asked, and for what the server does not report on.
    pub work: Option<ServerWork>,
}

/// What the server says of a statement under way (`pg_stat_progress_create_index`, `pg_stat_progress_analyze`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerWork {
    /// `building index: scanning table`
    pub phase: String,
    pub unit: WorkUnit,
    pub done: u64,
    /// 0 in phases that are not counted.
    pub total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkUnit {
    Blocks,
    Tuples,
}

impl Steps {
    pub fn read(&self) -> StepsRead {
        self.lock().clone()
    }

    /// Called once it is known what there is to do.
    pub(super) fn expect(&self, total: usize, done: usize) {
        let mut inner = self.lock();
        inner.total = total as u64;
        inner.done = done as u64;
        inner.running.clear();
    }

    /// Returns what the step is ended by.
    pub(super) fn begin(&self, title: &str, table: Option<&TableName>, backend_pid: i32) -> u64 {
        let mut inner = self.lock();
        inner.begun += 1;
        let number = inner.begun;
        let (title, table) = (title.to_owned(), table.cloned());
        let step = RunningStep { title, table, began: Instant::now(), backend_pid, waits_for: None, work: None };
        inner.running.insert(number, step);
        number
    }

    pub(super) fn end(&self, number: u64) {
        let mut inner = self.lock();
        inner.running.remove(&number);
        inner.done += 1;
    }

    pub(super) fn give_up(&self, number: u64) {
        self.lock().running.remove(&number);
    }

    pub(super) fn waits_for(&self, number: u64, holder: String) {
        if let Some(step) = self.lock().running.get_mut(&number) {
            step.waits_for = Some(holder);
        }
    }

    pub(super) fn indexed(&self, table: TableName) {
        self.lock().indexed.insert(table);
    }

    /// The backends that run a step.
    pub(super) fn backends(&self) -> Vec<i32> {
        self.lock().running.values().map(|step| step.backend_pid).collect()
    }

    /// Puts down what the server says of each backend; of those that it does not mention it says nothing any more.
    pub(super) fn report(&self, mut by_backend: BTreeMap<i32, ServerWork>) {
        for step in self.lock().running.values_mut() {
            step.work = by_backend.remove(&step.backend_pid);
            if step.work.as_ref().is_some_and(|work| work.total > 0) {
                step.waits_for = None;
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StepsRead> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
