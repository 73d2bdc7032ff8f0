//! Whether the source can publish only those rows of a table that `[tables.rows]` names, and what that leaves behind.

use super::Error;
use super::finding::{Finding, listed, statements};
use super::sides::{Side, Sides};
use crate::model::{RowFilters, TableName};
use crate::schema::{ForeignKey, Table, TableKind};
use crate::source;

/// Longest look for rows whose parents are left behind: large tables without an index take their time.
const LOOK_MS: u32 = 10_000;

/// What the server would refuse, at CREATE PUBLICATION or, worse, at the applications' next UPDATE.
pub(super) async fn filters(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.row_filters";
    let (side, rows) = (&sides.source, &sides.config.rows);
    let names: Vec<&TableName> = rows.iter().map(|(table, _)| table).collect();
    let strangers: Vec<&TableName> =
        names.iter().copied().filter(|name| filtered_table(side, name).is_none()).collect();
    if !strangers.is_empty() {
        let message = format!("tables.rows names what is no table of the migration: {}", listed(&strangers));
        return Ok(Finding::fail(check, message, remedy_for_strangers(side, &strangers)));
    }
    if side.catalog.major() < 15 {
        let message = format!(
            "row filters need PostgreSQL 15 or later, and the source is {}: {}",
            side.catalog.major(),
            listed(&names)
        );
        return Ok(Finding::fail(check, message, "take the tables out of tables.rows, or exclude them"));
    }
    if !sides.config.source.publication.adopted
        && let Some(finding) = refused_by_the_server(check, side, rows).await?
    {
        return Ok(finding);
    }
    without_large_values(check, side, &names).await
}

fn filtered_table<'a>(side: &'a Side, name: &TableName) -> Option<&'a Table> {
    side.catalog.table(name).filter(|table| table.kind == TableKind::Ordinary)
}

fn remedy_for_strangers(side: &Side, strangers: &[&TableName]) -> String {
    let partitioned = |name: &&&TableName| side.catalog.table(name).is_some();
    match strangers.iter().find(partitioned) {
        Some(name) => {
            let partitions: Vec<_> = leaves(side, name).into_iter().map(|table| &table.name).collect();
            format!("{name} is partitioned: give each of its partitions the condition ({})", listed(&partitions))
        }
        None => "changeover inspect lists what there is; write schema.table as the catalog has it".to_owned(),
    }
}

