//! One-dimensional arrays: from array_out's text to a JSON array.
//!
//! array_out (`src/backend/utils/adt/arrayfuncs.c`) puts an element in double quotes when it is empty, is the word NULL
//! in any case, or holds braces, quotes, backslashes, the delimiter or white space; inside the quotes, quotes and
//! backslashes are preceded by a backslash. An unquoted NULL is a null.

use super::value::{Scalar, Unwritable};

/// One dimension that starts at 1. Nested braces are further dimensions; `[2:4]={…}` has other bounds.
pub(super) fn is_flat(text: &[u8]) -> bool {
    !matches!(text, [b'[', ..] | [b'{', b'{', ..])
}

/// Writes the flat array `text`, each element as `element` writes it. `scratch` is overwritten.
pub(super) fn write(text: &[u8], element: Scalar, out: &mut Vec<u8>, scratch: &mut Vec<u8>) -> Result<(), Unwritable> {
    let mut rest = text.strip_prefix(b"{").ok_or(Unwritable::Unreadable)?;
    let mut plain = Vec::new();
    out.push(b'[');
    if rest != b"}" {
        loop {
            rest = write_element(rest, element, out, scratch, &mut plain)?;
            match rest {
                [b',', after @ ..] => {
                    out.push(b',');
                    rest = after;
                }
                b"}" => break,
                _ => return Err(Unwritable::Unreadable),
            }
        }
    }
    out.push(b']');
    Ok(())
}

/// Writes the element at the start of `text` and returns what stands behind it.
fn write_element<'a>(
    text: &'a [u8],
    element: Scalar,
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    plain: &mut Vec<u8>,
) -> Result<&'a [u8], Unwritable> {
    if let Some(quoted) = text.strip_prefix(b"\"") {
        let rest = unescape(quoted, plain)?;
        element.write(plain, out, scratch)?;
        return Ok(rest);
    }
    let end = memchr::memchr2(b',', b'}', text).ok_or(Unwritable::Unreadable)?;
    match &text[..end] {
        b"" => return Err(Unwritable::Unreadable),
        b"NULL" => out.extend_from_slice(b"null"),
        value => element.write(value, out, scratch)?,
    }
    Ok(&text[end..])
}

/// Copies up to the closing quote into `plain`, without the backslashes, and returns what stands behind the quote.
fn unescape<'a>(mut text: &'a [u8], plain: &mut Vec<u8>) -> Result<&'a [u8], Unwritable> {
    plain.clear();
    loop {
        let at = memchr::memchr2(b'"', b'\\', text).ok_or(Unwritable::Unreadable)?;
        plain.extend_from_slice(&text[..at]);
        match &text[at..] {
            [b'"', rest @ ..] => return Ok(rest),
            [b'\\', escaped, rest @ ..] => {
                plain.push(*escaped);
                text = rest;
            }
            _ => return Err(Unwritable::Unreadable),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::value::Codec;
    use super::*;

    fn written(type_oid: u32, text: &str) -> Result<serde_json::Value, Unwritable> {
        let mut out = Vec::new();
        Codec::of(type_oid).write(text.as_bytes(), &mut out, &mut Vec::new())?;
        Ok(serde_json::from_slice(&out).expect("what is written is JSON"))
    }

    #[test]
    fn flat_arrays_are_json_arrays_and_others_keep_their_text() {
        use serde_json::json;
        for (type_oid, text, expected) in [
            (1007, "{}", json!([])),
            (1007, "{1,NULL,-3}", json!([1, null, -3])),
            (1000, "{t,f,NULL}", json!([true, false, null])),
            (1022, "{NaN,1e+20}", json!(["NaN", 1e20])),
            (1009, r#"{a,"b,c","","NULL",NULL,"q\"\\","{x}"}"#, json!(["a", "b,c", "", "NULL", null, "q\"\\", "{x}"])),
            (1001, r#"{"\\x6869","\\x"}"#, json!(["aGk=", ""])),
            (1231, "{1.10,NaN}", json!(["1.10", "NaN"])),
            (1185, r#"{"2024-01-01 00:00:00+00",infinity}"#, json!(["2024-01-01 00:00:00+00", "infinity"])),
            (3807, r#"{"{\"a\": 1}","[1, 2]"}"#, json!([r#"{"a": 1}"#, "[1, 2]"])),
            (1007, "{{1,2},{3,4}}", json!("{{1,2},{3,4}}")),
            (1007, "[2:3]={1,2}", json!("[2:3]={1,2}")),
        ] {
            assert_eq!(written(type_oid, text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_broken_array_is_an_error() {
        for text in ["", "{", "{a", "{a,}", "{,a}", "{\"a}", "{\"a\"b}", "{\"a\\", "{a}b", "a"] {
            assert_eq!(written(1009, text), Err(Unwritable::Unreadable), "{text:?}");
        }
    }

    /// What array_out does to an element.
    fn array_out(elements: &[Option<String>]) -> String {
        let quote = |text: &String| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let elements: Vec<String> = elements.iter().map(|one| one.as_ref().map_or("NULL".into(), quote)).collect();
        format!("{{{}}}", elements.join(","))
    }

    proptest! {
        #[test]
        fn any_text_array_reads_back(elements in proptest::collection::vec(proptest::option::of(any::<String>()), 0..6)) {
            let read = written(1009, &array_out(&elements)).unwrap();
            prop_assert_eq!(serde_json::from_value::<Vec<Option<String>>>(read).unwrap(), elements);
        }

        #[test]
        fn no_bytes_make_it_panic_or_write_broken_json(text in any::<Vec<u8>>(), type_oid in prop_oneof![Just(1007_u32), Just(1009), Just(1001), Just(1022), Just(17), Just(701)]) {
            let mut out = Vec::new();
            if Codec::of(type_oid).write(&text, &mut out, &mut Vec::new()).is_ok() {
                prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
            }
        }
    }
}
