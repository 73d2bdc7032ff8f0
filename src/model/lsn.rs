//! A place in the write-ahead log, in bytes. Printed as PostgreSQL prints `pg_lsn`: `16/B374D848`.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A byte position in the source's write-ahead log. Zero is PostgreSQL's `InvalidXLogRecPtr`, so "no position" is
/// `Option<Lsn>` and never an `Lsn`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn(NonZeroU64);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("read {0:?} as a log position such as 16/B374D848")]
pub struct ParseLsnError(pub String);

impl Lsn {
    /// `None` for zero.
    pub const fn new(raw: u64) -> Option<Self> {
        match NonZeroU64::new(raw) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The raw 64-bit value, as it travels on the wire.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// The byte behind it.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Bytes from `earlier` to here; 0 when `earlier` is later.
    pub const fn bytes_since(self, earlier: Self) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.get() >> 32, self.get() & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, ParseLsnError> {
        let wrong = || ParseLsnError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(wrong)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| wrong())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| wrong())?;
        Self::new(u64::from(high) << 32 | u64::from(low)).ok_or_else(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_reads_as_postgresql_does() {
        let lsn: Lsn = "16/B374D848".parse().unwrap();
        assert_eq!(lsn.get(), 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        for wrong in ["", "16", "0/0", "G/1", "1/100000000", "-1/2"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }
}
