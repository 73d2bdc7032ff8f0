//! Rows into frontend messages, from the bytes they arrived in. Pure ("Message Formats" in the documentation).
//!
//! Values are copied twice and nothing is allocated for one: into their column's buffer, which is reused, and from
//! there into the message.

use bytes::{BufMut, BytesMut};

use crate::model::{Column, Datum, Tuple, binary};
use crate::wire::{COPY_HEADER, COPY_TRAILER};

/// `pg_type.oid` of what our parameters are.
pub(super) const TEXT: u32 = 25;
pub(super) const TEXT_ARRAY: u32 = 1009;
pub(super) const INT8: u32 = 20;
pub(super) const PG_LSN: u32 = 3220;
pub(super) const TIMESTAMPTZ: u32 = 1184;

/// Why a row cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// A value came in a binary form that its type's send function does not write.
    Binary,
    /// A value did not come: an UPDATE that moved the row into the publication's row filter left it as it was
    /// (PITFALLS 8 and 10), and under another replica identity than FULL the stream does not carry it.
    Unchanged,
}

/// Arrays under construction, one a column.
#[derive(Debug, Default)]
pub(super) struct Columns {
    columns: Vec<Elements>,
    used: usize,
    rows: i32,
}

#[derive(Debug, Default)]
struct Elements {
    /// The type of the array's elements: [`TEXT`], or that of values that came in its binary form.
    type_oid: u32,
    bytes: Vec<u8>,
    has_null: bool,
}

/// Memory kept for one column between groups. A group of large values gives the rest back.
const KEPT_BYTES_MAX: usize = 1 << 20;

impl Columns {
    /// Starts over with columns of these types.
    pub(super) fn start(&mut self, type_oids: impl Iterator<Item = u32>) {
        for column in &mut self.columns {
            column.bytes.clear();
            column.bytes.shrink_to(KEPT_BYTES_MAX);
            column.has_null = false;
        }
        (self.used, self.rows) = (0, 0);
        for type_oid in type_oids {
            if self.columns.len() == self.used {
                self.columns.push(Elements::default());
            }
            self.columns[self.used].type_oid = type_oid;
            self.used += 1;
        }
    }

    /// The types of the arrays.
    pub(super) fn types(&self) -> impl Iterator<Item = u32> {
        self.columns[..self.used].iter().map(|column| binary::array_of(column.type_oid).unwrap_or(TEXT_ARRAY))
    }

    /// Adds the values of `tuple`, whose columns are `described`, at those that `wanted` says, from array `first` on. Returns
    /// the next array.
    pub(super) fn add(
        &mut self,
        tuple: &Tuple,
        described: &[Column],
        first: usize,
        mut wanted: impl FnMut(usize) -> bool,
    ) -> Result<usize, Unwritable> {
        let mut next = first;
        for (at, (datum, column)) in tuple.iter().zip(described).enumerate() {
            if wanted(at) {
                self.columns[next].push(datum, column.type_oid)?;
                next += 1;
            }
        }
        Ok(next)
    }

    pub(super) fn end_row(&mut self) {
        self.rows += 1;
    }

    /// Each column as a parameter: length, then the array's binary form (`array_recv`).
    pub(super) fn write_arrays(&self, out: &mut BytesMut) {
        for column in &self.columns[..self.used] {
            put_length(out, |out| {
                out.put_i32(1);
                out.put_i32(i32::from(column.has_null));
                out.put_u32(column.type_oid);
                out.put_i32(self.rows);
                out.put_i32(1);
                out.put_slice(&column.bytes);
            });
        }
    }

    /// The only row's values as parameters of their own.
    pub(super) fn write_values(&self, out: &mut BytesMut) {
        debug_assert_eq!(self.rows, 1, "single values are for a single row");
        for column in &self.columns[..self.used] {
            out.put_slice(&column.bytes);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.used
    }
}

impl Elements {
    /// `type_oid`: of the value.
    fn push(&mut self, datum: Datum<'_>, type_oid: u32) -> Result<(), Unwritable> {
        let as_it_is = self.type_oid != TEXT;
        match datum {
            Datum::Text(_) if as_it_is => return Err(Unwritable::Binary),
            Datum::Text(value) => self.extend(value),
            Datum::Binary(value) if as_it_is => self.extend(value),
            Datum::Null => {
                self.bytes.put_i32(-1);
                self.has_null = true;
            }
            Datum::Binary(value) => {
                let start = self.bytes.len();
                self.bytes.put_u32(0);
                binary::write_text(type_oid, value, &mut self.bytes).map_err(|_| Unwritable::Binary)?;
                let length = u32::try_from(self.bytes.len() - start - 4).expect("PostgreSQL limits a value to 1 GB");
                self.bytes[start..start + 4].copy_from_slice(&length.to_be_bytes());
            }
            Datum::Unchanged => return Err(Unwritable::Unchanged),
        }
        Ok(())
    }

