//! Transactions in progress: in memory up to a budget, the largest of them in files beyond it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::{Stash, StashError, StashedFrame, StashedFrames, Xid};
use crate::telemetry;

use super::block::{self, BLOCK_BYTES, BLOCK_HEADER_BYTES};
use super::driver::Shared;
use super::{Error, directory};

/// decode's [`Stash`]. Files are written one block after the other and hold no descriptor open in between, so many
/// transactions at once need none.
#[derive(Debug)]
pub struct FileStash {
    shared: Arc<Shared>,
    memory_capacity_bytes: usize,
    memory_bytes: usize,
    by_top: HashMap<Xid, Kept>,
}

/// The frames of one transaction: first those in its file, then the blocks, then the one being filled.
#[derive(Debug, Default)]
struct Kept {
    spill: Option<Spill>,
    blocks: VecDeque<Bytes>,
    filling: Vec<u8>,
}

/// A file and the room it takes; both go when this is dropped.
#[derive(Debug)]
struct Spill {
    shared: Arc<Shared>,
    path: PathBuf,
    bytes: u64,
}

impl FileStash {
    pub(super) fn new(shared: Arc<Shared>, memory_capacity_bytes: usize) -> Self {
        Self { shared, memory_capacity_bytes, memory_bytes: 0, by_top: HashMap::new() }
    }

    /// Bytes of memory it holds now.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    fn spill_largest(&mut self) -> Result<(), Error> {
        let Some(largest) = self.by_top.values_mut().max_by_key(|kept| kept.memory_bytes()) else { return Ok(()) };
        self.memory_bytes -= largest.memory_bytes();
        let spilled = largest.spill_out(&self.shared);
        self.memory_bytes += largest.memory_bytes();
        spilled
    }

    fn forget(&mut self, top: Xid) -> Option<Kept> {
        let kept = self.by_top.remove(&top)?;
        self.memory_bytes -= kept.memory_bytes();
        Some(kept)
    }
}

impl Stash for FileStash {
    fn append(&mut self, top: Xid, frame: &StashedFrame) -> Result<(), StashError> {
        let kept = self.by_top.entry(top).or_default();
        let before = kept.memory_bytes();
        kept.push(frame);
        self.memory_bytes = self.memory_bytes - before + kept.memory_bytes();
        while self.memory_bytes > self.memory_capacity_bytes {
            self.spill_largest().map_err(|error| stash_error(top, error))?;
        }
        Ok(())
    }

    fn take(&mut self, top: Xid) -> Result<StashedFrames, StashError> {
        let Some(kept) = self.forget(top) else { return Ok(Box::new(std::iter::empty())) };
        let file = match &kept.spill {
            Some(spill) => Some(spill.open().map_err(|error| stash_error(top, error))?),
            None => None,
        };
        Ok(Box::new(Replay { top, kept, file, block: Bytes::new() }))
    }

    fn discard(&mut self, top: Xid) {
        drop(self.forget(top));
    }

    fn clear(&mut self) {
        self.by_top.clear();
        self.memory_bytes = 0;
    }
}

impl Kept {
    /// Bytes allocated, used or not.
    fn memory_bytes(&self) -> usize {
        self.blocks.iter().map(Bytes::len).sum::<usize>() + self.filling.capacity()
    }

    fn push(&mut self, frame: &StashedFrame) {
        if !self.filling.is_empty() && self.filling.len() + block::frame_bytes(frame) > BLOCK_BYTES {
            self.seal();
        }
        block::push_frame(&mut self.filling, frame);
    }

    fn seal(&mut self) {
        if !self.filling.is_empty() {
            self.filling.shrink_to_fit();
            self.blocks.push_back(std::mem::take(&mut self.filling).into());
        }
    }

    /// Moves everything in memory to the file.
    fn spill_out(&mut self, shared: &Arc<Shared>) -> Result<(), Error> {
        self.seal();
        let bytes = self.blocks.iter().map(|block| (block.len() + BLOCK_HEADER_BYTES) as u64).sum();
        shared.take_stash_room(bytes)?;
        let spill = self.spill.get_or_insert_with(|| Spill::new(shared));
        spill.bytes += bytes;
        let failed = |source| Error::write(&spill.path, source);
        let mut file = File::options().create(true).append(true).open(&spill.path).map_err(failed)?;
        for block in self.blocks.drain(..) {
            block::write_block(&mut file, &block).map_err(failed)?;
        }
        Ok(())
    }
}

impl Spill {
    fn new(shared: &Arc<Shared>) -> Self {
        let path = shared.directory().stash(shared.next_file_number());
        Self { shared: Arc::clone(shared), path, bytes: 0 }
    }

    fn open(&self) -> Result<BufReader<File>, Error> {
        let file = File::open(&self.path).map_err(|source| Error::Read { path: self.path.clone(), source })?;
        Ok(BufReader::with_capacity(BLOCK_BYTES, file))
    }
}

impl Drop for Spill {
    fn drop(&mut self) {
        if let Err(error) = directory::remove(&self.path) {
            tracing::warn!(error = telemetry::chain(&error), "a spool file stays behind");
        }
        self.shared.give_stash_room(self.bytes);
    }
}

/// Gives the frames back in order, holding one block of the file at a time.
struct Replay {
    top: Xid,
    kept: Kept,
    file: Option<BufReader<File>>,
    block: Bytes,
}

impl Replay {
    fn next_block(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(file) = &mut self.file {
            let path = self.kept.spill.as_ref().map(|spill| spill.path.clone()).unwrap_or_default();
            if let Some(block) = block::read_block(file).map_err(|source| Error::Read { path, source })? {
                return Ok(Some(block));
            }
            self.file = None;
            self.kept.spill = None;
        }
        self.kept.seal();
        Ok(self.kept.blocks.pop_front())
    }
}

impl Iterator for Replay {
    type Item = Result<StashedFrame, StashError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(frame) = block::take_frame(&mut self.block) {
                return Some(Ok(frame));
            }
            match self.next_block() {
                Ok(Some(block)) => self.block = block,
                Ok(None) => return None,
                Err(error) => return Some(Err(stash_error(self.top, error))),
            }
        }
    }
}

fn stash_error(top: Xid, error: Error) -> StashError {
    StashError { top, disposition: error.disposition(), source: Box::new(error) }
}
