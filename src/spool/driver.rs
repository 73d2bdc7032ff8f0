//! The log's one writer, and what everybody shares.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tracing::{info, warn};

use crate::model::{Batch, SinkName};
use crate::telemetry::clock;

use super::directory::{self, Directory};
use super::machine::{Admission, End, Limits, Log};
use super::segment::{self, Run, Writer};
use super::{Cursor, Error, FileStash, Usage};

/// Where the log lives and how large it may become.
#[derive(Clone, Debug)]
pub struct Options {
    /// Made when it is missing. Belongs to this spool alone.
    pub dir: PathBuf,
    /// For batches. One larger batch passes alone.
    pub memory_bytes: usize,
    /// For segments and stashed transactions together. A batch that does not fit stays in memory.
    pub disk_bytes: u64,
    /// One cursor each; a batch is kept until each of them has released it.
    pub sinks: Vec<SinkName>,
}

/// Large enough that a backlog of 20 GiB is about a thousand files, small enough that room comes back steadily.
const SEGMENT_BYTES: u64 = 16 << 20;
/// With little disk, at least this many segments, or a cursor would have to read nearly all before anything is freed.
const SEGMENTS_MIN: u64 = 8;

/// The log. Clones are the same log.
#[derive(Clone, Debug)]
pub struct Spool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    log: Mutex<Log>,
    /// Threads wait here: the appender for room, readers for batches.
    changed: Condvar,
    /// Tasks wait here, one place a cursor.
    arrived: Vec<Notify>,
    writer: Mutex<Option<Writer>>,
    directory: Directory,
    file_number: AtomicU64,
}

impl Spool {
    /// Takes the directory and starts an empty log.
    pub fn open(options: Options) -> Result<Self, Error> {
        let directory = Directory::take(&options.dir)?;
        let limits = Limits {
            memory_bytes: options.memory_bytes as u64,
            disk_bytes: options.disk_bytes,
            segment_bytes: SEGMENT_BYTES.min(options.disk_bytes / SEGMENTS_MIN),
        };
        let shared = Shared {
            log: Mutex::new(Log::new(limits, &options.sinks)),
            changed: Condvar::new(),
            arrived: options.sinks.iter().map(|_| Notify::new()).collect(),
            writer: Mutex::new(None),
            directory,
            file_number: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Adds the next batch; blocks while there is no room for it. From a thread of its own, never from a tokio worker.
    pub fn append(&self, batch: Batch) -> Result<(), Error> {
        self.shared.append(batch)
    }

    /// The cursor of `sink`. Panics when it was taken before or `sink` is not in [`Options::sinks`]. Dropping it lets go
    /// of everything that was kept for this sink.
    pub fn cursor(&self, sink: SinkName) -> Cursor {
        Cursor::new(Arc::clone(&self.shared), sink)
    }

    /// A cursor for `sink`, whose last one is gone: it begins with the oldest batch that `like` has not released. `None`
    /// while that batch is gone (a transaction larger than the spool: try again once its end is applied), or `like` is.
    pub fn cursor_beside(&self, sink: SinkName, like: SinkName) -> Option<Cursor> {
        Cursor::join(Arc::clone(&self.shared), sink, like)
    }

    /// The stash for decode. Up to `memory_bytes` of transactions in progress stay in memory; their files count against
    /// [`Options::disk_bytes`].
    pub fn stash(&self, memory_bytes: usize) -> FileStash {
        FileStash::new(Arc::clone(&self.shared), memory_bytes)
    }

    pub fn usage(&self) -> Usage {
        self.shared.lock().usage()
    }

    /// Nothing more is appended: cursors read what is there, then yield `None`.
    pub fn close(&self) {
        self.shared.end(End::Closed);
    }

    /// Ends everything at once: cursors yield `None`, a blocked `append` returns [`Error::Ended`].
    pub fn abandon(&self) {
        self.shared.end(End::Abandoned);
    }
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Log> {
        // The log is changed in single steps that do not panic halfway, so a panic elsewhere leaves it whole.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, log: MutexGuard<'a, Log>) -> MutexGuard<'a, Log> {
        self.changed.wait(log).unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn arrived(&self, slot: usize) -> &Notify {
        &self.arrived[slot]
    }

    /// Something was appended, read, released or ended: whoever waits looks again.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    pub(super) fn next_file_number(&self) -> u64 {
        self.file_number.fetch_add(1, Ordering::Relaxed)
    }

    fn end(&self, end: End) {
        self.lock().end(end);
        self.wake();
        self.arrived.iter().for_each(Notify::notify_one);
    }

    fn append(&self, batch: Batch) -> Result<(), Error> {
        let size_bytes = batch.size_bytes() as u64;
        // Held while waiting for room: a second appender would have to wait for the same room anyway.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = self.lock();
        let mut encoded: Option<Run> = None;
        loop {
            let batches = match log.admit(size_bytes) {
                Admission::Now => break,
                Admission::Ended => return Err(Error::Ended),
                Admission::Spill(batches) => batches,
            };
            if encoded.as_ref().and_then(Run::first_seq) != log.memory_first() {
                drop(log);
                encoded = Some(Run::encode(batches.iter())?);
                log = self.lock();
                continue;
            }
            let room = log.disk_room_bytes();
            let Some(run) = encoded.as_mut().filter(|run| run.fits_one(room)) else {
                log = self.make_room(log)?;
                continue;
            };
            run.cut_to(room);
            log = self.spill(log, &mut writer, run)?;
            encoded = None;
        }
        log.push(batch, size_bytes);
        self.flowing(&mut log);
        drop(log);
        self.wake();
        self.arrived.iter().for_each(Notify::notify_one);
        Ok(())
    }

    /// There is neither memory nor disk: frees what may be freed, or waits until something changes.
    fn make_room<'a>(&'a self, mut log: MutexGuard<'a, Log>) -> Result<MutexGuard<'a, Log>, Error> {
        if log.forget() {
            warn!("a transaction is larger than the spool: a sink that fails during it makes the stream start over");
            return Ok(log);
        }
        let dead = log.take_dead_segments();
        if dead.is_empty() {
            self.held_up(&mut log);
            return Ok(self.wait(log));
        }
        drop(log);
        self.remove_segments(dead)?;
        Ok(self.lock())
    }

    /// Writes `run` to the segment in progress, or to a new one.
    fn spill<'a>(
        &'a self,
        mut log: MutexGuard<'a, Log>,
        writer: &mut Option<Writer>,
        run: &Run,
    ) -> Result<MutexGuard<'a, Log>, Error> {
        let (first, end) = run.first_seq().zip(run.end_seq()).expect("a run that fits holds a batch");
        let bytes = run.bytes.len() as u64;
        let open = log.open_segment(first);
        let number = match (&writer, open) {
            (Some(writer), Some(open)) if writer.number == open => open,
            _ => self.next_file_number(),
        };
        log.begin_write(number, bytes);
        drop(log);
        let written = self.write(writer, number, run);
        let mut log = self.lock();
        match written {
            Ok(()) => log.finish_write(number, first, end, bytes),
            Err(error) => {
                let length = log.cancel_write(number, bytes);
                *writer = None;
                segment::cut(&self.directory.segment(number), length);
                return Err(error);
            }
        }
        let dead = log.take_dead_segments();
        drop(log);
        self.remove_segments(dead)?;
        Ok(self.lock())
    }

