//! Which tables the migration has, and which the configuration wants it to have.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::error::Error;
use super::gathered::below;
use super::status::Phase;
use crate::config::Config;
use crate::model::{Lsn, TableName};
use crate::schema::{Catalog, Migration, Table};
use crate::wire::Session;
use crate::{apply, source};

/// What the record of the tables and the configuration make of each other.
pub(super) struct Membership {
    /// The tables that the migration has.
    pub(super) catalog: Catalog,
    /// Those that are to join it, once it streams.
    pub(super) joining: BTreeSet<TableName>,
    /// Tables that are being copied again, or have joined and are being copied.
    pub(super) resyncing: BTreeSet<TableName>,
    /// Where the changes stand of those that are set apart.
    pub(super) apart: Option<Lsn>,
}

/// Compares the record with `wanted`, which the configuration matches on the source. Tables that left are forgotten
/// here, before anything runs; those that join wait. The position of the main lane is ours already, so no transaction
/// of an earlier daemon can divide the tables behind our back.
pub(super) async fn settle(
    config: &Config,
    source: &Session,
    state: &Session,
    migration: &Migration,
    phase: Phase,
    wanted: &Catalog,
) -> Result<Membership, Error> {
    let mut members = apply::read_members(state, &config.migration).await?;
    if members.is_empty() {
        record(config, source, state, wanted).await?;
        members = apply::read_members(state, &config.migration).await?;
    }
    let mut joining = BTreeSet::new();
    if phase != Phase::CutOver {
        let left: Vec<TableName> =
            members.iter().map(|it| &it.table).filter(|it| wanted.table(it).is_none()).cloned().collect();
        if !left.is_empty() {
            let_go(config, source, state, migration, &left, wanted).await?;
            members.retain(|member| wanted.table(&member.table).is_some());
        }
        let known: BTreeSet<&TableName> = members.iter().map(|member| &member.table).collect();
        let names = wanted.tables.iter().map(|table| &table.name);
        joining.extend(names.filter(|name| !known.contains(name)).cloned());
    }
    let resyncing = members.iter().filter(|member| member.step.is_some()).map(|member| member.table.clone()).collect();
    Ok(Membership {
        catalog: restricted(wanted, |table| !joining.contains(table)),
        joining,
        resyncing,
        apart: apply::read_lane_position(state, &config.migration, apply::Lane::Apart).await?,
    })
}

/// Of a migration that an earlier version began: what its publication has.
async fn record(config: &Config, source: &Session, state: &Session, wanted: &Catalog) -> Result<(), Error> {
    let published = source::publication_tables(source, &config.source.publication.name).await?.unwrap_or_default();
    let is_published = |table: &Table| table.stored().all(|stored| published.contains(&stored.name));
    let known = wanted.tables.iter().filter(|table| !table.holds_rows() || is_published(table));
    let known = known.map(|table| &table.name);
    Ok(apply::record_members(state, &config.migration, known).await?)
}

/// The publication first: what is still in the stream of these tables is skipped, since the configuration does not match
/// them, and a crash in between leaves the record for another try.
async fn let_go(
    config: &Config,
    source: &Session,
    state: &Session,
    migration: &Migration,
    left: &[TableName],
    wanted: &Catalog,
) -> Result<(), Error> {
    let publication = &migration.publication;
    let published = source::publication_tables(source, publication).await?.unwrap_or_default();
    let mut unwanted: BTreeSet<TableName> = below(source, left).await?.into_iter().collect();
    unwanted.extend(left.iter().cloned());
    let still: BTreeSet<&TableName> = wanted.streamed_tables().map(|table| &table.name).collect();
    let published: Vec<TableName> =
        unwanted.into_iter().filter(|table| published.contains(table) && !still.contains(table)).collect();
    if !published.is_empty() && migration.publication_is_ours {
        source::remove_from_publication(source, publication, &published).await?;
        info!(publication, tables = published.len(), "no longer published");
    } else if !published.is_empty() {
        warn!(
            publication,
            tables = published.len(),
            "the publication was there before and still has the tables that left"
        );
    }
    apply::forget_members(state, &config.migration, left).await?;
    for table in left {
        warn!(%table, "left the migration: its table on the target stays as it is, and gets no more changes");
    }
    Ok(())
}

/// The catalog with some of its tables only.
pub(super) fn restricted(catalog: &Catalog, keep: impl Fn(&TableName) -> bool) -> Catalog {
    let mut catalog = catalog.clone();
    catalog.tables.retain(|table| keep(&table.name));
    catalog
}
