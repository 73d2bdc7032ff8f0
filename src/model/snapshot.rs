//! What a snapshot of the source can see, by transaction id: the rule that hands each row over from copy to stream.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A top-level transaction id as it travels in the stream: 32 bits, wrapping around.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Xid(pub u32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// `pg_current_snapshot()`: `xmin:xmax:xip,...` in 64-bit transaction ids, top-level transactions only (PostgreSQL
/// documentation, "Transaction ID and Snapshot Information Functions").
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSet {
    xmin: u64,
    xmax: u64,
    /// Sorted.
    in_progress: Vec<u64>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("read {0:?} as a snapshot such as 750:752:750,751")]
pub struct ParseSnapshotError(pub String);

impl SnapshotSet {
    /// Whether a committed transaction of the stream is visible in this snapshot. `xid` is 32 bits wide and is
    /// compared circularly, as the server does (`TransactionIdPrecedes`): right as long as the transaction is within
    /// two thousand million of the snapshot, which a caller ensures by asking only about transactions near it.
    pub fn sees(&self, xid: Xid) -> bool {
        let full = self.widen(xid);
        full < self.xmin || (full < self.xmax && self.in_progress.binary_search(&full).is_err())
    }

    /// Transactions that were running when the snapshot was taken.
    pub fn in_progress(&self) -> &[u64] {
        &self.in_progress
    }

    /// Every transaction before this one had ended.
    pub fn xmin(&self) -> u64 {
        self.xmin
    }

    /// The first id that had not been given out.
    pub fn xmax(&self) -> u64 {
        self.xmax
    }

    /// Places a 32-bit id in the epoch that brings it nearest to `xmax`.
    fn widen(&self, xid: Xid) -> u64 {
        let distance = xid.0.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }
}

impl fmt::Display for SnapshotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (index, xid) in self.in_progress.iter().enumerate() {
            write!(f, "{}{xid}", if index == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl FromStr for SnapshotSet {
    type Err = ParseSnapshotError;

    fn from_str(text: &str) -> Result<Self, ParseSnapshotError> {
        let wrong = || ParseSnapshotError(text.to_owned());
        let number = |part: &str| part.parse::<u64>().map_err(|_| wrong());
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(list), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let mut in_progress =
            list.split(',').filter(|part| !part.is_empty()).map(number).collect::<Result<Vec<_>, _>>()?;
        in_progress.sort_unstable();
        Ok(Self { xmin: number(xmin)?, xmax: number(xmax)?, in_progress })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_had_committed_and_nothing_else() {
        let set: SnapshotSet = "750:755:750,753".parse().unwrap();
        let seen: Vec<u32> = (745..760).filter(|xid| set.sees(Xid(*xid))).collect();
        assert_eq!(seen, [745, 746, 747, 748, 749, 751, 752, 754]);
        assert_eq!(set.to_string(), "750:755:750,753");
    }

    #[test]
    fn sees_across_the_wraparound_of_32_bits() {
        let epoch = 1_u64 << 32;
        let set: SnapshotSet = format!("{}:{}:{}", epoch - 3, epoch + 4, epoch - 3).parse().unwrap();
        assert!(set.sees(Xid(u32::MAX)));
        assert!(set.sees(Xid(u32::MAX - 3)));
        assert!(!set.sees(Xid(u32::MAX - 2)));
        assert!(set.sees(Xid(3)));
        assert!(!set.sees(Xid(4)));
    }

    #[test]
    fn refuses_what_is_no_snapshot() {
        for wrong in ["", "1:2", "1:2:3:4", "a:2:", "1:2:x"] {
            assert!(wrong.parse::<SnapshotSet>().is_err(), "{wrong}");
        }
    }
}
