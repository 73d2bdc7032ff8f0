//! What one Kafka transaction holds, kept until it is known to be committed, so that it can be sent again.

use std::sync::Arc;

use tokio::time::Instant;

use crate::model::{Batch, ChangeKind, Lsn, Transaction, marker_prefix};

use super::mark::{Mark, Rest};

/// A batch, and how far publishing had come before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) batch: Arc<Batch>,
    pub(super) done: Option<Mark>,
}

/// The content of a Kafka transaction. Without pieces it only moves the position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) pieces: Vec<Piece>,
    pub(super) opened_at: Instant,
    pub(super) size_bytes: usize,
    /// How often it was sent before.
    pub(super) attempt: u32,
    /// Where the stream stands behind it. `None` only in the claim of a migration that has published nothing.
    pub(super) end: Option<Mark>,
    /// Number of the last batch in it.
    pub(super) seq: Option<u64>,
    pub(super) transaction_count: u64,
    pub(super) row_count: u64,
    pub(super) committed_at_us: Option<i64>,
    /// It holds a message of our own, and somebody waits for that.
    pub(super) urgent: bool,
}

/// What is told when a window is in Kafka for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Settlement {
    pub(super) through: Option<Lsn>,
    pub(super) transaction_count: u64,
    pub(super) row_count: u64,
    pub(super) committed_at_us: Option<i64>,
}

impl Piece {
    /// Whether anything of the batch is still to be published.
    pub(super) fn has_rest(&self) -> bool {
        self.rest().next().is_some()
    }

    fn rest(&self) -> impl Iterator<Item = (&Transaction, u64)> {
        self.batch.transactions.iter().filter_map(|transaction| match Mark::rest(self.done, transaction) {
            Rest::From(ordinal) => Some((transaction, ordinal)),
            Rest::Complete | Rest::Counted => None,
        })
    }
}

impl Window {
    /// Only a position, to be stored.
    pub(super) const fn of_position(end: Option<Mark>, seq: Option<u64>, now: Instant) -> Self {
        Self {
            pieces: Vec::new(),
            opened_at: now,
            size_bytes: 0,
            attempt: 0,
            end,
            seq,
            transaction_count: 0,
            row_count: 0,
            committed_at_us: None,
            urgent: false,
        }
    }

    pub(super) fn push(&mut self, piece: Piece) {
        for (transaction, from) in piece.rest() {
            self.transaction_count += u64::from(transaction.part.ends());
            self.row_count += row_count(transaction, from);
            self.committed_at_us = Some(transaction.committed_at_us);
            self.urgent |= transaction.changes.iter().any(|change| is_ours(&change.kind));
        }
        self.end = Some(Mark::advanced(self.end, &piece.batch));
        self.seq = Some(piece.batch.seq);
        self.size_bytes += piece.batch.size_bytes();
        self.pieces.push(piece);
    }

    /// Whether it ends in the middle of a source transaction.
    pub(super) fn ends_inside(&self) -> bool {
        self.end.is_some_and(|end| end.inside.is_some())
    }

    pub(super) fn settlement(&self) -> Settlement {
        Settlement {
            through: self.end.map(|end| end.position.commit_end),
            transaction_count: self.transaction_count,
            row_count: self.row_count,
            committed_at_us: self.committed_at_us,
        }
    }
}

fn row_count(transaction: &Transaction, from: u64) -> u64 {
    let skipped = from.saturating_sub(transaction.first_ordinal);
    let rows = transaction.changes.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX));
    rows.filter(|change| !matches!(change.kind, ChangeKind::Message { .. })).count() as u64
}

fn is_ours(kind: &ChangeKind) -> bool {
    matches!(kind, ChangeKind::Message { prefix, .. } if prefix == marker_prefix())
}
