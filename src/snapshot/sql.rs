//! The statements of a copy. Pure.

use super::plan::{Copied, Unit};
use crate::model::{MigrationName, SnapshotSet, quote_identifier, quote_literal};

/// `COPY ... TO STDOUT` on the source. Columns are named, so that the order of both tables may differ; generated ones
/// are left out, since the target computes them. `filter` leaves out rows.
pub(super) fn copy_out(unit: &Unit, filter: Option<&str>) -> String {
    let (table, format) = (&unit.copied.table, format_of(&unit.copied));
    let columns = columns(&unit.copied);
    let name = table.name.quoted();
    // On lines of its own: it may end in a comment.
    let filter = filter.map(|filter| format!("(\n{filter}\n)"));
    match (unit.blocks, filter) {
        // A list of no columns can be selected, and not written behind the name of a table.
        (None, None) if columns.is_empty() => format!("COPY (SELECT FROM ONLY {name}) TO STDOUT ({format})"),
        (None, None) => format!("COPY {name} ({columns}) TO STDOUT ({format})"),
        (None, Some(filter)) => format!("COPY (SELECT {columns} FROM ONLY {name} WHERE {filter}) TO STDOUT ({format})"),
        (Some(blocks), filter) => {
            let to = blocks.to.map(|to| format!(" AND ctid < '({to},0)'::tid")).unwrap_or_default();
            let filter = filter.map(|filter| format!(" AND {filter}")).unwrap_or_default();
            format!(
                "COPY (SELECT {columns} FROM ONLY {name} WHERE ctid >= '({},0)'::tid{to}{filter}) TO STDOUT ({format})",
                blocks.from
            )
        }
    }
}

/// `COPY ... FROM STDIN` on the target. Rows are frozen only in a table that was emptied in the same transaction.
pub(super) fn copy_in(unit: &Unit) -> String {
    let copied = &unit.copied;
    let freeze = if unit.blocks.is_none() && copied.destination.truncate { ", FREEZE" } else { "" };
    let columns = columns(copied);
    let columns = if columns.is_empty() { columns } else { format!(" ({columns})") };
    format!("COPY {}{columns} FROM STDIN ({}{freeze})", copied.destination.name.quoted(), format_of(copied))
}

