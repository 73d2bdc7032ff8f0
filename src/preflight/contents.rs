//! What the target holds, and whether that is what the copy expects.

use std::collections::BTreeSet;

use super::Error;
use super::finding::{Finding, listed, statements};
use super::sides::Sides;
use crate::model::{TableName, quote_identifier};
use crate::schema::{self, DifferenceKind};

/// Relations, routines and types that somebody made; what an extension brought belongs to the extension.
const USER_OBJECTS: &str = "
    SELECT format('%s %s.%s', kind, n.nspname, object)
    FROM (SELECT CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialised view'
                              WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
                 relname AS object, relnamespace AS namespace, 'pg_class'::regclass AS class, oid
          FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
          UNION ALL SELECT 'routine', proname, pronamespace, 'pg_proc'::regclass, oid FROM pg_proc
          UNION ALL SELECT 'type', typname, typnamespace, 'pg_type'::regclass, oid FROM pg_type
                    WHERE typtype IN ('e', 'd', 'r')
    ) o JOIN pg_namespace n ON n.oid = o.namespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'changeover') AND n.nspname !~ '^pg_(toast|temp)'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
    ORDER BY kind <> 'table', 1";

pub(super) fn started(sides: &Sides<'_>) -> Finding {
    let check = "target.started";
    match &sides.started {
        None => Finding::pass(check, "the migration has not been started yet"),
        Some(migration) => Finding::pass(check, format!("the migration is under way: {}", migration.phase)),
    }
}

/// Mode full makes the schema itself, so that nothing of it may be there.
pub(super) async fn empty_database(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.empty";
    if sides.started.is_some() {
        return Ok(Finding::pass(check, "what is there is ours: the migration is under way"));
    }
    let objects = sides.target.list(USER_OBJECTS).await?;
    if objects.is_empty() {
        return Ok(Finding::pass(check, "the database is empty"));
    }
    let name = quote_identifier(&sides.target.catalog.database.name);
    let message = format!("the target is not empty: {}", listed(&objects));
    let remedy = format!(
        "DROP DATABASE {name}; CREATE DATABASE {name}; if nobody needs what is there, or name another database in \
         target.url; with snapshot.mode = \"data\" tables that you prepared are filled"
    );
    Ok(Finding::fail(check, message, remedy))
}

/// Mode data fills tables that are there; rows in them would be mixed with the source's.
pub(super) async fn empty_tables(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.empty";
    if sides.started.is_some() {
        return Ok(Finding::pass(check, "what is there is ours: the migration is under way"));
    }
    let mut filled: Vec<&TableName> = Vec::new();
    for table in sides.target.catalog.row_tables() {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", table.name.quoted());
        if sides.target.ask(&sql).await? {
            filled.push(&table.name);
        }
    }
    if filled.is_empty() {
        return Ok(Finding::pass(check, "the tables are empty"));
    }
    let quoted: Vec<String> = filled.iter().map(|table| table.quoted()).collect();
    let remedy = format!("TRUNCATE {}; if nobody needs the rows", quoted.join(", "));
    Ok(Finding::fail(check, format!("these tables hold rows: {}", listed(&filled)), remedy))
}

/// A finding for each difference, or one that there is none.
pub(super) fn schema(sides: &Sides<'_>) -> Vec<Finding> {
    let differences = schema::compare(&sides.source.catalog, &sides.target.catalog, true);
    if differences.is_empty() {
        return vec![Finding::pass("target.schema", "every column fits")];
    }
    let finding = |difference: &schema::Difference| {
        let remedy = remedy(difference);
        match difference.kind {
            DifferenceKind::Collation { .. }
            | DifferenceKind::ExtraUniqueKey { .. }
            | DifferenceKind::KeyNotDeferrable { .. }
            | DifferenceKind::Partitioning => Finding::warn("target.schema", difference.to_string(), remedy),
            DifferenceKind::MissingTable
            | DifferenceKind::MissingColumn
            | DifferenceKind::Type { .. }
            | DifferenceKind::Generated
            | DifferenceKind::NotNull
            | DifferenceKind::ExtraColumnNotNull
            | DifferenceKind::MissingKey { .. } => Finding::fail("target.schema", difference.to_string(), remedy),
        }
    };
    differences.iter().map(finding).collect()
}

/// On the target.
fn remedy(difference: &schema::Difference) -> String {
    let table = difference.table.quoted();
    let column = difference.column.as_deref().map(quote_identifier).unwrap_or_default();
    match &difference.kind {
        DifferenceKind::MissingTable => {
            format!("CREATE TABLE {table} (…); or take it out with [tables] exclude = [\"{}\"]", difference.table)
        }
        DifferenceKind::MissingColumn => format!("ALTER TABLE {table} ADD COLUMN {column} …;"),
        DifferenceKind::Type { source, .. } => format!("ALTER TABLE {table} ALTER COLUMN {column} TYPE {source};"),
        DifferenceKind::Generated => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP EXPRESSION;"),
        DifferenceKind::Collation { source, .. } => {
            let collation = source.as_deref().unwrap_or("\"default\"");
            format!("if the order matters: ALTER TABLE {table} ALTER COLUMN {column} TYPE … COLLATE {collation};")
        }
        DifferenceKind::NotNull => format!("ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL;"),
        DifferenceKind::ExtraColumnNotNull => format!("ALTER TABLE {table} ALTER COLUMN {column} SET DEFAULT …;"),
        DifferenceKind::MissingKey { columns } => {
            let columns: Vec<String> = columns.iter().map(|column| quote_identifier(column)).collect();
            format!("ALTER TABLE {table} ADD UNIQUE ({});", columns.join(", "))
        }
        DifferenceKind::ExtraUniqueKey { name } => {
            format!("see that the source's rows keep it, or: DROP INDEX {} until the cutover", quote_identifier(name))
        }
        DifferenceKind::KeyNotDeferrable { name } => {
            format!("make the constraint {} of {table} DEFERRABLE, as on the source", quote_identifier(name))
        }
        DifferenceKind::Partitioning => "see that every row of the source finds a partition".to_owned(),
    }
}

pub(super) async fn extensions(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.extensions";
    let available: BTreeSet<String> =
        sides.target.list("SELECT name::text FROM pg_available_extensions").await?.into_iter().collect();
    let missing: Vec<&str> = sides
        .source
        .catalog
        .extensions
        .iter()
        .map(|extension| extension.name.as_str())
        .filter(|name| !available.contains(*name))
        .collect();
    if missing.is_empty() {
        return Ok(Finding::pass(check, "every extension of the source can be created on the target"));
    }
    let message = format!("the target's server does not have {}", listed(&missing));
    Ok(Finding::fail(
        check,
        message,
        "install the package that brings it on the target's machine (postgresql-contrib, …)",
    ))
}

/// Roles belong to the whole cluster: pg_dump names them and does not make them.
pub(super) async fn owners(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.owners";
    let present: BTreeSet<String> =
        sides.target.list("SELECT rolname::text FROM pg_roles").await?.into_iter().collect();
    let owners: BTreeSet<&str> = sides.source.catalog.tables.iter().map(|table| table.owner.as_str()).collect();
    let missing: Vec<&str> = owners.into_iter().filter(|owner| !present.contains(*owner)).collect();
    if missing.is_empty() {
        return Ok(Finding::pass(check, "every owner is a role of the target"));
    }
    let remedy = statements(&missing, |owner| format!("CREATE ROLE {} …;", quote_identifier(owner)));
    Ok(Finding::warn(check, format!("owners that are no role of the target: {}", listed(&missing)), remedy))
}
