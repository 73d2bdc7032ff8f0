//! Keys, constraints, indexes, sequences and triggers of one table against its twin's.

use super::ddl;
use super::difference::DifferenceKind;
use super::tables::Twin;
use crate::model::quote_identifier;
use crate::schema::catalog::{
    Constraint, ConstraintKind, Index, Sequence, SequenceOwner, Table, TriggerState, UniqueKey,
};

pub(super) fn compare_keys(twin: &mut Twin<'_>) {
    let (source, target) = (twin.source, twin.target);
    let whole = |key: &&UniqueKey| !key.partial && !key.expression && key.valid;
    let tells_rows =
        target.unique_keys.iter().filter(whole).any(|key| same_columns(&key.columns, &source.identity_columns));
    let by_key = source.unique_keys.iter().any(|key| same_columns(&key.columns, &source.identity_columns));
    if by_key && !tells_rows {
        let columns: Vec<String> = source.identity_columns.iter().map(|column| quote_identifier(column)).collect();
        let what = if source.primary_key.as_ref() == Some(&source.identity_columns) { "PRIMARY KEY" } else { "UNIQUE" };
        let remedy = format!("ALTER TABLE {} ADD {what} ({});", twin.quoted(), columns.join(", "));
        twin.found(None, DifferenceKind::MissingKey { columns: source.identity_columns.clone() }, remedy);
    }
    let twins = |key: &UniqueKey, other: &UniqueKey| {
        other.name == key.name || (same_columns(&other.columns, &key.columns) && whole(&other) && whole(&key))
    };
    for key in &target.unique_keys {
        match source.unique_keys.iter().find(|other| twins(key, other)) {
            None => {
                let name = quote_identifier(&key.name);
                let drop = if key.constraint {
                    format!("ALTER TABLE {} DROP CONSTRAINT {name};", twin.quoted())
                } else {
                    format!("DROP INDEX {}.{name};", quote_identifier(&target.name.schema))
                };
                let remedy = format!("-- see that the source's rows keep it, or until the cutover:\n{drop}");
                twin.found(None, DifferenceKind::ExtraUniqueKey { name: key.name.clone() }, remedy);
            }
            Some(other) if other.deferrable && !key.deferrable => {
                let name = quote_identifier(&key.name);
                let columns: Vec<String> = key.columns.iter().map(|column| quote_identifier(column)).collect();
                let table = twin.quoted();
                let remedy = format!(
                    "ALTER TABLE {table} DROP CONSTRAINT {name}, ADD CONSTRAINT {name} UNIQUE ({}) DEFERRABLE;",
                    columns.join(", ")
                );
                twin.found(None, DifferenceKind::KeyNotDeferrable { name: key.name.clone() }, remedy);
            }
            Some(_) => {}
        }
    }
    // The one that tells the rows was told above.
    let told = |key: &&UniqueKey| by_key && !tells_rows && same_columns(&key.columns, &source.identity_columns);
    let missing = source.unique_keys.iter().filter(|key| key.valid && !told(key));
    for key in missing.filter(|key| !target.unique_keys.iter().any(|other| twins(key, other))) {
        let remedy = definition_of(twin, key);
        twin.found(None, DifferenceKind::MissingUniqueKey { name: key.name.clone() }, remedy);
    }
}

fn definition_of(twin: &Twin<'_>, key: &UniqueKey) -> String {
    let design = twin.source_design;
    let constraint = design.constraints.iter().find(|constraint| constraint.name == key.name);
    let index = design.indexes.iter().find(|index| index.name == key.name);
    match (constraint, index) {
        (Some(constraint), _) => add(twin, constraint),
        (None, Some(index)) => format!("{};", index.definition),
        // A partition's share of its root's.
        (None, None) => "-- create the root's key, and the partition has it too".to_owned(),
    }
}

fn add(twin: &Twin<'_>, constraint: &Constraint) -> String {
    let name = quote_identifier(&constraint.name);
    format!("ALTER TABLE {} ADD CONSTRAINT {name} {};", twin.quoted(), constraint.definition)
}

