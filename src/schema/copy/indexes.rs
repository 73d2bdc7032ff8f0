//! Primary keys, unique and exclusion constraints, indexes and statistics of the tables that are copied.

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::pre_data::read_section;
use super::schedule::{Next, Schedule};
use super::side_by_side::{all, run_groups};
use super::table_plan::Plan;
use super::watch::watched;
use super::worker::Worker;
use super::{CopyOptions, Steps};
use crate::model::{MigrationName, TableName};
use crate::schema::dump::{Section, Setting};
use crate::schema::{Catalog, Error};
use crate::wire::{self, Session};

/// Which tables' rows are there.
#[derive(Clone, Debug)]
pub enum Rows {
    /// Those of all tables.
    Complete,
    /// Those of the tables named so far, as far as `changeover.unit` says the same: what is told may be older than a
    /// crash of the target that took rows back.
    Arriving(watch::Receiver<BTreeSet<TableName>>),
}

/// Arrivals are looked up at most this often: a database of many small tables completes hundreds a second. One of few need
/// not wait.
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(200);
const LOOK_INTERVAL_PER_TABLE: Duration = Duration::from_millis(1);

/// Builds keys, indexes and statistics of the migration's tables, each step in a transaction that records it: a table as
/// soon as its rows are there, the largest of those first, tables and the indexes of one table side by side. Then
/// partitions' indexes are attached to those of their roots. What is recorded as done is left alone.
///
/// A step that fails ends the call, after the steps under way have ended by themselves.
pub async fn copy_indexes(
    options: &CopyOptions,
    catalog: &Catalog,
    steps: &Steps,
    rows: Rows,
    stop: CancellationToken,
) -> Result<(), Error> {
    let source = wire::connect(&options.source, "indexes").await.map_err(Error::Connect)?;
    let control = Worker::open(options, &[], &stop).await?;
    let dump = read_section(options, catalog, Section::PostData, &source, &control.session).await?;
    drop(source);
    let plan = Plan::of(&dump.entries, catalog);
    let total = plan.len();
    let plan = plan.left(&control.done().await?);
    let step_count = plan.len();
    steps.expect(total, total - step_count);
    let build = Build {
        schedule: Mutex::new(Schedule::new(plan.tables)),
        changed: watch::Sender::new(()),
        steps,
        migration: &options.migration,
        stop: &stop,
    };
    let worker_count = options.workers.clamp(1, step_count.max(1));
    let workers = open_workers(options, &dump.preamble, worker_count, &stop).await?;
    build.run(options, &control.session, &workers, rows).await?;
    drop(workers);
    // In the dump's order: an index of a middle level must be complete before it is attached to the one above.
    run_groups(options, &dump.preamble, vec![plan.attach], steps, &stop).await?;
    info!(step_count, "indexes built");
    Ok(())
}

/// All of them before the first look at which rows are there: a target that crashes between the look and the build has
/// broken the builder's session as well.
async fn open_workers(
    options: &CopyOptions,
    preamble: &[Setting],
    count: usize,
    stop: &CancellationToken,
) -> Result<Vec<Worker>, Error> {
    let mut workers = Vec::with_capacity(count);
    for _ in 0..count {
        let worker = Worker::open(options, preamble, stop).await?;
        worker.set_limits(options).await?;
        workers.push(worker);
    }
    let ours: Vec<i32> = workers.iter().map(|worker| worker.session.backend_pid()).collect();
    for worker in &mut workers {
        worker.ours.clone_from(&ours);
    }
    Ok(workers)
}

/// What the workers of one call share.
struct Build<'a> {
    schedule: Mutex<Schedule>,
    /// Told whenever the schedule may have something new.
    changed: watch::Sender<()>,
    steps: &'a Steps,
    migration: &'a MigrationName,
    stop: &'a CancellationToken,
}

type Part<'a> = Pin<Box<dyn Future<Output = Result<(), Error>> + Send + 'a>>;

