//! What is where, who has read what, and whether there is room. Pure: the driver does the writing and the waiting.
//!
//! The log is one dense run of batches, oldest first: what is in segments, then what is in memory. Its beginning is the
//! oldest batch that some sink has not released.
//!
//! A log that is durable writes every batch, and what is in memory may be in a segment as well: there is an end of what
//! is durable, no batch beyond it leaves memory, and no segment goes before the new beginning is noted.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::model::{Batch, SinkName};

use super::held::{Held, run};
use super::segment::Spot;
use super::state::Mark;
use super::{CursorUsage, Usage};

/// How much goes to disk at a time: large, so that the disk writes in sequence.
const RUN_BYTES: u64 = 1 << 20;
/// The same when each write is made durable: a disk that takes 5 ms for that still takes hundreds of MB a second.
const DURABLE_RUN_BYTES: u64 = 4 << 20;
/// Places are noted this far apart in a segment, so that a cursor that falls back to disk finds its batch without
/// reading the segment from its start.
pub(super) const PLACE_INTERVAL_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct Log {
    limits: Limits,
    /// `seq` of the next batch; `None` before the first.
    next: Option<u64>,
    /// Of a durable log: the end of what is durable, and how far a restart finds it whole. What is behind the last whole
    /// transaction it drops, and everything that shares a batch with the beginning of one.
    durable: Option<Mark>,
    memory: VecDeque<Held>,
    memory_bytes: u64,
    /// Of those, what is not durable yet, in a log that is.
    unsynced_bytes: u64,
    segments: VecDeque<Segment>,
    segment_bytes: u64,
    /// Segments that nobody needs and that could not be removed yet.
    doomed: Dead,
    /// The segment that is being written to just now; it must not disappear.
    writing: Option<u64>,
    stash_bytes: u64,
    /// The total of everything appended so far.
    appended_bytes: u64,
    /// Below this, batches were let go although no sink had released them: see [`Log::forget`].
    forgotten: u64,
    readers: Vec<Reader>,
    /// The batch with the beginning of the transaction that the newest batch ends inside of.
    inside_since: Option<u64>,
    /// Somebody waits with a batch that has no room in memory.
    appender_waits: bool,
    /// [`Self::give_up_waiting`], until the next release.
    impatient: bool,
    full_since_us: Option<i64>,
    end: End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) memory_bytes: u64,
    pub(super) disk_bytes: u64,
    /// A segment is closed once it is this large.
    pub(super) segment_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Batches come and go.
    Open,
    /// Nothing more comes; what is there is still read.
    Closed,
    /// Nothing more is read either.
    Abandoned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The `seq` of its first batch.
    pub(super) number: u64,
    /// Behind its last batch.
    pub(super) end: Mark,
    pub(super) bytes: u64,
    /// Some of its batches and where their records begin, in order.
    pub(super) places: Vec<(u64, u64)>,
    /// Nothing more is written to it.
    pub(super) closed: bool,
}

/// What a durable log begins with: found on disk, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) segments: VecDeque<Segment>,
    pub(super) end: Mark,
    /// In memory, of what is in the segments.
    pub(super) size_bytes: u64,
    /// For each sink the first batch it may not hold, and the size of what is before it.
    pub(super) starts: Vec<(u64, u64)>,
}

/// Segments that nobody needs any more, and what is to be noted before they go.
#[derive(Clone, Debug, Default)]
pub(super) struct Dead {
    /// Number and size.
    pub(super) segments: Vec<(u64, u64)>,
    /// Where a durable log begins without them.
    pub(super) begin: Option<Mark>,
}

/// One sink's place.
#[derive(Clone, Debug)]
struct Reader {
    sink: SinkName,
    taken: bool,
    /// False once its cursor is gone: it holds nothing any more.
    attached: bool,
    read: u64,
    read_bytes: u64,
    released: u64,
    released_bytes: u64,
}

/// Whether the next batch may be appended.
#[derive(Debug)]
pub(super) enum Admission {
    Now,
    /// Write these to disk first.
    Spill(Vec<Arc<Batch>>),
    /// Not before something has become durable.
    Wait,
    Ended,
}

/// Where a reader's next batch is.
#[derive(Debug)]
pub(super) enum Next {
    Here { batch: Arc<Batch>, size_bytes: u64 },
    OnDisk { spot: Spot, length: u64 },
    NotYet,
    Ended,
}

