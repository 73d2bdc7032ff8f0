//! Where the frames of transactions in progress wait for their commit.
//!
//! Declared here because both ends stand in rooms that may not know each other: decode asks, spool keeps.

use bytes::Bytes;

use super::{Disposition, Lsn, Xid};

/// One frame of a streamed transaction, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StashedFrame {
    /// How many frames of the session came before it.
    pub arrival: u64,
    /// The transaction or sub-transaction it belongs to.
    pub xid: Xid,
    /// `wal_start` of its XLogData.
    pub lsn: Option<Lsn>,
    /// The pgoutput message, its own copy: a slice would keep the whole socket buffer alive until the commit.
    pub message: Bytes,
}

/// The frames of one transaction in the order of their arrival.
pub type StashedFrames = Box<dyn Iterator<Item = Result<StashedFrame, StashError>> + Send>;

/// Keeps the frames of transactions in progress, by top-level transaction.
pub trait Stash: Send {
    /// Adds `message` to what is kept for `top`; copies it. May block while room is made.
    fn append(&mut self, top: Xid, frame: &StashedFrame) -> Result<(), StashError>;

    /// Takes out everything kept for `top`; nothing kept is an empty iterator. What it held is free once the iterator
    /// is dropped.
    fn take(&mut self, top: Xid) -> Result<StashedFrames, StashError>;

    /// Forgets everything kept for `top`.
    fn discard(&mut self, top: Xid);

    /// Forgets everything: a new session sends it again.
    fn clear(&mut self);
}

/// Why the frames could not be kept or read back.
#[derive(Debug, thiserror::Error)]
#[error("keep the changes of streamed transaction {top}")]
pub struct StashError {
    pub top: Xid,
    pub disposition: Disposition,
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}
