//! Dead letters: a change that the target refused, kept beside the rows with everything that is known of it.

use serde_json::{Map, Value};

use crate::model::{Change, ChangeKind, Datum, Transaction, Tuple, binary};
use crate::wire::ServerError;

use super::encode::{self, TEXT};
use super::session::{Script, Statement, Target};
use super::table::Table;

/// A change may come again only in a transaction that was rolled back, so it is never there already.
const INSERT: &str = "INSERT INTO changeover.dead_letter (migration, commit_end, ordinal, xid, committed_at, \
     table_schema, table_name, op, sqlstate, reason, old, new) VALUES ($1, $2::pg_catalog.pg_lsn, $3::pg_catalog.int8, \
     $4::pg_catalog.int8, pg_catalog.to_timestamp($5::pg_catalog.float8), $6, $7, $8, $9, $10, $11::pg_catalog.jsonb, \
     $12::pg_catalog.jsonb)";

const PARAMETERS: usize = 12;

/// Whether the row is what the server refused, and not the statement, the session or the moment: integrity constraints,
/// values a type does not take, rows that were not found, and what a trigger raised.
pub(super) fn is_about_the_row(error: &ServerError) -> bool {
    const RAISED: &str = "P0001";
    let code = error.sqlstate();
    code.starts_with("22") || code.starts_with("23") || code == RAISED
}

/// Whether a change can be set aside: TRUNCATE has no row.
pub(super) fn has_row(change: &Change) -> bool {
    op_of(change).is_some()
}

fn op_of(change: &Change) -> Option<&'static str> {
    match &change.kind {
        ChangeKind::Insert { .. } => Some("insert"),
        ChangeKind::Update { .. } => Some("update"),
        ChangeKind::Delete { .. } => Some("delete"),
        ChangeKind::Truncate { .. } | ChangeKind::Message { .. } => None,
    }
}

fn rows_of(change: &Change) -> (Option<&Tuple>, Option<&Tuple>) {
    match &change.kind {
        ChangeKind::Insert { new, .. } => (None, Some(new)),
        ChangeKind::Update { old, new, .. } => (old.as_ref().map(|old| &old.tuple), Some(new)),
        ChangeKind::Delete { old, .. } => (Some(&old.tuple), None),
        ChangeKind::Truncate { .. } | ChangeKind::Message { .. } => (None, None),
    }
}

impl Target {
    /// Sets aside change `ordinal` of a transaction.
    pub(super) fn set_aside<L>(
        &mut self,
        script: &mut Script<L>,
        transaction: &Transaction,
        (ordinal, change): (u64, &Change),
        table: &Table,
        error: &ServerError,
        label: L,
    ) {
        let (old, new) = rows_of(change);
        let name = self.prepared(script, Statement::Fixed(INSERT), || (INSERT.to_owned(), vec![TEXT; PARAMETERS]));
        let values = [
            Some(self.migration().to_owned()),
            Some(transaction.end_at_least().to_string()),
            Some(ordinal.to_string()),
            Some(transaction.xid.to_string()),
            Some((transaction.committed_at_us as f64 / 1e6).to_string()),
            Some(table.member.schema.clone()),
            Some(table.member.name.clone()),
            op_of(change).map(str::to_owned),
            Some(error.sqlstate().to_owned()),
            Some(error.message()),
            old.map(|row| json(row, table)),
            new.map(|row| json(row, table)),
        ];
        encode::bind_execute(&mut script.out, &name, PARAMETERS, |out| {
            for value in &values {
                match value {
                    Some(value) => encode::put_text(out, value),
                    None => encode::put_null(out),
                }
            }
        });
        script.labels.push(label);
    }
}

/// `{"column": "text form"}`; NULL is null, and what was not sent is missing.
fn json(row: &Tuple, table: &Table) -> String {
    let mut object = Map::new();
    for (datum, column) in row.iter().zip(&table.relation.columns) {
        let value = match datum {
            Datum::Null => Value::Null,
            Datum::Text(text) => Value::String(String::from_utf8_lossy(text).into_owned()),
            Datum::Binary(value) => match binary::to_text(column.type_oid, value) {
                Ok(text) => Value::String(String::from_utf8_lossy(&text).into_owned()),
                Err(_malformed) => continue,
            },
            Datum::Unchanged => continue,
        };
        object.insert(column.name.clone(), value);
    }
    Value::Object(object).to_string()
}
