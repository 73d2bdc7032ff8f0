//! The batch under construction, and the transaction that is open in it.

use std::sync::Arc;

use crate::model::{
    Batch, Change, ChangeKind, Lsn, Part, Relation, RelationIndex, Transaction, TransactionOrigin, Xid,
};

use super::shapes::Listing;

/// Committed transactions on their way into the next batch.
pub(super) struct Assembly {
    /// A batch is closed at the first commit beyond this.
    batch_bytes: usize,
    /// A transaction beyond this goes out in parts.
    part_bytes: usize,
    pub(super) listing: Listing,
    complete: Vec<Transaction>,
    complete_bytes: usize,
    /// Everything up to here is emitted or in `complete`.
    through: Lsn,
    wal_end: Lsn,
    emitted: Emitted,
    /// What will have been emitted once the batch just made is taken.
    leaving: Emitted,
}

/// How far batches have been taken off our hands.
#[derive(Clone, Copy)]
struct Emitted {
    next_seq: u64,
    through: Lsn,
    /// The transaction of which only the beginning has been emitted.
    unfinished: Option<Unfinished>,
}

/// How much of a transaction left in earlier batches. It survives a reconnect: the same log gives the same changes in the
/// same order, so the rest is found by counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub(super) commit: Lsn,
    pub(super) emitted: u64,
}

/// A transaction of which more may come.
pub(super) struct Open {
    pub(super) xid: Xid,
    pub(super) commit: Lsn,
    pub(super) at_us: i64,
    pub(super) origin: Option<TransactionOrigin>,
    /// Changes that left in earlier parts.
    emitted: u64,
    /// Changes seen in this session; below `emitted` they are repeated and dropped.
    seen: u64,
    changes: Vec<Change>,
    size_bytes: usize,
    /// Relations that the batch had listed when this transaction was opened: the rest is used by it alone.
    listed_before: usize,
}

impl Assembly {
    pub(super) fn new(batch_bytes: usize, part_bytes: usize, next_seq: u64, through: Lsn) -> Self {
        let emitted = Emitted { next_seq, through, unfinished: None };
        Self {
            batch_bytes,
            part_bytes,
            listing: Listing::default(),
            complete: Vec::new(),
            complete_bytes: 0,
            through,
            wal_end: through,
            emitted,
            leaving: emitted,
        }
    }

    /// Drops what was not emitted: a new session sends it again. Returns the transaction it has to go on with.
    pub(super) fn restart(&mut self) -> Option<Unfinished> {
        self.complete.clear();
        self.complete_bytes = 0;
        self.listing.turn(std::iter::empty());
        self.through = self.emitted.through;
        self.leaving = self.emitted;
        self.emitted.unfinished
    }

    /// The batch made last was taken. Until then it counts as never made: a session that begins after a refusal sends
    /// its contents again, and the next batch has its `seq`.
    pub(super) fn taken(&mut self) {
        self.emitted = self.leaving;
    }

    pub(super) fn through(&self) -> Lsn {
        self.through
    }

    pub(super) fn note_wal_end(&mut self, wal_end: Lsn) {
        self.wal_end = self.wal_end.max(wal_end);
    }

    /// Nothing for us was committed up to here.
    pub(super) fn advance(&mut self, through: Lsn) {
        self.through = self.through.max(through);
    }

    /// The transaction is complete and joins the batch; true when it says something to the sinks.
    pub(super) fn complete(&mut self, open: Open, end: Lsn) -> bool {
        self.advance(end);
        // Filtered to nothing, or of tables that are not published (before PostgreSQL 15): only the position counts.
        if open.changes.is_empty() && open.emitted == 0 {
            return false;
        }
        let part = if open.emitted == 0 { Part::Whole } else { Part::Last };
        self.push(open.into_transaction(part, end));
        true
    }

    /// The batch is large enough to go.
    pub(super) fn is_full(&self) -> bool {
        self.complete_bytes >= self.batch_bytes
    }

    /// The open transaction is so large that its beginning has to go ahead.
    pub(super) fn exceeds(&self, open: &Open) -> bool {
        open.size_bytes >= self.part_bytes
    }