impl Log {
    pub(super) fn new(limits: Limits, sinks: &[SinkName]) -> Self {
        let reader = |sink: &SinkName| Reader {
            sink: *sink,
            taken: false,
            attached: true,
            read: 0,
            read_bytes: 0,
            released: 0,
            released_bytes: 0,
        };
        Self {
            limits,
            next: None,
            durable: None,
            memory: VecDeque::new(),
            memory_bytes: 0,
            unsynced_bytes: 0,
            segments: VecDeque::new(),
            segment_bytes: 0,
            doomed: Dead::default(),
            writing: None,
            stash_bytes: 0,
            appended_bytes: 0,
            forgotten: 0,
            readers: sinks.iter().map(reader).collect(),
            inside_since: None,
            appender_waits: false,
            impatient: false,
            full_since_us: None,
            end: End::Open,
        }
    }

    /// A log that is durable, and goes on behind `contents`.
    pub(super) fn durable(limits: Limits, sinks: &[SinkName], contents: Contents) -> Self {
        let mut log = Self::new(limits, sinks);
        log.next = Some(contents.end.seq);
        log.durable = Some(contents.end);
        log.segment_bytes = contents.segments.iter().map(|segment| segment.bytes).sum();
        log.segments = contents.segments;
        log.appended_bytes = contents.size_bytes;
        for (reader, (seq, size_bytes)) in log.readers.iter_mut().zip(contents.starts) {
            (reader.read, reader.read_bytes) = (seq, size_bytes);
            (reader.released, reader.released_bytes) = (seq, size_bytes);
        }
        log
    }

    // Appending.

    /// Whether a batch of `size_bytes` fits. What is larger than all memory passes alone.
    pub(super) fn admit(&mut self, size_bytes: u64) -> Admission {
        if self.end != End::Open {
            return Admission::Ended;
        }
        while self.durable.is_some() && !self.fits(size_bytes) && self.may_leave_memory() {
            self.pop_memory();
        }
        self.appender_waits = false;
        if self.fits(size_bytes) {
            return Admission::Now;
        }
        if self.durable.is_some() {
            self.appender_waits = true;
            return Admission::Wait;
        }
        let excess = self.memory_bytes + size_bytes - self.limits.memory_bytes;
        let goal = excess.max(self.limits.memory_bytes / 4).min(RUN_BYTES);
        Admission::Spill(run(self.memory.iter(), goal))
    }

    fn fits(&self, size_bytes: u64) -> bool {
        self.memory.is_empty() || self.memory_bytes + size_bytes <= self.limits.memory_bytes
    }

    /// Whether the oldest batch in memory is on disk for good, or need not be.
    fn may_leave_memory(&self) -> bool {
        self.memory_first().is_some_and(|oldest| self.durable.is_none_or(|durable| oldest < durable.seq))
    }

    pub(super) fn push(&mut self, batch: Batch, size_bytes: u64) {
        if self.next.is_none() {
            self.begin_at(batch.seq);
        }
        assert_eq!(self.next, Some(batch.seq), "batches are appended in order and without gaps");
        self.next = Some(batch.seq + 1);
        self.inside_since = match batch.transactions.last() {
            Some(last) if last.part.ends() => None,
            Some(last) if last.part.begins() => Some(batch.seq),
            Some(_) | None => self.inside_since,
        };
        self.appended_bytes += size_bytes;
        self.memory_bytes += size_bytes;
        if self.durable.is_some() {
            self.unsynced_bytes += size_bytes;
        }
        self.memory.push_back(Held { batch: Arc::new(batch), size_bytes });
        self.collect_memory();
    }

    fn begin_at(&mut self, seq: u64) {
        self.next = Some(seq);
        self.forgotten = seq;
        for reader in &mut self.readers {
            (reader.read, reader.released) = (seq, seq);
        }
    }

    /// The oldest batch in memory, which is the next to go to disk.
    pub(super) fn memory_first(&self) -> Option<u64> {
        self.memory.front().map(|held| held.batch.seq)
    }

    // Disk.

    pub(super) fn disk_room_bytes(&self) -> u64 {
        self.limits.disk_bytes.saturating_sub(self.segment_bytes + self.stash_bytes)
    }