impl Build<'_> {
    async fn run(&self, options: &CopyOptions, control: &Session, workers: &[Worker], rows: Rows) -> Result<(), Error> {
        let mut parts: Vec<Part<'_>> = vec![Box::pin(self.receive(control, rows))];
        parts.extend(workers.iter().map(|worker| -> Part<'_> { Box::pin(self.work(worker)) }));
        let outcome = all(parts, || {
            self.schedule().fail();
            self.tell();
        });
        watched(&options.target, self.steps, outcome).await
    }

    /// Passes on whose rows are there, until that is known of every table.
    async fn receive(&self, control: &Session, rows: Rows) -> Result<(), Error> {
        let mut arriving = match rows {
            Rows::Complete => {
                self.arrived(&self.awaited());
                return Ok(());
            }
            Rows::Arriving(arriving) => arriving,
        };
        let mut changed = self.changed.subscribe();
        loop {
            let awaited = self.awaited();
            let per_table = LOOK_INTERVAL_PER_TABLE * u32::try_from(awaited.len()).unwrap_or(u32::MAX);
            let next_look = Instant::now() + per_table.min(LOOK_INTERVAL_MAX);
            let told = arriving.borrow_and_update().clone();
            let told: Vec<TableName> = awaited.into_iter().filter(|table| told.contains(table)).collect();
            self.arrived(&recorded(control, self.migration, &told).await?);
            if self.awaited().is_empty() || self.schedule().has_failed() {
                return Ok(());
            }
            tokio::select! {
                () = self.stop.cancelled() => return Err(Error::Stopped),
                // Nobody is left to tell of rows: the daemon ends.
                told = arriving.changed() => told.map_err(|_| Error::Stopped)?,
                () = failed(&mut changed, || self.schedule().has_failed()) => return Ok(()),
            }
            tokio::time::sleep_until(next_look).await;
        }
    }

    /// Takes steps until none is left.
    async fn work(&self, worker: &Worker) -> Result<(), Error> {
        let mut changed = self.changed.subscribe();
        loop {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            changed.borrow_and_update();
            let next = self.schedule().next();
            match next {
                Next::Over => return Ok(()),
                Next::Wait => tokio::select! {
                    () = self.stop.cancelled() => {}
                    told = changed.changed() => told.expect("the sender is in the same struct"),
                },
                Next::Run(table, step) => {
                    if let Err(error) = worker.run(&step, self.steps).await {
                        debug!(step = step.title, "step failed: those under way go on, no other is begun");
                        return Err(error);
                    }
                    self.schedule().done(&table);
                    self.settle();
                }
            }
        }
    }

    fn awaited(&self) -> Vec<TableName> {
        self.schedule().awaited().cloned().collect()
    }

    fn arrived(&self, tables: &[TableName]) {
        for table in tables {
            self.schedule().arrived(table);
        }
        self.settle();
    }

    /// Reports what is finished and wakes those who wait.
    fn settle(&self) {
        let finished = self.schedule().take_finished();
        for table in finished {
            debug!(%table, "indexes of the table are there");
            self.steps.indexed(table);
        }
        self.tell();
    }

    fn tell(&self) {
        self.changed.send_replace(());
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn failed(changed: &mut watch::Receiver<()>, has_failed: impl Fn() -> bool) {
    while !has_failed() {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

/// Those of `tables` whose rows the target has recorded as complete.
async fn recorded(control: &Session, migration: &MigrationName, tables: &[TableName]) -> Result<Vec<TableName>, Error> {
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let schemas: Vec<&str> = tables.iter().map(|table| &*table.schema).collect();
    let names: Vec<&str> = tables.iter().map(|table| &*table.name).collect();
    let sql = "SELECT u.table_schema, u.table_name FROM changeover.unit u
               JOIN ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[]))
                    AS t (table_schema, table_name) USING (table_schema, table_name)
               WHERE u.migration = $1 AND u.part = 0 AND u.complete";
    let rows = control.query(sql, &[&migration.as_str(), &schemas, &names]).await;
    let rows = rows.map_err(Error::query("read whose rows are there"))?;
    if rows.len() < tables.len() {
        warn!(told = tables.len(), recorded = rows.len(), "tables are not recorded as copied: waiting for them again");
    }
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
