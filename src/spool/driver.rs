//! The log's one writer, and what everybody shares.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{info, warn};

use crate::model::{Batch, Lsn, SinkName};
use crate::telemetry::{chain, clock};

use super::directory::{self, Directory};
use super::machine::{Admission, Contents, Dead, End, Limits, Log};
use super::points::{Point, Points};
use super::segment::{self, Run, Writer};
use super::state::StateFile;
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
/// How long the only reader may stand still before a full memory is written to disk.
const READER_PATIENCE: Duration = Duration::from_secs(1);
/// How long it takes to see that a disk has room again.
const DISK_PATIENCE: Duration = Duration::from_secs(1);
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
    /// Of a durable log: where it begins, for the next start.
    pub(super) state: Option<Mutex<StateFile>>,
    /// Of a durable log: something is to be written, and soon.
    pub(super) unsynced: Notify,
    pub(super) crowded: Notify,
    pub(super) points: Points,
}

impl Options {
    fn limits(&self) -> Limits {
        Limits {
            memory_bytes: self.memory_bytes as u64,
            disk_bytes: self.disk_bytes,
            segment_bytes: SEGMENT_BYTES.min(self.disk_bytes / SEGMENTS_MIN),
        }
    }
}

impl Spool {
    /// Takes the directory and starts an empty log that is a cache: what an earlier run left there is removed. For a
    /// migration, which may rest on what is there, see [`Spool::resume`].
    pub fn open(options: Options) -> Result<Self, Error> {
        let directory = Directory::lock(&options.dir)?;
        directory.clear()?;
        Ok(Self::cache(&options, directory))
    }

    pub(super) fn cache(options: &Options, directory: Directory) -> Self {
        Self::of(options, directory, Log::new(options.limits(), &options.sinks), None)
    }

    pub(super) fn durable(options: &Options, directory: Directory, contents: Contents, state: StateFile) -> Self {
        let log = Log::durable(options.limits(), &options.sinks, contents);
        Self::of(options, directory, log, Some(state))
    }

