//! One value: from PostgreSQL's text output to JSON, by the type's OID.
//!
//! Numbers stay numbers where JSON can hold them exactly; everything that JSON cannot say (NaN, infinite dates, years
//! before Christ, exact decimals, intervals) is PostgreSQL's own text. `schemas/README.md` has the table.

use super::{array, json};

/// Debezium's stand-in for a TOASTed value that the stream does not carry.
pub(super) const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// How values of one type are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Codec {
    One(Scalar),
    Array(Scalar),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    Integer,
    Boolean,
    Float,
    Text,
    Bytes,
}

/// Why a value could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unwritable {
    /// Not what the type prints.
    Unreadable,
    NotUtf8,
}

impl Codec {
    /// By the OIDs of `pg_type.dat`, which are fixed. Types that are not built in are text.
    pub(super) const fn of(type_oid: u32) -> Self {
        use Scalar::{Boolean, Bytes, Float, Integer, Text};
        match type_oid {
            // int8, int2, int4, oid
            20 | 21 | 23 | 26 => Self::One(Integer),
            16 => Self::One(Boolean),
            // float4, float8
            700 | 701 => Self::One(Float),
            17 => Self::One(Bytes),
            // int2[], int4[], int8[], oid[]
            1005 | 1007 | 1016 | 1028 => Self::Array(Integer),
            1000 => Self::Array(Boolean),
            1021 | 1022 => Self::Array(Float),
            1001 => Self::Array(Bytes),
            // xml[], json[], "char"[], name[], text[], bpchar[], varchar[]
            143 | 199 | 1002 | 1003 | 1009 | 1014 | 1015 => Self::Array(Text),
            // cidr[], money[], macaddr8[], macaddr[], inet[]
            651 | 791 | 775 | 1040 | 1041 => Self::Array(Text),
            // timestamp[], date[], time[], timestamptz[], interval[], numeric[], timetz[]
            1115 | 1182 | 1183 | 1185 | 1187 | 1231 | 1270 => Self::Array(Text),
            // bit[], varbit[], uuid[], pg_lsn[], tsvector[], jsonb[]
            1561 | 1563 | 2951 | 3221 | 3643 | 3807 => Self::Array(Text),
            _ => Self::One(Text),
        }
    }

    /// Writes the value whose text output is `text`. `scratch` is overwritten.
    pub(super) fn write(self, text: &[u8], out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Self::One(scalar) => scalar.write(text, out, scratch),
            Self::Array(scalar) if array::is_flat(text) => array::write(text, scalar, out, scratch),
            // Several dimensions or other lower bounds than 1: the text says so, a JSON array would not.
            Self::Array(_) => Scalar::Text.write(text, out, scratch),
        }
    }

    /// What stands for a value that the stream does not carry: a consumer that decodes the type's usual form can.
    pub(super) fn write_unavailable(self, out: &mut Vec<u8>) {
        match self {
            Self::One(Scalar::Bytes) => json::base64(out, UNAVAILABLE.as_bytes()),
            Self::One(Scalar::Integer | Scalar::Boolean | Scalar::Float | Scalar::Text) => {
                json::string(out, UNAVAILABLE)
            }
            Self::Array(_) => {
                out.push(b'[');
                json::string(out, UNAVAILABLE);
                out.push(b']');
            }
        }
    }
}

impl Scalar {
    pub(super) fn write(self, text: &[u8], out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Unwritable> {
        match self {
            Self::Integer if is_integer(text) => out.extend_from_slice(text),
            Self::Float if is_number(text) => out.extend_from_slice(text),
            // JSON has no word for them.
            Self::Float if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") => quoted(text, out)?,
            Self::Boolean if text == b"t" => out.extend_from_slice(b"true"),
            Self::Boolean if text == b"f" => out.extend_from_slice(b"false"),
            Self::Text => quoted(text, out)?,
            Self::Bytes => {
                read_hex(text, scratch)?;
                json::base64(out, scratch);
            }
            Self::Integer | Self::Float | Self::Boolean => return Err(Unwritable::Unreadable),
        }
        Ok(())
    }
}

fn quoted(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
    json::string(out, str::from_utf8(text).map_err(|_| Unwritable::NotUtf8)?);
    Ok(())
}

fn is_integer(text: &[u8]) -> bool {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let padded = digits.len() > 1 && digits[0] == b'0';
    !digits.is_empty() && !padded && digits.iter().all(u8::is_ascii_digit)
}

/// What float4out and float8out print for finite values, which is always a JSON number: `-0`, `0.1`, `1e+20`.
fn is_number(text: &[u8]) -> bool {
    let (mantissa, exponent) = match text.iter().position(|byte| *byte == b'e') {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, fraction) = match mantissa.iter().position(|byte| *byte == b'.') {
        Some(at) => (&mantissa[..at], Some(&mantissa[at + 1..])),
        None => (mantissa, None),
    };
    let digits = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    is_integer(whole)
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|exponent| {
            digits(exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent))
        })
}

