//! What has arrived and is not in a group yet.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::model::{Batch, Lsn, Transaction};

use super::table::Table;

/// A batch and the tables its relations stand for. Its room in the link is given back when it arrives: what is queued,
/// gathered and executing has bounds of its own, and a link smaller than a group would otherwise starve it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) batch: Arc<Batch>,
    /// By relation index; `None` for what is not of the migration.
    pub(super) tables: Vec<Option<Arc<Table>>>,
    /// Another lane applies the changes of some.
    pub(super) divided: bool,
    pub(super) size_bytes: usize,
}

/// One transaction of a batch.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) arrived: Arc<Arrived>,
    pub(super) at: usize,
}

/// The next thing in the stream.
#[derive(Clone, Debug)]
pub(super) enum Next {
    Transaction(Member),
    /// All transactions up to here have been taken.
    Through(Lsn),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    batches: VecDeque<Arc<Arrived>>,
    /// Transactions of the first batch that have been taken.
    taken: usize,
    size_bytes: usize,
    next_seq: Option<u64>,
}

impl Arrived {
    pub(super) fn new(batch: Arc<Batch>, tables: Vec<Option<Arc<Table>>>, divided: bool) -> Self {
        Self { size_bytes: batch.size_bytes(), batch, tables, divided }
    }
}

impl Member {
    pub(super) fn transaction(&self) -> &Transaction {
        &self.arrived.batch.transactions[self.at]
    }
}

impl Queue {
    pub(super) fn push(&mut self, arrived: Arrived) {
        let seq = arrived.batch.seq;
        assert!(self.next_seq.is_none_or(|next| next == seq), "batch {seq} came where {:?} is next", self.next_seq);
        self.next_seq = Some(seq + 1);
        self.size_bytes += arrived.size_bytes;
        self.batches.push_back(Arc::new(arrived));
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(super) fn peek(&self) -> Option<Next> {
        let arrived = self.batches.front()?;
        Some(next_of(arrived, self.taken))
    }

    /// Takes what [`Self::peek`] shows.
    pub(super) fn pop(&mut self) {
        let Some(arrived) = self.batches.front() else { return };
        if self.taken < arrived.batch.transactions.len() {
            self.taken += 1;
        } else {
            self.size_bytes -= arrived.size_bytes;
            self.batches.pop_front();
            self.taken = 0;
        }
    }

    /// Everything that waits, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Next> + '_ {
        self.batches.iter().enumerate().flat_map(|(index, arrived)| {
            let first = if index == 0 { self.taken } else { 0 };
            (first..=arrived.batch.transactions.len()).map(|at| next_of(arrived, at))
        })
    }

    /// The batch that came last.
    pub(super) fn newest(&self) -> impl Iterator<Item = Next> + '_ {
        self.batches
            .back()
            .into_iter()
            .flat_map(|arrived| (0..=arrived.batch.transactions.len()).map(|at| next_of(arrived, at)))
    }
}

fn next_of(arrived: &Arc<Arrived>, at: usize) -> Next {
    if at < arrived.batch.transactions.len() {
        Next::Transaction(Member { arrived: Arc::clone(arrived), at })
    } else {
        Next::Through(arrived.batch.through)
    }
}
