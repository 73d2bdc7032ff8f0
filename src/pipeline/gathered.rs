//! Which tables the migration has where the target partitions some of them otherwise.

use std::collections::BTreeSet;

use tracing::info;

use super::error::Error;
use crate::config::{Config, SnapshotMode};
use crate::model::{TableName, TablePattern};
use crate::schema::{self, Catalog};
use crate::source;
use crate::wire::Session;

/// `catalog`, with the trees of partitions that the target keeps otherwise as one table each, which is recorded before
/// anything is recorded under their names. A schema that we make ourselves is the source's.
pub(super) async fn gathered(
    config: &Config,
    source: &Session,
    target: &Session,
    catalog: Catalog,
) -> Result<Catalog, Error> {
    if config.snapshot.mode == SnapshotMode::Full {
        return Ok(catalog);
    }
    let settled = schema::read_settled(target, &config.migration).await?;
    let found = schema::gather(source, target, &catalog, &config.rows, &settled).await?;
    if let Some(unfit) = found.unfit.first() {
        return Err(Error::Unfit { unfit: unfit.clone() });
    }
    for table in found.catalog.tables.iter().filter(|table| table.is_gathered()) {
        let (name, leaves) = (&table.name, table.leaves.len());
        info!(table = %name, leaves, "partitioned otherwise on the target: its partitions are one table of the migration");
    }
    schema::record_gathered(target, &config.migration, &found.catalog).await?;
    Ok(found.catalog)
}

/// Gathered tables of `catalog` with a leaf that is not published: it came since. Rows move between it and the others, so
/// the whole table has to be copied again with it.
pub(super) async fn with_new_leaves(
    config: &Config,
    source: &Session,
    catalog: &Catalog,
) -> Result<Vec<TableName>, Error> {
    let published = source::publication_tables(source, &config.source.publication.name).await?.unwrap_or_default();
    let published: BTreeSet<TableName> = published.into_iter().collect();
    let lacks = |table: &schema::Table| table.stored().any(|leaf| !published.contains(&leaf.name));
    let mut found = Vec::new();
    for table in catalog.tables.iter().filter(|table| table.is_gathered()) {
        found.extend(lacks(table).then(|| table.name.clone()));
    }
    Ok(found)
}

/// The tables below each of `roots` on the source, of which nothing else is known any more.
pub(super) async fn below(source: &Session, roots: &[TableName]) -> Result<Vec<TableName>, Error> {
    let failed = |source| Error::State { what: "look for the partitions of tables that left", source };
    let sql = "SELECT n.nspname::text, c.relname::text
               FROM pg_catalog.unnest($1::text[]) AS root, pg_catalog.pg_partition_tree(pg_catalog.to_regclass(root)) AS t
               JOIN pg_catalog.pg_class AS c ON c.oid = t.relid JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace";
    let names: Vec<String> = roots.iter().map(TableName::quoted).collect();
    let rows = source.query(sql, &[&names]).await.map_err(failed)?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// A partition that the pattern names, and the table that it is gathered in.
pub(super) fn gathered_by<'a>(catalog: &'a Catalog, pattern: &TablePattern) -> Option<(&'a TableName, &'a TableName)> {
    let gathered = catalog.tables.iter().filter(|table| table.is_gathered());
    let mut partitions = gathered.flat_map(|root| {
        let names = root.stored().map(|leaf| &leaf.name).chain(&root.inner);
        names.map(|name| (name, &root.name))
    });
    partitions.find(|(name, _)| pattern.matches(name))
}
