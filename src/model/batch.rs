//! What travels from decode through the spool to the sinks: committed transactions in commit order.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Change, Lsn, Relation, RelationIndex, Xid};

/// A run of committed transactions in commit order. `seq` is dense, asserted at every door.
///
/// A keepalive takes the same road as a batch without transactions: only `through` moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub seq: u64,
    /// The shapes its changes refer to, by [`RelationIndex`]. A shape that changes inside a batch is listed twice.
    pub relations: Vec<Arc<Relation>>,
    pub transactions: Vec<Transaction>,
    /// Everything the source committed and publishes up to here is in this batch or before it. Never inside a
    /// transaction that is still being delivered in parts.
    pub through: Lsn,
    /// The end of the source's log when the last frame in here was sent.
    pub wal_end: Lsn,
}

/// One source transaction, or a part of one too large for a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub xid: Xid,
    /// Start of the commit record (pgoutput's "LSN of the commit").
    pub commit: Lsn,
    /// End of the commit record: what is confirmed, and what positions are made of. Exact in parts that end
    /// ([`Part::ends`]); in the others it may be as low as `commit`, because the stream names it only at the very end.
    pub end: Lsn,
    /// Microseconds since the Unix epoch, by the source's clock.
    pub committed_at_us: i64,
    pub origin: Option<TransactionOrigin>,
    pub part: Part,
    /// How many changes of this transaction came in earlier parts.
    pub first_ordinal: u64,
    pub changes: Vec<Change>,
}

/// Which part of its source transaction this is. Only consecutive parts of one transaction stand between a `First`
/// and its `Last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    Whole,
    First,
    Middle,
    Last,
}

impl Part {
    pub const fn begins(self) -> bool {
        matches!(self, Self::Whole | Self::First)
    }

    pub const fn ends(self) -> bool {
        matches!(self, Self::Whole | Self::Last)
    }
}

/// The replication origin the transaction was applied under on the source (pgoutput's Origin message).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransactionOrigin {
    pub name: String,
    pub lsn: Option<Lsn>,
}

impl Batch {
    /// Bytes it holds, for the budgets.
    pub fn size_bytes(&self) -> usize {
        const FLAT: usize = size_of::<Batch>();
        FLAT + self.relations.len() * size_of::<Arc<Relation>>()
            + self.transactions.iter().map(Transaction::size_bytes).sum::<usize>()
    }

    /// Whether its last transaction ends in a later batch.
    pub fn ends_inside(&self) -> bool {
        self.transactions.last().is_some_and(|last| !last.part.ends())
    }

    pub fn change_count(&self) -> usize {
        self.transactions.iter().map(|transaction| transaction.changes.len()).sum()
    }

    /// The shape a change refers to. The decoder makes the index, so a missing one is our own mistake and panics.
    pub fn relation(&self, index: RelationIndex) -> &Arc<Relation> {
        &self.relations[index as usize]
    }
}

impl Transaction {
    /// Its end, or the least it can be for a part that does not know it. The commit record of one transaction may begin
    /// where that of the one before ends, so its start alone would put a part into its neighbour's position.
    pub fn end_at_least(&self) -> Lsn {
        self.end.max(self.commit.next())
    }

    pub fn size_bytes(&self) -> usize {
        size_of::<Self>() + self.changes.iter().map(Change::size_bytes).sum::<usize>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PITFALLS 2: the commit record of one transaction may begin where that of the one before ends.
    #[test]
    fn a_part_does_not_end_where_its_neighbour_does() {
        let position = Lsn::new(100).unwrap();
        let transaction = |commit: u64, end: u64, part| Transaction {
            xid: Xid(1),
            commit: Lsn::new(commit).unwrap(),
            end: Lsn::new(end).unwrap(),
            committed_at_us: 0,
            origin: None,
            part,
            first_ordinal: 0,
            changes: Vec::new(),
        };
        assert!(transaction(60, 100, Part::Whole).end_at_least() <= position);
        assert!(transaction(60, 60, Part::First).end_at_least() <= position);
        assert!(transaction(100, 100, Part::First).end_at_least() > position);
        assert!(transaction(100, 140, Part::Last).end_at_least() > position);
    }
}
