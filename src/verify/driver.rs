//! A full pass over all tables: aligned snapshots, workers on both sides, verdicts, and the rows that differ.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::align::Aligner;
use super::dirty::DirtyKeys;
use super::error::{Error, Side};
use super::incremental;
use super::machine::{Digested, Round};
use super::narrow::{Pair, narrow};
use super::progress::Progress;
use super::report::{Report, TableVerdict};
use super::shape::{self, Shape};
use super::snapshots::{Aligned, Control};
use super::table::Table;
use super::worker::{Shared, Subject, work};
use crate::model::{Lsn, MigrationName};
use crate::telemetry::metrics as names;
use crate::wire::Endpoint;

/// How often a table is compared anew because it was truncated or rewritten meanwhile.
const RESTLESS_MAX: u32 = 5;
/// Parts of this size take a fraction of a second: short locks, and workers that end together.
const UNIT_BLOCKS: u32 = 8192;

#[derive(Clone, Debug)]
pub struct Options {
    pub migration: MigrationName,
    pub source: Endpoint,
    pub target: Endpoint,
    /// Sessions on each side that compare.
    pub workers: usize,
    /// How many differing keys of a table the report may name. Keys are data: 0 unless the operator asked.
    pub keys_max: usize,
    /// After this long no further table is begun under the same pair of snapshots, since an open snapshot keeps both
    /// servers from clearing dead rows; the pass goes on with a new pair.
    pub snapshot_age_max: Duration,
}

/// Compares every table of `dirty` in full. The report's position is that of its only pair of snapshots; where one pair
/// was not enough, what changed meanwhile is compared again in a last aligned pass, and the position is that pass's.
///
/// # Errors
/// Anything that keeps the verdict from being exact: then there is no report.
pub async fn verify(
    options: &Options,
    aligner: &dyn Aligner,
    dirty: &DirtyKeys,
    progress: &Arc<Progress>,
) -> Result<Report, Error> {
    let started = Instant::now();
    let tables = Arc::clone(dirty.tables());
    progress.restart(tables.len());
    let control = Box::pin(Control::open(&options.source, &options.target)).await?;
    let mut pass = Pass {
        options,
        aligner,
        dirty,
        progress,
        verdicts: tables.iter().map(|_| None).collect(),
        restless: vec![0; tables.len()],
        held: Duration::ZERO,
        tables,
        control,
    };
    let (position, rounds) = Box::pin(pass.run()).await?;
    let compared = pass.verdicts.iter().flatten().map(|verdict| verdict.rows_source).sum();
    let verdicts: Vec<TableVerdict> = pass.verdicts.iter().flatten().cloned().collect();
    let all_equal = verdicts.iter().all(|verdict| verdict.equal);
    let mut report = Report::new(position, verdicts, compared, pass.held, started.elapsed());
    if rounds > 1 && all_equal {
        let closing = Box::pin(incremental::pass(&pass.control, options, aligner, dirty)).await?;
        let held = pass.held + Duration::from_secs_f64(closing.held_ms / 1000.0);
        report =
            Report::new(closing.position, closing.tables, compared + closing.rows_compared, held, started.elapsed());
    }
    publish(&options.migration, &report);
    Ok(report)
}

struct Pass<'a> {
    options: &'a Options,
    aligner: &'a dyn Aligner,
    dirty: &'a DirtyKeys,
    progress: &'a Arc<Progress>,
    tables: Arc<[Table]>,
    control: Control,
    verdicts: Vec<Option<TableVerdict>>,
    /// How often each table moved under our hands.
    restless: Vec<u32>,
    held: Duration,
}

