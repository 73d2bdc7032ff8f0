//! The ordered log between decode and the sinks. Every sink reads it with its own cursor, so an outage of one does not
//! stop the other; what does not fit into memory goes to segment files, and when those are full the stream stops
//! reading.
//!
//! ```text
//! decode ─append▶ [memory: newest] ◀─────────── cursors that keep up
//!                     │ oldest, when memory is full
//!                     ▼
//!                 [segments on disk] ◀───────── cursors that are behind        [file_stash]: transactions in progress
//! ```
//!
//! A cache: the slot still holds everything that is not settled, so the files of an earlier run are removed at start.

use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{Batch, SinkName};

/// Why the log cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("spool")]
pub struct Error;

impl Error {
    pub fn disposition(&self) -> crate::model::Disposition {
        crate::model::Disposition::Retry
    }
}

/// Where the log lives and how large it may become.
#[derive(Clone, Debug)]
pub struct Options {
    /// Made when it is missing. Belongs to this spool alone.
    pub dir: PathBuf,
    pub memory_bytes: usize,
    /// For segments and stashed transactions together.
    pub disk_bytes: u64,
    /// One cursor each.
    pub sinks: Vec<SinkName>,
}

/// The log. Clones are the same log.
#[derive(Clone)]
pub struct Spool;

/// One sink's place in the log.
pub struct Cursor;

/// decode's stash: in memory up to a budget, then in files that count against the spool's disk.
pub struct FileStash;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub memory_bytes: u64,
    pub memory_capacity_bytes: u64,
    pub disk_bytes: u64,
    pub disk_capacity_bytes: u64,
    /// Of `disk_bytes`, what transactions in progress take.
    pub stash_bytes: u64,
    /// Since when the stream has been held up because there is no room, microseconds since the Unix epoch.
    pub full_since_us: Option<i64>,
    pub cursors: Vec<CursorUsage>,
}

/// How far one sink's cursor is behind the end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorUsage {
    pub sink: SinkName,
    pub batches_behind: u64,
    pub bytes_behind: u64,
}

impl Usage {
    pub fn full(&self) -> bool {
        self.full_since_us.is_some()
    }
}

impl Spool {
    pub fn open(_: Options) -> Result<Self, Error> {
        unimplemented!()
    }
    /// Adds the next batch; blocks while there is no room. From a thread of its own, never from a tokio worker.
    pub fn append(&self, _: Batch) -> Result<(), Error> {
        unimplemented!()
    }
    /// The cursor of `sink`; panics when it was taken before or is not in `Options::sinks`.
    pub fn cursor(&self, _: SinkName) -> Cursor {
        unimplemented!()
    }
    /// The stash for decode.
    pub fn stash(&self, _memory_bytes: usize) -> FileStash {
        unimplemented!()
    }
    pub fn usage(&self) -> Usage {
        unimplemented!()
    }
    /// Nothing more is appended: cursors read what is there, then yield `None`.
    pub fn close(&self) {
        unimplemented!()
    }
    /// Ends everything at once: cursors yield `None`, a blocked `append` returns.
    pub fn abandon(&self) {
        unimplemented!()
    }
}

impl Cursor {
    /// The next batch; `None` after `close` or `abandon`. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Arc<Batch>>, Error> {
        unimplemented!()
    }
    /// The sink holds everything through here durably; it is not needed again. A batch is released when its own
    /// `through` is, and no part of a transaction before its last.
    pub fn release(&mut self, _through: crate::model::Lsn) {
        unimplemented!()
    }
    /// The next batch is the oldest one that is not released: for a sink that was made anew.
    pub fn rewind(&mut self) {
        unimplemented!()
    }
    /// The same as `next` from a thread of its own.
    pub fn next_blocking(&mut self) -> Result<Option<Arc<Batch>>, Error> {
        unimplemented!()
    }
}

impl crate::model::Stash for FileStash {
    fn append(&mut self, _: crate::model::Xid, _: &crate::model::StashedFrame) -> Result<(), crate::model::StashError> {
        unimplemented!()
    }
    fn take(&mut self, _: crate::model::Xid) -> Result<crate::model::StashedFrames, crate::model::StashError> {
        unimplemented!()
    }
    fn discard(&mut self, _: crate::model::Xid) {}
    fn clear(&mut self) {}
}
