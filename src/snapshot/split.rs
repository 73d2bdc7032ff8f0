//! A table while it is copied: which snapshot it is a state of, and whether its parts were read under several.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use super::holder::Holder;
use super::plan::Copied;
use super::record::Partial;
use crate::model::{ReplicaIdentity, SnapshotSet, TableName};
use crate::schema::Table;

/// Shared by the workers that copy its parts.
#[derive(Debug)]
pub(super) struct TableCopy {
    pub(super) copied: Copied,
    /// Set by whoever copies the first part, in the transaction that empties the table.
    pub(super) begun: OnceCell<Begun>,
    parts_left: AtomicU32,
    /// Parts were read under more than one snapshot: the table is settled before it is complete.
    mixed: AtomicBool,
}

/// What a split table was begun with.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) base: SnapshotSet,
    /// The table's file on the source at that time ([`Copied::files_under`]).
    pub(super) filenode: u32,
    /// A table without key cannot be settled, so all its parts are read under the snapshot that it was begun with.
    pinned: Mutex<Option<Arc<Holder>>>,
}

impl Begun {
    pub(super) fn new(base: SnapshotSet, filenode: u32, pinned: Option<Arc<Holder>>) -> Self {
        Self { base, filenode, pinned: Mutex::new(pinned) }
    }

    /// The first snapshot, for a part that is read under another one.
    pub(super) fn base_under(&self, snapshot: &SnapshotSet) -> Option<&SnapshotSet> {
        (self.base != *snapshot).then_some(&self.base)
    }

    pub(super) fn pinned(&self) -> Option<Arc<Holder>> {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// No part is left to be read.
    pub(super) fn unpin(&self) {
        self.pinned.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl TableCopy {
    /// `earlier`: what another attempt has done of it, if that still fits together with what is there now.
    pub(super) fn new(copied: Copied, earlier: Option<Partial>) -> Self {
        let part_count = copied.cut.part_count;
        let Some(earlier) = earlier else {
            return Self {
                copied,
                begun: OnceCell::new(),
                parts_left: AtomicU32::new(part_count),
                mixed: AtomicBool::new(false),
            };
        };
        let done = u32::try_from(earlier.done.len()).expect("parts are numbered by u32");
        Self {
            copied,
            parts_left: AtomicU32::new(part_count - done),
            mixed: AtomicBool::new(earlier.mixed),
            begun: OnceCell::new_with(Some(Begun::new(earlier.base, earlier.filenode, None))),
        }
    }

    pub(super) fn is_split(&self) -> bool {
        self.copied.cut.part_count > 1
    }

    /// Rows can be told apart, so that parts read under several snapshots can be brought to one ([`super::settle`]).
    pub(super) fn can_be_settled(&self) -> bool {
        !self.copied.settle_key().is_empty()
    }

    pub(super) fn is_mixed(&self) -> bool {
        self.mixed.load(Ordering::Acquire)
    }

    pub(super) fn is_recorded(&self) -> bool {
        self.parts_left.load(Ordering::Acquire) == 0
    }

    /// A part read under `snapshot` is recorded. Whether it was the last.
    pub(super) fn part_recorded(&self, snapshot: &SnapshotSet) -> bool {
        if self.begun.get().is_some_and(|begun| begun.base_under(snapshot).is_some()) {
            self.mixed.store(true, Ordering::Release);
        }
        self.parts_left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

impl Copied {
    /// The tables that hold its rows on the source.
    pub(super) fn stored_in(&self) -> impl Iterator<Item = &TableName> {
        self.table.stored().map(|table| &table.name)
    }

    /// What tells one state of its files from another while `holder` holds their locks: the file of a table, and of a
    /// gathered one a sum over those of its leaves in order, which also tells when a leaf came or went. `None` when one
    /// is not locked.
    pub(super) fn files_under(&self, holder: &Holder) -> Option<u32> {
        if !self.table.is_gathered() {
            return holder.filenode(&self.table.name);
        }
        // FNV-1a, a file at a time.
        const START: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        self.stored_in().try_fold(START, |sum, name| Some((sum ^ holder.filenode(name)?).wrapping_mul(PRIME)))
    }

    /// Columns that tell rows apart and are never NULL: the primary key, or the index that is the replica identity. None
    /// when there are none.
    pub(super) fn settle_key(&self) -> &[String] {
        settle_key(&self.table)
    }
}

/// See [`Copied::settle_key`].
pub(super) fn settle_key(table: &Table) -> &[String] {
    match &table.primary_key {
        Some(key) => key,
        None if table.replica_identity == ReplicaIdentity::Index => &table.identity_columns,
        None => &[],
    }
}
