//! How the rows of one table shape are written: worked out once a shape, used for every row.

use std::sync::Arc;

use crate::model::{Datum, Relation, ReplicaIdentity, TableName, Tuple};

use super::value::{Codec, Unwritable};
use super::{Error, Placement, json};

pub(super) struct TablePlan {
    pub(super) relation: Arc<Relation>,
    pub(super) topic: Arc<str>,
    /// `schema.table`, as Debezium's transaction topic names it.
    pub(super) collection: Arc<str>,
    /// `"schema":"…","table":"…"`.
    pub(super) source: Vec<u8>,
    columns: Vec<ColumnPlan>,
    /// Places of the key's columns, in key order. Empty: the records have no key.
    key: Vec<usize>,
}

struct ColumnPlan {
    /// `"name":`.
    name: Vec<u8>,
    codec: Codec,
}

impl TablePlan {
    /// `primary_key` is what the catalog says; it decides where the stream does not tell, under FULL and NOTHING.
    pub(super) fn new(
        relation: &Arc<Relation>,
        primary_key: Option<&[String]>,
        topic: Arc<str>,
    ) -> Result<Self, Error> {
        let TableName { schema, name } = &relation.name;
        let mut source = b"\"schema\":".to_vec();
        json::string(&mut source, schema);
        source.extend_from_slice(b",\"table\":");
        json::string(&mut source, name);
        let columns = relation.columns.iter().map(|column| {
            let mut name = Vec::new();
            json::string(&mut name, &column.name);
            name.push(b':');
            ColumnPlan { name, codec: Codec::of(column.type_oid) }
        });
        Ok(Self {
            topic,
            collection: format!("{schema}.{name}").into(),
            source,
            columns: columns.collect(),
            key: key_columns(relation, primary_key)?,
            relation: Arc::clone(relation),
        })
    }

    pub(super) const fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// Rows without key keep their order only in one partition. That matters once they can be updated or deleted, which
    /// needs replica identity FULL; a log that is only appended to is spread.
    pub(super) fn placement(&self) -> Placement {
        let ordered = !self.has_key() && self.relation.identity == ReplicaIdentity::Full;
        if ordered { Placement::First } else { Placement::ByKey }
    }

    /// The key as an object. A value that `row` does not carry (a TOASTed key that did not change) is `fallback`'s.
    pub(super) fn write_key(&self, row: &Tuple, fallback: Option<&Tuple>, to: &mut Writer<'_>) -> Result<(), Error> {
        to.out.push(b'{');
        for (nth, &index) in self.key.iter().enumerate() {
            if nth > 0 {
                to.out.push(b',');
            }
            self.write_column(index, datum(row, fallback, index), to)?;
        }
        to.out.push(b'}');
        Ok(())
    }

    /// The row as an object. A value that `row` does not carry is `fallback`'s, or Debezium's placeholder.
    pub(super) fn write_row(&self, row: &Tuple, fallback: Option<&Tuple>, to: &mut Writer<'_>) -> Result<(), Error> {
        assert_eq!(row.column_count(), self.columns.len(), "a row of {} is not of its shape", self.relation.name);
        let mut fallback = fallback.map(Tuple::iter);
        to.out.push(b'{');
        for (index, value) in row.iter().enumerate() {
            let old = fallback.as_mut().and_then(Iterator::next);
            if index > 0 {
                to.out.push(b',');
            }
            self.write_column(index, if value == Datum::Unchanged { old.unwrap_or(value) } else { value }, to)?;
        }
        to.out.push(b'}');
        Ok(())
    }

    /// Whether `new` has another key than `old`, which the stream sent because it may.
    pub(super) fn key_differs(&self, old: &Tuple, new: &Tuple) -> bool {
        self.key.iter().any(|&index| {
            let value = datum(new, None, index);
            value != Datum::Unchanged && value != datum(old, None, index)
        })
    }

    fn write_column(&self, index: usize, value: Datum<'_>, to: &mut Writer<'_>) -> Result<(), Error> {
        let column = &self.columns[index];
        to.out.extend_from_slice(&column.name);
        match value {
            Datum::Null => to.out.extend_from_slice(b"null"),
            Datum::Unchanged => {
                to.unavailable += 1;
                column.codec.write_unavailable(to.out);
            }
            Datum::Text(text) => {
                column.codec.write(text, to.out, to.scratch).map_err(|what| self.unwritable(index, what))?;
            }
            Datum::Binary(_) => {
                return Err(Error::BinaryValue { table: self.table(), column: self.column_name(index) });
            }
        }
        Ok(())
    }

    #[cold]
    fn unwritable(&self, index: usize, what: Unwritable) -> Error {
        let (table, column) = (self.table(), self.column_name(index));
        match what {
            Unwritable::Unreadable => Error::UnreadableValue { table, column },
            Unwritable::NotUtf8 => Error::NotUtf8 { table, column },
        }
    }

    fn table(&self) -> TableName {
        self.relation.name.clone()
    }

    fn column_name(&self, index: usize) -> String {
        self.relation.columns[index].name.clone()
    }
}

/// Where a row is written.
pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) scratch: &'a mut Vec<u8>,
    /// How many values the stream did not carry.
    pub(super) unavailable: u64,
}

fn datum<'a>(row: &'a Tuple, fallback: Option<&'a Tuple>, index: usize) -> Datum<'a> {
    let at = |row: &'a Tuple| row.iter().nth(index).expect("a row has the columns of its shape");
    match (at(row), fallback) {
        (Datum::Unchanged, Some(fallback)) => at(fallback),
        (value, _) => value,
    }
}

/// DEFAULT and INDEX flag their columns, and only those are in old rows. FULL flags all of them and NOTHING none: there
/// the catalog's primary key decides (PITFALLS: replica identity forms).
fn key_columns(relation: &Relation, primary_key: Option<&[String]>) -> Result<Vec<usize>, Error> {
    match relation.identity {
        ReplicaIdentity::Default | ReplicaIdentity::Index => {
            Ok((0..relation.columns.len()).filter(|&index| relation.columns[index].in_identity).collect())
        }
        ReplicaIdentity::Full | ReplicaIdentity::Nothing => {
            let place = |name: &String| {
                relation
                    .columns
                    .iter()
                    .position(|column| column.name == *name)
                    .ok_or_else(|| Error::KeyColumnMissing { table: relation.name.clone(), column: name.clone() })
            };
            primary_key.unwrap_or_default().iter().map(place).collect()
        }
    }
}
