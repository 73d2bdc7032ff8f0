//! Passes on which keys the applier wrote to every verification that keeps up with them.

use std::sync::{Arc, PoisonError, RwLock};

use crate::model::{Relation, TableName, Touched, Tuple};
use crate::verify::{DirtyKeys, Table};

/// The verification of all tables, which lives as long as the daemon, and at most one of chosen tables beside it.
pub(super) struct Listeners {
    all: Arc<DirtyKeys>,
    chosen: RwLock<Option<Arc<DirtyKeys>>>,
}

impl Listeners {
    pub(super) fn new(all: Arc<DirtyKeys>) -> Self {
        Self { all, chosen: RwLock::new(None) }
    }

    pub(super) fn all(&self) -> &Arc<DirtyKeys> {
        &self.all
    }

    /// Listens for `tables` until the guard is dropped.
    pub(super) fn choose(self: &Arc<Self>, tables: Vec<Table>, budget_bytes: usize) -> Chosen {
        let keys = Arc::new(DirtyKeys::new(tables.into(), budget_bytes));
        *self.chosen.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&keys));
        Chosen { listeners: Arc::clone(self), keys }
    }

    fn each(&self, tell: impl Fn(&DirtyKeys)) {
        tell(&self.all);
        if let Some(chosen) = &*self.chosen.read().unwrap_or_else(PoisonError::into_inner) {
            tell(chosen);
        }
    }
}

impl Touched for Listeners {
    fn row(&self, table: &TableName, relation: &Relation, tuple: &Tuple) {
        self.each(|keys| keys.row(table, relation, tuple));
    }

    fn table(&self, table: &TableName) {
        self.each(|keys| keys.table(table));
    }
}

/// Ends the listening for chosen tables when dropped.
pub(super) struct Chosen {
    listeners: Arc<Listeners>,
    keys: Arc<DirtyKeys>,
}

impl Chosen {
    pub(super) fn keys(&self) -> &DirtyKeys {
        &self.keys
    }
}

impl Drop for Chosen {
    fn drop(&mut self) {
        *self.listeners.chosen.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
