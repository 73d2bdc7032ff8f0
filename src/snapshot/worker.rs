//! One worker: a connection on either side, and the units it takes from the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::holder::Holder;
use super::plan::{Copied, Unit};
use super::progress::{CopyState, Counts};
use super::throttle::Pace;
use super::{Error, Options, Progress, sql};
use crate::model::TableName;
use crate::wire::{self, CopyIn, CopyOut, Mode, RawConnection};

/// How long a stopped copy may take to end on both sides before its connections are dropped.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What all workers of an attempt share.
pub(super) struct Attempt {
    pub(super) options: Options,
    pub(super) holder: Holder,
    pub(super) progress: Arc<Progress>,
    /// The target lets us copy as a replica does: without firing triggers.
    pub(super) as_replica: bool,
    pub(super) stop: CancellationToken,
    queue: Mutex<VecDeque<Unit>>,
    /// Parts that are not recorded yet, by table.
    parts_left: BTreeMap<TableName, AtomicU32>,
}

impl Attempt {
    pub(super) fn new(
        options: Options,
        holder: Holder,
        progress: Arc<Progress>,
        as_replica: bool,
        units: VecDeque<Unit>,
        stop: CancellationToken,
    ) -> Self {
        let tables = units.iter().map(|unit| &unit.copied);
        let parts_left = tables.map(|copied| (copied.table.name.clone(), AtomicU32::new(copied.part_count))).collect();
        Self { options, holder, progress, as_replica, stop, queue: Mutex::new(units), parts_left }
    }

