//! Transactions that the source sends before they have committed (`streaming 'on'`).

use std::collections::{HashMap, HashSet};

use crate::model::{Stash, StashedFrame, StashedFrames, TransactionOrigin, Xid};

use super::Error;

/// Rolled back sub-transactions remembered for one streamed transaction: 4 MB of memory. A loop with an exception block
/// that fails more often within one transaction is better sorted out by the source.
const ABORTED_COUNT_MAX: usize = 1 << 20;

/// All transactions in progress that have sent something. The source's number of backends bounds it.
pub(super) struct Streams {
    by_top: HashMap<Xid, Stream>,
    stash: Box<dyn Stash>,
}

/// One transaction in progress.
#[derive(Default)]
struct Stream {
    origin: Option<TransactionOrigin>,
    /// Sub-transactions that were rolled back. Their ids cannot appear again: the source gives each sub-transaction a
    /// new one.
    aborted: HashSet<Xid>,
    has_messages: bool,
    /// A sub-transaction was rolled back after a logical message, which may have been its own.
    ambiguous: bool,
}

/// A committed transaction: its frames in the order of their arrival, without those of its rolled back sub-transactions.
pub(super) struct Replay {
    pub(super) origin: Option<TransactionOrigin>,
    /// Some of its logical messages may have been rolled back.
    pub(super) ambiguous: bool,
    frames: StashedFrames,
    aborted: HashSet<Xid>,
}

impl Streams {
    pub(super) fn new(stash: Box<dyn Stash>) -> Self {
        Self { by_top: HashMap::new(), stash }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_top.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.by_top.clear();
        self.stash.clear();
    }

    pub(super) fn contains(&self, top: Xid) -> bool {
        self.by_top.contains_key(&top)
    }

    pub(super) fn begin(&mut self, top: Xid) {
        self.by_top.insert(top, Stream::default());
    }

    pub(super) fn set_origin(&mut self, top: Xid, origin: TransactionOrigin) {
        if let Some(stream) = self.by_top.get_mut(&top) {
            stream.origin = Some(origin);
        }
    }

    /// Keeps a frame of the chunk that is being received. `is_message`: it is a logical message.
    pub(super) fn keep(&mut self, top: Xid, frame: &StashedFrame, is_message: bool) -> Result<(), Error> {
        let stream = self.by_top.get_mut(&top).expect("a chunk is only entered for a stream that has begun");
        stream.has_messages |= is_message;
        Ok(self.stash.append(top, frame)?)
    }

    /// Rolls back `xid`: the whole transaction when it is `top` itself. Nothing is kept of a transaction that sent
    /// nothing, so an unknown one needs nothing done.
    pub(super) fn abort(&mut self, top: Xid, xid: Xid) -> Result<(), Error> {
        if top == xid {
            self.by_top.remove(&top);
            self.stash.discard(top);
            return Ok(());
        }
        let Some(stream) = self.by_top.get_mut(&top) else { return Ok(()) };
        if stream.aborted.len() >= ABORTED_COUNT_MAX {
            return Err(Error::TooManyAborted { top, limit: ABORTED_COUNT_MAX });
        }
        stream.aborted.insert(xid);
        stream.ambiguous |= stream.has_messages;
        Ok(())
    }

    /// Takes the transaction out for its replay; `None` when it never began.
    pub(super) fn commit(&mut self, top: Xid) -> Result<Option<Replay>, Error> {
        let Some(stream) = self.by_top.remove(&top) else { return Ok(None) };
        let frames = self.stash.take(top)?;
        Ok(Some(Replay { origin: stream.origin, ambiguous: stream.ambiguous, frames, aborted: stream.aborted }))
    }
}

impl Replay {
    /// The next frame that counts.
    pub(super) fn next(&mut self) -> Result<Option<StashedFrame>, Error> {
        while let Some(frame) = self.frames.next().transpose()? {
            if !self.aborted.contains(&frame.xid) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }
}
