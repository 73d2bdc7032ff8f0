//! Values in their types' binary form, and the text that the type's output function would make of it.
//!
//! Rests on the send and output functions of `src/backend/utils/adt`: `numeric.c`, `timestamp.c` and `datetime.c` (ISO style, time
//! zone UTC), `float.c` with `d2s.c`, `arrayfuncs.c`, `uuid.c`, `varlena.c` (`bytea_output = hex`), `jsonb.c`.

use std::fmt::Write as _;

/// Bytes that the type's send function does not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("read the binary form of a value of the type with oid {type_oid}")]
pub struct MalformedValue {
    pub type_oid: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Float4,
    Float8,
    /// The binary form is the text.
    Text,
    Jsonb,
    Bytea,
    Uuid,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Numeric,
    /// Of elements with this type.
    Array(u32),
}

/// OIDs from `pg_type.dat`. What is not here is asked for as text: types of users (whose OIDs differ between databases),
/// and the built-in ones that few tables hold.
const fn form_of(type_oid: u32) -> Option<Form> {
    Some(match type_oid {
        16 => Form::Bool,
        17 => Form::Bytea,
        20 => Form::Int8,
        21 => Form::Int2,
        23 => Form::Int4,
        26 => Form::Oid,
        19 | 25 | 114 | 1042 | 1043 => Form::Text,
        700 => Form::Float4,
        701 => Form::Float8,
        1082 => Form::Date,
        1083 => Form::Time,
        1114 => Form::Timestamp,
        1184 => Form::TimestampTz,
        1700 => Form::Numeric,
        2950 => Form::Uuid,
        3802 => Form::Jsonb,
        1000 => Form::Array(16),
        1001 => Form::Array(17),
        1005 => Form::Array(21),
        1007 => Form::Array(23),
        1009 => Form::Array(25),
        1015 => Form::Array(1043),
        1016 => Form::Array(20),
        1021 => Form::Array(700),
        1022 => Form::Array(701),
        1115 => Form::Array(1114),
        1182 => Form::Array(1082),
        1185 => Form::Array(1184),
        1231 => Form::Array(1700),
        2951 => Form::Array(2950),
        _ => return None,
    })
}

/// Whether [`write_text`] knows the type.
pub const fn is_known(type_oid: u32) -> bool {
    form_of(type_oid).is_some()
}

/// Whether its values are numbers of two, four or eight bytes, compared as such.
pub const fn is_whole_number(type_oid: u32) -> bool {
    matches!(form_of(type_oid), Some(Form::Int2 | Form::Int4 | Form::Int8))
}

/// The array type (`pg_type.typarray`) of a type whose values are cheaper to read in binary form than in text.
pub const fn array_of(type_oid: u32) -> Option<u32> {
    Some(match type_oid {
        16 => 1000,
        17 => 1001,
        20 => 1016,
        21 => 1005,
        23 => 1007,
        26 => 1028,
        700 => 1021,
        701 => 1022,
        1082 => 1182,
        1083 => 1183,
        1114 => 1115,
        1184 => 1185,
        1700 => 1231,
        2950 => 2951,
        _ => return None,
    })
}

/// Every type that [`write_text`] knows.
pub fn known_types() -> impl Iterator<Item = u32> {
    /// Below are those that `pg_type.dat` gives out by hand (`FirstGenbkiObjectId`).
    const FIRST_GENERATED_OID: u32 = 10_000;
    (1..FIRST_GENERATED_OID).filter(|type_oid| is_known(*type_oid))
}

/// Appends the text form of a value to `out`, which is left with a part of it after an error.
pub fn write_text(type_oid: u32, value: &[u8], out: &mut Vec<u8>) -> Result<(), MalformedValue> {
    let malformed = MalformedValue { type_oid };
    let form = form_of(type_oid).ok_or(malformed)?;
    text(form, value, out).ok_or(malformed)
}

/// The text form of a value.
pub fn to_text(type_oid: u32, value: &[u8]) -> Result<Vec<u8>, MalformedValue> {
    let mut text = Vec::with_capacity(value.len());
    write_text(type_oid, value, &mut text)?;
    Ok(text)
}

