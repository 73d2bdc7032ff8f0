//! One worker: a connection on either side, and the units it takes from the queue.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::holder::Holder;
use super::plan::{Copied, Task, Unit};
use super::progress::{CopyState, Counts};
use super::snapshots::Snapshots;
use super::split::{Begun, TableCopy};
use super::throttle::Pace;
use super::{Error, Options, Progress, sql};
use crate::model::{SnapshotSet, TableName};
use crate::telemetry::Point;
use crate::wire::{self, CopyIn, CopyOut, Mode, RawConnection, sqlstate};

/// How long a stopped copy may take to end on both sides before its connections are dropped.
const END_PATIENCE: Duration = Duration::from_secs(5);
/// A TRUNCATE that waits for the holder's lock lets no reader pass that comes later, so we would wait for it and it for
/// us, which no server notices: an idle holder waits for nobody. The attempt fails instead, lets it through, and begins
/// again.
const LOCK_TIMEOUT_MS: u32 = 3_000;

/// What all workers of an attempt share.
pub(super) struct Attempt {
    pub(super) options: Options,
    pub(super) snapshots: Snapshots,
    pub(super) progress: Arc<Progress>,
    /// The target lets us copy as a replica does: without firing triggers.
    pub(super) as_replica: bool,
    pub(super) stop: CancellationToken,
    queue: Mutex<VecDeque<Task>>,
    tables: BTreeMap<TableName, Arc<TableCopy>>,
}

impl Attempt {
    pub(super) fn new(
        options: Options,
        snapshots: Snapshots,
        progress: Arc<Progress>,
        as_replica: bool,
        tables: impl IntoIterator<Item = Arc<TableCopy>>,
        queue: VecDeque<Task>,
        stop: CancellationToken,
    ) -> Self {
        let tables = tables.into_iter().map(|of| (of.copied.table.name.clone(), of)).collect();
        Self { options, snapshots, progress, as_replica, stop, queue: Mutex::new(queue), tables }
    }

    fn next_task(&self) -> Option<Task> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn next_unit_if(&self, suits: impl FnOnce(&Unit) -> bool) -> Option<Unit> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let front = queue.pop_front_if(|task| matches!(task, Task::Copy(unit) if suits(unit)));
        front.and_then(|task| if let Task::Copy(unit) = task { Some(unit) } else { None })
    }

    /// The snapshot to read the next unit under.
    pub(super) async fn newest(&self) -> Result<Arc<Holder>, Error> {
        let is_left = |name: &&TableName| self.progress.table(name).state() != CopyState::Copied;
        let left = || self.tables.iter().filter(|(name, _)| is_left(name)).flat_map(|(_, of)| of.copied.stored_in());
        self.snapshots.current(|| left().cloned().collect()).await
    }

    /// Refuses to go on with a table that was truncated or rewritten while nobody held its lock.
    pub(super) fn same_file(&self, holder: &Holder, copied: &Copied, begun: &Begun) -> Result<(), Error> {
        if copied.files_under(holder) == Some(begun.filenode) {
            Ok(())
        } else {
            Err(Error::Rewritten { table: copied.table.name.clone() })
        }
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
    while let Some(task) = attempt.next_task() {
        wait_to_begin(attempt, worker.as_mut()).await?;
        if attempt.stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let worker = match &mut worker {
            Some(worker) => worker,
            none => none.insert(Worker::open(attempt).await?),
        };
        if let Err(error) = worker.work_on(task).await {
            worker.cancel_source().await;
            return Err(error);
        }
    }
    if let Some(worker) = worker {
        worker.close().await;
    }
    Ok(())
}

/// Waits until another unit may be begun. Who waits for longer keeps no snapshot meanwhile: what parts of a table were
/// read under then and later is brought together as after a crash ([`super::settle`]).
pub(super) async fn wait_to_begin(attempt: &Attempt, worker: Option<&mut Worker<'_>>) -> Result<(), Error> {
    let throttle = &attempt.options.throttle;
    tokio::select! {
        biased; // usually there is nothing to wait for
        () = throttle.may_begin(&attempt.stop) => return Ok(()),
        () = throttle.long_hold() => {}
    }
    attempt.snapshots.let_go().await;
    if let Some(worker) = worker.filter(|_| attempt.snapshots.may_change()) {
        worker.let_go().await?;
    }
    throttle.may_begin(&attempt.stop).await;
    Ok(())
}

