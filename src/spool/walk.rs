//! A durable log walked through every sequence of a few steps. Whatever happens, in whatever order: what a restart will
//! look for is in the segments, what a sink has not released is somewhere, and the bounds hold.

use crate::model::{Part, SinkName};

use super::machine::{Admission, Contents, End, Limits, Log, Next};
use super::state::Mark;
use super::testing::{lsn, part, through};

const SIZE: u64 = 100;
const LIMITS: Limits = Limits { memory_bytes: 3 * SIZE, disk_bytes: 4 * SIZE, segment_bytes: 2 * SIZE };
const DEPTH: u32 = 8;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A whole transaction, or the end of the open one.
    AppendEnd,
    /// The beginning of a transaction, or more of it.
    AppendPart,
    Sync,
    SyncFails,
    Read,
    Release,
    Remove,
    RemoveFails,
}

const STEPS: [Step; 8] = [
    Step::AppendEnd,
    Step::AppendPart,
    Step::Sync,
    Step::SyncFails,
    Step::Read,
    Step::Release,
    Step::Remove,
    Step::RemoveFails,
];

/// The log, and what the world around it knows.
#[derive(Clone)]
struct World {
    log: Log,
    /// Of every batch: whether a transaction is open behind it.
    open: Vec<bool>,
    read: u64,
    released: u64,
    /// What the state on disk says.
    noted: u64,
    /// The segments on disk: first batch, end.
    files: Vec<(u64, u64)>,
    path: Vec<Step>,
}

