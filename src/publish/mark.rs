//! A place in the stream, finer than a transaction, and what a batch still has to give beyond it.

use crate::model::{Batch, Lsn, Position, Transaction};

/// How far publishing has come. Inside a transaction that was divided it also says which one that is, so that counting
/// goes on in the right one however the stream is cut into batches the next time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) position: Position,
    /// When `position.ordinal` is above zero: the commit of the transaction it counts in. Not its end, which parts
    /// before the last one do not know.
    pub(super) inside: Option<Lsn>,
}

/// What is left of a transaction (or of the part of it in a batch) beyond a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing, and nothing to count: the transaction is complete.
    Complete,
    /// Nothing of this part, but its events count for the parts that follow.
    Counted,
    /// The changes from this ordinal on.
    From(u64),
}

impl Mark {
    pub(super) const fn after(commit_end: Lsn) -> Self {
        Self { position: Position::after(commit_end), inside: None }
    }

    /// Where the stream stands after `batch`, given that it stood at `before`. Never goes back: a batch that is
    /// delivered again moves nothing.
    pub(super) fn advanced(before: Option<Self>, batch: &Batch) -> Self {
        let after = match batch.transactions.last() {
            Some(last) if !last.part.ends() => Self {
                position: Position { commit_end: batch.through, ordinal: after_ordinal(last) },
                inside: Some(last.commit),
            },
            Some(_) | None => Self::after(batch.through),
        };
        before.filter(|before| before.order() >= after.order()).unwrap_or(after)
    }

    /// What of `transaction` is beyond `done`.
    pub(super) fn rest(done: Option<Self>, transaction: &Transaction) -> Rest {
        let Some(done) = done else { return Rest::From(0) };
        // The least its end can be: whatever ended there or further on is this transaction or a later one.
        let least = transaction.commit.next();
        let complete = (least, true, 0);
        let this_part = if transaction.part.ends() { complete } else { (least, false, after_ordinal(transaction)) };
        if complete <= done.order() {
            Rest::Complete
        } else if this_part <= done.order() {
            Rest::Counted
        } else if done.inside == Some(transaction.commit) {
            Rest::From(done.position.ordinal)
        } else {
            Rest::From(0)
        }
    }

    /// Marks in stream order: by the transaction they stand in or behind, inside before behind.
    fn order(&self) -> (Lsn, bool, u64) {
        let reached = self.inside.map_or(self.position.commit_end, Lsn::next);
        (reached, self.inside.is_none(), self.position.ordinal)
    }
}

fn after_ordinal(transaction: &Transaction) -> u64 {
    transaction.first_ordinal + transaction.changes.len() as u64
}

#[cfg(test)]
mod tests {
    use super::super::testing::{batch, insert, lsn, transaction};
    use super::*;
    use crate::model::Part;

    fn inside(commit_end: u64, ordinal: u64, end: u64) -> Mark {
        Mark { position: Position { commit_end: lsn(commit_end), ordinal }, inside: Some(lsn(end - 1)) }
    }

    fn part(part: Part, first_ordinal: u64, count: usize) -> Transaction {
        transaction(200, part, first_ordinal, vec![insert(1); count])
    }

    #[test]
    fn a_part_leaves_the_mark_inside_its_transaction() {
        let first = batch(1, 100, vec![part(Part::First, 0, 3)]);
        assert_eq!(Mark::advanced(Some(Mark::after(lsn(90))), &first), inside(100, 3, 200));
        let last = batch(2, 200, vec![part(Part::Last, 3, 2)]);
        assert_eq!(Mark::advanced(Some(inside(100, 3, 200)), &last), Mark::after(lsn(200)));
    }

    #[test]
    fn what_is_delivered_again_moves_nothing() {
        let done = inside(100, 5, 200);
        for again in [
            batch(1, 90, vec![]),
            batch(1, 150, vec![]), // a keepalive's position before the transaction's end
            batch(1, 150, vec![part(Part::First, 0, 3)]),
            batch(1, 100, vec![part(Part::Middle, 3, 2)]),
        ] {
            assert_eq!(Mark::advanced(Some(done), &again), done, "{again:?}");
        }
        assert_eq!(Mark::advanced(Some(Mark::after(lsn(300))), &batch(1, 200, vec![])), Mark::after(lsn(300)));
    }

    #[test]
    fn a_transaction_is_resumed_at_the_ordinal_however_it_is_cut() {
        let done = Some(inside(100, 5, 200));
        assert_eq!(Mark::rest(done, &transaction(100, Part::Whole, 0, vec![insert(1)])), Rest::Complete);
        assert_eq!(Mark::rest(done, &part(Part::First, 0, 5)), Rest::Counted);
        assert_eq!(Mark::rest(done, &part(Part::First, 0, 6)), Rest::From(5));
        assert_eq!(Mark::rest(done, &part(Part::Whole, 0, 5)), Rest::From(5)); // END is still owed
        assert_eq!(Mark::rest(done, &part(Part::Last, 5, 0)), Rest::From(5));
        assert_eq!(Mark::rest(done, &transaction(300, Part::Whole, 0, vec![insert(1)])), Rest::From(0));
        assert_eq!(Mark::rest(None, &part(Part::Whole, 0, 1)), Rest::From(0));
    }

    /// PITFALLS 2: the commit record of one transaction may begin where that of the one before ends, and a part before
    /// the last one has no other end than its commit.
    #[test]
    fn a_part_is_not_taken_for_its_neighbour_and_is_found_again_in_the_whole() {
        let done = Some(Mark::after(lsn(199)));
        let first = part(Part::First, 0, 3);
        assert_eq!((first.commit, first.end), (lsn(199), lsn(199)));
        assert_eq!(Mark::rest(done, &first), Rest::From(0));
        let within = Mark::advanced(done, &batch(1, 199, vec![first]));
        assert_eq!(within, inside(199, 3, 200));
        assert_eq!(Mark::rest(Some(within), &part(Part::Whole, 0, 5)), Rest::From(3));
        assert_eq!(Mark::rest(Some(within), &part(Part::Last, 2, 3)), Rest::From(3));
    }
}
