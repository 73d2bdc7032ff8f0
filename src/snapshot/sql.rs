//! The statements of a copy. Pure.

use super::plan::{Copied, Unit};
use super::split::Begun;
use crate::model::{Lsn, MigrationName, SnapshotSet, TableName, quote_identifier, quote_literal};
use crate::schema::Column;

/// `COPY ... TO STDOUT` on the source. Columns are named, so that the order of both tables may differ; generated ones
/// are left out, since the target computes them. `base` is the snapshot that the table was begun under, if the part is
/// read under a later one.
pub(super) fn copy_out(unit: &Unit, base: Option<&SnapshotSet>) -> String {
    let copied = &unit.of.copied;
    let (name, columns, format) = (copied.table.name.quoted(), selected(copied), format_of(copied));
    if let Some(leaf) = copied.table.leaves.get(unit.part as usize) {
        let (name, conditions) = (leaf.table.name.quoted(), further_conditions(base, None));
        return format!("COPY (SELECT {columns} FROM ONLY {name} WHERE true{conditions}) TO STDOUT ({format})");
    }
    match (copied.cut.blocks(unit.part), filter_of(copied)) {
        // Neither a list of no columns nor an expression can be written behind the name of a table.
        (None, None) if columns.is_empty() || !copied.destination.padded.is_empty() => {
            format!("COPY (SELECT {columns} FROM ONLY {name}) TO STDOUT ({format})")
        }
        (None, None) => format!("COPY {name} ({columns}) TO STDOUT ({format})"),
        (None, Some(filter)) => format!("COPY (SELECT {columns} FROM ONLY {name} WHERE {filter}) TO STDOUT ({format})"),
        (Some(blocks), filter) => {
            let to = blocks.to.map(|to| format!(" AND ctid < '({to},0)'::tid")).unwrap_or_default();
            let conditions = further_conditions(base, filter);
            format!(
                "COPY (SELECT {columns} FROM ONLY {name} WHERE ctid >= '({},0)'::tid{to}{conditions}) TO STDOUT ({format})",
                blocks.from
            )
        }
    }
}

/// The same for a part and all that come after it, each row with its place in front ([`super::in_order`]).
pub(super) fn copy_out_in_order(unit: &Unit, base: Option<&SnapshotSet>) -> String {
    let copied = &unit.of.copied;
    let (name, columns, format) = (copied.table.name.quoted(), selected(copied), format_of(copied));
    let from = copied.cut.blocks(unit.part).map_or(0, |blocks| blocks.from);
    let conditions = further_conditions(base, filter_of(copied));
    format!(
        "COPY (SELECT ctid, {columns} FROM ONLY {name} WHERE ctid >= '({from},0)'::tid{conditions}) TO STDOUT ({format})"
    )
}

fn further_conditions(base: Option<&SnapshotSet>, filter: Option<String>) -> String {
    let old = base.map(|base| format!(" AND {}", written_before(base))).unwrap_or_default();
    old + &filter.map(|filter| format!(" AND {filter}")).unwrap_or_default()
}

/// On lines of its own: it may end in a comment.
fn filter_of(copied: &Copied) -> Option<String> {
    copied.filter.as_ref().map(|filter| format!("(\n{filter}\n)"))
}

/// Rows (tuples, that is) written by transactions that had ended before `base` saw anything running: whoever reads them
/// later finds what `base` saw. The age of an id is its distance from the newest one, as a signed number of 32 bits
/// (`xid_age` in `src/backend/utils/adt/xid.c`), and the largest there is for what is frozen for good. `xmin` may be that
/// of a subtransaction, which no snapshot lists: so nothing younger than the snapshot's own xmin is taken.
fn written_before(base: &SnapshotSet) -> String {
    format!("pg_catalog.age(xmin) > pg_catalog.age('{}'::xid)", base.xmin() as u32)
}

/// `COPY ... FROM STDIN` on the target. Rows are frozen only in a table that was emptied in the same transaction.
pub(super) fn copy_in(copied: &Copied) -> String {
    let freeze = if copied.cut.part_count == 1 && copied.destination.truncate { ", FREEZE" } else { "" };
    let columns = columns(copied);
    let columns = if columns.is_empty() { columns } else { format!(" ({columns})") };
    format!("COPY {}{columns} FROM STDIN ({}{freeze})", copied.destination.name.quoted(), format_of(copied))
}

fn columns(copied: &Copied) -> String {
    copied.table.copied_columns().map(|column| quote_identifier(&column.name)).collect::<Vec<_>>().join(", ")
}

