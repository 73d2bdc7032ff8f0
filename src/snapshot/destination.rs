//! Where each table's rows go on the target, and what the table there allows.

use std::collections::BTreeSet;

use super::Error;
use crate::model::{TableFilter, TableName, TablePattern};
use crate::schema::{self, Catalog, Column, Table, TableKind, TriggerState};
use crate::wire::Session;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) name: TableName,
    pub(super) partitioned: bool,
    /// It may be emptied by TRUNCATE, and its rows frozen.
    pub(super) truncate: bool,
    pub(super) binary: bool,
    /// Columns that are `char(n)` on both sides: the target pads what it is given, so values of nothing but blanks need not
    /// travel. A server counts the characters of each value that arrives, blanks too (`bpchar_input` in `varchar.c`).
    pub(super) padded: BTreeSet<String>,
}

/// The target's tables as far as they matter here.
pub(super) struct Target {
    catalog: Catalog,
    /// Tables that foreign keys refer to.
    referenced: BTreeSet<TableName>,
}

impl Target {
    pub(super) async fn read(session: &Session) -> Result<Self, Error> {
        let all = TablePattern::parse("*.*").expect("it has a schema and a table part");
        let filter = TableFilter { include: vec![all], exclude: Vec::new() };
        let catalog = schema::read_catalog(session, &filter).await.map_err(Error::Catalog)?;
        let keys = catalog.tables.iter().flat_map(|table| &table.foreign_keys);
        let referenced = keys.map(|key| key.references.clone()).collect();
        Ok(Self { catalog, referenced })
    }

    /// Where `table`'s rows go: into the table of the same name.
    pub(super) fn destination(&self, table: &Table) -> Result<Destination, Error> {
        let missing = || Error::MissingTable { table: table.name.clone() };
        let found = self.catalog.table(&table.name).ok_or_else(missing)?;
        let partitioned = found.kind == TableKind::Partitioned;
        Ok(Destination {
            name: found.name.clone(),
            partitioned,
            truncate: !partitioned && !self.referenced.contains(&found.name),
            binary: table.binary_copy_to(self.catalog.server_version_num) && same_types(table, found),
            padded: padded(table, found),
        })
    }

    /// Whether rows copied by an ordinary session would fire triggers or be checked against foreign keys there.
    pub(super) fn would_fire(&self, destination: &Destination) -> bool {
        let fires = |state| matches!(state, TriggerState::Origin | TriggerState::Always);
        let mut written = self.catalog.tables.iter().filter(|table| self.is_within(table, &destination.name));
        written
            .any(|table| !table.foreign_keys.is_empty() || table.triggers.iter().any(|trigger| fires(trigger.enabled)))
    }

    /// Whether `table` is `name`, or a partition below it.
    fn is_within(&self, table: &Table, name: &TableName) -> bool {
        let mut above = std::iter::successors(Some(table), |table| {
            table.partition.as_ref().and_then(|partition| self.catalog.table(&partition.parent))
        });
        // As many levels as there are tables, at most.
        above.by_ref().take(self.catalog.tables.len()).any(|table| table.name == *name)
    }
}

/// Binary rows are read by the type that wrote them. Types of one name are the same: OIDs differ, and do not travel.
fn same_types(source: &Table, target: &Table) -> bool {
    source
        .copied_columns()
        .all(|column| target.column(&column.name).is_some_and(|other| other.type_name == column.type_name))
}

fn padded(source: &Table, target: &Table) -> BTreeSet<String> {
    let is_bpchar = |column: &Column| column.type_name.schema == "pg_catalog" && column.type_name.name == "bpchar";
    // Without a length it keeps the blanks that it is given.
    let pads = |column: &Column| is_bpchar(column) && column.type_modifier >= 0;
    let both =
        source.columns.iter().filter(|column| is_bpchar(column) && target.column(&column.name).is_some_and(pads));
    both.map(|column| column.name.clone()).collect()
}