    /// What transactions in progress may take. Of a durable log not all: it has to write what it was given, and could
    /// not go on when they held every byte.
    pub(super) fn stash_room_bytes(&self) -> u64 {
        let share = if self.durable.is_some() { self.limits.disk_bytes / 2 } else { self.limits.disk_bytes };
        share.saturating_sub(self.stash_bytes)
    }

    /// The segment that a run starting with batch `first` may be appended to.
    pub(super) fn open_segment(&self, first: u64) -> Option<u64> {
        let last = self.segments.back()?;
        (last.end.seq == first && !last.closed).then_some(last.number)
    }

    /// Of a durable log: the oldest batches that are not durable yet, as many as are written at once.
    pub(super) fn unsynced(&self) -> Vec<Arc<Batch>> {
        let Some(durable) = self.durable else { return Vec::new() };
        let first = self.memory.partition_point(|held| held.batch.seq < durable.seq);
        run(self.memory.range(first..), self.durable_run_bytes())
    }

    /// Whether it is time to write, however little time has passed.
    pub(super) fn is_crowded(&self) -> bool {
        self.appender_waits || self.unsynced_bytes >= self.durable_run_bytes()
    }

    /// Half of memory at most, so that the other half can fill meanwhile.
    fn durable_run_bytes(&self) -> u64 {
        DURABLE_RUN_BYTES.min(self.limits.memory_bytes / 2)
    }

    pub(super) fn has_unsynced(&self) -> bool {
        self.unsynced_bytes > 0
    }

    pub(super) fn durable_end(&self) -> Option<Mark> {
        self.durable
    }

    /// The stream can go no further: one transaction fills the disk, everything before it is released, and it cannot
    /// be released before its end.
    pub(super) fn is_stuck(&self) -> bool {
        self.appender_waits && self.durable.is_some() && self.inside_since.is_some_and(|it| it <= self.first_needed())
    }

    /// A run of `bytes` is about to be written to segment `number`: its room is taken from now on.
    pub(super) fn begin_write(&mut self, number: u64, bytes: u64) {
        self.segment_bytes += bytes;
        self.writing = Some(number);
    }

    /// The write failed; the segment is as it was and gets no more. Returns how long it is.
    pub(super) fn cancel_write(&mut self, number: u64, bytes: u64) -> u64 {
        self.segment_bytes -= bytes;
        self.writing = None;
        self.segments.iter().find(|segment| segment.number == number).map_or(0, |segment| segment.bytes)
    }

    /// The batches from `first` to before `end` are in segment `number` now, and out of memory, or durable.
    pub(super) fn finish_write(&mut self, number: u64, first: u64, end: Mark, bytes: u64) {
        self.writing = None;
        match self.segments.back_mut() {
            Some(last) if last.number == number => {
                if last.places.last().is_none_or(|(_, offset)| last.bytes - offset >= PLACE_INTERVAL_BYTES) {
                    last.places.push((first, last.bytes));
                }
                last.end = end;
                last.bytes += bytes;
            }
            Some(_) | None => {
                let segment = Segment { number, end, bytes, places: vec![(first, 0)], closed: false };
                self.segments.push_back(segment);
            }
        }
        if let Some(last) = self.segments.back_mut() {
            last.closed = last.bytes >= self.limits.segment_bytes;
        }
        if let Some(durable) = self.durable {
            let written = self.memory.iter().filter(|held| (first..end.seq).contains(&held.batch.seq));
            self.unsynced_bytes -= written.clone().map(|held| held.size_bytes).sum::<u64>();
            let whole = written.rev().find(|held| !held.batch.ends_inside());
            let through = whole.map_or(durable.through, |held| held.batch.through);
            self.durable = Some(Mark { seq: end.seq, through });
            self.collect_memory();
            return;
        }
        while self.memory.front().is_some_and(|held| held.batch.seq < end.seq) {
            self.pop_memory();
        }
    }

    /// Segments nobody needs any more. They count until [`Log::removed`]. Of a durable log the last one stays until it is
    /// closed: at a low rate each batch would make and remove a file.
    pub(super) fn take_dead_segments(&mut self) -> Dead {
        let first = self.first_needed();
        let mut dead = std::mem::take(&mut self.doomed);
        while let Some(oldest) = self.segments.front()
            && oldest.end.seq <= first
            && self.writing != Some(oldest.number)
            && (self.durable.is_none() || oldest.closed)
        {
            dead.segments.push((oldest.number, oldest.bytes));
            dead.begin = dead.begin.max(self.durable.map(|_| oldest.end));
            self.segments.pop_front();
        }
        dead
    }