/// The same columns as the source is to send them: of a `char(n)` nothing but blanks is nothing. (Taking the blanks off the
/// end of every value costs the server more than sending them: `dotrim` looks at each character.)
fn selected(copied: &Copied) -> String {
    let one = |column: &Column| {
        let name = quote_identifier(&column.name);
        if !copied.destination.padded.contains(&column.name) {
            return name;
        }
        // The column's own collation may take other characters for nothing.
        format!(
            "CASE WHEN {name} COLLATE pg_catalog.\"C\" OPERATOR(pg_catalog.=) ''::pg_catalog.bpchar \
             THEN ''::pg_catalog.bpchar ELSE {name} END"
        )
    };
    copied.table.copied_columns().map(one).collect::<Vec<_>>().join(", ")
}

fn format_of(copied: &Copied) -> &'static str {
    if copied.destination.binary { "FORMAT binary" } else { "FORMAT text" }
}

/// Begins a unit's transaction on the target. A whole table is emptied in it; the parts of a split one find it empty.
pub(super) fn begin(unit: &Unit, migration: &MigrationName) -> String {
    if unit.of.is_split() { "BEGIN".to_owned() } else { format!("BEGIN; {}", start_anew(&unit.of.copied, migration)) }
}

/// Empties a split table and records how it is cut, in one transaction: its parts are copied afterwards.
pub(super) fn begin_split(copied: &Copied, migration: &MigrationName, begun: &Begun) -> String {
    let (schema, name) = literals(copied);
    format!(
        "BEGIN; {}
         INSERT INTO changeover.split
             (migration, table_schema, table_name, part_count, block_count, filenode, base)
         VALUES ('{migration}', {schema}, {name}, {}, {}, {}, '{}'); COMMIT",
        start_anew(copied, migration),
        copied.cut.part_count,
        copied.cut.block_count,
        begun.filenode,
        begun.base,
    )
}

/// Removes what earlier attempts have left of a table: its rows, and the records of its parts. A backend whose client has
/// died may be about to commit such a part, so the lock comes before the look.
fn start_anew(copied: &Copied, migration: &MigrationName) -> String {
    let of_table = of_table(copied, migration);
    format!(
        "{}DELETE FROM changeover.unit WHERE {of_table}; DELETE FROM changeover.split WHERE {of_table};",
        empty(copied)
    )
}

fn empty(copied: &Copied) -> String {
    let destination = &copied.destination;
    if destination.truncate || destination.partitioned {
        return format!("TRUNCATE {}; ", own_rows(copied));
    }
    // TRUNCATE refuses a table that a foreign key refers to, however empty the referring one is.
    let rows = own_rows(copied);
    format!("LOCK TABLE {rows} IN SHARE ROW EXCLUSIVE MODE; DELETE FROM {rows}; ")
}

fn own_rows(copied: &Copied) -> String {
    let only = if copied.destination.partitioned { "" } else { "ONLY " };
    format!("{only}{}", copied.destination.name.quoted())
}

/// What a finished unit leaves in `changeover.unit`, and the end of its transaction.
pub(super) fn record(unit: &Unit, migration: &MigrationName, taken: &Taken<'_>) -> String {
    let (schema, name) = literals(&unit.of.copied);
    format!(
        "INSERT INTO changeover.unit
             (migration, table_schema, table_name, part, snapshot, until, row_count, byte_count, complete)
         VALUES ('{migration}', {schema}, {name}, {}, '{}', '{}', {}, {}, {}); COMMIT",
        unit.part,
        taken.snapshot,
        taken.until,
        taken.rows,
        taken.bytes,
        !unit.of.is_split(),
    )
}

/// What a unit was read under and how much it was.
pub(super) struct Taken<'a> {
    pub(super) snapshot: &'a SnapshotSet,
    pub(super) until: Lsn,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Marks a split table as complete if every part of it is recorded, and was read under one snapshot.
pub(super) fn complete(copied: &Copied, migration: &MigrationName) -> String {
    let of_table = of_table(copied, migration);
    format!(
        "UPDATE changeover.unit SET complete = true WHERE {of_table} AND part = 0
             AND (SELECT count(*) = {} AND count(DISTINCT snapshot) = 1 FROM changeover.unit WHERE {of_table})
         RETURNING part",
        copied.cut.part_count
    )
}

/// The steps that bring a table whose parts were read under several snapshots to the state that one of them sees.
pub(super) struct Settle<'a> {
    pub(super) copied: &'a Copied,
    pub(super) migration: &'a MigrationName,
    pub(super) base: &'a SnapshotSet,
}