impl Pass<'_> {
    /// Rounds until every table has a verdict. Answers with the last position and the number of rounds.
    async fn run(&mut self) -> Result<(Lsn, u32), Error> {
        let mut rounds = 0;
        loop {
            let pending: Vec<usize> = (0..self.tables.len()).filter(|table| self.verdicts[*table].is_none()).collect();
            let outcome = self.round(&pending).await;
            self.control.give_up_snapshots().await;
            for table in pending.iter().filter(|table| self.verdicts[**table].is_none()) {
                self.dirty.abandoned(*table);
            }
            let position = outcome?;
            rounds += 1;
            if self.verdicts.iter().all(Option::is_some) {
                return Ok((position, rounds));
            }
        }
    }

    /// Compares as many of `pending` as one pair of snapshots is held for.
    async fn round(&mut self, pending: &[usize]) -> Result<Lsn, Error> {
        let begun = Instant::now();
        // Before the snapshots: see `shape`.
        let before = self.shapes(pending).await?;
        let aligned = self.control.align(self.aligner, || self.dirty.begin(pending)).await?;
        self.held += aligned.held;
        info!(position = %aligned.position, held_ms = super::report::ms(aligned.held), tables = pending.len(), "comparing");
        let shared = Arc::new(self.plan(pending, before, &aligned).await?);
        let digested = self.digest(&shared, begun + self.options.snapshot_age_max).await?;
        let after = self.shapes(pending).await?;
        for outcome in digested {
            self.judge(&shared, &after, outcome, begun.elapsed()).await?;
        }
        Ok(aligned.position)
    }

    async fn shapes(&self, tables: &[usize]) -> Result<[Vec<Shape>; 2], Error> {
        let tables: Vec<&Table> = tables.iter().map(|table| &self.tables[*table]).collect();
        let read = |side: Side| shape::read(&self.control.sessions[side.index()], side, &tables);
        let (source, target) = tokio::try_join!(read(Side::Source), read(Side::Target))?;
        Ok([source, target])
    }

    /// The largest tables first, so that no worker is left alone with one at the end.
    async fn plan(&self, pending: &[usize], shapes: [Vec<Shape>; 2], aligned: &Aligned) -> Result<Shared, Error> {
        let versions = [self.version(Side::Source).await?, self.version(Side::Target).await?];
        let [source, target] = shapes;
        let mut subjects: Vec<Subject> = pending
            .iter()
            .zip(source.into_iter().zip(target))
            .map(|(table, (source, target))| Subject {
                table: *table,
                ranges: [source.ranges(UNIT_BLOCKS, versions[0]), target.ranges(UNIT_BLOCKS, versions[1])],
                shapes: [source, target],
            })
            .collect();
        subjects.sort_by_key(|subject| std::cmp::Reverse(subject.block_count()));
        self.progress.expect_blocks(subjects.iter().map(Subject::block_count).sum());
        let parts = subjects.iter().map(|subject| [subject.ranges[0].len(), subject.ranges[1].len()]);
        Ok(Shared {
            round: Mutex::new(Round::new(parts)),
            tables: Arc::clone(&self.tables),
            aligned: aligned.clone(),
            progress: Arc::clone(self.progress),
            subjects,
        })
    }

    async fn version(&self, side: Side) -> Result<u32, Error> {
        let failed = |source| Error::Query { side, what: "read the server's version", source };
        let sql = "SELECT current_setting('server_version_num')::int";
        let row = self.control.sessions[side.index()].query_one(sql, &[]).await.map_err(failed)?;
        Ok(u32::try_from(row.try_get::<_, i32>(0).map_err(failed)?).unwrap_or(0))
    }

    async fn digest(&self, shared: &Arc<Shared>, late: Instant) -> Result<Vec<Digested>, Error> {
        let mut workers = JoinSet::new();
        let endpoints = [&self.options.source, &self.options.target];
        for (side, endpoint) in Side::BOTH.into_iter().zip(endpoints) {
            for _ in 0..self.options.workers.max(1) {
                workers.spawn(work(endpoint.clone(), side, Arc::clone(shared)));
            }
        }
        let (mut digested, mut open) = (Vec::new(), true);
        loop {
            tokio::select! {
                finished = workers.join_next() => match finished {
                    Some(finished) => digested.extend(finished.map_err(Error::Worker)??),
                    None => return Ok(digested),
                },
                () = sleep_until(late), if open => {
                    open = false;
                    shared.round.lock().unwrap_or_else(PoisonError::into_inner).close();
                }
            }
        }
    }

    async fn judge(
        &mut self,
        shared: &Shared,
        after: &[Vec<Shape>; 2],
        outcome: Digested,
        took: Duration,
    ) -> Result<(), Error> {
        let subject = &shared.subjects[outcome.table];
        let table = &self.tables[subject.table];
        if !subject.same_files(after) {
            self.restless[subject.table] += 1;
            warn!(table = %table.source, "truncated or rewritten while it was compared, comparing it again");
            if self.restless[subject.table] >= RESTLESS_MAX {
                return Err(Error::Restless { table: table.source.clone(), attempts: RESTLESS_MAX });
            }
            return Ok(());
        }
        let position = shared.aligned.position;
        let mut verdict = TableVerdict::new(table, outcome.digests, position, took);
        if !verdict.equal {
            let from = [&subject.shapes[0].from, &subject.shapes[1].from];
            let pair = Pair { control: &self.control, table, from };
            let rows = verdict.rows_source.max(verdict.rows_target);
            verdict.found(narrow(&pair, rows, self.options.keys_max).await?);
            warn!(table = %table.source, differing_rows = verdict.differing_rows, %position, "the sides differ");
        }
        self.dirty.judged(subject.table, position, &verdict);
        self.verdicts[subject.table] = Some(verdict);
        Ok(())
    }
}

impl Subject {
    fn block_count(&self) -> u64 {
        self.shapes.iter().map(|shape| u64::from(shape.block_count)).sum()
    }

    /// Whether the table is in the same files on both sides as before its snapshot was taken.
    fn same_files(&self, after: &[Vec<Shape>; 2]) -> bool {
        let same = |side: usize| {
            let found = after[side].iter().find(|shape| shape.from == self.shapes[side].from);
            found.is_some_and(|shape| shape.files == self.shapes[side].files)
        };
        same(0) && same(1)
    }
}

/// Sets the metrics of verification.
pub(super) fn publish(migration: &MigrationName, report: &Report) {
    let migration = migration.as_str().to_owned();
    let position = report.position.get();
    let (mut rows, mut verified) = (0_u64, 0_u64);
    for table in &report.tables {
        let labels = [(names::LABEL_MIGRATION, migration.clone()), (names::LABEL_TABLE, table.table.clone())];
        metrics::gauge!(names::CHECKSUM_MATCH, &labels).set(if table.equal { 1.0 } else { 0.0 });
        metrics::gauge!(names::TABLE_ROWS, &labels).set(table.rows_source as f64);
        metrics::gauge!(names::VERIFIED_RATIO, &labels).set(if table.equal { 1.0 } else { 0.0 });
        rows += table.rows_source;
        verified += if table.equal { table.rows_source } else { 0 };
    }
    let labels = [(names::LABEL_MIGRATION, migration)];
    metrics::gauge!(names::VERIFIED_POSITION, &labels).set(position as f64);
    info!(position = %report.position, rows, verified, verdict = ?report.verdict, "verified");
}
