//! The statements, as text. Pure.
//!
//! Values travel as text and become their type by its own input function, or in the binary form in which they came: the
//! statements are the same. Key comparisons are the column's own equality, so an index serves them. UPDATE and DELETE
//! count their rows and divide by zero when the count is wrong: that fails the transaction in the same round trip,
//! before its COMMIT. In a pipeline that commits nothing they do not, and their answers are looked at instead.

use crate::model::quote_identifier;

use super::fold::Truncate;
use super::key::Present;
use super::table::{RowKey, Table, TargetColumn};

/// What distinguishes the statements of one table.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Shape {
    /// `INSERT … SELECT unnest(…)`: an array a column.
    Insert,
    /// `COPY … FROM STDIN`: no parameters.
    Copy,
    /// The same in binary format.
    CopyBinary,
    /// An array for each of [`update_columns`], then the count.
    Update(Present, Reach),
    /// An array for each key column of the old rows, then one for each value present in the new, then the count.
    Move(Present),
    /// An array for each key column, then the count.
    Delete(Reach),
    /// By all values; `nulls` says which old values are NULL. A text for each old value that is not, then one for each
    /// value present in the new row, then the count.
    UpdateOne { present: Present, nulls: Box<[bool]> },
    /// A text for each old value that is not NULL, then the count.
    DeleteOne { nulls: Box<[bool]> },
}

/// Where the rows of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Reach {
    Anywhere,
    /// Between two values of the only key column, which are parameters behind the arrays.
    Between,
}

pub(super) fn text_of(table: &Table, shape: &Shape) -> String {
    match of(table, shape) {
        Text::Adds(statement) => statement,
        Text::Finds { statement, parameter_count } => counted(&statement, parameter_count),
    }
}

/// The same without the count of its rows, which is no parameter then: whoever runs it looks how many it found.
pub(super) fn uncounted_text_of(table: &Table, shape: &Shape) -> String {
    let (Text::Adds(statement) | Text::Finds { statement, .. }) = of(table, shape);
    statement
}

enum Text {
    Adds(String),
    /// It has to find as many rows as it is given.
    Finds {
        statement: String,
        parameter_count: usize,
    },
}

fn of(table: &Table, shape: &Shape) -> Text {
    match shape {
        Shape::Insert => Text::Adds(insert(table)),
        Shape::Copy => Text::Adds(copy(table, "")),
        Shape::CopyBinary => Text::Adds(copy(table, " (FORMAT binary)")),
        Shape::Update(present, reach) => update(table, present, *reach),
        Shape::Move(present) => move_rows(table, present),
        Shape::Delete(reach) => delete(table, *reach),
        Shape::UpdateOne { present, nulls } => update_one(table, present, nulls),
        Shape::DeleteOne { nulls } => delete_one(table, nulls),
    }
}

/// Which columns [`Shape::Update`] needs values of: the key and what is set.
pub(super) fn update_columns(table: &Table, present: &Present) -> Vec<bool> {
    let key = key_columns(table);
    (0..table.columns.len()).map(|at| key.contains(&at) || present.has(at)).collect()
}

/// Whether an update with these values has anything to set.
pub(super) fn sets_anything(table: &Table, present: &Present) -> bool {
    let key = key_columns(table);
    table
        .columns
        .iter()
        .enumerate()
        .any(|(at, column)| present.has(at) && !key.contains(&at) && !column.identity_always)
}

pub(super) fn key_columns(table: &Table) -> &[usize] {
    match &table.key {
        RowKey::Columns(columns) => columns,
        RowKey::WholeRow | RowKey::Nothing => &[],
    }
}

