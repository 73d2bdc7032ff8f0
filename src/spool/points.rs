//! The spool's named places between steps that a crash may part. Tests of this room stop time there; those of the whole
//! daemon come in by [`telemetry::Point`].

#[cfg(test)]
use std::sync::{Arc, OnceLock};

use crate::telemetry;

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
    pub(super) fn reach(&self, point: Point) {
        point.of_daemon().reach();
    }
}

impl Point {
    #[cfg_attr(test, allow(dead_code, reason = "tests of this room have a hook of their own"))]
    const fn of_daemon(self) -> telemetry::Point {
        match self {
            Self::Created => telemetry::Point::SegmentCreated,
            Self::Written => telemetry::Point::SegmentWritten,
            Self::Synced => telemetry::Point::SegmentSynced,
            Self::Noted => telemetry::Point::BeginningNoted,
            Self::Removed => telemetry::Point::SegmentsRemoved,
        }
    }
}

impl std::fmt::Debug for Points {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Points")
    }
}
