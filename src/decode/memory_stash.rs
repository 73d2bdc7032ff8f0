//! The stash that keeps everything in memory: for tests and tools. The daemon's is `spool::FileStash`.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::model::{Disposition, Stash, StashError, StashedFrame, StashedFrames, Xid};

pub struct MemoryStash {
    capacity_bytes: usize,
    used_bytes: usize,
    by_top: HashMap<Xid, VecDeque<StashedFrame>>,
}

#[derive(Debug, thiserror::Error)]
#[error("fit it into {capacity_bytes} bytes of memory")]
struct Full {
    capacity_bytes: usize,
}

impl MemoryStash {
    pub fn new(capacity_bytes: usize) -> Self {
        Self { capacity_bytes, used_bytes: 0, by_top: HashMap::new() }
    }

    /// Bytes it holds, a flat charge a frame included.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes
    }

    fn release(&mut self, top: Xid) -> VecDeque<StashedFrame> {
        let frames = self.by_top.remove(&top).unwrap_or_default();
        self.used_bytes -= frames.iter().map(size_bytes).sum::<usize>();
        frames
    }
}

impl Stash for MemoryStash {
    fn append(&mut self, top: Xid, frame: &StashedFrame) -> Result<(), StashError> {
        let size = size_bytes(frame);
        if self.used_bytes + size > self.capacity_bytes {
            return Err(StashError {
                top,
                disposition: Disposition::Halt { hint: "give the stash more memory".to_owned() },
                source: Box::new(Full { capacity_bytes: self.capacity_bytes }),
            });
        }
        self.used_bytes += size;
        let copy = StashedFrame { message: Bytes::copy_from_slice(&frame.message), ..*frame };
        self.by_top.entry(top).or_default().push_back(copy);
        Ok(())
    }

    fn take(&mut self, top: Xid) -> Result<StashedFrames, StashError> {
        Ok(Box::new(self.release(top).into_iter().map(Ok)))
    }

    fn discard(&mut self, top: Xid) {
        self.release(top);
    }

    fn clear(&mut self) {
        self.by_top.clear();
        self.used_bytes = 0;
    }
}

fn size_bytes(frame: &StashedFrame) -> usize {
    size_of::<StashedFrame>() + frame.message.len()
}
