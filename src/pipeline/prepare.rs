//! From a configuration to a migration that can run: state on the target, leadership, publication and slot.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tracing::{info, warn};

use super::error::Error;
use super::gathered::gathered;
use super::lead::take_lead;
use super::membership;
use super::status::Phase;
use crate::config::{Config, SnapshotMode};
use crate::model::{Lsn, SourceIdentity, TableName};
use crate::schema::{self, Catalog, Migration};
use crate::source::{self, WhenActive};
use crate::wire::{self, Session};
use crate::{apply, preflight};

/// What is known before the first byte flows.
pub(super) struct Prepared {
    pub(super) identity: SourceIdentity,
    pub(super) server_version_num: u32,
    /// The tables that the migration has.
    pub(super) catalog: Catalog,
    /// Those, and the ones that are to join.
    pub(super) wanted: Catalog,
    pub(super) joining: BTreeSet<TableName>,
    /// Tables whose copy an earlier daemon has begun while the others stream, and where their changes stand.
    pub(super) resyncing: BTreeSet<TableName>,
    pub(super) apart: Option<Lsn>,
    pub(super) phase: Phase,
    pub(super) epoch: i64,
    /// Rows of each table by the target's own statistics, for a daemon that did not see them copied.
    pub(super) row_estimates: BTreeMap<TableName, u64>,
    /// The target's own position.
    pub(super) target_position: Lsn,
    /// Where the slot stands: never past any sink.
    pub(super) stream_start: Lsn,
    /// Where the source's log ended when it was asked.
    pub(super) source_end: Lsn,
    /// Where the slot began: what a sink that has nothing yet begins with.
    pub(super) consistent_point: Lsn,
}

/// Finds or makes everything; the session beside it holds the lock of the one daemon that leads. Safe to call again after a crash at any point in it.
pub(super) async fn prepare(config: &Config) -> Result<(Prepared, Session), Error> {
    let (source, state) = both(config, "control").await?;
    if schema::read_migration(&state, &config.migration).await?.is_none() {
        ready(&preflight::check(config).await)?;
    }
    let identified = source::identify(&config.source.endpoint).await?;
    let named = schema::read_catalog(&source, &config.tables).await?;
    if named.row_tables().next().is_none() {
        return Err(Error::NoTables);
    }
    schema::install_state(&state).await?;
    take_lead(&state, &config.migration).await?;
    let wanted = gathered(config, &source, &state, named).await?;
    let migration = match schema::read_migration(&state, &config.migration).await? {
        Some(migration) => migration,
        None => begin(config, &state, identified.identity.clone()).await?,
    };
    if migration.source != identified.identity {
        return Err(Error::OtherSource {
            migration: config.migration.to_string(),
            expected: migration.source,
            found: identified.identity,
        });
    }
    let epoch = schema::bump_epoch(&state, &config.migration).await?;
    let phase = Phase::parse(&migration.phase).ok_or(Error::UnknownPhase { phase: migration.phase.clone() })?;
    let consistent_point = match migration.consistent_point {
        Some(point) => point,
        None => make_stream(config, &source, &state, &wanted, epoch).await?,
    };
    let position = apply::adopt_position(&state, &config.migration, epoch, Some(consistent_point)).await?;
    let target_position = position.unwrap_or(consistent_point);
    let stream_start = slot_position(config, &source).await?.unwrap_or(consistent_point);
    let membership = membership::settle(config, &source, &state, &migration, phase, &wanted).await?;
    // One that joins may not be published yet.
    let published = membership::restricted(&membership.catalog, |table| !membership.resyncing.contains(table));
    same_rows(config, &source, &published).await?;
    info!(migration = %config.migration, phase = phase.as_str(), %target_position, %stream_start, epoch, "prepared");
    let row_estimates = if phase.copies() { BTreeMap::new() } else { row_estimates(&state).await? };
    let prepared = Prepared {
        identity: identified.identity,
        server_version_num: identified.server_version_num,
        catalog: membership.catalog,
        wanted,
        joining: membership.joining,
        resyncing: membership.resyncing,
        apart: membership.apart,
        phase,
        epoch,
        row_estimates,
        target_position,
        stream_start,
        source_end: identified.wal_flush,
        consistent_point,
    };
    Ok((prepared, state))
}

/// Sessions with source and target, which show that they are for `purpose`.
pub(super) async fn both(config: &Config, purpose: &str) -> Result<(Session, Session), Error> {
    let source = wire::connect(&config.source.endpoint, purpose);
    let target = wire::connect(&config.target.endpoint, purpose);
    let (source, target) = tokio::join!(Box::pin(source), Box::pin(target));
    Ok((source.map_err(Error::Source)?, target.map_err(Error::Target)?))
}