/// TRUNCATE for all its tables at once, as the source did it, or what comes to the same.
pub(super) fn truncate(truncate: &Truncate) -> Vec<String> {
    let tables = truncate.tables.iter().map(|table| table.own_rows());
    // A leaf's neighbours may refer to what is truncated with it.
    if truncate.partial || !truncate.leaves.is_empty() {
        let of_leaves = truncate.leaves.iter().map(|(table, rows)| format!("{} WHERE {rows}", table.own_rows()));
        return tables.chain(of_leaves).map(|rows| format!("DELETE FROM {rows}")).collect();
    }
    if truncate.tables.is_empty() {
        return Vec::new();
    }
    let restart = if truncate.restart_identity { " RESTART IDENTITY" } else { "" };
    vec![format!("TRUNCATE {}{restart}", tables.collect::<Vec<_>>().join(", "))]
}

fn insert(table: &Table) -> String {
    let used = vec![true; table.columns.len()];
    let mut arrays = Arrays::default();
    let values: Vec<String> = table.columns.iter().map(|column| format!("{}{}", arrays.next(), column.cast)).collect();
    debug_assert_eq!(arrays.count, used.len(), "an array a column");
    format!(
        "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {}",
        table.target.quoted(),
        column_list(table),
        values.join(", "),
        arrays.from()
    )
}

fn copy(table: &Table, format: &str) -> String {
    let columns = if table.columns.is_empty() { String::new() } else { format!(" ({})", column_list(table)) };
    format!("COPY {}{columns} FROM STDIN{format}", table.target.quoted())
}

fn update(table: &Table, present: &Present, reach: Reach) -> Text {
    let key = key_columns(table);
    let mut arrays = Arrays::default();
    let (mut set, mut found) = (Vec::new(), Vec::new());
    for (at, column) in table.columns.iter().enumerate() {
        if key.contains(&at) {
            found.push(equal(column, &arrays.next()));
        } else if present.has(at) {
            assign_or_check(column, &arrays.next(), &mut set, &mut found);
        }
    }
    let parameter_count = reach.narrow(table, arrays.count, &mut found);
    let statement = format!(
        "UPDATE {} AS t SET {} FROM {} WHERE {}",
        table.own_rows(),
        set.join(", "),
        arrays.from(),
        found.join(" AND ")
    );
    Text::Finds { statement, parameter_count }
}

fn move_rows(table: &Table, present: &Present) -> Text {
    let mut arrays = Arrays::default();
    let (mut set, mut found) = (Vec::new(), Vec::new());
    for at in key_columns(table) {
        found.push(equal(&table.columns[*at], &arrays.next()));
    }
    for (at, column) in table.columns.iter().enumerate() {
        if present.has(at) {
            assign_or_check(column, &arrays.next(), &mut set, &mut found);
        }
    }
    let statement = format!(
        "UPDATE {} AS t SET {} FROM {} WHERE {}",
        table.own_rows(),
        set.join(", "),
        arrays.from(),
        found.join(" AND ")
    );
    Text::Finds { statement, parameter_count: arrays.count }
}

fn delete(table: &Table, reach: Reach) -> Text {
    let mut arrays = Arrays::default();
    let mut found: Vec<String> =
        key_columns(table).iter().map(|at| equal(&table.columns[*at], &arrays.next())).collect();
    let parameter_count = reach.narrow(table, arrays.count, &mut found);
    let statement =
        format!("DELETE FROM {} AS t USING {} WHERE {}", table.own_rows(), arrays.from(), found.join(" AND "));
    Text::Finds { statement, parameter_count }
}

impl Reach {
    /// Adds its conditions to those that find a row. Returns how many parameters there are then.
    fn narrow(self, table: &Table, parameters: usize, found: &mut Vec<String>) -> usize {
        let (low, high) = (parameters + 1, parameters + 2);
        match (self, key_columns(table)) {
            (Self::Between, [at]) => {
                let name = &table.columns[*at].name;
                found.push(format!(
                    "t.{name} OPERATOR(pg_catalog.>=) ${low} AND t.{name} OPERATOR(pg_catalog.<=) ${high}"
                ));
                high
            }
            (Self::Between | Self::Anywhere, _) => parameters,
        }
    }
}