    /// Room is wanted: the last segment of a durable log need not stay when nobody needs it.
    pub(super) fn close_last_segment(&mut self) {
        let first = self.first_needed();
        if let Some(last) = self.segments.back_mut()
            && last.end.seq <= first
            && self.writing != Some(last.number)
        {
            last.closed = true;
        }
    }

    /// They could not be removed; the next attempt takes them along.
    pub(super) fn put_back(&mut self, dead: Dead) {
        self.doomed.segments.extend(dead.segments);
        self.doomed.begin = self.doomed.begin.max(dead.begin);
    }

    pub(super) fn removed(&mut self, bytes: u64) {
        self.segment_bytes -= bytes;
    }

    pub(super) fn has_segments(&self) -> bool {
        self.segment_bytes > 0
    }

    pub(super) fn add_stash(&mut self, bytes: u64) {
        self.stash_bytes += bytes;
    }

    pub(super) fn remove_stash(&mut self, bytes: u64) {
        self.stash_bytes -= bytes;
    }

    // Reading.

    /// The reader of `sink`, once.
    pub(super) fn take_reader(&mut self, sink: SinkName) -> usize {
        let slot = self.readers.iter().position(|reader| reader.sink == sink && !reader.taken);
        let slot = slot.unwrap_or_else(|| panic!("the {sink} has no cursor, or it was taken before"));
        self.readers[slot].taken = true;
        slot
    }

    /// The reader of `sink`, which nobody has, from the oldest batch on that `like` has not released. `None` while that
    /// one is gone (see [`Log::forget`]), or `like` itself is.
    pub(super) fn join_reader(&mut self, sink: SinkName, like: SinkName) -> Option<usize> {
        let find = |sink| self.readers.iter().position(|reader| reader.sink == sink);
        let slot = find(sink).unwrap_or_else(|| panic!("the {sink} was not named when the spool was opened"));
        let beside = find(like).filter(|beside| self.readers[*beside].attached)?;
        let Reader { released, released_bytes, .. } = self.readers[beside];
        assert!(!self.readers[slot].attached, "the {sink} has a cursor");
        if released < self.forgotten {
            return None;
        }
        self.readers[slot] = Reader {
            sink,
            taken: true,
            attached: true,
            read: released,
            read_bytes: released_bytes,
            released,
            released_bytes,
        };
        Some(slot)
    }

    pub(super) fn sink(&self, slot: usize) -> SinkName {
        self.readers[slot].sink
    }

    pub(super) fn next_for(&self, slot: usize) -> Next {
        let seq = self.readers[slot].read;
        if self.end == End::Abandoned {
            return Next::Ended;
        }
        if let Some(first) = self.memory_first().filter(|first| *first <= seq)
            && let Some(held) = self.memory.get((seq - first) as usize)
        {
            return Next::Here { batch: Arc::clone(&held.batch), size_bytes: held.size_bytes };
        }
        if self.next.is_some_and(|next| seq < next) {
            return self.on_disk(seq);
        }
        if self.end == End::Closed { Next::Ended } else { Next::NotYet }
    }

    fn on_disk(&self, seq: u64) -> Next {
        let segment = &self.segments[self.segments.partition_point(|segment| segment.end.seq <= seq)];
        assert!(segment.number <= seq, "what is neither in memory nor released is in a segment");
        let place = segment.places.partition_point(|(first, _)| *first <= seq) - 1;
        let spot = Spot { segment: segment.number, seq, offset: segment.places[place].1 };
        Next::OnDisk { spot, length: segment.bytes }
    }

    /// The reader has got its next batch.
    pub(super) fn read(&mut self, slot: usize, size_bytes: u64) {
        self.readers[slot].read += 1;
        self.readers[slot].read_bytes += size_bytes;
    }

    /// The reader's sink needs the `count` oldest of its batches no more.
    pub(super) fn release(&mut self, slot: usize, count: u64, size_bytes: u64) {
        let reader = &mut self.readers[slot];
        reader.released += count;
        reader.released_bytes += size_bytes;
        assert!(reader.released <= reader.read, "the {} released what it has not read", reader.sink);
        self.impatient = false;
        self.collect_memory();
    }