impl World {
    fn new() -> Self {
        let begin = Mark { seq: 0, through: lsn(1) };
        let contents = Contents { segments: [].into(), end: begin, size_bytes: 0, starts: vec![(0, 0)] };
        let mut log = Log::durable(LIMITS, &[SinkName::Target], contents);
        log.take_reader(SinkName::Target);
        Self { log, open: Vec::new(), read: 0, released: 0, noted: 0, files: Vec::new(), path: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        self.path.push(step);
        match step {
            Step::AppendEnd => self.append(true),
            Step::AppendPart => self.append(false),
            Step::Sync => self.sync(true),
            Step::SyncFails => self.sync(false),
            Step::Read => self.read(),
            Step::Release => self.release(),
            Step::Remove => self.remove(true),
            Step::RemoveFails => self.remove(false),
        }
        self.check();
    }

    fn append(&mut self, ends: bool) {
        let seq = self.open.len() as u64;
        let kind = match (self.open.last().copied().unwrap_or(false), ends) {
            (false, true) => Part::Whole,
            (false, false) => Part::First,
            (true, false) => Part::Middle,
            (true, true) => Part::Last,
        };
        if matches!(self.log.admit(SIZE), Admission::Now) {
            self.log.push(part(seq, 10, kind), SIZE);
            self.open.push(!ends);
        }
    }

    fn sync(&mut self, succeeds: bool) {
        let Some(batch) = self.log.unsynced().into_iter().next() else { return };
        if self.log.disk_room_bytes() < SIZE {
            return;
        }
        let number = self.log.open_segment(batch.seq).unwrap_or(batch.seq);
        self.log.begin_write(number, SIZE);
        if !succeeds {
            self.log.cancel_write(number, SIZE);
            return;
        }
        let end = Mark { seq: batch.seq + 1, through: lsn(batch.seq + 2) };
        self.log.finish_write(number, batch.seq, end, SIZE);
        match self.files.last_mut().filter(|(first, _)| *first == number) {
            Some(last) => last.1 = end.seq,
            None => self.files.push((number, end.seq)),
        }
    }

    fn read(&mut self) {
        match self.log.next_for(0) {
            Next::Here { batch, .. } => assert_eq!(batch.seq, self.read, "{:?}", self.path),
            Next::OnDisk { spot, .. } => assert_eq!(spot.seq, self.read, "{:?}", self.path),
            Next::NotYet => return assert_eq!(self.read, self.open.len() as u64, "{:?}", self.path),
            Next::Ended => panic!("nobody ended it: {:?}", self.path),
        }
        self.log.read(0, SIZE);
        self.read += 1;
    }

    /// As much as the cursor would: the longest run read that ends whole.
    fn release(&mut self) {
        let whole = (self.released..self.read).rev().find(|seq| !self.open[*seq as usize]);
        let Some(last) = whole else { return };
        let count = last + 1 - self.released;
        self.log.release(0, count, count * SIZE);
        self.released = last + 1;
    }

    fn remove(&mut self, succeeds: bool) {
        self.log.close_last_segment();
        let dead = self.log.take_dead_segments();
        if !succeeds {
            return self.log.put_back(dead);
        }
        self.noted = dead.begin.map_or(self.noted, |begin| begin.seq.max(self.noted));
        for (number, bytes) in dead.segments {
            self.log.removed(bytes);
            let before = self.files.len();
            self.files.retain(|(first, _)| *first != number);
            assert_eq!(self.files.len(), before - 1, "removed twice or never there: {:?}", self.path);
        }
    }

    fn check(&self) {
        let path = &self.path;
        let durable = self.log.durable_end().expect("it is durable").seq;
        assert!(self.noted <= self.released, "let go before it was released: {path:?}");
        // A restart reads from what is noted to the end of what is durable, without a gap.
        let mut next = self.noted;
        for (first, end) in self.files.iter().filter(|(_, end)| *end > self.noted) {
            assert!(*first <= next || next == self.noted && *first == next, "a gap before {first}: {path:?}");
            next = *end;
        }
        assert_eq!(next.max(self.noted), durable.max(self.noted), "confirmed, but not in the files: {path:?}");
        assert!(durable <= self.open.len() as u64, "{path:?}");
        // A restart drops what is behind the last whole transaction.
        let whole = (0..durable).rev().find(|seq| !self.open[*seq as usize]);
        let found = self.log.durable_end().map(|end| end.through);
        assert_eq!(found, Some(whole.map_or(lsn(1), through)), "confirmed, and dropped by a restart: {path:?}");
        let usage = self.log.usage();
        assert!(usage.memory_bytes <= LIMITS.memory_bytes.max(SIZE), "{usage:?} {path:?}");
        assert!(usage.disk_bytes <= LIMITS.disk_bytes, "{usage:?} {path:?}");
        assert!(
            self.files.iter().map(|(first, end)| (end - first) * SIZE).sum::<u64>() <= usage.disk_bytes,
            "{path:?}"
        );
        // What is not released can be read again.
        let mut log = self.log.clone();
        assert!(log.rewind(0), "{path:?}");
        for seq in self.released..self.open.len() as u64 {
            match log.next_for(0) {
                Next::Here { batch, .. } => assert_eq!(batch.seq, seq, "{path:?}"),
                Next::OnDisk { spot, .. } => {
                    let there = self.files.iter().any(|(first, end)| *first == spot.segment && seq < *end);
                    assert!(spot.seq == seq && there, "{spot:?} {path:?}");
                }
                Next::NotYet | Next::Ended => panic!("batch {seq} is nowhere: {path:?}"),
            }
            log.read(0, SIZE);
        }
    }
}

fn walk(world: &World, depth: u32) -> u64 {
    if depth == 0 {
        return 1;
    }
    let next = |step: &Step| {
        let mut world = world.clone();
        world.step(*step);
        walk(&world, depth - 1)
    };
    STEPS.iter().map(next).sum()
}

#[test]
fn no_path_loses_what_the_source_was_told_to_forget_or_passes_a_bound() {
    // Sync, read and release are where the depth matters; the first steps are always the same.
    let mut begun = World::new();
    begun.step(Step::AppendEnd);
    assert_eq!(walk(&begun, DEPTH - 3), 8_u64.pow(DEPTH - 3));
}

#[test]
fn long_paths_hold_the_same() {
    let base = fastrand::u64(..);
    for seed in (0..60).map(|n| base.wrapping_add(n)) {
        println!("seed {seed}");
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut world = World::new();
        for _ in 0..400 {
            // Only the last steps are worth printing.
            world.path.drain(..world.path.len().saturating_sub(40));
            world.step(STEPS[dice.usize(..STEPS.len())]);
        }
    }
}

#[test]
fn a_transaction_larger_than_the_disk_is_told_from_one_that_only_waits() {
    let mut world = World::new();
    world.step(Step::AppendEnd);
    for _ in 0..20 {
        world.step(Step::AppendPart);
        world.step(Step::Sync);
    }
    assert!(!world.log.is_stuck(), "the transaction before it can still be released");
    world.step(Step::Read);
    world.step(Step::Release);
    world.step(Step::Remove);
    for _ in 0..20 {
        world.step(Step::AppendPart);
        world.step(Step::Sync);
    }
    assert!(world.log.is_stuck());
    world.log.end(End::Closed);
    assert!(matches!(world.log.admit(SIZE), Admission::Ended));
}