async fn row_estimates(state: &Session) -> Result<BTreeMap<TableName, u64>, Error> {
    let sql = "SELECT n.nspname, c.relname,
                      CASE c.relkind WHEN 'r' THEN greatest(c.reltuples, 0)
                      ELSE (SELECT coalesce(sum(greatest(leaf.reltuples, 0)), 0) FROM pg_catalog.pg_partition_tree(c.oid) t
                            JOIN pg_catalog.pg_class leaf ON leaf.oid = t.relid WHERE t.isleaf) END::bigint
               FROM pg_catalog.pg_class c
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')";
    let failed = |source| Error::State { what: "read the target's row estimates", source };
    let rows = state.query(sql, &[]).await.map_err(failed)?;
    let estimate = |row: &tokio_postgres::Row| {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        (name, u64::try_from(row.get::<_, i64>(2)).unwrap_or_default())
    };
    Ok(rows.iter().map(estimate).collect())
}

/// A migration that would fail later is refused before anything is made; what somebody should know is logged.
pub(super) fn ready(report: &preflight::Report) -> Result<(), Error> {
    for finding in report.warnings() {
        warn!(check = finding.check, remedy = finding.remedy, "{}", finding.message);
    }
    match report.failed() {
        0 => Ok(()),
        failed => Err(Error::NotReady { failed, report: report.failures().to_string() }),
    }
}

/// Records a new migration. Nothing has been made on the source yet: what is found there under our name is a leftover
/// of a crash before this row, or of a target that was thrown away.
async fn begin(config: &Config, state: &Session, identity: SourceIdentity) -> Result<Migration, Error> {
    let migration = Migration {
        name: config.migration.clone(),
        phase: Phase::Preparing.as_str().to_owned(),
        source: identity,
        slot: config.source.slot.name.clone(),
        slot_is_ours: !config.source.slot.adopted,
        publication: config.source.publication.name.clone(),
        publication_is_ours: !config.source.publication.adopted,
        consistent_point: None,
        epoch: 0,
    };
    schema::insert_migration(state, &migration).await?;
    Ok(migration)
}

/// Publication, then slot, then the wait for transactions that were open across them (PITFALLS 20): their earlier rows
/// are in no stream, so every snapshot has to be taken after they have ended.
async fn make_stream(
    config: &Config,
    source: &Session,
    state: &Session,
    catalog: &Catalog,
    epoch: i64,
) -> Result<Lsn, Error> {
    apply::record_members(state, &config.migration, catalog.tables.iter().map(|table| &table.name)).await?;
    let target = schema::target_identity(state).await?;
    let (slot, publication) = (&config.source.slot, &config.source.publication);
    if !slot.adopted
        && let Some(whose) = source::claimed_by_another(source, &slot.name, &publication.name, &target).await?
    {
        return Err(Error::OfAnother { doing: "make a slot and a publication", whose });
    }
    if !publication.adopted {
        let tables: Vec<TableName> = catalog.streamed_tables().map(|table| table.name.clone()).collect();
        source::drop_publication(source, &publication.name).await?;
        source::create_publication(source, &publication.name, &tables, &config.rows).await?;
        source::sign_publication(source, &publication.name, &target).await?;
    }
    let point = if slot.adopted {
        adopted_position(config, source).await?
    } else {
        // Without a recorded position nothing rests on a slot of our name.
        source::drop_slot(source, &slot.name, WhenActive::Terminate).await?;
        source::create_slot(&config.source.endpoint, &slot.name, config.source.slot_timeout).await?
    };
    source::wait_out_running_transactions(source, config.source.slot_timeout.max(Duration::from_secs(1))).await?;
    schema::set_consistent_point(state, &config.migration, epoch, point).await?;
    info!(slot = slot.name, %point, "slot and publication are ready");
    Ok(point)
}

/// A migration that has begun goes on with the rows it began with. A publication that is gone is told by the stream.
async fn same_rows(config: &Config, source: &Session, catalog: &Catalog) -> Result<(), Error> {
    let publication = &config.source.publication.name;
    // A table that joins is published when it is copied.
    let published = source::publication_tables(source, publication).await?.unwrap_or_default();
    let tables = catalog.streamed_tables().map(|table| &table.name).filter(|table| published.contains(table));
    match source::published_otherwise(source, publication, tables, &config.rows).await?.first() {
        Some(table) => Err(Error::OtherRows { publication: publication.clone(), table: (*table).clone() }),
        None => Ok(()),
    }
}

async fn adopted_position(config: &Config, source: &Session) -> Result<Lsn, Error> {
    let slot = config.source.slot.name.clone();
    let state = source::slot_state(source, &slot).await?.ok_or(Error::NoAdoptedSlot { slot: slot.clone() })?;
    state.confirmed_flush.ok_or(Error::AdoptedSlotUnfinished { slot })
}

/// `None` when the slot is gone: the session says so when it starts, with what to do.
async fn slot_position(config: &Config, source: &Session) -> Result<Option<Lsn>, Error> {
    let state = source::slot_state(source, &config.source.slot.name).await?;
    Ok(state.and_then(|state| state.confirmed_flush))
}

/// Whether this mode copies rows at all.
pub(super) fn copies_rows(config: &Config) -> bool {
    match config.snapshot.mode {
        SnapshotMode::Full | SnapshotMode::Data => true,
        SnapshotMode::None => false,
    }
}
