//! Sizes and times as people write them.

use std::time::Duration;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error(
        "read {0:?} as a size: write a whole number and one of B, KiB, MiB, GiB, TiB (1024) or kB, MB, GB, TB (1000)"
    )]
    Size(String),
    #[error("read {0:?} as a time: write whole numbers, each with one of us, ms, s, m, h, such as 250ms or 1m30s")]
    Duration(String),
}

/// Bytes. A bare number is bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let (number, unit) = split_number(text.trim()).ok_or_else(wrong)?;
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "kB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(wrong)
}

/// A bare number has no meaning: the unit is never guessed.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let mut rest = text.trim();
    let mut total_us: u64 = 0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let (number, after) = split_number(rest).ok_or_else(wrong)?;
        let unit_length = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_length);
        let factor: u64 = match unit {
            "us" => 1,
            "ms" => 1_000,
            "s" => 1_000_000,
            "m" | "min" => 60_000_000,
            "h" => 3_600_000_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(factor).ok_or_else(wrong)?;
        total_us = total_us.checked_add(part).ok_or_else(wrong)?;
        rest = next.trim_start();
    }
    Ok(Duration::from_micros(total_us))
}

/// Bytes for people: the largest binary unit that leaves at least 1, with one decimal below 10.
pub fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..UNITS.len()).rev().find(|step| bytes >> (10 * step) > 0).unwrap_or(0);
    let value = bytes as f64 / (1_u64 << (10 * step)) as f64;
    if step > 0 && value < 10.0 { format!("{value:.1} {}", UNITS[step]) } else { format!("{value:.0} {}", UNITS[step]) }
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written() {
        for (text, bytes) in [("0", 0), ("17", 17), ("256MiB", 256 << 20), ("20 GiB", 20 << 30), ("1kB", 1000)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "MiB", "1.5GiB", "1gib", "-1", "1 MiB 2", "99999999999TiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 30, "20 GiB")] {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn times_are_read() {
        for (text, millis) in [("250ms", 250), ("2s", 2000), ("1m30s", 90_000), ("1h 5min", 3_900_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "2", "s", "2 s", "-1s", "2sec", "99999999999999h"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