    /// Everything complete, when there is anything to say. What `open` holds stays behind for a later batch.
    pub(super) fn close(&mut self, open: Option<&mut Open>) -> Option<Batch> {
        if self.complete.is_empty() && self.through == self.emitted.through {
            return None;
        }
        let used = open.as_ref().map_or(self.listing.len(), |open| open.listed_before);
        let mut relations = match open {
            Some(open) => {
                open.listed_before = 0;
                self.listing.turn(open.changes.iter_mut().flat_map(relation_indices))
            }
            None => self.listing.turn(std::iter::empty()),
        };
        relations.truncate(used);
        Some(self.batch(relations))
    }

    /// Everything complete and all of `open` so far, as a part.
    pub(super) fn close_with_part(&mut self, open: &mut Open) -> Batch {
        let part = open.split_part();
        self.push(part);
        open.listed_before = 0;
        let relations = self.listing.turn(std::iter::empty());
        self.batch(relations)
    }

    fn push(&mut self, transaction: Transaction) {
        self.complete_bytes += transaction.size_bytes();
        self.complete.push(transaction);
    }

    fn batch(&mut self, relations: Vec<Arc<Relation>>) -> Batch {
        let transactions = std::mem::take(&mut self.complete);
        self.complete_bytes = 0;
        let unfinished = match transactions.last() {
            Some(last) if !last.part.ends() => {
                Some(Unfinished { commit: last.commit, emitted: last.first_ordinal + last.changes.len() as u64 })
            }
            Some(_) => None,
            None => self.emitted.unfinished,
        };
        let seq = self.emitted.next_seq;
        self.leaving = Emitted { next_seq: seq + 1, through: self.through, unfinished };
        Batch { seq, relations, transactions, through: self.through, wal_end: self.wal_end.max(self.through) }
    }
}

/// From so many changes on, room that was not needed is given back.
const SHRUNK_FROM: usize = 64;

impl Open {
    /// `emitted`: how many of its changes left in an earlier session.
    pub(super) fn new(xid: Xid, commit: Lsn, at_us: i64, emitted: u64, listing: &Listing) -> Self {
        Self {
            xid,
            commit,
            at_us,
            origin: None,
            emitted,
            seen: 0,
            changes: Vec::new(),
            size_bytes: 0,
            listed_before: listing.len(),
        }
    }

    /// Counts the next change; false when it left in an earlier session.
    pub(super) fn wants_next(&mut self) -> bool {
        self.seen += 1;
        self.seen > self.emitted
    }

    pub(super) fn push(&mut self, change: Change) {
        self.size_bytes += change.size_bytes();
        self.changes.push(change);
    }

    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn emitted(&self) -> u64 {
        self.emitted
    }

    /// What has been gathered so far. Its commit record has not been read to its end when it is not a streamed one, so
    /// `end` is the start of that record: parts before the last have no end of their own.
    fn split_part(&mut self) -> Transaction {
        let rest = Self {
            origin: self.origin.clone(),
            emitted: self.emitted + self.changes.len() as u64,
            changes: Vec::with_capacity(self.changes.len()),
            size_bytes: 0,
            ..*self
        };
        let part = if self.emitted == 0 { Part::First } else { Part::Middle };
        let end = self.commit;
        std::mem::replace(self, rest).into_transaction(part, end)
    }

    fn into_transaction(mut self, part: Part, end: Lsn) -> Transaction {
        // A large list was doubled as it grew, and may wait in the spool for long.
        if self.changes.len() >= SHRUNK_FROM {
            self.changes.shrink_to_fit();
        }
        Transaction {
            xid: self.xid,
            commit: self.commit,
            end,
            committed_at_us: self.at_us,
            origin: self.origin,
            part,
            first_ordinal: self.emitted,
            changes: self.changes,
        }
    }
}

fn relation_indices(change: &mut Change) -> &mut [RelationIndex] {
    match &mut change.kind {
        ChangeKind::Insert { relation, .. }
        | ChangeKind::Update { relation, .. }
        | ChangeKind::Delete { relation, .. } => std::slice::from_mut(relation),
        ChangeKind::Truncate { relations, .. } => relations,
        ChangeKind::Message { .. } => &mut [],
    }
}