    fn write(&self, writer: &mut Option<Writer>, number: u64, run: &Run) -> Result<(), Error> {
        if writer.as_ref().is_none_or(|writer| writer.number != number) {
            *writer = Some(Writer::create(number, self.directory.segment(number))?);
        }
        writer.as_mut().expect("it was opened above").append(run)
    }

    /// Removes segment files and gives their room back. Blocks on the disk.
    pub(super) fn remove_segments(&self, dead: Vec<(u64, u64)>) -> Result<(), Error> {
        for (number, bytes) in dead {
            let removed = directory::remove(&self.directory.segment(number));
            self.lock().removed(bytes);
            self.wake();
            removed?;
        }
        Ok(())
    }

    /// Takes room on disk for a stashed transaction; waits while segments may still give some back.
    pub(super) fn take_stash_room(&self, bytes: u64) -> Result<(), Error> {
        let mut log = self.lock();
        loop {
            if !log.is_open() {
                return Err(Error::Ended);
            }
            if bytes <= log.disk_room_bytes() {
                log.add_stash(bytes);
                self.flowing(&mut log);
                return Ok(());
            }
            if !log.has_segments() {
                let usage = log.usage();
                return Err(Error::StashFull {
                    size_bytes: bytes,
                    used_bytes: usage.stash_bytes,
                    capacity_bytes: usage.disk_capacity_bytes,
                });
            }
            log = self.make_room(log)?;
        }
    }

    pub(super) fn give_stash_room(&self, bytes: u64) {
        self.lock().remove_stash(bytes);
        self.wake();
    }

    fn held_up(&self, log: &mut Log) {
        if log.mark_full(clock::unix_us()) {
            let usage = log.usage();
            warn!(
                memory_bytes = usage.memory_bytes,
                disk_bytes = usage.disk_bytes,
                stash_bytes = usage.stash_bytes,
                slowest = usage.slowest().map(SinkName::as_str),
                "spool full: the stream waits for its slowest sink"
            );
        }
    }

    fn flowing(&self, log: &mut Log) {
        if let Some(since_us) = log.mark_flowing() {
            info!(held_up_ms = (clock::unix_us() - since_us) / 1000, "spool has room again: the stream goes on");
        }
    }
}