/// Checks, exclusions and foreign keys, by what they say: names may differ, and whether they are validated too.
pub(super) fn compare_constraints(twin: &mut Twin<'_>) {
    let (source, target) = (twin.source_design, twin.target_design);
    let says_the_same = |one: &Constraint, other: &Constraint| meaning(one) == meaning(other) && one.kind == other.kind;
    for constraint in source.constraints.iter().filter(|constraint| word(constraint.kind).is_some()) {
        if target.constraints.iter().any(|other| says_the_same(constraint, other)) {
            continue;
        }
        let (what, name) = (word(constraint.kind).unwrap_or_default(), constraint.name.clone());
        let mut remedy = add(twin, constraint);
        if constraint.kind == ConstraintKind::ForeignKey {
            remedy.push_str("\n-- before the cutover; while rows are copied it is not needed");
        }
        twin.found(
            None,
            DifferenceKind::MissingConstraint { what, name, definition: constraint.definition.clone() },
            remedy,
        );
    }
    for constraint in target.constraints.iter().filter(|constraint| word(constraint.kind).is_some()) {
        if source.constraints.iter().any(|other| says_the_same(constraint, other)) {
            continue;
        }
        let (what, name) = (word(constraint.kind).unwrap_or_default(), constraint.name.clone());
        let drop = format!("ALTER TABLE {} DROP CONSTRAINT {};", twin.quoted(), quote_identifier(&constraint.name));
        let remedy = format!("-- see that every row of the source keeps it, or:\n{drop}");
        twin.found(
            None,
            DifferenceKind::ExtraConstraint { what, name, definition: constraint.definition.clone() },
            remedy,
        );
    }
}

/// `None` for unique keys, which are compared as such.
const fn word(kind: ConstraintKind) -> Option<&'static str> {
    match kind {
        ConstraintKind::Check => Some("check"),
        ConstraintKind::Exclusion => Some("exclusion"),
        ConstraintKind::ForeignKey => Some("foreign key"),
        ConstraintKind::Unique => None,
    }
}

fn meaning(constraint: &Constraint) -> &str {
    constraint.definition.trim_end_matches(" NOT VALID")
}

/// Those that are not unique: what is, is a key.
pub(super) fn compare_indexes(twin: &mut Twin<'_>) {
    let target = twin.target_design;
    let plain = twin.source_design.indexes.iter().filter(|index| !index.unique);
    for index in plain.filter(|index| !target.indexes.iter().any(|other| shape(other) == shape(index))) {
        let remedy = format!("{};", index.definition);
        twin.found(None, DifferenceKind::MissingIndex { name: index.name.clone() }, remedy);
    }
}

/// Everything behind `ON`, which is what the index does; its name is nobody's business.
fn shape(index: &Index) -> &str {
    index.definition.find(" USING ").map_or(index.definition.as_str(), |at| &index.definition[at..])
}

/// By name, because that is how the cutover sets them. One that the target's column owns under another name would go on
/// from its beginning.
pub(super) fn compare_sequences(twin: &mut Twin<'_>) {
    let (source, target) = (twin.source, twin.target);
    let (catalog, there) = (twin.source_catalog, twin.target_catalog);
    for sequence in &catalog.sequences {
        let Some(column) = owning_column(sequence, source) else { continue };
        let other = target.column(column);
        // Its own finding says how to number it, and that makes the sequence.
        let identity = matches!(sequence.owner, SequenceOwner::Identity { .. });
        if identity && other.is_none_or(|other| other.identity.is_none() && other.default.is_none()) {
            continue;
        }
        let own = there.sequences.iter().find(|found| owning_column(found, target) == Some(column));
        let present = match own {
            Some(own) => own.name == sequence.name,
            None => there.sequences.iter().any(|found| found.name == sequence.name),
        };
        if present {
            continue;
        }
        let remedy = match (own, other) {
            (Some(own), _) => {
                format!("ALTER SEQUENCE {} RENAME TO {};", own.name.quoted(), quote_identifier(&sequence.name.name))
            }
            (None, Some(_)) => {
                format!("{} OWNED BY {}.{};", ddl::create_sequence(sequence), twin.quoted(), quote_identifier(column))
            }
            (None, None) => format!("{};", ddl::create_sequence(sequence)),
        };
        let kind = DifferenceKind::MissingSequence { sequence: sequence.name.clone() };
        twin.found(source.column(column), kind, remedy);
    }
}

fn owning_column<'a>(sequence: &'a Sequence, of: &Table) -> Option<&'a str> {
    match &sequence.owner {
        SequenceOwner::Column { table, column } | SequenceOwner::Identity { table, column } => {
            (table == &of.name).then_some(column)
        }
        SequenceOwner::None => None,
    }
}

/// Those that fire under `session_replication_role = replica`, which is what we write under.
pub(super) fn compare_triggers(twin: &mut Twin<'_>) {
    for trigger in &twin.target.triggers {
        match trigger.enabled {
            TriggerState::Always | TriggerState::Replica => {
                let name = quote_identifier(&trigger.name);
                let table = twin.quoted();
                let remedy =
                    format!("-- if it changes rows, until the cutover:\nALTER TABLE {table} DISABLE TRIGGER {name};");
                twin.found(None, DifferenceKind::FiringTrigger { name: trigger.name.clone() }, remedy);
            }
            TriggerState::Origin | TriggerState::Disabled => {}
        }
    }
}

fn same_columns(left: &[String], right: &[String]) -> bool {
    !left.is_empty() && left.len() == right.len() && left.iter().all(|column| right.contains(column))
}