impl Settle<'_> {
    /// One at a time, also of backends whose clients have died. Returns a row if the table is not complete.
    pub(super) fn claim(&self) -> String {
        let of_table = of_table(self.copied, self.migration);
        format!(
            "BEGIN; SELECT FROM changeover.split WHERE {of_table} FOR UPDATE;
             SELECT FROM changeover.split WHERE {of_table}
                 AND NOT EXISTS (SELECT FROM changeover.unit WHERE {of_table} AND complete)"
        )
    }

    /// Where the keys of unchanged rows go.
    pub(super) fn make_kept(&self) -> String {
        format!(
            "CREATE TEMP TABLE changeover_kept ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA",
            self.key(),
            self.copied.destination.name.quoted()
        )
    }

    /// The keys of the rows that are still as the table's first snapshot saw them, on the source.
    pub(super) fn kept_out(&self) -> String {
        self.out(&self.key(), &written_before(self.base))
    }

    pub(super) fn kept_in(&self) -> String {
        format!("COPY pg_temp.changeover_kept FROM STDIN ({})", format_of(self.copied))
    }

    /// What was changed or deleted since it was copied goes. By hash, whatever the planner thinks of a table that has
    /// not been analyzed; `work_mem` is what one such join may take on the server.
    pub(super) fn remove_changed(&self) -> String {
        let same = self.copied.settle_key().iter().map(|name| {
            let name = quote_identifier(name);
            format!("kept.{name} = t.{name}")
        });
        let same = same.collect::<Vec<_>>().join(" AND ");
        format!(
            "SET LOCAL enable_nestloop = off; SET LOCAL enable_mergejoin = off; SET LOCAL work_mem = '64MB';
             ANALYZE pg_temp.changeover_kept;
             DELETE FROM {} AS t WHERE NOT EXISTS (SELECT FROM pg_temp.changeover_kept AS kept WHERE {same})",
            own_rows(self.copied)
        )
    }

    /// The rows that were written since, on the source.
    pub(super) fn changed_out(&self) -> String {
        self.out(&selected(self.copied), &format!("NOT ({})", written_before(self.base)))
    }

    /// Marks the table as complete, as of the snapshot that it was settled under.
    pub(super) fn complete(&self, taken: &Taken<'_>) -> String {
        let of_table = of_table(self.copied, self.migration);
        format!(
            "UPDATE changeover.unit AS first SET complete = true, snapshot = '{}', until = '{}',
                    row_count = first.row_count + {} - (SELECT sum(row_count) FROM changeover.unit WHERE {of_table}),
                    byte_count = first.byte_count + {}
             WHERE {of_table} AND part = 0; COMMIT",
            taken.snapshot, taken.until, taken.rows, taken.bytes,
        )
    }

    fn out(&self, columns: &str, which: &str) -> String {
        let format = format_of(self.copied);
        let filter = filter_of(self.copied).map(|filter| format!(" AND {filter}")).unwrap_or_default();
        // Each leaf of a gathered table by its own name: one that came since is in no part, and in no stream.
        let of = |name: &TableName| format!("SELECT {columns} FROM ONLY {} WHERE {which}{filter}", name.quoted());
        let all: Vec<String> = self.copied.stored_in().map(of).collect();
        format!("COPY ({}) TO STDOUT ({format})", all.join(" UNION ALL "))
    }

    fn key(&self) -> String {
        self.copied.settle_key().iter().map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ")
    }
}

fn of_table(copied: &Copied, migration: &MigrationName) -> String {
    let (schema, name) = literals(copied);
    format!("migration = '{migration}' AND table_schema = {schema} AND table_name = {name}")
}