    fn extend(&mut self, value: &[u8]) {
        self.bytes.put_u32(u32::try_from(value.len()).expect("PostgreSQL limits a value to 1 GB"));
        self.bytes.extend_from_slice(value);
    }
}

/// A Parse message.
pub(super) fn parse(out: &mut BytesMut, name: &str, sql: &str, types: &[u32]) {
    message(out, b'P', |out| {
        put_string(out, name);
        put_string(out, sql);
        out.put_u16(u16::try_from(types.len()).expect("a table has at most 1,600 columns"));
        for oid in types {
            out.put_u32(*oid);
        }
    });
}

/// Close of a prepared statement. What is not there is closed without complaint.
pub(super) fn close(out: &mut BytesMut, name: &str) {
    message(out, b'C', |out| {
        out.put_u8(b'S');
        put_string(out, name);
    });
}

/// Bind of the unnamed portal with `count` binary parameters that `values` writes, then Execute.
pub(super) fn bind_execute(out: &mut BytesMut, name: &str, count: usize, values: impl FnOnce(&mut BytesMut)) {
    message(out, b'B', |out| {
        out.put_u8(0);
        put_string(out, name);
        out.put_u16(1);
        out.put_u16(1);
        out.put_u16(u16::try_from(count).expect("two values a column at most, of at most 1,600 columns"));
        values(out);
        out.put_u16(0);
    });
    message(out, b'E', |out| {
        out.put_u8(0);
        out.put_i32(0);
    });
}

pub(super) fn sync(out: &mut BytesMut) {
    message(out, b'S', |_| {});
}

pub(super) fn put_int8(out: &mut BytesMut, value: i64) {
    out.put_i32(8);
    out.put_i64(value);
}

pub(super) fn put_text(out: &mut BytesMut, text: &str) {
    put_length(out, |out| out.put_slice(text.as_bytes()));
}

pub(super) fn put_null(out: &mut BytesMut) {
    out.put_i32(-1);
}

/// How much of the rows one CopyData message holds: large enough that its header is nothing.
const COPY_MESSAGE_BYTES: usize = 64 << 10;

/// CopyData messages with the rows, whose columns are `described`, in COPY's text format, then CopyDone ("File Formats" under
/// COPY).
pub(super) fn copy_rows<'a>(
    out: &mut BytesMut,
    rows: impl Iterator<Item = &'a Tuple>,
    described: &[Column],
) -> Result<(), Unwritable> {
    copy_messages(out, rows, |out, row| copy_row(out, row, described))?;
    message(out, b'c', |_| {});
    Ok(())
}

/// The same in COPY's binary format, from values that all came so.
pub(super) fn copy_rows_binary<'a>(
    out: &mut BytesMut,
    rows: impl Iterator<Item = &'a Tuple>,
) -> Result<(), Unwritable> {
    message(out, b'd', |out| out.put_slice(COPY_HEADER));
    copy_messages(out, rows, copy_row_binary)?;
    message(out, b'd', |out| out.put_slice(COPY_TRAILER));
    message(out, b'c', |_| {});
    Ok(())
}

fn copy_messages<'a>(
    out: &mut BytesMut,
    rows: impl Iterator<Item = &'a Tuple>,
    write: impl Fn(&mut BytesMut, &Tuple) -> Result<(), Unwritable>,
) -> Result<(), Unwritable> {
    let mut rows = rows.peekable();
    while rows.peek().is_some() {
        let mut written = Ok(());
        message(out, b'd', |out| {
            let start = out.len();
            while written.is_ok() && out.len() - start < COPY_MESSAGE_BYTES {
                let Some(row) = rows.next() else { break };
                written = write(out, row);
            }
        });
        written?;
    }
    Ok(())
}

fn copy_row(out: &mut BytesMut, row: &Tuple, described: &[Column]) -> Result<(), Unwritable> {
    for (at, (datum, column)) in row.iter().zip(described).enumerate() {
        if at > 0 {
            out.put_u8(b'\t');
        }
        match datum {
            Datum::Null => out.put_slice(b"\\N"),
            Datum::Text(value) => copy_value(out, value),
            Datum::Binary(value) => {
                copy_value(out, &binary::to_text(column.type_oid, value).map_err(|_| Unwritable::Binary)?);
            }
            Datum::Unchanged => return Err(Unwritable::Unchanged),
        }
    }
    out.put_u8(b'\n');
    Ok(())
}