    fn next_unit(&self) -> Option<Unit> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Whether the part just recorded was its table's last.
    fn was_last_part(&self, copied: &Copied) -> bool {
        let left = self.parts_left.get(&copied.table.name).expect("every table of the queue was counted");
        left.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Copies units until none is left. An error stops the other workers.
pub(super) async fn work(attempt: Arc<Attempt>) -> Result<(), Error> {
    let outcome = tokio::select! {
        outcome = copy_units(&attempt) => outcome,
        // Between messages a stop is seen at once; this is for a side that does not answer any more.
        () = stopped_and_patience_over(&attempt.stop) => Err(Error::Stopped),
    };
    if outcome.is_err() {
        attempt.stop.cancel();
    }
    outcome
}

async fn stopped_and_patience_over(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(END_PATIENCE).await;
}

async fn copy_units(attempt: &Attempt) -> Result<(), Error> {
    let mut worker: Option<Worker<'_>> = None;
    while let Some(unit) = attempt.next_unit() {
        attempt.options.throttle.may_begin(&attempt.stop).await;
        if attempt.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let worker = match &mut worker {
            Some(worker) => worker,
            none => none.insert(Worker::open(attempt).await?),
        };
        worker.copy(&unit).await?;
    }
    if let Some(worker) = worker {
        worker.close().await;
    }
    Ok(())
}

struct Worker<'a> {
    attempt: &'a Attempt,
    source: RawConnection,
    target: RawConnection,
}

impl<'a> Worker<'a> {
    async fn open(attempt: &'a Attempt) -> Result<Self, Error> {
        let options = &attempt.options;
        let mut source = wire::connect_raw(&options.source, Mode::Sql, "copy").await.map_err(Error::Connect)?;
        let mut target = wire::connect_raw(&options.target, Mode::Sql, "copy").await.map_err(Error::Connect)?;
        let adopt = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}';
             SET LOCAL max_parallel_workers_per_gather = 0",
            attempt.holder.exported
        );
        let doing = |doing| move |source| Error::Prepare { doing, source };
        source.simple_query(&adopt).await.map_err(doing("adopt the snapshot on the source"))?;
        // A unit that a crash of the target takes back is gone together with its record. What relies on records is
        // committed later, and durably.
        let settings = if attempt.as_replica {
            "SET synchronous_commit = off; SET session_replication_role = replica"
        } else {
            "SET synchronous_commit = off"
        };
        target.simple_query(settings).await.map_err(doing("prepare the target for the copy"))?;
        Ok(Self { attempt, source, target })
    }

    async fn copy(&mut self, unit: &Unit) -> Result<(), Error> {
        let name = &unit.copied.table.name;
        let counts = self.attempt.progress.table(name);
        counts.enter(CopyState::Copying);
        let moved = self.move_rows(unit, &counts).await?;
        self.attempt.holder.confirm().await?;
        self.record(unit, moved).await?;
        if self.attempt.was_last_part(&unit.copied) {
            self.complete(&unit.copied).await?;
            counts.enter(CopyState::Copied);
            info!(table = %name, parts = unit.copied.part_count, "table copied");
        }
        Ok(())
    }

    /// Leaves the target inside the unit's transaction.
    async fn move_rows(&mut self, unit: &Unit, counts: &Counts) -> Result<Moved, Error> {
        let name = &unit.copied.table.name;
        let failed = |doing| Error::copy(name, doing);
        self.target
            .simple_query(&sql::begin(unit, &self.attempt.options.migration))
            .await
            .map_err(failed("empty the target's table"))?;
        let filter = self.attempt.options.rows.of(name);
        let mut rows = self.source.copy_out(&sql::copy_out(unit, filter)).await.map_err(failed("read the source"))?;
        let mut into = self.target.copy_in(&sql::copy_in(unit)).await.map_err(failed("write to the target"))?;
        let mut moved = Moved::default();
        let pace = self.attempt.options.throttle.pace();
        let forwarded = forward(&mut rows, &mut into, counts, &mut moved, pace, &self.attempt.stop).await;
        let taken = match forwarded {
            Ok(Ended::AtTheEnd) => into.finish().await.map_err(failed("write to the target")),
            Ok(Ended::Stopped) => {
                let given_up = into.fail("the copy was stopped").await;
                debug!(table = %name, ?given_up, "copy stopped");
                Err(Error::Stopped)
            }
            Err((doing, source)) => Err(failed(doing)(source)),
        };
        let sent = rows.row_count();
        match taken {
            Ok(taken) if sent == Some(taken) => {
                counts.settle(&moved, taken);
                Ok(Moved { rows: taken, ..moved })
            }
            Ok(taken) => {
                counts.take_back(&moved);
                Err(Error::RowsLost { table: name.clone(), sent: sent.unwrap_or_default(), taken })
            }
            Err(error) => {
                counts.take_back(&moved);
                self.cancel_source().await;
                Err(error)
            }
        }
    }

    /// Spares the source's log a lost connection in the middle of a copy.
    async fn cancel_source(&self) {
        if let Err(error) = self.source.cancel_token().cancel().await {
            debug!(%error, "the copy on the source could not be cancelled");
        }
    }

    async fn record(&mut self, unit: &Unit, moved: Moved) -> Result<(), Error> {
        let holder = &self.attempt.holder;
        let taken =
            sql::Taken { snapshot: &holder.snapshot, until: holder.until, rows: moved.rows, bytes: moved.bytes };
        let record = sql::record(unit, &self.attempt.options.migration, &taken);
        let failed = Error::copy(&unit.copied.table.name, "record what was copied");
        self.target.simple_query(&record).await.map(drop).map_err(failed)
    }

    /// A table of one part is complete by its record.
    async fn complete(&mut self, copied: &Copied) -> Result<(), Error> {
        if copied.part_count == 1 {
            return Ok(());
        }
        let table = &copied.table.name;
        let marked = self.target.simple_query(&sql::complete(copied, &self.attempt.options.migration)).await;
        if marked.map_err(Error::copy(table, "record that it is complete"))?.is_empty() {
            return Err(Error::PartsMissing { table: table.clone() });
        }
        Ok(())
    }

    async fn close(self) {
        for connection in [self.source, self.target] {
            if let Err(error) = connection.close().await {
                debug!(%error, "a worker's connection was gone before its end");
            }
        }
    }
}

/// Counted while it travels; `frames` is nearly the number of rows, which the servers know exactly at the end.
#[derive(Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) bytes: u64,
    pub(super) frames: u64,
    pub(super) rows: u64,
}

enum Ended {
    AtTheEnd,
    Stopped,
}

/// Passes messages on as they are: they look the same in both directions.
async fn forward(
    rows: &mut CopyOut<'_>,
    into: &mut CopyIn<'_>,
    counts: &Counts,
    moved: &mut Moved,
    mut pace: Pace<'_>,
    stop: &CancellationToken,
) -> Result<Ended, (&'static str, wire::Error)> {
    loop {
        let chunk = tokio::select! {
            biased; // a stop should not wait for rows, which come without end
            () = stop.cancelled() => return Ok(Ended::Stopped),
            chunk = rows.next() => chunk.map_err(|source| ("read the source", source))?,
        };
        let Some(chunk) = chunk else { return Ok(Ended::AtTheEnd) };
        let bytes = chunk.frames.len() as u64;
        pace.admit(bytes, stop).await;
        into.write(&chunk.frames).await.map_err(|source| ("write to the target", source))?;
        moved.bytes += bytes;
        moved.frames += chunk.frame_count;
        counts.add(bytes, chunk.frame_count);
    }
}
