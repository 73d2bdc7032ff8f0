//! Table by table.

use super::difference::{Difference, DifferenceKind};
use super::{columns, ddl, parts};
use crate::model::TableName;
use crate::schema::catalog::{Catalog, Column, Design, SequenceOwner, Table, TableDesign};

/// One side: its inventory, and the design of the tables in it.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    pub catalog: &'a Catalog,
    pub design: &'a Design,
}

/// A table of both sides, and what was found so far.
pub(super) struct Twin<'a> {
    pub(super) source: &'a Table,
    pub(super) target: &'a Table,
    pub(super) source_design: &'a TableDesign,
    pub(super) target_design: &'a TableDesign,
    pub(super) source_catalog: &'a Catalog,
    pub(super) target_catalog: &'a Catalog,
    differences: &'a mut Vec<Difference>,
}

/// Every difference, in the order of the source's tables. Indexes and keys are compared only where the target's tables
/// are meant to be complete: with `keys` false (a target whose indexes are built later) they are left out.
pub fn compare(source: Described<'_>, target: Described<'_>, keys: bool) -> Vec<Difference> {
    let (mut found, nothing) = (Vec::new(), TableDesign::default());
    for table in &source.catalog.tables {
        let design = source.design.tables.get(&table.name).unwrap_or(&nothing);
        let Some(other) = target.catalog.table(&table.name) else {
            if !has_root_on(table, source.catalog, target.catalog) {
                found.push(missing_table(table, design));
            }
            continue;
        };
        let mut twin = Twin {
            source: table,
            target: other,
            source_design: design,
            target_design: target.design.tables.get(&table.name).unwrap_or(&nothing),
            source_catalog: source.catalog,
            target_catalog: target.catalog,
            differences: &mut found,
        };
        compare_twins(&mut twin, keys);
    }
    free_sequences(source.catalog, target.catalog, &mut found);
    found
}

fn compare_twins(twin: &mut Twin<'_>, keys: bool) {
    if twin.source.kind != twin.target.kind {
        let remedy = "-- see that every row of the source finds a partition".to_owned();
        twin.found(None, DifferenceKind::Partitioning, remedy);
    }
    // Defaults call them, so they come first.
    parts::compare_sequences(twin);
    columns::compare(twin);
    if keys {
        parts::compare_keys(twin);
        parts::compare_constraints(twin);
        parts::compare_indexes(twin);
        parts::compare_triggers(twin);
    }
}

fn missing_table(table: &Table, design: &TableDesign) -> Difference {
    let create = ddl::create_table(table, design);
    Difference {
        table: table.name.clone(),
        column: None,
        kind: DifferenceKind::MissingTable,
        remedy: format!("{create}\n-- or take it out with [tables] exclude = [\"{}\"]", table.name),
    }
}

/// Whether one of the tables above a partition is on the target and takes its rows.
fn has_root_on(table: &Table, source: &Catalog, target: &Catalog) -> bool {
    source.parents_of(table).any(|parent| target.table(parent).is_some())
}

/// Those that belong to no column: anybody may call them.
fn free_sequences(source: &Catalog, target: &Catalog, found: &mut Vec<Difference>) {
    let free = source.sequences.iter().filter(|sequence| sequence.owner == SequenceOwner::None);
    for sequence in free.filter(|sequence| !target.sequences.iter().any(|other| other.name == sequence.name)) {
        found.push(Difference {
            table: sequence.name.clone(),
            column: None,
            kind: DifferenceKind::MissingSequence { sequence: sequence.name.clone() },
            remedy: format!("{};", ddl::create_sequence(sequence)),
        });
    }
}

impl Twin<'_> {
    pub(super) fn quoted(&self) -> String {
        self.name().quoted()
    }

    pub(super) fn found(&mut self, column: Option<&Column>, kind: DifferenceKind, remedy: String) {
        let (table, column) = (self.name().clone(), column.map(|column| column.name.clone()));
        self.differences.push(Difference { table, column, kind, remedy });
    }

    fn name(&self) -> &TableName {
        &self.source.name
    }
}