fn update_one(table: &Table, present: &Present, nulls: &[bool]) -> Text {
    let (one, mut parameter) = one_row(table, nulls);
    let (mut set, mut found) = (Vec::new(), Vec::new());
    for (at, column) in table.columns.iter().enumerate() {
        if present.has(at) {
            parameter += 1;
            assign_or_check(column, &format!("${parameter}"), &mut set, &mut found);
        }
    }
    let kept: String = found.iter().map(|condition| format!(" AND {condition}")).collect();
    let statement = format!(
        "UPDATE {} AS t SET {} FROM ({one}) AS f WHERE t.ctid = f.place AND t.tableoid = f.part{kept}",
        table.own_rows(),
        set.join(", ")
    );
    Text::Finds { statement, parameter_count: parameter }
}

fn delete_one(table: &Table, nulls: &[bool]) -> Text {
    let (one, parameters) = one_row(table, nulls);
    let statement = format!(
        "DELETE FROM {} AS t USING ({one}) AS f WHERE t.ctid = f.place AND t.tableoid = f.part",
        table.own_rows()
    );
    Text::Finds { statement, parameter_count: parameters }
}

/// Where one of the rows with these values stands, and how many parameters that took.
///
/// The text output decides, because equality may be coarser (numeric 1.0 and 1.00, citext) and not every type has it.
/// `format` is used for it because a cast of char(n) to text cuts its blanks. Equality stands beside it for indexes.
fn one_row(table: &Table, nulls: &[bool]) -> (String, usize) {
    let mut parameter = 0;
    let mut found = Vec::new();
    for (column, null) in table.columns.iter().zip(nulls) {
        let name = &column.name;
        if *null {
            found.push(format!("s.{name} IS NULL"));
            continue;
        }
        parameter += 1;
        if column.indexable {
            found.push(format!("s.{name} {} ${parameter}{}", column.equals, column.cast));
        }
        found.push(format!("pg_catalog.format('%s', s.{name}) COLLATE pg_catalog.\"C\" = ${parameter}"));
    }
    let found = if found.is_empty() { "true".to_owned() } else { found.join(" AND ") };
    let own = table.own_rows();
    (format!("SELECT s.ctid AS place, s.tableoid AS part FROM {own} AS s WHERE {found} LIMIT 1"), parameter)
}

/// UPDATE cannot set a column that is GENERATED ALWAYS AS IDENTITY. It is compared instead, so that the one statement
/// that can change it (`SET column = DEFAULT`) is found out and never lost.
fn assign_or_check(column: &TargetColumn, value: &str, set: &mut Vec<String>, found: &mut Vec<String>) {
    if column.identity_always {
        found.push(equal(column, value));
    } else {
        set.push(format!("{} = {value}{}", column.name, column.cast));
    }
}

fn equal(column: &TargetColumn, value: &str) -> String {
    format!("t.{} {} {value}{}", column.name, column.equals, column.cast)
}

fn counted(statement: &str, parameters: usize) -> String {
    let expected = parameters + 1;
    format!(
        "WITH done AS ({statement} RETURNING 1) SELECT 1 / (pg_catalog.count(*) = ${expected})::pg_catalog.int4 FROM done"
    )
}

fn column_list(table: &Table) -> String {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    names.join(", ")
}

/// Parameters that are arrays, a column each, read side by side.
#[derive(Default)]
struct Arrays {
    count: usize,
}

impl Arrays {
    /// The element of the next array.
    fn next(&mut self) -> String {
        self.count += 1;
        format!("u.c{}", self.count)
    }

    /// Among what is selected, elements are handed on as they are read (`ProjectSet`). `unnest` in FROM would first put
    /// those of each array into a tuplestore of its own.
    fn from(&self) -> String {
        let item = |number| format!("pg_catalog.unnest(${number}) AS c{number}");
        let items: Vec<String> = (1..=self.count).map(item).collect();
        format!("(SELECT {}) AS u", items.join(", "))
    }
}

/// `::"schema"."type"`.
pub(super) fn cast_to(schema: &str, name: &str) -> String {
    format!("::{}.{}", quote_identifier(schema), quote_identifier(name))
}
