//! Transactions that the source sends before they have committed (`streaming 'on'`).

use std::collections::HashMap;

use crate::model::{Stash, StashedFrame, StashedFrames, TransactionOrigin, Xid};

use super::{Error, Tag, message};

/// Rolled back sub-transactions remembered for one streamed transaction: 16 MB of memory. A loop with an exception block
/// that fails this often within one transaction is better sorted out by the source.
const ABORTED_COUNT_MAX: usize = 1 << 20;

/// All transactions in progress that have sent something. The source's number of backends bounds it.
pub(super) struct Streams {
    by_top: HashMap<Xid, Stream>,
    stash: Box<dyn Stash>,
}

/// One transaction in progress.
#[derive(Default)]
pub(super) struct Stream {
    pub(super) origin: Option<TransactionOrigin>,
    frame_count: u64,
    /// Sub-transactions that were rolled back, and how many frames had been kept by then. Their ids cannot appear
    /// again: the source gives each sub-transaction a new one.
    aborted: HashMap<Xid, u64>,
}

/// A committed transaction's frames in the order of their arrival, without those of its rolled back sub-transactions.
pub(super) struct Replay {
    frames: StashedFrames,
    aborted: HashMap<Xid, u64>,
    position: u64,
    /// A logical message before this frame belongs to a sub-transaction that was rolled back.
    messages_dropped_until: u64,
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

    pub(super) fn keep(&mut self, top: Xid, frame: &StashedFrame) -> Result<(), Error> {
        let stream = self.by_top.get_mut(&top).expect("a chunk is only entered for a stream that has begun");
        stream.frame_count += 1;
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
        stream.aborted.insert(xid, stream.frame_count);
        Ok(())
    }

    /// Takes the transaction out for its replay; `None` when it never began.
    pub(super) fn commit(&mut self, top: Xid) -> Result<Option<(Option<TransactionOrigin>, Replay)>, Error> {
        let Some(stream) = self.by_top.remove(&top) else { return Ok(None) };
        let frames = self.stash.take(top)?;
        let replay = Replay { frames, aborted: stream.aborted, position: 0, messages_dropped_until: 0 };
        Ok(Some((stream.origin, replay)))
    }
}

impl Replay {
    /// The next frame that counts.
    pub(super) fn next(&mut self) -> Result<Option<StashedFrame>, Error> {
        while let Some(frame) = self.frames.next().transpose()? {
            self.position += 1;
            if self.counts(&frame) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    fn counts(&mut self, frame: &StashedFrame) -> bool {
        if let Some(until) = self.aborted.get(&frame.xid) {
            // From its first frame to its roll-back everything the transaction wrote belongs to this sub-transaction
            // or its children. Rows say so themselves, logical messages only carry the top-level xid.
            self.messages_dropped_until = self.messages_dropped_until.max(*until);
            return false;
        }
        self.position > self.messages_dropped_until || message::tag_of(&frame.message) != Some(Tag(b'M'))
    }
}