fn columns(copied: &Copied) -> String {
    copied.table.copied_columns().map(|column| quote_identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

fn format_of(copied: &Copied) -> &'static str {
    if copied.destination.binary { "FORMAT binary" } else { "FORMAT text" }
}

/// Begins a unit's transaction on the target. A whole table is emptied in it; the parts of a split one find it empty.
pub(super) fn begin(unit: &Unit, migration: &MigrationName) -> String {
    match unit.blocks {
        None => format!("BEGIN; {}", start_anew(&unit.copied, migration)),
        Some(_) => "BEGIN".to_owned(),
    }
}

/// Removes what earlier attempts have left of a table: its rows, and the records of its parts. A backend whose client has
/// died may be about to commit such a part, so the lock comes before the look.
///
/// Not for a table whose rows go where those of others are: a unit that writes there is whole or not there at all, and
/// its record must stand in the way of a second one.
pub(super) fn start_anew(copied: &Copied, migration: &MigrationName) -> String {
    if copied.destination.shared {
        return String::new();
    }
    let name = &copied.table.name;
    format!(
        "{}DELETE FROM changeover.unit WHERE migration = '{migration}' AND table_schema = {} AND table_name = {};",
        empty(copied),
        quote_literal(&name.schema),
        quote_literal(&name.name)
    )
}

fn empty(copied: &Copied) -> String {
    let destination = &copied.destination;
    let name = destination.name.quoted();
    let only = if destination.partitioned { "" } else { "ONLY " };
    if destination.truncate || destination.partitioned {
        return format!("TRUNCATE {only}{name}; ");
    }
    // TRUNCATE refuses a table that a foreign key refers to, however empty the referring one is.
    format!("LOCK TABLE {only}{name} IN SHARE ROW EXCLUSIVE MODE; DELETE FROM {only}{name}; ")
}

/// What a finished unit leaves in `changeover.unit`, and the end of its transaction.
pub(super) fn record(unit: &Unit, migration: &MigrationName, taken: &Taken<'_>) -> String {
    let name = &unit.copied.table.name;
    format!(
        "INSERT INTO changeover.unit
             (migration, table_schema, table_name, part, snapshot, until, row_count, byte_count, complete)
         VALUES ('{migration}', {}, {}, {}, '{}', '{}', {}, {}, {}); COMMIT",
        quote_literal(&name.schema),
        quote_literal(&name.name),
        unit.part,
        taken.snapshot,
        taken.until,
        taken.rows,
        taken.bytes,
        unit.blocks.is_none(),
    )
}

/// What a unit was read under and how much it was.
pub(super) struct Taken<'a> {
    pub(super) snapshot: &'a SnapshotSet,
    pub(super) until: crate::model::Lsn,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Marks a split table as complete if every part of it is recorded.
pub(super) fn complete(copied: &Copied, migration: &MigrationName) -> String {
    let (schema, name) = (quote_literal(&copied.table.name.schema), quote_literal(&copied.table.name.name));
    let of_table = format!("migration = '{migration}' AND table_schema = {schema} AND table_name = {name}");
    format!(
        "UPDATE changeover.unit SET complete = true WHERE {of_table} AND part = 0
             AND (SELECT count(*) FROM changeover.unit WHERE {of_table}) = {} RETURNING part",
        copied.part_count
    )
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::super::destination::Destination;
    use super::super::plan::Blocks;
    use super::*;
    use crate::model::{ReplicaIdentity, TableName, TypeName};
    use crate::schema::{BinaryCopy, Column, GeneratedKind, Table, TableKind};

    fn column(name: &str, generated: Option<GeneratedKind>) -> Column {
        Column {
            name: name.to_owned(),
            number: 1,
            type_oid: 23,
            type_name: TypeName { schema: "pg_catalog".to_owned(), name: "int4".to_owned() },
            type_text: "integer".to_owned(),
            type_modifier: -1,
            not_null: false,
            identity: None,
            generated,
            collation: None,
            default: None,
            binary_copy: BinaryCopy::Always,
        }
    }

    fn unit(columns: Vec<Column>, blocks: Option<Blocks>) -> Unit {
        let table = Table {
            name: TableName::new("s", "t"),
            oid: 1,
            kind: TableKind::Ordinary,
            partition: None,
            inherits: Vec::new(),
            owner: "me".to_owned(),
            columns,
            primary_key: None,
            unique_keys: Vec::new(),
            foreign_keys: Vec::new(),
            replica_identity: ReplicaIdentity::Default,
            identity_columns: Vec::new(),
            triggers: Vec::new(),
            row_security: false,
            row_estimate: None,
            size_bytes: 0,
            block_count: 0,
        };
        let destination = Destination {
            name: TableName::new("s", "t"),
            partitioned: false,
            shared: false,
            truncate: true,
            may_be_split: true,
            binary: true,
        };
        Unit { copied: Arc::new(Copied { table, destination, part_count: 1 }), part: 0, blocks }
    }

    #[test]
    fn generated_columns_are_not_copied_and_none_at_all_can_be() {
        let some = unit(vec![column("a\"b", None), column("g", Some(GeneratedKind::Stored))], None);
        assert_eq!(copy_out(&some, None), r#"COPY "s"."t" ("a""b") TO STDOUT (FORMAT binary)"#);
        assert_eq!(copy_in(&some), r#"COPY "s"."t" ("a""b") FROM STDIN (FORMAT binary, FREEZE)"#);
        let none = unit(vec![], None);
        assert_eq!(copy_out(&none, None), r#"COPY (SELECT FROM ONLY "s"."t") TO STDOUT (FORMAT binary)"#);
        assert_eq!(copy_in(&none), r#"COPY "s"."t" FROM STDIN (FORMAT binary, FREEZE)"#);
    }

    #[test]
    fn a_part_neither_empties_its_table_nor_freezes() {
        let part = unit(vec![column("a", None)], Some(Blocks { from: 5, to: Some(9) }));
        assert_eq!(
            copy_out(&part, None),
            r#"COPY (SELECT "a" FROM ONLY "s"."t" WHERE ctid >= '(5,0)'::tid AND ctid < '(9,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy_out(&part, Some("a = 1 OR b")),
            "COPY (SELECT \"a\" FROM ONLY \"s\".\"t\" WHERE ctid >= '(5,0)'::tid AND ctid < '(9,0)'::tid AND (\na = 1 OR b\n)) \
             TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&unit(vec![column("a", None)], None), Some("b")),
            "COPY (SELECT \"a\" FROM ONLY \"s\".\"t\" WHERE (\nb\n)) TO STDOUT (FORMAT binary)"
        );
        assert_eq!(copy_in(&part), r#"COPY "s"."t" ("a") FROM STDIN (FORMAT binary)"#);
        let migration = "m".parse().unwrap();
        assert_eq!(begin(&part, &migration), "BEGIN");
        assert!(begin(&unit(vec![], None), &migration).starts_with(r#"BEGIN; TRUNCATE ONLY "s"."t"; DELETE"#));
    }
}