fn copy_row_binary(out: &mut BytesMut, row: &Tuple) -> Result<(), Unwritable> {
    out.put_u16(u16::try_from(row.column_count()).expect("a table has at most 1,600 columns"));
    for datum in row.iter() {
        match datum {
            Datum::Null => out.put_i32(-1),
            Datum::Binary(value) => {
                out.put_u32(u32::try_from(value.len()).expect("PostgreSQL limits a value to 1 GB"));
                out.put_slice(value);
            }
            Datum::Text(_) => return Err(Unwritable::Binary),
            Datum::Unchanged => return Err(Unwritable::Unchanged),
        }
    }
    Ok(())
}

/// A backslash before each backslash, and the three characters that end a column or a row by their letters.
fn copy_value(out: &mut BytesMut, value: &[u8]) {
    let mut rest = value;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')) {
        out.put_slice(&rest[..at]);
        out.put_u8(b'\\');
        out.put_u8(match rest[at] {
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            other => other,
        });
        rest = &rest[at + 1..];
    }
    out.put_slice(rest);
}

fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = i32::try_from(out.len() - start).expect("a group stays far below the protocol's 2 GB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Length, without itself, and body: how a parameter travels.
fn put_length(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_i32(0);
    body(out);
    let length = i32::try_from(out.len() - start - 4).expect("PostgreSQL limits a value to 1 GB");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

/// Names and statements come from catalogs, where nothing holds a zero byte.
fn put_string(out: &mut BytesMut, text: &str) {
    debug_assert!(!text.as_bytes().contains(&0), "a zero byte would end the string");
    out.put_slice(text.as_bytes());
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::tuple;
    use super::*;
    use crate::model::TupleBuilder;

    fn described(count: usize) -> Vec<Column> {
        let column =
            Column { name: "c".to_owned(), type_oid: 23, type_modifier: -1, in_identity: false, type_name: None };
        vec![column; count]
    }

    fn binary_row() -> Tuple {
        let mut builder = TupleBuilder::default();
        builder.push(Datum::Binary(&[0, 0, 0, 7])).push(Datum::Null);
        builder.finish()
    }

    #[test]
    fn binary_values_travel_as_they_are_or_as_their_text() {
        let mut out = BytesMut::new();
        copy_row_binary(&mut out, &binary_row()).unwrap();
        assert_eq!(out[..], [0, 2, 0, 0, 0, 4, 0, 0, 0, 7, 255, 255, 255, 255]);
        out.clear();
        copy_row(&mut out, &binary_row(), &described(2)).unwrap();
        assert_eq!(out[..], b"7\t\\N\n"[..]);
        let mut columns = Columns::default();
        columns.start([TEXT, TEXT].into_iter());
        columns.add(&binary_row(), &described(2), 0, |_| true).unwrap();
        assert_eq!(columns.columns[0].bytes, [0, 0, 0, 1, b'7']);
        columns.start([23, TEXT].into_iter());
        columns.add(&binary_row(), &described(2), 0, |_| true).unwrap();
        assert_eq!(columns.columns[0].bytes, [0, 0, 0, 4, 0, 0, 0, 7]);
        assert!(columns.types().eq([1007, TEXT_ARRAY]));
        assert_eq!(columns.add(&tuple(&["7", "-"]), &described(2), 0, |_| true), Err(Unwritable::Binary));
    }

    #[test]
    fn a_column_becomes_a_binary_array_of_text() {
        let mut columns = Columns::default();
        columns.start([TEXT].into_iter());
        for row in [["1", "ab"], ["2", "-"]] {
            columns.add(&tuple(&row), &described(2), 0, |at| at == 1).unwrap();
            columns.end_row();
        }
        let mut out = BytesMut::new();
        columns.write_arrays(&mut out);
        let expected = [
            &[0, 0, 0, 30][..],
            &[0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 25, 0, 0, 0, 2, 0, 0, 0, 1],
            &[0, 0, 0, 2, b'a', b'b', 255, 255, 255, 255],
        ];
        assert_eq!(out[..], expected.concat()[..]);
    }

    #[test]
    fn copy_escapes_what_would_end_a_value() {
        let mut out = BytesMut::new();
        copy_row(&mut out, &tuple(&["a\tb\\\n\r", "-", "\\N", ""]), &described(4)).unwrap();
        assert_eq!(out[..], b"a\\tb\\\\\\n\\r\t\\N\t\\\\N\t\n"[..]);
    }

    #[test]
    fn messages_carry_their_length() {
        let mut out = BytesMut::new();
        sync(&mut out);
        copy_rows(&mut out, [tuple(&["1"])].iter(), &described(1)).unwrap();
        assert_eq!(out[..], b"S\0\0\0\x04d\0\0\0\x061\nc\0\0\0\x04"[..]);
    }
}