    fn of(options: &Options, directory: Directory, log: Log, state: Option<StateFile>) -> Self {
        let shared = Shared {
            log: Mutex::new(log),
            changed: Condvar::new(),
            arrived: options.sinks.iter().map(|_| Notify::new()).collect(),
            writer: Mutex::new(None),
            directory,
            file_number: AtomicU64::new(0),
            state: state.map(Mutex::new),
            unsynced: Notify::new(),
            crowded: Notify::new(),
            points: Points::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Makes durable what was appended, some megabytes of it at most, and returns how far everything is durable now;
    /// `None` when nothing was left to do. Blocks on the disk, and while a full disk has to be waited for. Of a cache
    /// nothing is durable.
    pub fn sync(&self) -> Result<Option<Lsn>, Error> {
        self.shared.sync()
    }

    /// For the end: removes what nobody needs, and notes how far the sinks have come. Blocks on the disk.
    pub fn tidy(&self) -> Result<(), Error> {
        let mut log = self.shared.lock();
        log.close_last_segment();
        let dead = log.take_dead_segments();
        drop(log);
        self.shared.remove_segments(dead)
    }

    /// Waits until [`Spool::sync`] has something to do. Cancel-safe.
    pub async fn unsynced(&self) {
        while !self.shared.lock().has_unsynced() {
            self.shared.unsynced.notified().await;
        }
    }

    /// Waits until so much is to be made durable that waiting for more serves nobody. Cancel-safe.
    pub async fn crowded(&self) {
        while !self.shared.lock().is_crowded() {
            self.shared.crowded.notified().await;
        }
    }

    /// Adds the next batch; blocks while there is no room for it. From a thread of its own, never from a tokio worker.
    pub fn append(&self, batch: Batch) -> Result<(), Error> {
        self.shared.append(batch)
    }

    /// The cursor of `sink`. Panics when it was taken before or `sink` is not in [`Options::sinks`]. Dropping it lets go
    /// of everything that a cache kept for this sink; what is durable is kept for the next start.
    pub fn cursor(&self, sink: SinkName) -> Cursor {
        Cursor::new(Arc::clone(&self.shared), sink)
    }

    /// A cursor for `sink`, whose last one is gone: it begins with the oldest batch that `like` has not released. `None`
    /// while that batch is gone (a transaction larger than the spool: try again once its end is applied), or `like` is.
    pub fn cursor_beside(&self, sink: SinkName, like: SinkName) -> Option<Cursor> {
        Cursor::join(Arc::clone(&self.shared), sink, like)
    }

    /// The place of a sink that is no more, and whose cursor is gone: what was kept for it goes with the next release of
    /// another one.
    pub fn vacate(&self, sink: SinkName) {
        self.shared.lock().vacate(sink);
        self.shared.wake();
    }

    /// The stash for decode. Up to `memory_bytes` of transactions in progress stay in memory; their files count against
    /// [`Options::disk_bytes`].
    pub fn stash(&self, memory_bytes: usize) -> FileStash {
        FileStash::new(Arc::clone(&self.shared), memory_bytes)
    }

    /// Whether the source is told to forget what is in it.
    pub fn is_durable(&self) -> bool {
        self.shared.is_durable()
    }

    pub fn usage(&self) -> Usage {
        self.shared.lock().usage()
    }

    /// Nothing more is appended: cursors read what is there, then yield `None`.
    pub fn close(&self) {
        self.shared.end(End::Closed);
    }

    pub fn is_closed(&self) -> bool {
        !self.shared.lock().is_open()
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
        if self.is_durable() {
            return self.append_durable(batch, size_bytes);
        }
        // Held while waiting for room: a second appender would have to wait for the same room anyway.
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut log = self.lock();
        let mut encoded: Option<Run> = None;
        loop {
            let batches = match log.admit(size_bytes) {
                Admission::Now => break,
                Admission::Ended => return Err(Error::Ended),
                Admission::Spill(_) if log.waits_for_its_reader() => {
                    log = self.wait_for_release(log);
                    continue;
                }
                Admission::Spill(batches) => batches,
                Admission::Wait => unreachable!("only a durable log waits to be written by somebody else"),
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
            log = match self.spill(log, &mut writer, run) {
                Err(error @ Error::NoRoom { .. }) => self.wait_for_disk(&error)?,
                spilled => spilled?,
            };
            encoded = None;
        }
        log.push(batch, size_bytes);
        self.flowing(&mut log);
        drop(log);
        self.wake();
        self.arrived.iter().for_each(Notify::notify_one);
        Ok(())
    }

    fn wait_for_release<'a>(&self, log: MutexGuard<'a, Log>) -> MutexGuard<'a, Log> {
        let released = log.released();
        let nothing_new = |log: &mut Log| log.released() == released && log.is_open() && log.waits_for_its_reader();
        let waited = self.changed.wait_timeout_while(log, READER_PATIENCE, nothing_new);
        let (mut log, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            log.give_up_waiting();
        }
        log
    }

    /// The disk is written to by [`Shared::sync`], so that decoding goes on meanwhile.
    fn append_durable(&self, batch: Batch, size_bytes: u64) -> Result<(), Error> {
        let mut log = self.lock();
        loop {
            match log.admit(size_bytes) {
                Admission::Now => break,
                Admission::Ended => return Err(Error::Ended),
                Admission::Spill(_) => unreachable!("a durable log is written before it is full"),
                Admission::Wait => {
                    self.crowded.notify_one();
                    // Whoever waits for room on disk has to know that the stream now waits too.
                    self.wake();
                    log = self.wait(log);
                }
            }
        }
        log.push(batch, size_bytes);
        let crowded = log.is_crowded();
        drop(log);
        self.unsynced.notify_one();
        if crowded {
            self.crowded.notify_one();
        }
        self.wake();
        self.arrived.iter().for_each(Notify::notify_one);
        Ok(())
    }

    fn sync(&self) -> Result<Option<Lsn>, Error> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let batches = self.lock().unsynced();
        if batches.is_empty() {
            return Ok(None);
        }
        let mut run = Run::encode(batches.iter())?;
        drop(batches);
        let mut log = self.lock();
        loop {
            let room = log.disk_room_bytes();
            if run.fits_one(room) {
                run.cut_to(room);
                break;
            }
            if !log.is_open() {
                return Ok(None);
            }
            if log.is_stuck() {
                let capacity_bytes = log.usage().disk_capacity_bytes;
                return Err(Error::TransactionTooLarge { capacity_bytes });
            }
            log = self.make_room(log)?;
        }
        self.flowing(&mut log);
        let log = self.spill(log, &mut writer, &run)?;
        let end = log.durable_end();
        drop(log);
        // What is durable may leave memory: that is what an appender waits for.
        self.wake();
        Ok(end.map(|end| end.through))
    }

