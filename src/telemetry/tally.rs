//! Row counts per table as the target's applier reports them: what `status` and the metrics read.

use std::sync::{Mutex, PoisonError};

use crate::model::{RowCounts, RowCountsByTable, TableName};

/// Totals since the start, by the table's name on the source. The number of tables bounds it.
#[derive(Debug, Default)]
pub struct Tally {
    tables: Mutex<RowCountsByTable>,
}

impl Tally {
    /// Adds what one committed group did to `table`.
    pub fn add(&self, table: &TableName, counts: RowCounts) {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if !tables.contains_key(table) {
            tables.insert(table.clone(), RowCounts::default());
        }
        let total = tables.get_mut(table).expect("it was inserted above");
        total.inserts += counts.inserts;
        total.updates += counts.updates;
        total.deletes += counts.deletes;
        total.truncates += counts.truncates;
        total.committed_at_us = total.committed_at_us.max(counts.committed_at_us);
    }

    pub fn read(&self) -> RowCountsByTable {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
