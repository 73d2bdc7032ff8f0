//! Whether a target's tables can take a source's rows.

use std::fmt;

use super::catalog::{Catalog, Column, Table};
use crate::model::TableName;

/// One thing in which the target's table differs in a way that matters to copied and streamed rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub table: TableName,
    pub column: Option<String>,
    pub kind: DifferenceKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Not on the target. A partition's rows then go through its root, so only tables without a root count.
    MissingTable,
    MissingColumn,
    Type {
        source: String,
        target: String,
    },
    /// The target computes what the source stores.
    Generated,
    Collation {
        source: Option<String>,
        target: Option<String>,
    },
    /// NULLs that the source allows would be refused.
    NotNull,
    /// The source does not have it and nothing fills it in.
    ExtraColumnNotNull,
    /// The target has no unique key over the columns that tell a row: updates would scan the whole table, and find
    /// more than one row.
    MissingKey {
        columns: Vec<String>,
    },
    /// A unique key of the target that the source does not have: rows may be refused.
    ExtraUniqueKey {
        name: String,
    },
    /// Checked at once on the target and at commit on the source: what is unique at commit may not be in between.
    KeyNotDeferrable {
        name: String,
    },
    /// Only one of both is partitioned.
    Partitioning,
}

/// Every difference, in the order of the source's tables. Indexes and keys are compared only where the target's tables
/// are meant to be complete: with `keys` false (a target whose indexes are built later) they are left out.
pub fn compare(source: &Catalog, target: &Catalog, keys: bool) -> Vec<Difference> {
    let mut found = Vec::new();
    for table in &source.tables {
        match target.table(&table.name) {
            Some(other) => compare_table(table, other, keys, &mut found),
            None if has_root_on(table, source, target) => {}
            None => found.push(difference(table, None, DifferenceKind::MissingTable)),
        }
    }
    found
}

/// Whether one of the tables above a partition is on the target and takes its rows.
fn has_root_on(table: &Table, source: &Catalog, target: &Catalog) -> bool {
    let parents = std::iter::successors(table.partition.as_ref(), |partition| {
        source.table(&partition.parent).and_then(|parent| parent.partition.as_ref())
    });
    parents.take(source.tables.len()).any(|partition| target.table(&partition.parent).is_some())
}

fn compare_table(source: &Table, target: &Table, keys: bool, found: &mut Vec<Difference>) {
    if source.kind != target.kind {
        found.push(difference(source, None, DifferenceKind::Partitioning));
    }
    for column in source.copied_columns() {
        compare_column(source, column, target, found);
    }
    for extra in target.columns.iter().filter(|column| source.column(&column.name).is_none()) {
        let filled = extra.default.is_some() || extra.identity.is_some() || extra.generated.is_some();
        if extra.not_null && !filled {
            found.push(difference(source, Some(extra), DifferenceKind::ExtraColumnNotNull));
        }
    }
    if keys {
        compare_keys(source, target, found);
    }
}

fn compare_column(table: &Table, source: &Column, target: &Table, found: &mut Vec<Difference>) {
    let Some(other) = target.column(&source.name) else {
        found.push(difference(table, Some(source), DifferenceKind::MissingColumn));
        return;
    };
    if source.type_text != other.type_text {
        let kind = DifferenceKind::Type { source: source.type_text.clone(), target: other.type_text.clone() };
        found.push(difference(table, Some(source), kind));
    }
    if other.generated.is_some() {
        found.push(difference(table, Some(source), DifferenceKind::Generated));
    }
    if source.collation != other.collation {
        let kind = DifferenceKind::Collation { source: source.collation.clone(), target: other.collation.clone() };
        found.push(difference(table, Some(source), kind));
    }
    if other.not_null && !source.not_null {
        found.push(difference(table, Some(source), DifferenceKind::NotNull));
    }
}

fn compare_keys(source: &Table, target: &Table, found: &mut Vec<Difference>) {
    let whole = |key: &&super::UniqueKey| !key.partial && !key.expression && key.valid;
    let tells_rows =
        target.unique_keys.iter().filter(whole).any(|key| same_columns(&key.columns, &source.identity_columns));
    let by_key = source.unique_keys.iter().any(|key| same_columns(&key.columns, &source.identity_columns));
    if by_key && !tells_rows {
        let kind = DifferenceKind::MissingKey { columns: source.identity_columns.clone() };
        found.push(difference(source, None, kind));
    }
    for key in &target.unique_keys {
        let twin = source.unique_keys.iter().find(|other| {
            other.name == key.name || (same_columns(&other.columns, &key.columns) && whole(other) && whole(&key))
        });
        match twin {
            None => found.push(difference(source, None, DifferenceKind::ExtraUniqueKey { name: key.name.clone() })),
            Some(twin) if twin.deferrable && !key.deferrable => {
                found.push(difference(source, None, DifferenceKind::KeyNotDeferrable { name: key.name.clone() }));
            }
            Some(_) => {}
        }
    }
}

fn same_columns(left: &[String], right: &[String]) -> bool {
    !left.is_empty() && left.len() == right.len() && left.iter().all(|column| right.contains(column))
}

fn difference(table: &Table, column: Option<&Column>, kind: DifferenceKind) -> Difference {
    Difference { table: table.name.clone(), column: column.map(|column| column.name.clone()), kind }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.column {
            Some(column) => write!(f, "column {column} of table {}: {}", self.table, self.kind),
            None => write!(f, "table {}: {}", self.table, self.kind),
        }
    }
}

impl fmt::Display for DifferenceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTable => f.write_str("it is not on the target"),
            Self::MissingColumn => f.write_str("it is not on the target"),
            Self::Type { source, target } => write!(f, "it is {source} on the source and {target} on the target"),
            Self::Generated => f.write_str("the target computes it and the source stores it"),
            Self::Collation { source, target } => {
                let shown = |collation: &Option<String>| collation.clone().unwrap_or_else(|| "the default".to_owned());
                write!(f, "it collates by {} on the source and {} on the target", shown(source), shown(target))
            }
            Self::NotNull => f.write_str("the target refuses NULL and the source allows it"),
            Self::ExtraColumnNotNull => f.write_str("only the target has it, NOT NULL and without a default"),
            Self::MissingKey { columns } => {
                write!(f, "the target has no unique key over ({}), which tells its rows", columns.join(", "))
            }
            Self::ExtraUniqueKey { name } => write!(f, "only the target has the unique key {name}"),
            Self::KeyNotDeferrable { name } => {
                write!(f, "the unique key {name} is deferrable on the source and not on the target")
            }
            Self::Partitioning => f.write_str("it is partitioned on one side only"),
        }
    }
}
