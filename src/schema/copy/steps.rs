//! How far a copy of the schema has come, for `status`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

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
    /// Under way right now: `INDEX public.orders_by_customer`.
    pub running: BTreeSet<String>,
}

impl Steps {
    pub fn read(&self) -> StepsRead {
        self.lock().clone()
    }

    /// Called once it is known what there is to do.
    pub(super) fn expect(&self, total: usize, done: usize) {
        *self.lock() = StepsRead { total: total as u64, done: done as u64, running: BTreeSet::new() };
    }

    pub(super) fn begin(&self, title: &str) {
        self.lock().running.insert(title.to_owned());
    }

    pub(super) fn end(&self, title: &str) {
        let mut inner = self.lock();
        inner.running.remove(title);
        inner.done += 1;
    }

    pub(super) fn give_up(&self, title: &str) {
        self.lock().running.remove(title);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, StepsRead> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