fn text(form: Form, value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    match form {
        Form::Bool => out.push(if *value.first()? == 0 { b'f' } else { b't' }),
        Form::Int2 => put(out, i16::from_be_bytes(value.try_into().ok()?)),
        Form::Int4 => put(out, i32::from_be_bytes(value.try_into().ok()?)),
        Form::Int8 => put(out, i64::from_be_bytes(value.try_into().ok()?)),
        Form::Oid => put(out, u32::from_be_bytes(value.try_into().ok()?)),
        Form::Float4 => float4(f32::from_be_bytes(value.try_into().ok()?), out),
        Form::Float8 => float8(f64::from_be_bytes(value.try_into().ok()?), out),
        Form::Text => out.extend_from_slice(value),
        // A version, 1, and the text.
        Form::Jsonb => out.extend_from_slice(value.strip_prefix(&[1])?),
        Form::Bytea => {
            out.extend_from_slice(b"\\x");
            hex(value, out);
        }
        Form::Uuid => uuid(value.try_into().ok()?, out),
        Form::Date => date(i32::from_be_bytes(value.try_into().ok()?), out),
        Form::Time => time(i64::from_be_bytes(value.try_into().ok()?), out),
        Form::Timestamp => timestamp(i64::from_be_bytes(value.try_into().ok()?), "", out),
        Form::TimestampTz => timestamp(i64::from_be_bytes(value.try_into().ok()?), "+00", out),
        Form::Numeric => numeric(value, out)?,
        Form::Array(element) => array(form_of(element)?, value, out)?,
    }
    Some(())
}

fn put(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    use std::io::Write as _;
    write!(out, "{value}").expect("a list of bytes takes whatever is written");
}

fn hex(value: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.extend(value.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]));
}

fn uuid(value: [u8; 16], out: &mut Vec<u8>) {
    for (at, part) in [&value[..4], &value[4..6], &value[6..8], &value[8..10], &value[10..]].into_iter().enumerate() {
        if at > 0 {
            out.push(b'-');
        }
        hex(part, out);
    }
}

/// The shortest digits that are read back as the same number, written as `%g` would with 6 digits.
fn float4(value: f32, out: &mut Vec<u8>) {
    special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out)
        .unwrap_or_else(|| shortest(&format!("{value:e}"), 6, out));
}

fn float8(value: f64, out: &mut Vec<u8>) {
    special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out)
        .unwrap_or_else(|| shortest(&format!("{value:e}"), 15, out));
}

fn special(nan: bool, infinite: bool, negative: bool, out: &mut Vec<u8>) -> Option<()> {
    let text: &[u8] = match (nan, infinite, negative) {
        (true, ..) => b"NaN",
        (false, true, false) => b"Infinity",
        (false, true, true) => b"-Infinity",
        (false, false, _) => return None,
    };
    out.extend_from_slice(text);
    Some(())
}

/// `scientific`: `-1.25e-7`, with the shortest digits.
fn shortest(scientific: &str, precision: i32, out: &mut Vec<u8>) {
    let (mantissa, exponent) = scientific.split_once('e').expect("it was formatted with an exponent");
    let exponent: i32 = exponent.parse().expect("it was formatted as a number");
    let (sign, mantissa) = mantissa.strip_prefix('-').map_or(("", mantissa), |rest| ("-", rest));
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    out.extend_from_slice(sign.as_bytes());
    if !(-4..precision).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return put(out, format_args!("{mantissa}e{sign}{:02}", exponent.abs()));
    }
    if exponent < 0 {
        out.extend_from_slice(b"0.");
        out.extend(std::iter::repeat_n(b'0', exponent.unsigned_abs() as usize - 1));
        return out.extend_from_slice(digits.as_bytes());
    }
    let whole = exponent as usize + 1;
    if digits.len() <= whole {
        out.extend_from_slice(digits.as_bytes());
        out.extend(std::iter::repeat_n(b'0', whole - digits.len()));
    } else {
        out.extend_from_slice(&digits.as_bytes()[..whole]);
        out.push(b'.');
        out.extend_from_slice(&digits.as_bytes()[whole..]);
    }
}

/// Days from 2000-01-01 to 0000-03-01 of the proleptic Gregorian calendar.
const DAYS_TO_YEAR_0: i64 = 730_425;
const DAYS_PER_ERA: i64 = 146_097;
const US_PER_SECOND: i64 = 1_000_000;
const US_PER_DAY: i64 = 86_400 * US_PER_SECOND;