    /// Somebody else has filled the disk: no other than a spool that is full.
    fn wait_for_disk(&self, error: &Error) -> Result<MutexGuard<'_, Log>, Error> {
        let mut log = self.lock();
        if log.mark_full(clock::unix_us()) {
            warn!(error = chain(error), "spool full: the stream waits until there is room on the disk again");
        }
        self.make_room(log)
    }

    /// There is neither memory nor disk: frees what may be freed, or waits until something changes, but not for long: room
    /// on a disk comes back unheard.
    fn make_room<'a>(&'a self, mut log: MutexGuard<'a, Log>) -> Result<MutexGuard<'a, Log>, Error> {
        if log.forget() {
            warn!("a transaction is larger than the spool: a sink that fails during it makes the stream start over");
            return Ok(log);
        }
        log.close_last_segment();
        let dead = log.take_dead_segments();
        if dead.segments.is_empty() {
            self.held_up(&mut log);
            let waited = self.changed.wait_timeout(log, DISK_PATIENCE);
            return Ok(waited.unwrap_or_else(PoisonError::into_inner).0);
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
        let (first, end) = run.first_seq().zip(run.end()).expect("a run that fits holds a batch");
        let bytes = run.bytes.len() as u64;
        let open = log.open_segment(first);
        let number = match (&writer, open) {
            (Some(writer), Some(open)) if writer.number == open => open,
            // Named by its first batch, which tells where it belongs.
            _ => first,
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
        let new = writer.as_ref().is_none_or(|writer| writer.number != number);
        if new {
            *writer = Some(Writer::create(number, self.directory.segment(number))?);
            self.points.reach(Point::Created);
        }
        let writer = writer.as_mut().expect("it was opened above");
        writer.append(run)?;
        self.points.reach(Point::Written);
        if self.is_durable() {
            writer.sync()?;
            if new {
                self.directory.sync()?;
            }
            self.points.reach(Point::Synced);
        }
        Ok(())
    }

    /// Removes segment files and gives their room back. Blocks on the disk.
    pub(super) fn remove_segments(&self, dead: Dead) -> Result<(), Error> {
        if let Err(error) = self.note_beginning(&dead) {
            self.lock().put_back(dead);
            return Err(error);
        }
        let mut failed = None;
        for (number, bytes) in dead.segments {
            failed = directory::remove(&self.directory.segment(number)).err().or(failed);
            self.lock().removed(bytes);
            self.wake();
        }
        self.points.reach(Point::Removed);
        failed.map_or(Ok(()), Err)
    }

    /// Before the segments go, or a restart would miss them.
    fn note_beginning(&self, dead: &Dead) -> Result<(), Error> {
        if let (Some(state), Some(begin)) = (&self.state, dead.begin) {
            state.lock().unwrap_or_else(PoisonError::into_inner).advance(begin)?;
            self.points.reach(Point::Noted);
        }
        Ok(())
    }

    pub(super) fn is_durable(&self) -> bool {
        self.state.is_some()
    }

    /// Takes room on disk for a stashed transaction; waits while segments may still give some back.
    pub(super) fn take_stash_room(&self, bytes: u64) -> Result<(), Error> {
        let mut log = self.lock();
        loop {
            if !log.is_open() {
                return Err(Error::Ended);
            }
            if bytes <= log.disk_room_bytes().min(log.stash_room_bytes()) {
                log.add_stash(bytes);
                self.flowing(&mut log);
                return Ok(());
            }
            if !log.has_segments() || bytes > log.stash_room_bytes() {
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
                "spool full: the stream waits for its slowest sink, and the source keeps its log meanwhile"
            );
        }
    }

    fn flowing(&self, log: &mut Log) {
        if let Some(since_us) = log.mark_flowing() {
            info!(held_up_ms = (clock::unix_us() - since_us) / 1000, "spool has room again: the stream goes on");
        }
    }
}
