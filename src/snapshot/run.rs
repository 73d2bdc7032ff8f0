//! The copy from its plan to its last recorded row.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Error, Progress};
use crate::model::{MigrationName, TableHandover};
use crate::schema::Catalog;
use crate::wire::{Endpoint, Session};

/// What the caller decides about a copy.
#[derive(Clone, Debug)]
pub struct Options {
    pub source: Endpoint,
    pub target: Endpoint,
    pub migration: MigrationName,
    /// Tables, or parts of tables, copied at the same time. Each takes a connection on either side.
    pub workers: usize,
    /// A table whose heap is larger than this is copied in block ranges of about this size.
    pub split_bytes: u64,
}

/// Copies the rows of every table of `catalog` that is not recorded as complete, under one snapshot, and returns the
/// hand-over of each table to the stream, earlier attempts' included. Call again after an error or a crash: what is
/// recorded as complete is not copied again.
///
/// With a slot, call it after the slot was created and after
/// [`crate::source::wait_out_running_transactions`]: the rule of [`TableHandover`] is exact for every snapshot taken later.
pub async fn run(
    _options: Options,
    _catalog: &Catalog,
    _progress: Arc<Progress>,
    _stop: CancellationToken,
) -> Result<Vec<TableHandover>, Error> {
    unimplemented!()
}

/// The hand-overs of the tables whose copy is complete, as recorded on the target.
pub async fn handovers(_target: &Session, _migration: &MigrationName) -> Result<Vec<TableHandover>, Error> {
    unimplemented!()
}