fn date(days: i32, out: &mut Vec<u8>) {
    match days {
        i32::MAX => out.extend_from_slice(b"infinity"),
        i32::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            let before_christ = day(i64::from(days), out);
            out.extend_from_slice(before_christ.as_bytes());
        }
    }
}

/// Writes `YYYY-MM-DD` and returns what belongs at the very end.
fn day(days: i64, out: &mut Vec<u8>) -> &'static str {
    let days = days + DAYS_TO_YEAR_0;
    let (era, of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    // Years begin in March, so that the day that comes and goes is the last.
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (shown, suffix) = if year > 0 { (year, "") } else { (1 - year, " BC") };
    put(out, format_args!("{shown:04}-{month:02}-{day:02}"));
    suffix
}

fn time(us: i64, out: &mut Vec<u8>) {
    let seconds = us / US_PER_SECOND;
    put(out, format_args!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60));
    let fraction = us % US_PER_SECOND;
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        put(out, format_args!(".{}", digits.trim_end_matches('0')));
    }
}

fn timestamp(us: i64, zone: &str, out: &mut Vec<u8>) {
    match us {
        i64::MAX => out.extend_from_slice(b"infinity"),
        i64::MIN => out.extend_from_slice(b"-infinity"),
        _ => {
            let before_christ = day(us.div_euclid(US_PER_DAY), out);
            out.push(b' ');
            time(us.rem_euclid(US_PER_DAY), out);
            out.extend_from_slice(zone.as_bytes());
            out.extend_from_slice(before_christ.as_bytes());
        }
    }
}

/// Count, weight (of the first digit, in powers of 10,000), sign and scale, then digits of base 10,000.
fn numeric(value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const NEGATIVE: i16 = 0x4000;
    let numbers: Vec<i16> =
        value.chunks(2).map(|pair| pair.try_into().map(i16::from_be_bytes)).collect::<Result<_, _>>().ok()?;
    let [count, weight, sign, scale, digits @ ..] = numbers.as_slice() else { return None };
    let special: Option<&[u8]> = match sign.cast_unsigned() {
        0xC000 => Some(b"NaN"),
        0xD000 => Some(b"Infinity"),
        0xF000 => Some(b"-Infinity"),
        _ => None,
    };
    if let Some(special) = special {
        out.extend_from_slice(special);
        return Some(());
    }
    if digits.len() != usize::try_from(*count).ok()? || digits.iter().any(|digit| !(0..10_000).contains(digit)) {
        return None;
    }
    if *sign == NEGATIVE {
        out.push(b'-');
    }
    let weight = i32::from(*weight);
    let digit = |place: i32| usize::try_from(weight - place).ok().and_then(|at| digits.get(at)).copied().unwrap_or(0);
    match weight {
        ..0 => out.push(b'0'),
        _ => {
            put(out, digit(weight));
            (0..weight).rev().for_each(|place| put(out, format_args!("{:04}", digit(place))));
        }
    }
    let scale = usize::try_from(*scale).ok()?;
    if scale > 0 {
        let mut fraction = String::with_capacity(scale + 4);
        let mut place = -1;
        while fraction.len() < scale {
            write!(fraction, "{:04}", digit(place)).expect("a text takes whatever is written");
            place -= 1;
        }
        put(out, format_args!(".{}", &fraction[..scale]));
    }
    Some(())
}

