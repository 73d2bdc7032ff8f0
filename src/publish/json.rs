//! JSON written straight into a buffer. A tree of values per row would cost more than everything else in this room.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// `0`: as it is; `u`: `\u00xx`; otherwise the letter behind the backslash (RFC 8259, section 7).
const ESCAPES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = b'u';
        byte += 1;
    }
    table[0x08] = b'b';
    table[0x09] = b't';
    table[0x0A] = b'n';
    table[0x0C] = b'f';
    table[0x0D] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};

/// `"text"`.
pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    escaped(out, text.as_bytes());
    out.push(b'"');
}

/// The inside of a string. `utf8` must be UTF-8: it is copied, save for what JSON has to escape.
pub(super) fn escaped(out: &mut Vec<u8>, utf8: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain_from = 0;
    for (at, &byte) in utf8.iter().enumerate() {
        let escape = ESCAPES[usize::from(byte)];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&utf8[plain_from..at]);
        plain_from = at + 1;
        if escape == b'u' {
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        } else {
            out.extend_from_slice(&[b'\\', escape]);
        }
    }
    out.extend_from_slice(&utf8[plain_from..]);
}

/// A number that is not negative.
pub(super) fn unsigned(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

pub(super) fn signed(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    unsigned(out, value.unsigned_abs());
}

/// `"base64"`, as Debezium writes bytes.
pub(super) fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    STANDARD.encode_slice(bytes, &mut out[start..]).expect("four bytes were made for every three");
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_read_back_as_they_were() {
        let every_ascii: String = (0..=0x7F_u8).map(char::from).collect();
        for text in ["", "plain", "\"quoted\\\"", "tab\tnul\0", "größe 💾\u{2028}", &every_ascii] {
            let mut out = Vec::new();
            string(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn numbers_are_whole_at_their_limits() {
        for value in [0, 9, 10, -1, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            signed(&mut out, value);
            assert_eq!(serde_json::from_slice::<i64>(&out).unwrap(), value);
        }
    }

    #[test]
    fn bytes_are_padded_base64() {
        for (bytes, expected) in [(&b""[..], "\"\""), (b"a", "\"YQ==\""), (b"ab\xFF", "\"YWL/\"")] {
            let mut out = b"x".to_vec();
            base64(&mut out, bytes);
            assert_eq!(&out[1..], expected.as_bytes());
        }
    }
}