pub(super) struct Worker<'a> {
    pub(super) attempt: &'a Attempt,
    pub(super) source: RawConnection,
    pub(super) target: RawConnection,
    /// The snapshot that our transaction on the source reads under.
    adopted: Option<Arc<Holder>>,
    /// The source has been asked for this unit already, under `adopted`.
    ahead: Option<Unit>,
}

impl<'a> Worker<'a> {
    async fn open(attempt: &'a Attempt) -> Result<Self, Error> {
        let options = &attempt.options;
        let source = open_source(options).await?;
        let mut target = wire::connect_raw(&options.target, Mode::Sql, "copy").await.map_err(Error::Connect)?;
        let doing = |doing| move |source| Error::Prepare { doing, source };
        // A unit that a crash of the target takes back is gone together with its record. What relies on records is
        // committed later, and durably.
        let settings = if attempt.as_replica {
            "SET synchronous_commit = off; SET session_replication_role = replica"
        } else {
            "SET synchronous_commit = off"
        };
        target.simple_query(settings).await.map_err(doing("prepare the target for the copy"))?;
        Ok(Self { attempt, source, target, adopted: None, ahead: None })
    }

    /// Ends whatever the source does for us, and reads with another session from now on.
    pub(super) async fn renew_source(&mut self) -> Result<(), Error> {
        self.cancel_source().await;
        self.adopted = None;
        self.source = open_source(&self.attempt.options).await?;
        Ok(())
    }

