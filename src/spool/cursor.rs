//! One sink's way through the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::model::{Batch, Lsn, Relation, SinkName};

use super::Error;
use super::driver::Shared;
use super::machine::{Log, Next};
use super::segment::{self, Piece, ReadPlan, Spot};

/// One sink's place in the log: reads batches in order, releases what the sink holds durably.
#[derive(Debug)]
pub struct Cursor {
    shared: Arc<Shared>,
    slot: usize,
    /// Read but not released, oldest first. Bounded by what the sink takes in without settling it.
    unsettled: VecDeque<Delivered>,
    settled: Option<Lsn>,
    /// Read ahead from disk: one piece of about a megabyte.
    ahead: VecDeque<Batch>,
    /// A read that a dropped `next` has left under way.
    reading: Option<JoinHandle<Result<Piece, Error>>>,
    /// Where the last piece from disk ended.
    spot: Option<Spot>,
    /// Relations as they were last read, so that batches from disk share them as batches from memory do.
    relations: HashMap<u32, Arc<Relation>>,
}

#[derive(Debug)]
struct Delivered {
    /// `None` for a batch that ends inside a transaction: it is released with the batch that ends it.
    through: Option<Lsn>,
    size_bytes: u64,
}

enum Step {
    Batch(Arc<Batch>),
    Read(ReadPlan),
    Wait,
    Ended,
}

impl Cursor {
    pub(super) fn new(shared: Arc<Shared>, sink: SinkName) -> Self {
        let slot = shared.lock().take_reader(sink);
        Self::at(shared, slot)
    }

    pub(super) fn join(shared: Arc<Shared>, sink: SinkName, like: SinkName) -> Option<Self> {
        let slot = shared.lock().join_reader(sink, like)?;
        Some(Self::at(shared, slot))
    }

    fn at(shared: Arc<Shared>, slot: usize) -> Self {
        Self {
            shared,
            slot,
            unsettled: VecDeque::new(),
            settled: None,
            ahead: VecDeque::new(),
            reading: None,
            spot: None,
            relations: HashMap::new(),
        }
    }

    /// The next batch; `None` after the log was closed and all was read, or after it was abandoned. Cancel-safe: a
    /// dropped future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Arc<Batch>>, Error> {
        loop {
            if let Some(reading) = &mut self.reading {
                let piece = reading.await;
                self.reading = None;
                self.take_piece(piece.expect("reading a segment does not panic")?);
            }
            let shared = Arc::clone(&self.shared);
            let step = self.step(&mut shared.lock());
            match step {
                Step::Batch(batch) => return Ok(Some(batch)),
                Step::Read(plan) => self.reading = Some(tokio::task::spawn_blocking(move || segment::read(&plan))),
                // A notification that came since the step is kept by `Notify`, so none is missed.
                Step::Wait => shared.arrived(self.slot).notified().await,
                Step::Ended => return Ok(None),
            }
        }
    }

    /// The same from a thread of its own: blocks.
    pub fn next_blocking(&mut self) -> Result<Option<Arc<Batch>>, Error> {
        let shared = Arc::clone(&self.shared);
        let mut log = shared.lock();
        loop {
            log = match self.step(&mut log) {
                Step::Batch(batch) => return Ok(Some(batch)),
                Step::Read(plan) => {
                    drop(log);
                    self.take_piece(segment::read(&plan)?);
                    shared.lock()
                }
                Step::Wait => shared.wait(log),
                Step::Ended => return Ok(None),
            };
        }
    }

    /// The sink holds everything through here durably. A batch is released once its own `through` is, and no part of a
    /// transaction before its last.
    pub fn release(&mut self, through: Lsn) {
        self.settled = self.settled.max(Some(through));
        let shared = Arc::clone(&self.shared);
        self.release_settled(&mut shared.lock());
        self.clean_up();
    }

    /// The next batch is the oldest one that is not released: for a sink that was made anew. An error when that one had
    /// to be let go, which only happens in a transaction larger than the whole spool.
    pub fn rewind(&mut self) -> Result<(), Error> {
        let mut log = self.shared.lock();
        if !log.rewind(self.slot) {
            return Err(Error::Forgotten { sink: log.sink(self.slot) });
        }
        drop(log);
        self.unsettled.clear();
        self.ahead.clear();
        Ok(())
    }

    fn step(&mut self, log: &mut Log) -> Step {
        match log.next_for(self.slot) {
            Next::Ended => Step::Ended,
            Next::NotYet => Step::Wait,
            Next::Here { batch, size_bytes } => self.deliver(log, batch, size_bytes),
            Next::OnDisk { spot, length } => match self.take_ahead(spot.seq) {
                Some(batch) => {
                    let size_bytes = batch.size_bytes() as u64;
                    self.deliver(log, Arc::new(batch), size_bytes)
                }
                None => Step::Read(self.plan(spot, length)),
            },
        }
    }

    fn deliver(&mut self, log: &mut Log, batch: Arc<Batch>, size_bytes: u64) -> Step {
        let inside = batch.transactions.last().is_some_and(|last| !last.part.ends());
        self.unsettled.push_back(Delivered { through: (!inside).then_some(batch.through), size_bytes });
        log.read(self.slot, size_bytes);
        // After a rewind the sink may already hold what it is given again.
        self.release_settled(log);
        self.shared.wake();
        Step::Batch(batch)
    }

    /// Releases the longest run that ends with a whole transaction and is settled.
    fn release_settled(&mut self, log: &mut Log) {
        let is_open = |delivered: &Delivered| delivered.through > self.settled;
        let settled = self.unsettled.iter().position(is_open).unwrap_or(self.unsettled.len());
        let whole = self.unsettled.range(..settled).rposition(|delivered| delivered.through.is_some());
        let Some(last) = whole else { return };
        let size_bytes = self.unsettled.drain(..=last).map(|delivered| delivered.size_bytes).sum();
        log.release(self.slot, last as u64 + 1, size_bytes);
        self.shared.wake();
    }

    /// Removes segments that nobody needs any more, away from tokio's workers.
    fn clean_up(&self) {
        let dead = self.shared.lock().take_dead_segments();
        if dead.segments.is_empty() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let remove = move || {
            if let Err(error) = shared.remove_segments(dead) {
                tracing::warn!(error = crate::telemetry::chain(&error), "a spool file stays behind");
            }
        };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }

    fn take_ahead(&mut self, seq: u64) -> Option<Batch> {
        while let Some(batch) = self.ahead.pop_front() {
            if batch.seq == seq {
                return Some(batch);
            }
        }
        None
    }

    fn plan(&self, near: Spot, length: u64) -> ReadPlan {
        let exact = self.spot.filter(|spot| spot.segment == near.segment && spot.seq == near.seq);
        let spot = exact.unwrap_or(near);
        let path = self.shared.directory().segment(spot.segment);
        ReadPlan {
            path,
            segment: spot.segment,
            seq: spot.seq,
            offset: spot.offset,
            length,
            only_copy: self.shared.is_durable(),
        }
    }

    fn take_piece(&mut self, mut piece: Piece) {
        for relation in piece.batches.iter_mut().flat_map(|batch| &mut batch.relations) {
            match self.relations.get(&relation.oid) {
                Some(known) if known == relation => *relation = Arc::clone(known),
                Some(_) | None => drop(self.relations.insert(relation.oid, Arc::clone(relation))),
            }
        }
        self.spot = Some(piece.next);
        self.ahead = piece.batches.into();
    }
}

impl Drop for Cursor {
    fn drop(&mut self) {
        self.shared.lock().detach(self.slot);
        self.shared.wake();
        self.clean_up();
    }
}
