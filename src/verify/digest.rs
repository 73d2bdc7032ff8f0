//! Row count and sums: what one scan of one side says of a set of rows.

use std::ops::AddAssign;

use tokio_postgres::SimpleQueryRow;

/// The number of rows and, for two seeds, the sum of the 64-bit hashes of their texts. Addition does not care about
/// order, and equal errors do not cancel as they would under XOR: two equal extra rows add twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Digest {
    pub(super) row_count: u64,
    /// A sum of 64-bit hashes over as many rows as a table can hold stays far inside 128 bits, so nothing wraps.
    pub(super) sums: [i128; 2],
}

impl AddAssign for Digest {
    fn add_assign(&mut self, other: Self) {
        self.row_count += other.row_count;
        self.sums[0] += other.sums[0];
        self.sums[1] += other.sums[1];
    }
}

impl Digest {
    /// Reads the columns that [`super::sql::AGGREGATES`] makes, from column `at` on. `None` when they are not there.
    pub(super) fn read(row: &SimpleQueryRow, at: usize) -> Option<Self> {
        let text = |offset: usize| row.try_get(at + offset).ok().flatten();
        Self::parse(text(0)?, text(1)?, text(2)?)
    }

    pub(super) fn parse(row_count: &str, first: &str, second: &str) -> Option<Self> {
        Some(Self { row_count: row_count.parse().ok()?, sums: [first.parse().ok()?, second.parse().ok()?] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_errors_do_not_cancel() {
        let row = |hash: i128| Digest { row_count: 1, sums: [hash, hash * 31] };
        let sum = |hashes: &[i128]| {
            let mut total = Digest::default();
            for hash in hashes {
                total += row(*hash);
            }
            total
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        // Rows 5 and 5 in place of 7 and 7: XOR would see nothing in both.
        assert_ne!(sum(&[5, 5]), sum(&[7, 7]));
    }

    #[test]
    fn sums_beyond_64_bits_are_read() {
        let digest = Digest::parse("3", "27670116110564327421", "-27670116110564327424").unwrap();
        assert_eq!(digest.sums, [3 * i128::from(i64::MAX), 3 * i128::from(i64::MIN)]);
        assert_eq!(Digest::parse("3", "x", "0"), None);
    }
}
