//! Which snapshot of the source is read under: one after another, none for longer than allowed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Error;
use super::holder::Holder;
use crate::model::TableName;
use crate::wire::Endpoint;

/// Shared by the workers of an attempt.
pub(super) struct Snapshots {
    source: Endpoint,
    /// `None`: one for all, however long it takes.
    age_max: Option<Duration>,
    current: Mutex<Option<Arc<Holder>>>,
    stop: CancellationToken,
}

impl Snapshots {
    pub(super) fn new(source: Endpoint, age_max: Option<Duration>, first: Holder, stop: CancellationToken) -> Self {
        Self { source, age_max, current: Mutex::new(Some(Arc::new(first))), stop }
    }

    /// The snapshot to read the next part under; a new one when the present one has become too old. `left` are the
    /// tables that are not complete, which a new one has to lock.
    ///
    /// The new one's locks are there before the old one's go, so that no moment is left in which a table could be
    /// truncated; the old one goes with the last worker that reads under it. Unless somebody waits to do just that, who
    /// would wait for the old one while the new one waits for him: the old one goes first then, and a table that was
    /// truncated is known by its file.
    pub(super) async fn current(&self, left: impl FnOnce() -> Vec<TableName>) -> Result<Arc<Holder>, Error> {
        let mut current = self.current.lock().await;
        if let Some(holder) = &*current
            && self.is_young(holder)
        {
            return Ok(Arc::clone(holder));
        }
        let tables = left();
        let mut next = None;
        if let Some(old) = &*current {
            next = Holder::open_next(&self.source, &tables).await?;
            if next.is_some() {
                old.confirm().await?;
            }
        }
        drop(current.take());
        let next = match next {
            Some(next) => next,
            None => Holder::open(&self.source, &tables, &self.stop).await?,
        };
        Ok(Arc::clone(current.insert(Arc::new(next))))
    }

    /// Whether the next part would be read under `holder` as well. A snapshot that is just being changed is another one.
    pub(super) fn stays(&self, holder: &Arc<Holder>) -> bool {
        let Ok(current) = self.current.try_lock() else { return false };
        self.is_young(holder) && current.as_ref().is_some_and(|current| Arc::ptr_eq(current, holder))
    }

    fn is_young(&self, holder: &Holder) -> bool {
        self.age_max.is_none_or(|age_max| holder.age() < age_max)
    }

    /// Whether parts may be read under several.
    pub(super) fn may_change(&self) -> bool {
        self.age_max.is_some()
    }

    /// Nothing will be read for a while. Whoever still reads, or copies a table without key, keeps it until the end of that;
    /// a table that is truncated or rewritten meanwhile is known by its file.
    pub(super) async fn let_go(&self) {
        if self.may_change() {
            drop(self.current.lock().await.take());
        }
    }

    /// Ends the last one, when nobody reads under it any more.
    pub(super) async fn release(&self) {
        if let Some(holder) = self.current.lock().await.take().and_then(Arc::into_inner)
            && let Err(error) = holder.release().await
        {
            debug!(%error, "the session that held the snapshot was gone before its end");
        }
    }
}
