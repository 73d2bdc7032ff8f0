//! The copy from its plan to its last recorded row.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::destination::Target;
use super::holder::Holder;
use super::plan::{self, Copied, Task};
use super::record::{self, Partial, Recorded, handovers};
use super::snapshots::Snapshots;
use super::split::TableCopy;
use super::worker::{Attempt, work};
use super::{Error, Progress, Throttle};
use crate::model::{MigrationName, RowFilters, TableHandover, TableName};
use crate::schema::Catalog;
use crate::wire::{self, Endpoint, Session};

/// What the caller decides about a copy.
#[derive(Clone, Debug)]
pub struct Options {
    pub source: Endpoint,
    pub target: Endpoint,
    pub migration: MigrationName,
    /// Tables, or parts of tables, copied at the same time. Each takes a connection on either side.
    pub workers: usize,
    /// A table that is larger than this is copied in block ranges, none of which is larger.
    pub split_bytes: u64,
    /// No snapshot is held on the source for longer, except by a part that is being read (and by a table without key,
    /// all of which is read under one). `None`: one snapshot for everything.
    pub snapshot_age_max: Option<Duration>,
    /// Which rows are copied, for tables that are not copied whole.
    pub rows: RowFilters,
    /// Asked before each unit and between its chunks; the caller asks the source beside ([`Throttle::beside`]).
    pub throttle: Arc<Throttle>,
}

/// Tables looked at by one query for rows that are not ours.
const LOOK_COUNT: usize = 100;

/// A table that is not complete, and the parts of it that are recorded.
type Left = (Arc<TableCopy>, BTreeSet<u32>);

/// Copies the rows of every table of `catalog` that is not recorded as complete, and returns the hand-over of each table
/// to the stream, earlier attempts' included. Call again after an error or a crash: what is recorded is not copied again,
/// neither whole tables nor parts of one.
///
/// With a slot, call it after the slot was created and after [`crate::source::wait_out_running_transactions`]: the rule
/// of [`TableHandover`] is exact for every snapshot taken later.
pub async fn run(
    options: Options,
    catalog: &Catalog,
    progress: Arc<Progress>,
    stop: CancellationToken,
) -> Result<Vec<TableHandover>, Error> {
    let target = wire::connect(&options.target, "copy control").await.map_err(Error::Connect)?;
    let recorded = record::read(&target, &options.migration).await?;
    progress.plan(catalog, &recorded);
    let as_replica = may_copy_as_replica(&target).await?;
    let copied = choose(&options, catalog, &target, &recorded, as_replica).await?;
    if !copied.is_empty() {
        refuse_foreign_rows(&target, &copied, &recorded, &options.migration).await?;
        let names: Vec<TableName> = copied.iter().flat_map(Copied::stored_in).cloned().collect();
        let holder = Holder::open(&options.source, &names, &stop).await?;
        let left = resume(copied, &recorded, &holder, &progress);
        copy_all(options.clone(), holder, progress, as_replica, left, stop.child_token()).await?;
        make_durable(&target, &options.migration).await?;
    }
    let found = handovers(&target, &options.migration).await?;
    Ok(found.into_iter().filter(|handover| catalog.table(&handover.table).is_some()).collect())
}

/// Goes on with what earlier attempts have begun, where it can be gone on with.
fn resume(copied: Vec<Copied>, recorded: &Recorded, holder: &Holder, progress: &Progress) -> Vec<Left> {
    let resume_one = |mut copied: Copied| {
        let name = copied.table.name.clone();
        let Some(partial) = recorded.partial.get(&name) else {
            return (Arc::new(TableCopy::new(copied, None)), BTreeSet::new());
        };
        if !goes_on(&copied, partial, holder) {
            progress.table(&name).start_anew();
            return (Arc::new(TableCopy::new(copied, None)), BTreeSet::new());
        }
        copied.cut = partial.cut;
        let (done, parts) = (partial.done.len(), partial.cut.part_count);
        info!(table = %name, done, parts, rows = partial.rows, "going on inside the table");
        (Arc::new(TableCopy::new(copied, Some(partial.clone()))), partial.done.clone())
    };
    copied.into_iter().map(resume_one).collect()
}

/// Whether the recorded parts of a table and those that are left will make one table.
fn goes_on(copied: &Copied, partial: &Partial, holder: &Holder) -> bool {
    let table = &copied.table.name;
    let why_not = if copied.settle_key().is_empty() {
        "it has no key"
    } else if copied.files_under(holder) != Some(partial.filenode) {
        "it was truncated or rewritten on the source"
    } else if partial.cut.part_count <= 1 {
        "it was not begun in parts"
    } else {
        return true;
    };
    warn!(%table, parts = partial.done.len(), why_not, "the table is copied from its beginning again");
    false
}