    /// Reads under this snapshot from now on.
    pub(super) async fn adopt(&mut self, holder: &Arc<Holder>) -> Result<(), Error> {
        if self.adopted.as_ref().is_some_and(|adopted| Arc::ptr_eq(adopted, holder)) {
            return Ok(());
        }
        let end = if self.adopted.take().is_some() { "COMMIT; " } else { "" };
        let sql = format!(
            "{end}BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}';
             SET LOCAL max_parallel_workers_per_gather = 0; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}",
            holder.exported
        );
        Point::SnapshotHanded.reach();
        if let Err(source) = self.source.simple_query(&sql).await {
            // A snapshot that went with its session is answered with the code of a wrong identifier.
            holder.confirm().await?;
            return Err(Error::Prepare { doing: "adopt the snapshot on the source", source });
        }
        self.adopted = Some(Arc::clone(holder));
        Ok(())
    }

    /// Ends the transaction on the source.
    async fn let_go(&mut self) -> Result<(), Error> {
        if self.adopted.take().is_some() {
            let ended = self.source.simple_query("COMMIT").await;
            ended.map_err(|source| Error::Prepare { doing: "let go of the snapshot on the source", source })?;
        }
        Ok(())
    }

    /// Does a task, and the units that the source was asked for ahead of their turn.
    async fn work_on(&mut self, task: Task) -> Result<(), Error> {
        match task {
            Task::Copy(unit) => self.copy(&unit).await?,
            Task::CopyInOrder(of, parts) => self.copy_in_order(&of, parts).await?,
            Task::Complete(of) => self.complete(&of).await?,
        }
        while let Some(unit) = self.ahead.take() {
            let holder = self.adopted.clone().expect("it was asked for under a snapshot");
            self.copy_asked(&unit, holder).await?;
        }
        Ok(())
    }

    async fn copy(&mut self, unit: &Unit) -> Result<(), Error> {
        let (holder, base) = self.snapshot_for(&unit.of).await?;
        self.adopt(&holder).await?;
        self.ask(&unit.of.copied.table.name, &sql::copy_out(unit, base.as_ref())).await?;
        self.copy_asked(unit, holder).await
    }

    async fn copy_asked(&mut self, unit: &Unit, holder: Arc<Holder>) -> Result<(), Error> {
        let name = &unit.of.copied.table.name;
        let counts = self.attempt.progress.table(name);
        counts.enter(CopyState::Copying);
        let begun = self.target.simple_query(&sql::begin(unit, &self.attempt.options.migration)).await;
        begun.map_err(Error::copy(name, "empty the target's table"))?;
        let moved = self.move_rows(name, &sql::copy_in(&unit.of.copied), &counts, Some((&*unit.of, &holder))).await?;
        holder.confirm().await?;
        self.record(unit, &holder, moved).await?;
        let is_last = unit.of.part_recorded(&holder.snapshot);
        // What follows may need another one, which must not wait for this.
        drop(holder);
        if is_last {
            self.complete(&unit.of).await?;
        }
        Ok(())
    }

    /// Asks the source for rows, which [`Self::move_rows`] takes up.
    pub(super) async fn ask(&mut self, name: &TableName, out: &str) -> Result<(), Error> {
        self.source.ask_copy_out(out).await.map_err(Error::copy(name, "read the source"))
    }

    /// The snapshot to read the next unit under. One that has become too old is let go of first: whoever waits for its
    /// locks would hold up the next one.
    pub(super) async fn newest(&mut self) -> Result<Arc<Holder>, Error> {
        let stays = self.adopted.as_ref().is_none_or(|adopted| self.attempt.snapshots.stays(adopted));
        if !stays {
            self.let_go().await?;
        }
        self.attempt.newest().await
    }

    /// What the next part of a table is read under, and the table's first snapshot where that is another one.
    pub(super) async fn snapshot_for(&mut self, of: &TableCopy) -> Result<(Arc<Holder>, Option<SnapshotSet>), Error> {
        let newest = self.newest().await?;
        if !of.is_split() {
            return Ok((newest, None));
        }
        let begun = of.begun.get_or_try_init(|| self.begin_split(of, &newest)).await?;
        if let Some(pinned) = begun.pinned() {
            return Ok((pinned, None));
        }
        self.attempt.same_file(&newest, &of.copied, begun)?;
        let base = begun.base_under(&newest.snapshot).cloned();
        Ok((newest, base))
    }

    /// Empties a split table, before any of its parts is copied.
    async fn begin_split(&mut self, of: &TableCopy, holder: &Arc<Holder>) -> Result<Begun, Error> {
        let name = &of.copied.table.name;
        let filenode = of.copied.files_under(holder).ok_or_else(|| Error::Rewritten { table: name.clone() })?;
        let pinned = (!of.can_be_settled()).then(|| Arc::clone(holder));
        let begun = Begun::new(holder.snapshot.clone(), filenode, pinned);
        let sql = sql::begin_split(&of.copied, &self.attempt.options.migration, &begun);
        self.target.simple_query(&sql).await.map_err(Error::copy(name, "empty the target's table"))?;
        Ok(begun)
    }

    /// Moves the rows that the source was asked for. Leaves the target inside its transaction; the source as well, where
    /// it may be reading the next unit already: who copies a unit says of which table and under what.
    pub(super) async fn move_rows(
        &mut self,
        name: &TableName,
        into: &str,
        counts: &Counts,
        unit: Option<(&TableCopy, &Arc<Holder>)>,
    ) -> Result<Moved, Error> {
        let failed = |doing| Error::copy(name, doing);
        let mut rows = self.source.copy_out_asked().await.map_err(failed("read the source"))?;
        let mut into = self.target.copy_in(into).await.map_err(failed("write to the target"))?;
        let mut moved = Moved::default();
        let pace = self.attempt.options.throttle.pace();
        let forwarded = forward(&mut rows, &mut into, counts, &mut moved, pace, &self.attempt.stop).await;
        let sent = rows.row_count();
        let taken = match forwarded {
            Ok(Ended::AtTheEnd) => {
                // The target has still to take in what the sockets hold.
                match ask_ahead(&mut self.source, self.attempt, unit).await {
                    Ok(next) => {
                        self.ahead = next;
                        into.finish().await.map_err(failed("write to the target"))
                    }
                    Err(error) => Err(error),
                }
            }
            Ok(Ended::Stopped) => Err(give_up(into, name).await),
            Err((doing, source)) => Err(failed(doing)(source)),
        };
        moved.account(name, counts, sent, taken)
    }

    /// Spares the source's log a lost connection in the middle of a copy.
    async fn cancel_source(&self) {
        if self.source.is_in_copy()
            && let Err(error) = self.source.cancel_token().cancel().await
        {
            debug!(%error, "the copy on the source could not be cancelled");
        }
    }

    /// A record that is there already was left by a backend whose client has died.
    pub(super) async fn record(&mut self, unit: &Unit, holder: &Holder, moved: Moved) -> Result<(), Error> {
        let taken =
            sql::Taken { snapshot: &holder.snapshot, until: holder.until, rows: moved.rows, bytes: moved.bytes };
        let record = sql::record(unit, &self.attempt.options.migration, &taken);
        let table = &unit.of.copied.table.name;
        self.target.simple_query(&record).await.map(drop).map_err(|error| match error.server() {
            Some(server) if server.sqlstate() == sqlstate::UNIQUE_VIOLATION => {
                Error::Overtaken { table: table.clone() }
            }
            _ => Error::copy(table, "record what was copied")(error),
        })
    }

    /// Every part is recorded. A table of one part is complete by its record.
    pub(super) async fn complete(&mut self, of: &TableCopy) -> Result<(), Error> {
        debug_assert!(of.is_recorded(), "a table is complete when its parts are");
        let (copied, table) = (&of.copied, &of.copied.table.name);
        if of.is_mixed() {
            let begun = of.begun.get().expect("parts of it were recorded, so it was begun");
            self.settle(copied, begun).await?;
        } else if of.is_split() {
            let marked = self.target.simple_query(&sql::complete(copied, &self.attempt.options.migration)).await;
            if marked.map_err(Error::copy(table, "record that it is complete"))?.is_empty() {
                return Err(Error::PartsMissing { table: table.clone() });
            }
        }
        if let Some(begun) = of.begun.get() {
            begun.unpin();
        }
        self.attempt.progress.table(table).enter(CopyState::Copied);
        info!(%table, parts = copied.cut.part_count, "table copied");
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

/// Has the target undo what it has of a part.
pub(super) async fn give_up(into: CopyIn<'_>, table: &TableName) -> Error {
    let given_up = into.fail("the copy was stopped").await;
    debug!(%table, ?given_up, "copy stopped");
    Error::Stopped
}

async fn open_source(options: &Options) -> Result<RawConnection, Error> {
    wire::connect_raw(&options.source, Mode::Sql, "copy").await.map_err(Error::Connect)
}

/// Asks the source for the unit that comes after `unit`, if it can be read already.
async fn ask_ahead(
    source: &mut RawConnection,
    attempt: &Attempt,
    unit: Option<(&TableCopy, &Arc<Holder>)>,
) -> Result<Option<Unit>, Error> {
    let Some((of, holder)) = unit else { return Ok(None) };
    let Some(next) = next_ahead(attempt, of, holder) else { return Ok(None) };
    let base = next.of.begun.get().and_then(|begun| begun.base_under(&holder.snapshot));
    let asked = source.ask_copy_out(&sql::copy_out(&next, base)).await;
    asked.map_err(Error::copy(&next.of.copied.table.name, "read the source"))?;
    Ok(Some(next))
}

/// The next unit in the queue, if it can be read under `holder` and without a look at the target first. After the last
/// unit of a split table none can: settling it needs the source.
fn next_ahead(attempt: &Attempt, of: &TableCopy, holder: &Arc<Holder>) -> Option<Unit> {
    if attempt.stop.is_cancelled() || !attempt.options.throttle.may_begin_now() || !attempt.snapshots.stays(holder) {
        return None;
    }
    let suits = |unit: &Unit| {
        let same_table = std::ptr::eq(&*unit.of, of);
        match unit.of.begun.get() {
            None => !unit.of.is_split() && !of.is_split(),
            Some(begun) => {
                let same_holder = begun.pinned().is_none_or(|pinned| Arc::ptr_eq(&pinned, holder));
                same_table && same_holder && attempt.same_file(holder, &unit.of.copied, begun).is_ok()
            }
        }
    };
    attempt.next_unit_if(suits)
}

/// Counted while it travels; `frames` is nearly the number of rows, which the servers know exactly at the end.
#[derive(Clone, Copy, Default)]
pub(super) struct Moved {
    pub(super) bytes: u64,
    pub(super) frames: u64,
    pub(super) rows: u64,
}

impl Moved {
    /// What was moved and counted on the way: it came to something if the target has `taken` as many rows as were `sent`.
    pub(super) fn account(
        self,
        name: &TableName,
        counts: &Counts,
        sent: Option<u64>,
        taken: Result<u64, Error>,
    ) -> Result<Self, Error> {
        let outcome = taken.and_then(|taken| {
            let lost = || Error::RowsLost { table: name.clone(), sent: sent.unwrap_or_default(), taken };
            if sent == Some(taken) { Ok(Self { rows: taken, ..self }) } else { Err(lost()) }
        });
        match &outcome {
            Ok(moved) => counts.settle(moved, moved.rows),
            Err(_) => counts.take_back(&self),
        }
        outcome
    }
}

pub(super) enum Ended {
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
