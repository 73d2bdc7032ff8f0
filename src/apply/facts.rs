//! What is known of a target table, and the shape that follows from it. Pure.

use std::sync::Arc;

use crate::model::{Column, Relation, ReplicaIdentity, TableHandover, TableName, binary};

use super::encode::TEXT;
use super::error::Error;
use super::table::{RowKey, Table, TargetColumn};

/// A target table as its catalog describes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) columns: Vec<ColumnFacts>,
    /// The columns of each key that may find a row: unique, valid, at once, over all rows, of NOT NULL columns. The
    /// primary key is first.
    pub(super) keys: Vec<Vec<String>>,
    pub(super) partitioned: bool,
    /// How many unique and exclusion constraints it has, the primary key and those that only partitions have among them.
    pub(super) exclusive_count: i64,
    /// A trigger or rule acts when our session writes to it.
    pub(super) acts: bool,
    /// Row security applies to our session, or rules rewrite its INSERT.
    pub(super) refuses_copy: bool,
    /// A foreign key with an action (CASCADE, SET NULL, SET DEFAULT) that would fire under our session.
    pub(super) acting_constraint: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct ColumnFacts {
    /// As stored in the catalog.
    pub(super) name: String,
    pub(super) generated: bool,
    pub(super) column: Arc<ColumnSql>,
}

/// The parts of SQL made from the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ColumnSql {
    pub(super) quoted: String,
    /// Of the base type under any domains.
    pub(super) type_oid: u32,
    pub(super) cast: String,
    pub(super) equals: String,
    pub(super) indexable: bool,
    pub(super) identity_always: bool,
}

/// Matches the stream's shape with the target's. Columns that only the target has take their defaults.
pub(super) fn table_of(
    id: u32,
    relation: &Arc<Relation>,
    target: TableName,
    facts: &Facts,
    handover: Option<Arc<TableHandover>>,
) -> Result<Table, Error> {
    if let Some(constraint) = &facts.acting_constraint {
        return Err(Error::ActingConstraint { table: relation.name.clone(), constraint: constraint.clone() });
    }
    let columns = relation.columns.iter().map(|column| column_of(relation, &target, facts, column));
    let key = key_of(relation, facts);
    Ok(Table {
        id,
        place: id,
        member: relation.name.clone(),
        leaf: None,
        columns: columns.collect::<Result<_, _>>()?,
        independent: is_independent(relation, facts, &key),
        number_key: number_key(relation, facts, &key),
        key,
        isolated: !facts.acts,
        sortable: facts.exclusive_count <= 1,
        copies: !facts.refuses_copy,
        binary_copy: relation.binary && has_same_types(relation, facts),
        partitioned: facts.partitioned,
        handover,
        after: None,
        relation: Arc::clone(relation),
        target,
    })
}

/// Text becomes any type; binary forms are the type's own.
fn has_same_types(relation: &Relation, facts: &Facts) -> bool {
    relation.columns.iter().all(|column| {
        let found = facts.columns.iter().find(|found| found.name == column.name);
        found.is_some_and(|found| found.column.type_oid == column.type_oid)
    })
}

fn column_of(
    relation: &Relation,
    target: &TableName,
    facts: &Facts,
    described: &Column,
) -> Result<TargetColumn, Error> {
    let Column { name, type_oid, .. } = described;
    let Some(found) = facts.columns.iter().find(|column| column.name == *name) else {
        return Err(Error::MissingColumn {
            table: relation.name.clone(),
            target: target.clone(),
            column: name.clone(),
        });
    };
    if found.generated {
        return Err(Error::GeneratedColumn { table: relation.name.clone(), column: name.clone() });
    }
    let sql = &found.column;
    let as_it_is = relation.binary && sql.type_oid == *type_oid && binary::array_of(*type_oid).is_some();
    Ok(TargetColumn {
        name: sql.quoted.clone(),
        cast: sql.cast.clone(),
        equals: sql.equals.clone(),
        indexable: sql.indexable,
        travels_as: if as_it_is { *type_oid } else { TEXT },
        identity_always: sql.identity_always,
    })
}

/// Whether the key, if there is one, is all that is unique on the target.
fn is_independent(relation: &Relation, facts: &Facts, key: &RowKey) -> bool {
    let is_key = |columns: &Vec<String>| match key {
        RowKey::Columns(key) => {
            columns.len() == key.len() && key.iter().all(|at| columns.contains(&relation.columns[*at].name))
        }
        RowKey::WholeRow | RowKey::Nothing => false,
    };
    facts.exclusive_count == 0 || (facts.exclusive_count == 1 && facts.keys.first().is_some_and(is_key))
}

