//! The one-shot copy: schema and rows under one snapshot, indexes, constraints; no stream, no slot.

use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::error::Error;
use super::gathered::gathered;
use super::lead::take_lead;
use super::migrate::{schema_options, snapshot_options};
use super::options::throttle_options;
use super::prepare::{both, ready};
use super::status::Phase;
use crate::config::{Config, SnapshotMode};
use crate::preflight;
use crate::schema::{self, Catalog, CopyOptions, Migration, Rows, Steps};
use crate::snapshot::{self, Progress, Throttle};
use crate::source;

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    pub tables: u64,
    pub rows: u64,
    pub bytes: u64,
    pub sequences: u64,
    pub large_objects: u64,
}

/// Copies everything as of one moment, and ends. Call again after an error: finished tables are not copied again, but
/// then under a later snapshot, which the result of `changeover verify` would show as such.
pub async fn copy(config: &Config, progress: Arc<Progress>, stop: CancellationToken) -> Result<Copied, Error> {
    let (source, target) = both(config, "copy").await?;
    let catalog = schema::read_catalog(&source, &config.tables).await?;
    if catalog.row_tables().next().is_none() {
        return Err(Error::NoTables);
    }
    if schema::read_migration(&target, &config.migration).await?.is_none() {
        ready(&preflight::check_copy(config).await)?;
    }
    schema::install_state(&target).await?;
    take_lead(&target, &config.migration).await?;
    let catalog = gathered(config, &source, &target, catalog).await?;
    if schema::read_migration(&target, &config.migration).await?.is_none() {
        let identified = source::identify(&config.source.endpoint).await?;
        let migration = Migration {
            name: config.migration.clone(),
            phase: Phase::Copying.as_str().to_owned(),
            source: identified.identity,
            slot: config.source.slot.name.clone(),
            slot_is_ours: false,
            publication: config.source.publication.name.clone(),
            publication_is_ours: false,
            consistent_point: None,
            epoch: 0,
        };
        schema::insert_migration(&target, &migration).await?;
    }
    let full = config.snapshot.mode == SnapshotMode::Full;
    let options = if full { Some(schema_options(config, catalog.major()).await?) } else { None };
    if let Some(options) = &options {
        schema::copy_pre_data(options, &catalog).await?;
    }
    let steps = Steps::default();
    rows_and_indexes(config, options.as_ref(), &catalog, &progress, &steps, &stop).await?;
    let mut copied = Copied::default();
    if let Some(options) = &options {
        schema::copy_post_data(options, &catalog, &steps, stop.clone()).await?;
        copied.large_objects = schema::copy_large_objects(options, stop).await?;
    }
    copied.sequences = schema::copy_sequences(&source, &target, &catalog.sequences, 0).await? as u64;
    for table in progress.read().tables.values() {
        copied.tables += 1;
        copied.rows += table.rows_copied;
        copied.bytes += table.bytes_copied;
    }
    schema::drop_state(&target, &config.migration).await?;
    Ok(copied)
}

/// The indexes of a table are built while others are still copied. When one side fails, the other is stopped and awaited:
/// dropped, its statements would go on inside the server.
async fn rows_and_indexes(
    config: &Config,
    options: Option<&CopyOptions>,
    catalog: &Catalog,
    progress: &Arc<Progress>,
    steps: &Steps,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let stop = stop.child_token();
    let rows = async {
        let throttle = Arc::new(Throttle::new(throttle_options(config)));
        // As of one moment, however long it takes: nothing follows that could bring the tables together.
        let options = snapshot::Options { snapshot_age_max: None, ..snapshot_options(config, Arc::clone(&throttle)) };
        let copying = snapshot::run(options, catalog, Arc::clone(progress), stop.clone());
        let copied = throttle.beside(Box::pin(copying)).await;
        copied.inspect_err(|_| stop.cancel())
    };
    let indexes = async {
        let Some(options) = options else { return Ok(()) };
        let arriving = Rows::Arriving(progress.complete());
        let built = schema::copy_indexes(options, catalog, steps, arriving, stop.clone()).await;
        built.inspect_err(|_| stop.cancel())
    };
    match tokio::join!(Box::pin(rows), Box::pin(indexes)) {
        (Ok(_), built) => Ok(built?),
        // Whoever was stopped was stopped by the other, or both by the caller.
        (Err(snapshot::Error::Stopped), Err(error)) => Err(error.into()),
        (Err(error), _) => Err(error.into()),
    }
}
