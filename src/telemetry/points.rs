//! Named places between steps that a crash may part.
//!
//! In a debug build a test can have the daemon stand still at one, to strike it or a server exactly there: it names a
//! directory in `CHANGEOVER_POINTS` and puts an empty file with a point's name into it. Whoever reaches that point next
//! takes the file (`.held` is added to its name) and waits until it is gone. A release build has nothing of this.

#[cfg(debug_assertions)]
use std::{fs, path::PathBuf, sync::OnceLock, thread, time::Duration};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// A worker of the copy has been handed a snapshot, and has not adopted it.
    SnapshotHanded,
    /// A span of a backlog is about to be asked for.
    SpanDue,
    /// All of it is handed on; how far it goes is not.
    SpanRead,
    /// What the source may forget is known, and not yet written to the socket.
    ReportDue,
    /// It is queued to the socket.
    Reported,
    /// A group is written out for the target, and nothing of it sent but what went ahead of its turn.
    GroupDue,
    /// What of a group may go ahead of its turn is sent.
    GroupAhead,
    /// The target has committed a group; nobody has been told.
    GroupCommitted,
    /// Its position has been told.
    GroupTold,
    /// A transaction that was applied ahead has committed on the source; its commit on the target is not sent.
    AheadDue,
    /// The target has committed it; nobody has been told.
    AheadCommitted,
    /// The decoder has been told, and emits how far it has come.
    AheadTold,
    /// A segment's file is there.
    SegmentCreated,
    SegmentWritten,
    SegmentSynced,
    /// The spool's new beginning is recorded; the segments before it are still there.
    BeginningNoted,
    SegmentsRemoved,
    /// The position is among the records of an open Kafka transaction.
    RecordsSealed,
    /// Kafka has acknowledged every record.
    RecordsFlushed,
    /// The Kafka transaction is committed; nobody has been told.
    RecordsCommitted,
    RecordsTold,
}

impl Point {
    pub const ALL: [Self; 21] = [
        Self::SnapshotHanded,
        Self::SpanDue,
        Self::SpanRead,
        Self::ReportDue,
        Self::Reported,
        Self::GroupDue,
        Self::GroupAhead,
        Self::GroupCommitted,
        Self::GroupTold,
        Self::AheadDue,
        Self::AheadCommitted,
        Self::AheadTold,
        Self::SegmentCreated,
        Self::SegmentWritten,
        Self::SegmentSynced,
        Self::BeginningNoted,
        Self::SegmentsRemoved,
        Self::RecordsSealed,
        Self::RecordsFlushed,
        Self::RecordsCommitted,
        Self::RecordsTold,
    ];

    /// The file's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SnapshotHanded => "snapshot-handed",
            Self::SpanDue => "span-due",
            Self::SpanRead => "span-read",
            Self::ReportDue => "report-due",
            Self::Reported => "reported",
            Self::GroupDue => "group-due",
            Self::GroupAhead => "group-ahead",
            Self::GroupCommitted => "group-committed",
            Self::GroupTold => "group-told",
            Self::AheadDue => "ahead-due",
            Self::AheadCommitted => "ahead-committed",
            Self::AheadTold => "ahead-told",
            Self::SegmentCreated => "segment-created",
            Self::SegmentWritten => "segment-written",
            Self::SegmentSynced => "segment-synced",
            Self::BeginningNoted => "beginning-noted",
            Self::SegmentsRemoved => "segments-removed",
            Self::RecordsSealed => "records-sealed",
            Self::RecordsFlushed => "records-flushed",
            Self::RecordsCommitted => "records-committed",
            Self::RecordsTold => "records-told",
        }
    }

    /// We are here. Blocks the thread for as long as a test wants it.
    #[cfg(debug_assertions)]
    pub fn reach(self) {
        const LOOK_AGAIN: Duration = Duration::from_millis(5);
        let Some(directory) = DIRECTORY.get() else { return };
        let held = directory.join(format!("{}.held", self.name()));
        if fs::rename(directory.join(self.name()), &held).is_ok() {
            while held.exists() {
                thread::sleep(LOOK_AGAIN);
            }
        }
    }

    #[cfg(not(debug_assertions))]
    #[inline]
    pub const fn reach(self) {}
}

#[cfg(debug_assertions)]
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

/// From now on points look for their files in `directory`. The first caller decides.
#[cfg(debug_assertions)]
pub fn arm_points(directory: PathBuf) {
    drop(DIRECTORY.set(directory));
}
