//! The named places between steps that a crash may part. Tests stop time there; otherwise nothing happens.

#[cfg(test)]
use std::sync::{Arc, OnceLock};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// A segment's file is there; its name may not survive a power loss yet.
    Created,
    /// Records are written; a power loss may leave any beginning of them.
    Written,
    /// Records are durable; nobody has been told.
    Synced,
    /// The new beginning is recorded; the segments before it are still there.
    Noted,
    /// The segments before the beginning are gone.
    Removed,
}

#[cfg(test)]
pub(super) type Hook = Arc<dyn Fn(Point) + Send + Sync>;

#[derive(Default)]
pub(super) struct Points {
    #[cfg(test)]
    pub(super) hook: OnceLock<Hook>,
}

impl Points {
    #[cfg(test)]
    pub(super) fn reach(&self, point: Point) {
        if let Some(hook) = self.hook.get() {
            hook(point);
        }
    }

    #[cfg(not(test))]
    #[allow(clippy::unused_self, reason = "the same call as in tests")]
    pub(super) const fn reach(&self, _point: Point) {}
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Points")
    }
}