/// Dimensions, whether there are NULLs, the element's type, then length and lower bound of each dimension, then elements.
fn array(element: Form, value: &[u8], out: &mut Vec<u8>) -> Option<()> {
    /// `MAXDIM`
    const DIMENSIONS_MAX: usize = 6;
    let mut rest = value;
    let mut number = || -> Option<i32> {
        let (first, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        Some(i32::from_be_bytes(*first))
    };
    let dimensions = usize::try_from(number()?).ok().filter(|count| *count <= DIMENSIONS_MAX)?;
    let (_has_null, _element) = (number()?, number()?);
    let mut lengths = Vec::with_capacity(dimensions);
    let mut bounds = String::new();
    let mut is_plain = true;
    for _ in 0..dimensions {
        let (length, lower) = (number()?, number()?);
        lengths.push(usize::try_from(length).ok().filter(|length| *length > 0)?);
        is_plain &= lower == 1;
        write!(bounds, "[{lower}:{}]", lower.checked_add(length)?.checked_sub(1)?).ok()?;
    }
    if dimensions == 0 {
        out.extend_from_slice(b"{}");
        return Some(());
    }
    if !is_plain {
        out.extend_from_slice(bounds.as_bytes());
        out.push(b'=');
    }
    dimension(element, &lengths, &mut rest, out)?;
    rest.is_empty().then_some(())
}

fn dimension(element: Form, lengths: &[usize], rest: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (length, inner) = lengths.split_first()?;
    out.push(b'{');
    for at in 0..*length {
        if at > 0 {
            out.push(b',');
        }
        if inner.is_empty() {
            one_element(element, rest, out)?;
        } else {
            dimension(element, inner, rest, out)?;
        }
    }
    out.push(b'}');
    Some(())
}

fn one_element(element: Form, rest: &mut &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (length, tail) = rest.split_first_chunk::<4>()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
        *rest = tail;
        out.extend_from_slice(b"NULL");
        return Some(());
    };
    let (value, tail) = tail.split_at_checked(length)?;
    *rest = tail;
    let mut written = Vec::with_capacity(length);
    text(element, value, &mut written)?;
    quoted(&written, out);
    Some(())
}

/// As `array_out` quotes: what is empty, the word NULL, and what holds anything that means something in an array.
fn quoted(text: &[u8], out: &mut Vec<u8>) {
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | b'{' | b'}' | b',' | b' ' | b'\t'..=b'\r');
    if !text.is_empty() && !text.eq_ignore_ascii_case(b"null") && !text.iter().any(special) {
        return out.extend_from_slice(text);
    }
    out.push(b'"');
    for byte in text {
        if matches!(byte, b'"' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(type_oid: u32, value: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        write_text(type_oid, value, &mut out).ok()?;
        Some(String::from_utf8_lossy(&out).into_owned())
    }

    /// The server itself is asked in the live tests; these are the edges.
    #[test]
    fn values_read_as_the_server_writes_them() {
        let cases: &[(u32, &[u8], &str)] = &[
            (16, &[1], "t"),
            (23, &(-7i32).to_be_bytes(), "-7"),
            (701, &1e15f64.to_be_bytes(), "1e+15"),
            (701, &123_456.5f64.to_be_bytes(), "123456.5"),
            (701, &(-0.0f64).to_be_bytes(), "-0"),
            (701, &1e-5f64.to_be_bytes(), "1e-05"),
            (701, &0.000_1f64.to_be_bytes(), "0.0001"),
            (700, &1e6f32.to_be_bytes(), "1e+06"),
            (1082, &0i32.to_be_bytes(), "2000-01-01"),
            (1082, &(-730_119i32).to_be_bytes(), "0001-01-01"),
            (1082, &(-730_120i32).to_be_bytes(), "0001-12-31 BC"),
            (1184, &(-1i64).to_be_bytes(), "1999-12-31 23:59:59.999999+00"),
            (1114, &i64::MAX.to_be_bytes(), "infinity"),
            (1083, &US_PER_DAY.to_be_bytes(), "24:00:00"),
            (1700, &[0, 1, 255, 255, 0, 0, 0, 3, 0, 10], "0.001"),
            (1700, &[0, 2, 0, 1, 64, 0, 0, 2, 0, 1, 0, 5], "-10005.00"),
            (1700, &[0, 0, 0, 0, 0xC0, 0, 0, 0], "NaN"),
            (1009, &[0; 12], "{}"),
            (3802, b"\x01{}", "{}"),
        ];
        for (type_oid, value, text) in cases {
            assert_eq!(shown(*type_oid, value).as_deref(), Some(*text), "{type_oid}");
        }
    }

    #[test]
    fn what_no_send_function_writes_is_refused_and_nothing_panics() {
        for type_oid in (0..4000).filter(|type_oid| is_known(*type_oid)) {
            for length in 0..40 {
                for byte in [0, 1, 127, 255] {
                    shown(type_oid, &vec![byte; length]);
                }
            }
        }
        assert_eq!(shown(23, &[0; 3]), None);
        assert_eq!(shown(1700, &[0, 2, 0, 0, 0, 0, 0, 0, 0, 1]), None);
        assert_eq!(shown(1007, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 9, 0, 0, 0, 1]), None);
        assert_eq!(shown(600, &[0; 16]), None);
    }
}
