//! Primary keys, unique and exclusion constraints, and indexes of the tables that were copied.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tokio_util::sync::CancellationToken;
use tracing::info;

use super::pre_data::read_section;
use super::side_by_side::run_groups;
use super::worker::{Step, Worker, left_of};
use super::{CopyOptions, Steps};
use crate::model::TableName;
use crate::schema::dump::{Entry, Section};
use crate::schema::{Catalog, Error};
use crate::wire;

/// Builds the keys and indexes of the migration's tables, each in a transaction that records it: large tables first,
/// tables side by side, the indexes of one table one after the other (a key takes the table for itself). Then
/// partitions' indexes are attached to those of their roots. What is recorded as done is left alone.
pub async fn copy_indexes(
    options: &CopyOptions,
    catalog: &Catalog,
    steps: &Steps,
    stop: CancellationToken,
) -> Result<(), Error> {
    let source = wire::connect(&options.source, "indexes").await.map_err(Error::Connect)?;
    let worker = Worker::open(options, &[], &stop).await?;
    let dump = read_section(options, catalog, Section::PostData, &source, &worker.session).await?;
    let of_indexes = dump.entries.iter().filter(|entry| is_index_entry(entry, catalog));
    let (attach, build): (Vec<Step>, Vec<Step>) = of_indexes.map(Step::of).partition(|step| step.relation.is_none());
    let (total, done) = (attach.len() + build.len(), worker.done().await?);
    let (build, attach) = (left_of(build, &done), left_of(attach, &done));
    let step_count = build.len() + attach.len();
    steps.expect(total, total - step_count);
    run_groups(options, &dump.preamble, by_table(build, catalog), steps, &stop).await?;
    // In the dump's order: an index of a middle level must be complete before it is attached to the one above.
    run_groups(options, &dump.preamble, vec![attach], steps, &stop).await?;
    info!(step_count, "indexes built");
    Ok(())
}

/// Whether an entry of the post-data section belongs here and not to [`super::copy_post_data`]. Indexes of materialised
/// views do not: the view itself may come later.
pub(super) fn is_index_entry(entry: &Entry, catalog: &Catalog) -> bool {
    let of_table = || entry.relation().is_some_and(|relation| catalog.table(&relation).is_some());
    match entry.kind.as_str() {
        "INDEX ATTACH" => true,
        "INDEX" | "CONSTRAINT" => of_table(),
        _ => false,
    }
}

/// One group a table, in the dump's order inside, the largest table first.
fn by_table(steps: Vec<Step>, catalog: &Catalog) -> Vec<Vec<Step>> {
    let mut groups: BTreeMap<TableName, Vec<Step>> = BTreeMap::new();
    for step in steps {
        let relation = step.relation.clone().expect("only attachments have no relation, and they were split off");
        groups.entry(relation).or_default().push(step);
    }
    let mut groups: Vec<(TableName, Vec<Step>)> = groups.into_iter().collect();
    groups.sort_by_key(|(name, _)| Reverse(catalog.table(name).map_or(0, |table| table.size_bytes)));
    groups.into_iter().map(|(_, steps)| steps).collect()
}
