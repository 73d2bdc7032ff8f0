//! The source's tables and columns as SQL for the target. Pure.

use crate::model::quote_identifier;
use crate::schema::catalog::{Column, ConstraintKind, GeneratedKind, IdentityKind, Sequence, Table, TableDesign};

/// `CREATE TABLE`, with everything inside it but foreign keys and indexes.
pub(super) fn create_table(table: &Table, design: &TableDesign) -> String {
    let name = table.name.quoted();
    if let Some(partition) = &table.partition {
        let below = design.partition_key.as_ref().map(|key| format!(" PARTITION BY {key}")).unwrap_or_default();
        return format!("CREATE TABLE {name} PARTITION OF {} {}{below};", partition.parent.quoted(), partition.bounds);
    }
    let columns = table.columns.iter().map(|column| column_definition(column, design));
    let inside = design.constraints.iter().filter(|constraint| constraint.kind != ConstraintKind::ForeignKey);
    let constraints =
        inside.map(|constraint| format!("CONSTRAINT {} {}", quote_identifier(&constraint.name), constraint.definition));
    let parts: Vec<String> = columns.chain(constraints).collect();
    let parents: Vec<String> = table.inherits.iter().map(|parent| parent.quoted()).collect();
    let inherits = if parents.is_empty() { String::new() } else { format!(" INHERITS ({})", parents.join(", ")) };
    let partitioned = design.partition_key.as_ref().map(|key| format!(" PARTITION BY {key}")).unwrap_or_default();
    format!("CREATE TABLE {name} ({}){inherits}{partitioned};", parts.join(", "))
}

/// `"name" type ...`, as in `CREATE TABLE` and `ADD COLUMN`.
pub(super) fn column_definition(column: &Column, design: &TableDesign) -> String {
    let mut sql = format!("{} {}", quote_identifier(&column.name), column.type_text);
    if let Some(collation) = &column.collation {
        sql.push_str(&format!(" COLLATE {collation}"));
    }
    if let Some(default) = &column.default {
        sql.push_str(&format!(" DEFAULT {default}"));
    }
    if let (Some(kind), Some(expression)) = (column.generated, design.expressions.get(&column.name)) {
        sql.push_str(&format!(" {}", generated(kind, expression)));
    }
    if let Some(identity) = column.identity {
        sql.push_str(&format!(" GENERATED {} AS IDENTITY", identity_word(identity)));
    }
    if column.not_null {
        sql.push_str(" NOT NULL");
    }
    sql
}

/// Without its end, which may say whose it is.
pub(super) fn create_sequence(sequence: &Sequence) -> String {
    format!(
        "CREATE SEQUENCE {} INCREMENT {} MINVALUE {} MAXVALUE {} CACHE {}{}",
        sequence.name.quoted(),
        sequence.increment,
        sequence.min_value,
        sequence.max_value,
        sequence.cache_size,
        if sequence.cycles { " CYCLE" } else { "" }
    )
}

pub(super) fn generated(kind: GeneratedKind, expression: &str) -> String {
    let kind = match kind {
        GeneratedKind::Stored => "STORED",
        GeneratedKind::Virtual => "VIRTUAL",
    };
    format!("GENERATED ALWAYS AS ({expression}) {kind}")
}

pub(super) const fn identity_word(kind: IdentityKind) -> &'static str {
    match kind {
        IdentityKind::Always => "ALWAYS",
        IdentityKind::ByDefault => "BY DEFAULT",
    }
}
