//! A transaction that is applied ahead of its commit: while the source still streams it, its rows are written into a
//! transaction on the target, which is committed once its commit has come and everything before it is there.
//!
//! Declared here because both ends stand in rooms that may not know each other: decode gives, apply takes.

use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use super::{Batch, Lsn, Xid};

/// Takes one transaction at a time. Nothing of it is emitted meanwhile: given up, it comes again at its commit.
pub trait Ahead: Send {
    /// Hands a part on. Blocks while there is no room for it.
    fn take(&mut self, part: AheadPart) -> Result<(), AheadGivenUp>;

    /// Blocks until the target holds the transaction durably, or holds nothing of it. An error may also mean that
    /// nobody knows: then its commit is to be emitted all the same, and the applier finds out what it holds.
    fn commit(&mut self, commit: AheadCommit) -> Result<(), AheadGivenUp>;

    /// Takes everything back that was handed on.
    fn roll_back(&mut self);
}

/// A part of a transaction in progress.
#[derive(Debug)]
pub struct AheadPart {
    /// Holds this one part. Its commit is not known yet: what stands for it is a position that it is behind, and no time.
    pub batch: Batch,
    /// Everything that committed up to here may be read or written by it, and has been emitted before it.
    pub after: Lsn,
}

/// The end of a transaction all of whose parts were handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AheadCommit {
    pub xid: Xid,
    pub end: Lsn,
    /// Microseconds since the Unix epoch, by the source's clock.
    pub committed_at_us: i64,
    /// Everything that committed before it has been emitted, and ends here or before.
    pub after: Lsn,
}

/// What the applier is told, in order.
#[derive(Debug)]
pub enum AheadEvent {
    Part { part: AheadPart, ticket: AheadTicket },
    Commit { commit: AheadCommit, reply: oneshot::Sender<()> },
    RollBack,
}

/// One attempt to apply a transaction ahead, shared by both ends.
#[derive(Clone, Debug, Default)]
pub struct AheadTicket(Arc<OnceLock<AheadGivenUp>>);

/// Why the target holds nothing of a transaction that was applied ahead. No row values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct AheadGivenUp {
    pub why: String,
}

impl AheadPart {
    pub fn begins(&self) -> bool {
        self.batch.transactions.iter().any(|part| part.part.begins())
    }

    /// The commit stands behind here.
    pub fn ends_behind(&self) -> Lsn {
        self.batch.transactions[0].commit
    }

    pub fn xid(&self) -> Xid {
        self.batch.transactions[0].xid
    }
}

impl AheadGivenUp {
    pub fn because(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

impl AheadTicket {
    /// The first reason is the one.
    pub fn give_up(&self, why: AheadGivenUp) {
        self.0.get_or_init(|| why);
    }

    pub fn given_up(&self) -> Option<AheadGivenUp> {
        self.0.get().cloned()
    }

    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}