    /// A full memory waits for its reader, when there is one only and it moves: what is written to disk and read again
    /// costs processor time that reader and stream compete for. Otherwise another sink would be held up, or a stream
    /// that might be decoded meanwhile (a copy is under way, the sink is down).
    pub(super) fn waits_for_its_reader(&self) -> bool {
        !self.impatient && self.readers.iter().filter(|reader| reader.attached).count() == 1
    }

    /// The reader did not move for long: do not wait until it has.
    pub(super) fn give_up_waiting(&mut self) {
        self.impatient = true;
    }

    /// How much was released, by whoever.
    pub(super) fn released(&self) -> u64 {
        self.readers.iter().map(|reader| reader.released).sum()
    }

    /// Back to the oldest batch not released; false when that one is no longer there.
    pub(super) fn rewind(&mut self, slot: usize) -> bool {
        let reader = &mut self.readers[slot];
        if reader.released < self.forgotten {
            return false;
        }
        (reader.read, reader.read_bytes) = (reader.released, reader.released_bytes);
        true
    }

    /// The reader's cursor is gone. A durable log keeps what the sink lacks for the next start.
    pub(super) fn detach(&mut self, slot: usize) {
        self.readers[slot].attached = self.durable.is_some();
        self.collect_memory();
    }

    /// Nothing is kept for the reader any more, not even for the next start: its sink is no more.
    pub(super) fn vacate(&mut self, sink: SinkName) {
        for reader in self.readers.iter_mut().filter(|reader| reader.sink == sink) {
            reader.attached = false;
        }
        self.collect_memory();
    }

    /// Lets go what everybody has read but nobody can release: the beginning of a transaction larger than all the room
    /// there is, whose sinks release it only after its end. Without this its end could never be appended. True when it
    /// made a difference. Never in a durable log, which may hold what nobody else has.
    pub(super) fn forget(&mut self) -> bool {
        let (Some(next), None) = (self.next, self.durable) else { return false };
        let all_read = self.readers.iter().filter(|reader| reader.attached).all(|reader| reader.read == next);
        if self.inside_since.is_none() || !all_read || self.first_needed() == next {
            return false;
        }
        self.forgotten = next;
        self.collect_memory();
        true
    }

    fn first_needed(&self) -> u64 {
        let released = self.readers.iter().filter(|reader| reader.attached).map(|reader| reader.released).min();
        released.unwrap_or(self.next.unwrap_or(0)).max(self.forgotten)
    }

    fn collect_memory(&mut self) {
        let first = self.first_needed();
        while self.may_leave_memory() && self.memory_first() < Some(first) {
            self.pop_memory();
        }
    }

    fn pop_memory(&mut self) {
        if let Some(held) = self.memory.pop_front() {
            self.memory_bytes -= held.size_bytes;
        }
    }

    // The whole.

    pub(super) fn end(&mut self, end: End) {
        match (self.end, end) {
            (End::Abandoned, _) | (End::Closed, End::Open) => {}
            (End::Open | End::Closed, end) => self.end = end,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.end == End::Open
    }

    /// Notes that the stream is held up; true when it was not before.
    pub(super) fn mark_full(&mut self, now_us: i64) -> bool {
        let turned = self.full_since_us.is_none();
        self.full_since_us.get_or_insert(now_us);
        turned
    }

    /// Notes that the stream goes on; since when it was held up, if it was.
    pub(super) fn mark_flowing(&mut self) -> Option<i64> {
        self.full_since_us.take()
    }

    pub(super) fn usage(&self) -> Usage {
        let next = self.next.unwrap_or(0);
        let cursor = |reader: &Reader| CursorUsage {
            sink: reader.sink,
            batches_behind: next - reader.read,
            // Sizes found on disk are those of the version that wrote them.
            bytes_behind: self.appended_bytes.saturating_sub(reader.read_bytes),
            batches_unsettled: reader.read - reader.released,
            bytes_unsettled: reader.read_bytes.saturating_sub(reader.released_bytes),
        };
        Usage {
            memory_bytes: self.memory_bytes,
            memory_capacity_bytes: self.limits.memory_bytes,
            disk_bytes: self.segment_bytes + self.stash_bytes,
            disk_capacity_bytes: self.limits.disk_bytes,
            stash_bytes: self.stash_bytes,
            full_since_us: self.full_since_us,
            cursors: self.readers.iter().filter(|reader| reader.attached).map(cursor).collect(),
        }
    }
}
