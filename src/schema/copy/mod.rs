//! Runs the sections of a dump on the target.

mod options;
mod steps;

pub use options::CopyOptions;
pub use steps::{Steps, StepsRead};

use super::{Catalog, Error};
use tokio_util::sync::CancellationToken;

/// Roles that the target lacks, then everything rows need, in one transaction. Done already: without effect.
pub async fn copy_pre_data(_options: &CopyOptions, _catalog: &Catalog) -> Result<(), Error> {
    unimplemented!()
}

/// Keys and indexes of the migration's tables, in parallel across tables.
pub async fn copy_indexes(
    _options: &CopyOptions,
    _catalog: &Catalog,
    _steps: &Steps,
    _stop: CancellationToken,
) -> Result<(), Error> {
    unimplemented!()
}

/// Foreign keys, triggers, rules, publications and the rest, then ANALYZE. The stream may be applied meanwhile.
pub async fn copy_post_data(
    _options: &CopyOptions,
    _catalog: &Catalog,
    _steps: &Steps,
    _stop: CancellationToken,
) -> Result<(), Error> {
    unimplemented!()
}

/// Large objects with their content. Returns how many were copied.
pub async fn copy_large_objects(_options: &CopyOptions, _stop: CancellationToken) -> Result<u64, Error> {
    unimplemented!()
}
