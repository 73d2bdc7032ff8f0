//! A row of the stream, kept as the bytes it arrived in.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// One value of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Datum<'a> {
    Null,
    /// A TOASTed value that the UPDATE did not touch and the stream therefore does not carry. Never a NULL.
    Unchanged,
    /// The type's text output.
    Text(&'a [u8]),
    /// The type's binary output (`typsend`).
    Binary(&'a [u8]),
}

/// A row: pgoutput's TupleData (`Int16` count, then per column `n`, `u`, `t len bytes` or `b len bytes`) as one shared
/// slice of the buffer it arrived in. Checked when made, so reading it cannot fail.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Bytes", into = "Bytes")]
pub struct Tuple(Bytes);

#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("read a tuple of {length_bytes} bytes: {what}")]
pub struct MalformedTuple {
    pub length_bytes: usize,
    pub what: &'static str,
}

const COUNT_BYTES: usize = 2;

impl Tuple {
    /// Takes the tuple that stands at the start of `bytes` and leaves `bytes` behind it.
    pub fn split_from(bytes: &mut Bytes) -> Result<Self, MalformedTuple> {
        let length = Self::measure(bytes)?;
        Ok(Self(bytes.split_to(length)))
    }

    pub fn column_count(&self) -> usize {
        usize::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    /// The values in column order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Datum<'_>> {
        Datums { rest: &self.0[COUNT_BYTES..], left: self.column_count() }
    }

    /// The bytes it holds, for accounting.
    pub fn size_bytes(&self) -> usize {
        self.0.len()
    }

    /// The wire form, beginning with the column count.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    fn measure(bytes: &[u8]) -> Result<usize, MalformedTuple> {
        let wrong = |what| MalformedTuple { length_bytes: bytes.len(), what };
        let count = bytes.first_chunk::<COUNT_BYTES>().ok_or_else(|| wrong("no column count"))?;
        let mut at = COUNT_BYTES;
        for _ in 0..u16::from_be_bytes(*count) {
            let kind = *bytes.get(at).ok_or_else(|| wrong("fewer columns than counted"))?;
            at += 1;
            match kind {
                b'n' | b'u' => {}
                b't' | b'b' => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let length = *rest.first_chunk::<4>().ok_or_else(|| wrong("a value without length"))?;
                    let length = usize::try_from(i32::from_be_bytes(length)).map_err(|_| wrong("a negative length"))?;
                    if rest.len() - 4 < length {
                        return Err(wrong("a value shorter than its length"));
                    }
                    at += 4 + length;
                }
                _ => return Err(wrong("an unknown kind of value")),
            }
        }
        Ok(at)
    }
}

impl TryFrom<Bytes> for Tuple {
    type Error = MalformedTuple;

    fn try_from(mut bytes: Bytes) -> Result<Self, MalformedTuple> {
        let tuple = Self::split_from(&mut bytes)?;
        if bytes.is_empty() {
            Ok(tuple)
        } else {
            Err(MalformedTuple { length_bytes: bytes.len(), what: "bytes behind the last column" })
        }
    }
}

impl From<Tuple> for Bytes {
    fn from(tuple: Tuple) -> Self {
        tuple.0
    }
}

/// Row values do not belong in logs, so `Debug` shows the shape only.
impl fmt::Debug for Tuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tuple({} columns, {} bytes)", self.column_count(), self.0.len())
    }
}

impl fmt::Debug for Datum<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Unchanged => f.write_str("Unchanged"),
            Self::Text(value) => write!(f, "Text({} bytes)", value.len()),
            Self::Binary(value) => write!(f, "Binary({} bytes)", value.len()),
        }
    }
}

struct Datums<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Datums<'a> {
    type Item = Datum<'a>;

    fn next(&mut self) -> Option<Datum<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (kind, rest) = self.rest.split_first().expect("the tuple was measured when it was made");
        if matches!(kind, b'n' | b'u') {
            self.rest = rest;
            return Some(if *kind == b'n' { Datum::Null } else { Datum::Unchanged });
        }
        let (length, rest) = rest.split_first_chunk::<4>().expect("the tuple was measured when it was made");
        let (value, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        self.rest = rest;
        Some(if *kind == b't' { Datum::Text(value) } else { Datum::Binary(value) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Datums<'_> {}

/// Writes a tuple value by value: for transforms and tests.
pub struct TupleBuilder {
    bytes: BytesMut,
    count: u16,
}

impl Default for TupleBuilder {
    fn default() -> Self {
        let mut bytes = BytesMut::new();
        bytes.put_u16(0);
        Self { bytes, count: 0 }
    }
}

impl TupleBuilder {
    pub fn push(&mut self, datum: Datum<'_>) -> &mut Self {
        let mut value = |kind: u8, value: &[u8]| {
            self.bytes.put_u8(kind);
            self.bytes.put_u32(u32::try_from(value.len()).expect("PostgreSQL limits a value to 1 GB"));
            self.bytes.put_slice(value);
        };
        match datum {
            Datum::Null => self.bytes.put_u8(b'n'),
            Datum::Unchanged => self.bytes.put_u8(b'u'),
            Datum::Text(text) => value(b't', text),
            Datum::Binary(binary) => value(b'b', binary),
        }
        self.count = self.count.checked_add(1).expect("PostgreSQL limits a table to 1,600 columns");
        self
    }

    pub fn finish(mut self) -> Tuple {
        self.bytes[..COUNT_BYTES].copy_from_slice(&self.count.to_be_bytes());
        Tuple(self.bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tuple {
        let mut builder = TupleBuilder::default();
        builder.push(Datum::Text(b"1")).push(Datum::Null).push(Datum::Unchanged).push(Datum::Binary(b"\x00\x01"));
        builder.finish()
    }

    #[test]
    fn reads_back_what_was_written() {
        let values: Vec<Datum<'_>> = vec![Datum::Text(b"1"), Datum::Null, Datum::Unchanged, Datum::Binary(b"\x00\x01")];
        let tuple = sample();
        assert!(tuple.iter().eq(values));
        assert_eq!(tuple.iter().len(), 4);
    }

    #[test]
    fn every_truncation_is_refused_and_none_panics() {
        let whole = sample().as_bytes().clone();
        for length in 0..whole.len() {
            assert!(Tuple::try_from(whole.slice(..length)).is_err(), "{length}");
        }
    }

    #[test]
    fn debug_output_holds_no_values() {
        let mut builder = TupleBuilder::default();
        builder.push(Datum::Text(b"secret"));
        assert!(!format!("{:?}", builder.finish()).contains("secret"));
    }
}