fn number_key(relation: &Relation, facts: &Facts, key: &RowKey) -> Option<usize> {
    let RowKey::Columns(columns) = key else { return None };
    let [at] = columns[..] else { return None };
    let Column { name, type_oid, .. } = &relation.columns[at];
    let has_index = facts.keys.iter().any(|key| key.len() == 1 && key[0] == *name);
    let found = facts.columns.iter().find(|column| column.name == *name)?;
    let are_numbers = binary::is_whole_number(*type_oid) && binary::is_whole_number(found.column.type_oid);
    (has_index && are_numbers).then_some(at)
}

/// Under DEFAULT and INDEX the stream sends old values of the identity's columns only, so those are the key. Under FULL
/// every column is flagged, and the target's own key finds rows by index and tells them apart.
fn key_of(relation: &Relation, facts: &Facts) -> RowKey {
    let at = |name: &String| relation.columns.iter().position(|column| column.name == *name);
    match relation.identity {
        ReplicaIdentity::Full => {
            let of_target = facts.keys.iter().find_map(|key| key.iter().map(at).collect::<Option<Vec<usize>>>());
            of_target.map_or(RowKey::WholeRow, |mut columns| {
                columns.sort_unstable();
                RowKey::Columns(columns)
            })
        }
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            let flagged = (0..relation.columns.len()).filter(|at| relation.columns[*at].in_identity);
            let columns: Vec<usize> = flagged.collect();
            if columns.is_empty() { RowKey::Nothing } else { RowKey::Columns(columns) }
        }
        ReplicaIdentity::Nothing => RowKey::Nothing,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn relation(identity: ReplicaIdentity, columns: &[&str], key: &[&str]) -> Arc<Relation> {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            in_identity: key.contains(name),
            type_name: None,
        };
        let columns = columns.iter().map(column).collect();
        Arc::new(Relation { oid: 1, name: TableName::new("public", "t"), identity, binary: false, columns })
    }

    pub(crate) fn facts(columns: &[&str], keys: &[&[&str]]) -> Facts {
        let column = |name: &&str| ColumnFacts {
            name: (*name).to_owned(),
            generated: false,
            column: Arc::new(ColumnSql {
                quoted: format!("\"{name}\""),
                type_oid: 25,
                cast: "::text".to_owned(),
                equals: "OPERATOR(pg_catalog.=)".to_owned(),
                indexable: true,
                identity_always: false,
            }),
        };
        let keys = keys.iter().map(|key| key.iter().map(|name| (*name).to_owned()).collect()).collect();
        Facts { columns: columns.iter().map(column).collect(), keys, ..Facts::default() }
    }

    pub(crate) fn table(relation: &Arc<Relation>, facts: &Facts) -> Arc<Table> {
        Arc::new(table_of(relation.oid, relation, relation.name.clone(), facts, None).unwrap())
    }

    #[test]
    fn the_stream_decides_the_key_unless_it_flags_every_column() {
        let columns = &["a", "b", "c"];
        let target = facts(columns, &[&["c", "a"]]);
        let key = |identity, flagged: &[&str], target: &Facts| key_of(&relation(identity, columns, flagged), target);
        assert_eq!(key(ReplicaIdentity::Default, &["b"], &target), RowKey::Columns(vec![1]));
        assert_eq!(key(ReplicaIdentity::Full, columns, &target), RowKey::Columns(vec![0, 2]));
        assert_eq!(key(ReplicaIdentity::Full, columns, &facts(columns, &[])), RowKey::WholeRow);
        assert_eq!(key(ReplicaIdentity::Nothing, &[], &target), RowKey::Nothing);
    }

    #[test]
    fn a_column_that_the_target_lacks_or_computes_is_named() {
        let relation = relation(ReplicaIdentity::Default, &["a", "b"], &["a"]);
        let missing = table_of(1, &relation, relation.name.clone(), &facts(&["a"], &[]), None).unwrap_err();
        assert!(matches!(missing, Error::MissingColumn { column, .. } if column == "b"));
        let mut target = facts(&["a", "b"], &[]);
        target.columns[1].generated = true;
        let generated = table_of(1, &relation, relation.name.clone(), &target, None).unwrap_err();
        assert!(matches!(generated, Error::GeneratedColumn { column, .. } if column == "b"));
    }
}