/// The tables that are not complete, each with its place on the target.
async fn choose(
    options: &Options,
    catalog: &Catalog,
    target: &Session,
    recorded: &Recorded,
    as_replica: bool,
) -> Result<Vec<Copied>, Error> {
    let there = Target::read(target).await?;
    let mut chosen = Vec::new();
    for table in catalog.row_tables().filter(|table| !recorded.complete.contains_key(&table.name)) {
        let destination = there.destination(table)?;
        if !as_replica && there.would_fire(&destination) {
            return Err(Error::WouldFire { table: table.name.clone() });
        }
        let cut = plan::cut(table, catalog.server_version_num, options.split_bytes);
        let filter = options.rows.of(&table.name).map(str::to_owned);
        let in_order = catalog.server_version_num < plan::TID_RANGES_SINCE && !table.is_gathered();
        chosen.push(Copied { table: table.clone(), destination, cut, filter, in_order });
    }
    Ok(chosen)
}

/// Needs a superuser, or the privilege to set that one parameter (PostgreSQL 15). This session keeps it.
async fn may_copy_as_replica(target: &Session) -> Result<bool, Error> {
    match target.batch_execute("SET session_replication_role = replica").await {
        Ok(()) => Ok(true),
        Err(error) if error.code().is_some_and(|code| code.code() == wire::sqlstate::INSUFFICIENT_PRIVILEGE) => {
            warn!("the target's role may not set session_replication_role: copying as an ordinary session");
            Ok(false)
        }
        Err(error) => Err(Error::query("see what the target's role may do")(error)),
    }
}

/// A table that we never wrote to must be empty: its rows are not ours to remove.
async fn refuse_foreign_rows(
    target: &Session,
    copied: &[Copied],
    recorded: &Recorded,
    migration: &MigrationName,
) -> Result<(), Error> {
    let fresh = |copied: &&Copied| !recorded.partial.contains_key(&copied.table.name);
    let fresh: Vec<&Copied> = copied.iter().filter(fresh).collect();
    for chunk in fresh.chunks(LOOK_COUNT) {
        let look = |(index, copied): (usize, &&Copied)| {
            let only = if copied.destination.partitioned { "" } else { "ONLY " };
            format!("SELECT {index} WHERE EXISTS (SELECT FROM {only}{})", copied.destination.name.quoted())
        };
        let looks: Vec<String> = chunk.iter().enumerate().map(look).collect();
        let rows = target.query(&looks.join(" UNION ALL "), &[]).await;
        let rows = rows.map_err(Error::query("see whether the target's tables are empty"))?;
        if let Some(row) = rows.first() {
            let index = usize::try_from(row.get::<_, i32>(0)).expect("the query numbers the tables from 0");
            return Err(not_empty(target, &chunk[index].table.name, migration).await?);
        }
    }
    Ok(())
}

/// A backend whose client has died may have committed its table, and the record, while we waited to look into it.
async fn not_empty(target: &Session, table: &TableName, migration: &MigrationName) -> Result<Error, Error> {
    let now = record::read(target, migration).await?;
    let ours = now.complete.contains_key(table) || now.partial.contains_key(table);
    let table = table.clone();
    Ok(if ours { Error::Overtaken { table } } else { Error::NotEmpty { table } })
}

async fn copy_all(
    options: Options,
    holder: Holder,
    progress: Arc<Progress>,
    as_replica: bool,
    left: Vec<Left>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let tasks: VecDeque<Task> = plan::tasks(&left);
    let worker_count = options.workers.clamp(1, tasks.len());
    info!(units = tasks.len(), workers = worker_count, "copying");
    let snapshots = Snapshots::new(options.source.clone(), options.snapshot_age_max, holder, stop.clone());
    let tables = left.into_iter().map(|(of, _)| of);
    let attempt = Arc::new(Attempt::new(options, snapshots, progress, as_replica, tables, tasks, stop));
    let mut workers = JoinSet::new();
    for _ in 0..worker_count {
        workers.spawn(work(Arc::clone(&attempt)));
    }
    let mut outcome = Ok(());
    while let Some(ended) = workers.join_next().await {
        let ended = ended.expect("a worker does not panic, and nobody aborts it");
        // One error is the cause; the others were stopped by it.
        outcome = match (outcome, ended) {
            (Ok(()), ended) | (Err(Error::Stopped), ended @ Err(_)) => ended,
            (first @ Err(_), _) => first,
        };
    }
    outcome?;
    attempt.snapshots.release().await;
    Ok(())
}

/// Commits once with a flush: everything before it in the target's log is durable with it.
async fn make_durable(target: &Session, migration: &MigrationName) -> Result<(), Error> {
    let sql = "INSERT INTO changeover.step (migration, step) VALUES ($1, 'rows')
               ON CONFLICT (migration, step) DO UPDATE SET finished_at = excluded.finished_at";
    target.execute(sql, &[&migration.as_str()]).await.map(drop).map_err(Error::query("make the copy durable"))
}
