//! What a database holds, as `inspect` prints it and `init` writes it into a configuration.

use std::fmt;

use serde::Serialize;

use super::Error;
use super::care;
use crate::config::{DraftTable, format_size};
use crate::model::TableFilter;
use crate::schema::{self, Catalog, NotStreamedKind, Table};
use crate::wire::{self, Endpoint};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inventory {
    pub database: String,
    pub server_version_num: u32,
    pub encoding: String,
    /// Of all tables, without indexes.
    pub size_bytes: u64,
    pub sequence_count: usize,
    pub large_object_count: u64,
    pub extensions: Vec<String>,
    /// The largest first.
    pub tables: Vec<InventoryTable>,
    /// Relations that logical replication cannot carry, each with what it is.
    pub not_streamed: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InventoryTable {
    pub table: String,
    /// The planner's estimate; `None` when it was never analysed.
    pub rows_estimated: Option<u64>,
    pub size_bytes: u64,
    /// The columns that tell a row in the stream; empty when nothing does.
    pub identity: Vec<String>,
    pub references: Vec<String>,
    /// What needs care.
    pub notes: Vec<String>,
}

/// Reads what `tables` name in a database.
pub async fn inspect(endpoint: &Endpoint, tables: &TableFilter) -> Result<Inventory, Error> {
    let session = wire::connect(endpoint, "inspect").await?;
    let catalog = schema::read_catalog(&session, tables).await?;
    Ok(Inventory::of(&catalog))
}

impl Inventory {
    fn of(catalog: &Catalog) -> Self {
        let mut tables: Vec<InventoryTable> = catalog.tables.iter().map(|table| describe(table, catalog)).collect();
        tables.sort_by(|left, right| right.size_bytes.cmp(&left.size_bytes).then_with(|| left.table.cmp(&right.table)));
        Self {
            database: catalog.database.name.clone(),
            server_version_num: catalog.server_version_num,
            encoding: catalog.database.encoding.clone(),
            size_bytes: tables.iter().map(|table| table.size_bytes).sum(),
            sequence_count: catalog.sequences.len(),
            large_object_count: catalog.large_object_count,
            extensions: catalog.extensions.iter().map(|it| format!("{} {}", it.name, it.version)).collect(),
            tables,
            not_streamed: catalog.not_streamed.iter().map(not_streamed).collect(),
        }
    }

    /// The tables for a configuration's comments.
    pub fn notes(&self) -> Vec<DraftTable> {
        let draft = |table: &InventoryTable| DraftTable {
            name: table.table.clone(),
            size: format_size(table.size_bytes),
            notes: table.notes.clone(),
        };
        self.tables.iter().map(draft).collect()
    }
}

fn describe(table: &Table, catalog: &Catalog) -> InventoryTable {
    InventoryTable {
        table: table.name.to_string(),
        rows_estimated: table.row_estimate,
        size_bytes: table.size_bytes,
        identity: table.identity_columns.clone(),
        references: table.foreign_keys.iter().map(|key| key.references.to_string()).collect(),
        notes: care::notes(table, catalog),
    }
}

fn not_streamed(relation: &schema::NotStreamed) -> String {
    let what = match relation.why {
        NotStreamedKind::Unlogged => "unlogged table",
        NotStreamedKind::Foreign => "foreign table",
        NotStreamedKind::MaterializedView => "materialised view",
    };
    format!("{} ({what})", relation.name)
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = (self.server_version_num / 10_000, self.server_version_num % 10_000);
        writeln!(
            f,
            "{}: PostgreSQL {major}.{minor}, {}, {}",
            self.database,
            self.encoding,
            format_size(self.size_bytes)
        )?;
        writeln!(
            f,
            "{} tables, {} sequences, {} large objects, extensions: {}",
            self.tables.len(),
            self.sequence_count,
            self.large_object_count,
            if self.extensions.is_empty() { "none".to_owned() } else { self.extensions.join(", ") },
        )?;
        let width = self.tables.iter().map(|table| table.table.chars().count()).max().unwrap_or(0).clamp(5, 48);
        writeln!(f, "\n{:width$}  {:>10}  {:>12}  key", "table", "size", "rows")?;
        for table in &self.tables {
            let rows = table.rows_estimated.map_or_else(|| "unknown".to_owned(), |rows| format!("~{rows}"));
            let key = if table.identity.is_empty() { "none".to_owned() } else { table.identity.join(", ") };
            writeln!(f, "{:width$}  {:>10}  {rows:>12}  {key}", table.table, format_size(table.size_bytes))?;
        }
        let noted: Vec<&InventoryTable> = self.tables.iter().filter(|table| !table.notes.is_empty()).collect();
        if !noted.is_empty() || !self.not_streamed.is_empty() {
            writeln!(f, "\nneeds care:")?;
        }
        for table in noted {
            writeln!(f, "  {}: {}", table.table, table.notes.join("; "))?;
        }
        for relation in &self.not_streamed {
            writeln!(f, "  {relation}: its rows are not streamed")?;
        }
        Ok(())
    }
}