async fn refused_by_the_server(check: &'static str, side: &Side, rows: &RowFilters) -> Result<Option<Finding>, Error> {
    let mut outside = Vec::new();
    for (name, filter) in rows.iter() {
        let columns = match source::row_filter_columns(&side.session, name, filter).await {
            Ok(columns) => columns,
            Err(source::Error::Query { source, .. }) if source.as_db_error().is_some() => {
                return Ok(Some(refused(check, name, &source)));
            }
            Err(error) => return Err(error.into()),
        };
        let identity = filtered_table(side, name).map(|table| table.identity_columns.as_slice()).unwrap_or_default();
        let lacking: Vec<&String> = columns.iter().filter(|column| !identity.contains(column)).collect();
        if !lacking.is_empty() {
            outside.push((name, format!("{name} ({})", listed(&lacking))));
        }
    }
    if outside.is_empty() {
        return Ok(None);
    }
    let described: Vec<&String> = outside.iter().map(|(_, described)| described).collect();
    let message = format!(
        "the condition is about columns that the replica identity lacks, so UPDATE and DELETE would fail on the source: {}",
        listed(&described)
    );
    let remedy = statements(&outside, |(name, _)| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", name.quoted()));
    Ok(Some(Finding::fail(check, message, remedy)))
}

/// The server's words, which name columns and functions and no values.
fn refused(check: &'static str, name: &TableName, error: &tokio_postgres::Error) -> Finding {
    let words = error.as_db_error().map(|said| match said.detail() {
        Some(detail) => format!("{} ({detail})", said.message()),
        None => said.message().to_owned(),
    });
    let message = format!("{name}: {}", words.unwrap_or_default());
    let remedy = "only the table's own columns, built-in types, operators and immutable functions; what needs more can be \
                  computed into a column of the table";
    Finding::fail(check, message, remedy)
}

/// A row that an UPDATE moves into the condition arrives as an INSERT, and large values that the UPDATE did not touch are
/// only in the old row, which only FULL sends.
async fn without_large_values(check: &'static str, side: &Side, names: &[&TableName]) -> Result<Finding, Error> {
    let mut large = Vec::new();
    for table in names.iter().filter_map(|name| filtered_table(side, name)) {
        let sql = "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
                                  AND attstorage <> 'p' AND attname <> ALL ($2::text[]))";
        let row = side.session.query_one(sql, &[&table.oid, &table.identity_columns]).await?;
        if row.try_get(0)? {
            large.push(&table.name);
        }
    }
    if large.is_empty() {
        return Ok(Finding::pass(check, format!("{} published in part", listed(names))));
    }
    let message = format!(
        "the apply would stop at a row that an UPDATE of its key moves into the condition, if it holds values large enough \
         for TOAST: {}",
        listed(&large)
    );
    let remedy = statements(&large, |name| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", name.quoted()));
    Ok(Finding::warn(check, message, remedy))
}

/// Kept rows whose parents are left behind: the foreign key cannot hold on the target.
pub(super) async fn filtered_parents(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.filtered_parents";
    let (side, rows) = (&sides.source, &sides.config.rows);
    let (mut orphaned, mut unknown) = (Vec::new(), Vec::new());
    for child in side.catalog.row_tables() {
        for key in child.foreign_keys.iter().filter(|key| is_filtered(side, rows, &key.references)) {
            let described = format!("{} ({} → {})", child.name, key.name, key.references);
            match leaves_parents_behind(side, rows, child, key).await? {
                Some(true) => orphaned.push(described),
                Some(false) => {}
                None => unknown.push(described),
            }
        }
    }
    let remedy = "give the referring table a condition that keeps only rows of kept parents, or drop the foreign key on the \
                  source before the copy; otherwise the migration stands still when it adds the key to the target";
    Ok(match (orphaned.is_empty(), unknown.is_empty()) {
        (true, true) => Finding::pass(check, "every kept row's parents are kept"),
        (false, _) => {
            Finding::warn(check, format!("kept rows refer to rows left behind: {}", listed(&orphaned)), remedy)
        }
        (true, false) => {
            let message =
                format!("kept rows may refer to rows left behind, looking took too long: {}", listed(&unknown));
            Finding::warn(check, message, remedy)
        }
    })
}

fn is_filtered(side: &Side, rows: &RowFilters, name: &TableName) -> bool {
    leaves(side, name).iter().any(|table| rows.of(&table.name).is_some())
}

/// The tables that hold the rows of `name`: itself, or the partitions of a partitioned one.
fn leaves<'a>(side: &'a Side, name: &TableName) -> Vec<&'a Table> {
    let below = |table: &&Table| {
        let mut at = Some(&table.name);
        // As many levels as there are tables, at most.
        for _ in 0..=side.catalog.tables.len() {
            match at {
                Some(reached) if reached == name => return true,
                Some(reached) => {
                    let table = side.catalog.table(reached);
                    at = table.and_then(|table| table.partition.as_ref()).map(|partition| &partition.parent);
                }
                None => break,
            }
        }
        false
    };
    side.catalog.row_tables().filter(below).collect()
}

/// `None` when it took too long to find out.
async fn leaves_parents_behind(
    side: &Side,
    rows: &RowFilters,
    child: &Table,
    key: &ForeignKey,
) -> Result<Option<bool>, Error> {
    let quoted = |column: &String| crate::model::quote_identifier(column);
    let not_null: Vec<String> = key.columns.iter().map(|column| format!("c.{} IS NOT NULL", quoted(column))).collect();
    let pairs = key.columns.iter().zip(&key.referenced_columns);
    let same: Vec<String> = pairs.map(|(one, other)| format!("c.{} = p.{}", quoted(one), quoted(other))).collect();
    let parents: Vec<String> =
        leaves(side, &key.references).into_iter().map(|table| kept(table, rows, &key.referenced_columns)).collect();
    let sql = format!(
        "SELECT EXISTS (SELECT FROM ({}) AS c WHERE {} AND NOT EXISTS (SELECT FROM ({}) AS p WHERE {}))",
        kept(child, rows, &key.columns),
        not_null.join(" AND "),
        parents.join(" UNION ALL "),
        same.join(" AND "),
    );
    side.session.batch_execute(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {LOOK_MS}")).await?;
    let found = side.session.query_one(&sql, &[]).await;
    side.session.batch_execute("ROLLBACK").await?;
    match found {
        Ok(row) => Ok(Some(row.try_get(0)?)),
        // Too slow, or types of an extension whose `=` is found only by a search path.
        Err(error) if error.code().is_some() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The kept rows of one table, these columns of them.
fn kept(table: &Table, rows: &RowFilters, columns: &[String]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| crate::model::quote_identifier(column)).collect();
    let filter = rows.of(&table.name).map(|filter| format!(" WHERE (\n{filter}\n)")).unwrap_or_default();
    format!("SELECT {} FROM ONLY {}{filter}", columns.join(", "), table.name.quoted())
}
