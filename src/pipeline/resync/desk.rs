//! What is under way, for those who do it and those who have to know: verification, cutover, `status`.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::TableName;
use crate::pipeline::status::{ResyncStage, TableState};
use crate::snapshot::{Progress, TableProgress};
use crate::spool::Cursor;

/// Shared. At most one group of tables is under way at a time.
#[derive(Default)]
pub(in crate::pipeline) struct Desk {
    now: Mutex<Option<UnderWay>>,
    /// Holds in the spool what the tables need. Made before they are set apart, dropped when they are taken back.
    cursor: Mutex<Option<Cursor>>,
    /// Held by whoever sets tables apart, and by whoever reads whether any are.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// Tables were set apart.
    pub(super) begun: Notify,
}

struct UnderWay {
    tables: BTreeSet<TableName>,
    stage: ResyncStage,
    progress: Arc<Progress>,
}

impl Desk {
    /// These, and no others, are no part of the one state of the source from now on.
    pub(in crate::pipeline) fn begin(&self, tables: BTreeSet<TableName>) {
        let under_way = UnderWay { tables, stage: ResyncStage::Waiting, progress: Arc::default() };
        *lock(&self.now) = Some(under_way).filter(|it| !it.tables.is_empty());
    }

    pub(super) fn enter(&self, stage: ResyncStage) {
        if let Some(now) = lock(&self.now).as_mut() {
            now.stage = stage;
        }
    }

    pub(super) fn progress(&self) -> Arc<Progress> {
        lock(&self.now).as_ref().map(|now| Arc::clone(&now.progress)).unwrap_or_default()
    }

    /// Tables that are being copied, or catch up. Empty when none are.
    pub(in crate::pipeline) fn tables(&self) -> BTreeSet<TableName> {
        lock(&self.now).as_ref().map(|now| now.tables.clone()).unwrap_or_default()
    }

    pub(in crate::pipeline) fn stage(&self) -> Option<ResyncStage> {
        lock(&self.now).as_ref().map(|now| now.stage)
    }

    /// Why the target is not one state of the source, in words; `None` when nothing is under way.
    pub(in crate::pipeline) fn why_not_whole(&self) -> Option<String> {
        let now = lock(&self.now);
        let now = now.as_ref()?;
        let names: Vec<String> = now.tables.iter().map(TableName::to_string).collect();
        Some(format!("{}: {}", names.join(", "), now.stage.as_str()))
    }

    /// How a table stands that is under way; `None` for all others.
    pub(in crate::pipeline) fn table(&self, name: &TableName) -> Option<(TableState, Option<TableProgress>)> {
        let now = lock(&self.now);
        let now = now.as_ref().filter(|now| now.tables.contains(name))?;
        let state = match now.stage {
            ResyncStage::Waiting | ResyncStage::Preparing => TableState::Waiting,
            ResyncStage::Copying => TableState::Copying,
            ResyncStage::Indexing => TableState::Indexing,
            ResyncStage::CatchingUp | ResyncStage::Finishing => TableState::CatchingUp,
        };
        Some((state, now.progress.read().tables.get(name).copied()))
    }

    pub(in crate::pipeline) fn keep(&self, cursor: Cursor) {
        *lock(&self.cursor) = Some(cursor);
    }

    pub(super) fn take_cursor(&self) -> Option<Cursor> {
        lock(&self.cursor).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