/// `\x` and hexadecimal digits: `bytea_output = hex`, which every connection of ours pins.
fn read_hex(text: &[u8], out: &mut Vec<u8>) -> Result<(), Unwritable> {
    let digits = text.strip_prefix(b"\\x").ok_or(Unwritable::Unreadable)?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Unwritable::Unreadable);
    }
    out.clear();
    out.reserve(pairs.len());
    let mut wrong = false;
    out.extend(pairs.iter().map(|[high, low]| {
        let (high, low) = (HEX_VALUES[usize::from(*high)], HEX_VALUES[usize::from(*low)]);
        wrong |= (high | low) & 0xF0 != 0;
        high << 4 | low & 15
    }));
    if wrong { Err(Unwritable::Unreadable) } else { Ok(()) }
}

const HEX_VALUES: [u8; 256] = {
    let mut table = [0xFF; 256];
    let mut digit = 0;
    while digit < 16 {
        table[b"0123456789abcdef"[digit] as usize] = digit as u8;
        table[b"0123456789ABCDEF"[digit] as usize] = digit as u8;
        digit += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn written(type_oid: u32, text: &str) -> Result<String, Unwritable> {
        let (mut out, mut scratch) = (Vec::new(), b"left over".to_vec());
        Codec::of(type_oid).write(text.as_bytes(), &mut out, &mut scratch)?;
        let read: Result<serde_json::Value, _> = serde_json::from_slice(&out);
        assert!(read.is_ok(), "{text} became {}", String::from_utf8_lossy(&out));
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn every_type_keeps_what_json_alone_would_lose() {
        for (name, type_oid, text, expected) in [
            ("int2", 21, "-32768", "-32768"),
            ("int8", 20, "9223372036854775807", "9223372036854775807"),
            ("oid", 26, "4294967295", "4294967295"),
            ("bool", 16, "t", "true"),
            ("bool", 16, "f", "false"),
            ("float4", 700, "1e+20", "1e+20"),
            ("float8", 701, "-0", "-0"),
            ("float8", 701, "1.7976931348623157e+308", "1.7976931348623157e+308"),
            ("float8", 701, "5e-324", "5e-324"),
            ("float8", 701, "NaN", "\"NaN\""),
            ("float8", 701, "-Infinity", "\"-Infinity\""),
            (
                "numeric",
                1700,
                "12345678901234567890.12345678901234567890",
                "\"12345678901234567890.12345678901234567890\"",
            ),
            ("numeric", 1700, "NaN", "\"NaN\""),
            ("numeric", 1700, "Infinity", "\"Infinity\""),
            ("text", 25, "a\"b\\c\nd", r#""a\"b\\c\nd""#),
            ("bpchar", 1042, "a  ", "\"a  \""),
            ("bytea", 17, "\\x", "\"\""),
            ("bytea", 17, "\\x00ff6f", "\"AP9v\""),
            ("json", 114, r#"{"a": 1, "a":2}"#, r#""{\"a\": 1, \"a\":2}""#),
            ("jsonb", 3802, "null", "\"null\""),
            ("date", 1082, "infinity", "\"infinity\""),
            ("date", 1082, "0044-03-15 BC", "\"0044-03-15 BC\""),
            ("timestamp", 1114, "294276-12-31 23:59:59.999999", "\"294276-12-31 23:59:59.999999\""),
            ("timestamptz", 1184, "2024-02-29 12:00:00.000001+00", "\"2024-02-29 12:00:00.000001+00\""),
            ("time", 1083, "24:00:00", "\"24:00:00\""),
            ("timetz", 1266, "24:00:00-15:59", "\"24:00:00-15:59\""),
            ("interval", 1186, "1 mon -1 days +00:00:00.000001", "\"1 mon -1 days +00:00:00.000001\""),
            ("uuid", 2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "\"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11\""),
            ("bit", 1560, "0101", "\"0101\""),
            ("money", 790, "$1,000.00", "\"$1,000.00\""),
            ("inet", 869, "::1/128", "\"::1/128\""),
            ("\"char\"", 18, "", "\"\""),
            ("int4range", 3904, "[1,)", "\"[1,)\""),
            ("nummultirange", 4532, "{}", "\"{}\""),
            ("point", 600, "(1,2)", "\"(1,2)\""),
            ("an enum", 16_500, "{odd,label}", "\"{odd,label}\""),
        ] {
            assert_eq!(written(type_oid, text).as_deref(), Ok(expected), "{name}");
        }
    }

    #[test]
    fn what_a_type_never_prints_is_an_error_and_not_broken_json() {
        for (type_oid, text) in [
            (23, ""),
            (23, "-"),
            (23, "1.5"),
            (23, "1,2"),
            (23, "007"),
            (16, "true"),
            (701, "1."),
            (701, ".5"),
            (701, "1e"),
            (701, "inf"),
            (17, "abc"),
            (17, "\\x0"),
            (17, "\\x0g"),
            (1007, "{1,x}"),
            (1007, "{1"),
            (1007, ""),
        ] {
            assert_eq!(written(type_oid, text), Err(Unwritable::Unreadable), "{type_oid} {text:?}");
        }
        assert_eq!(Codec::of(25).write(b"\xFF", &mut Vec::new(), &mut Vec::new()), Err(Unwritable::NotUtf8));
    }

    #[test]
    fn the_placeholder_has_the_form_of_the_type() {
        for (type_oid, expected) in [
            (25, "\"__debezium_unavailable_value\""),
            (17, "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\""),
            (1009, "[\"__debezium_unavailable_value\"]"),
        ] {
            let mut out = Vec::new();
            Codec::of(type_oid).write_unavailable(&mut out);
            assert_eq!(out, expected.as_bytes());
        }
    }
}