fn literals(copied: &Copied) -> (String, String) {
    let name = &copied.table.name;
    (quote_literal(&name.schema), quote_literal(&name.name))
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::super::destination::Destination;
    use super::super::plan::Cut;
    use super::super::split::TableCopy;
    use super::*;
    use crate::model::{TableName, TypeName};
    use crate::schema::{BinaryCopy, GeneratedKind, Table};

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

    /// The last of `part_count` parts of a table of ten blocks.
    pub(in super::super) fn unit(columns: Vec<Column>, part_count: u32) -> Unit {
        let table =
            Table { columns, primary_key: Some(vec!["a".to_owned()]), ..Table::sample(TableName::new("s", "t")) };
        let destination = Destination {
            name: TableName::new("s", "t"),
            partitioned: false,
            truncate: true,
            binary: true,
            padded: BTreeSet::new(),
        };
        let copied =
            Copied { table, destination, cut: Cut { part_count, block_count: 10 }, filter: None, in_order: false };
        Unit { of: Arc::new(TableCopy::new(copied, None)), part: part_count - 1 }
    }

    fn filtered(unit: Unit, filter: &str) -> Unit {
        let copied = Copied { filter: Some(filter.to_owned()), ..unit.of.copied.clone() };
        Unit { of: Arc::new(TableCopy::new(copied, None)), part: unit.part }
    }

    #[test]
    fn generated_columns_are_not_copied_and_none_at_all_can_be() {
        let some = unit(vec![column("a\"b", None), column("g", Some(GeneratedKind::Stored))], 1);
        assert_eq!(copy_out(&some, None), r#"COPY "s"."t" ("a""b") TO STDOUT (FORMAT binary)"#);
        assert_eq!(copy_in(&some.of.copied), r#"COPY "s"."t" ("a""b") FROM STDIN (FORMAT binary, FREEZE)"#);
        let mut padded = unit(vec![column("a", None), column("b", None)], 1).of.copied.clone();
        padded.destination.padded = BTreeSet::from(["b".to_owned()]);
        let padded = Unit { of: Arc::new(TableCopy::new(padded, None)), part: 0 };
        assert_eq!(
            copy_out(&padded, None),
            r#"COPY (SELECT "a", CASE WHEN "b" COLLATE pg_catalog."C" OPERATOR(pg_catalog.=) ''::pg_catalog.bpchar THEN ''::pg_catalog.bpchar ELSE "b" END FROM ONLY "s"."t") TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(copy_in(&padded.of.copied), r#"COPY "s"."t" ("a", "b") FROM STDIN (FORMAT binary, FREEZE)"#);
        let none = unit(vec![], 1);
        assert_eq!(copy_out(&none, None), r#"COPY (SELECT  FROM ONLY "s"."t") TO STDOUT (FORMAT binary)"#);
        assert_eq!(copy_in(&none.of.copied), r#"COPY "s"."t" FROM STDIN (FORMAT binary, FREEZE)"#);
    }

    #[test]
    fn a_part_neither_empties_its_table_nor_freezes() {
        let part = unit(vec![column("a", None)], 2);
        assert_eq!(
            copy_out(&part, None),
            r#"COPY (SELECT "a" FROM ONLY "s"."t" WHERE ctid >= '(5,0)'::tid) TO STDOUT (FORMAT binary)"#
        );
        assert_eq!(
            copy_out(&filtered(part.clone(), "a = 1 OR b"), None),
            "COPY (SELECT \"a\" FROM ONLY \"s\".\"t\" WHERE ctid >= '(5,0)'::tid AND (\na = 1 OR b\n)) \
             TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            copy_out(&filtered(unit(vec![column("a", None)], 1), "b"), None),
            "COPY (SELECT \"a\" FROM ONLY \"s\".\"t\" WHERE (\nb\n)) TO STDOUT (FORMAT binary)"
        );
        assert_eq!(copy_in(&part.of.copied), r#"COPY "s"."t" ("a") FROM STDIN (FORMAT binary)"#);
        assert_eq!(
            copy_out_in_order(&filtered(part.clone(), "b"), None),
            "COPY (SELECT ctid, \"a\" FROM ONLY \"s\".\"t\" WHERE ctid >= '(5,0)'::tid AND (\nb\n)) TO STDOUT (FORMAT binary)"
        );
        let migration = "m".parse().unwrap();
        assert_eq!(begin(&part, &migration), "BEGIN");
        assert!(begin(&unit(vec![], 1), &migration).starts_with(r#"BEGIN; TRUNCATE ONLY "s"."t"; DELETE"#));
    }

    #[test]
    fn only_the_wanted_rows_are_read_in_every_pass() {
        let wanted = |part_count| filtered(unit(vec![column("a", None)], part_count), "a = 1 OR b -- ours");
        let condition = "(\na = 1 OR b -- ours\n)) TO STDOUT (FORMAT binary)";
        let base = "7:7:".parse().unwrap();
        let (migration, part) = ("m".parse().unwrap(), wanted(2));
        let settle = Settle { copied: &part.of.copied, migration: &migration, base: &base };
        let whole = copy_out(&wanted(1), None);
        for out in [whole, copy_out(&part, None), copy_out(&part, Some(&base)), settle.kept_out(), settle.changed_out()]
        {
            assert!(out.ends_with(condition), "{out}");
        }
    }

    /// The id as it stands in a row: 32 bits of the snapshot's 64.
    #[test]
    fn a_part_read_under_a_later_snapshot_leaves_out_what_was_written_since() {
        let base = "4294967303:4294967310:4294967305".parse().unwrap();
        let out = copy_out(&unit(vec![column("a", None)], 2), Some(&base));
        assert!(out.contains("ctid >= '(5,0)'::tid AND pg_catalog.age(xmin) > pg_catalog.age('7'::xid))"), "{out}");
    }
}
