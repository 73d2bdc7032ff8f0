//! What is copied as one: whole tables, and block ranges of large ones. Pure.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;

use super::destination::Destination;
use crate::schema::Table;

/// A table that is to be copied, and where its rows go.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    pub(super) table: Table,
    pub(super) destination: Destination,
    pub(super) part_count: u32,
}

/// What one worker copies in one transaction.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    pub(super) copied: Arc<Copied>,
    pub(super) part: u32,
    /// `None`: the whole table.
    pub(super) blocks: Option<Blocks>,
}

/// Heap blocks from `from` up to, not including, `to`. The last range has no end: the file may have grown since it was
/// measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) from: u64,
    pub(super) to: Option<u64>,
}

/// How many parts a table is copied in. TOAST counts into the size, since a part reads its share of both.
///
/// Before PostgreSQL 14 there is no TID range scan, and every part would read the whole table.
pub(super) fn part_count(table: &Table, destination: &Destination, source_version: u32, split_bytes: u64) -> u32 {
    if source_version < 140_000 || !destination.may_be_split {
        return 1;
    }
    let wanted = table.size_bytes.div_ceil(split_bytes.max(1)).min(table.block_count);
    u32::try_from(wanted).unwrap_or(u32::MAX).max(1)
}

/// The units of all tables, the largest first: what is begun last should be small, or the others wait for it.
pub(super) fn units(tables: Vec<Copied>) -> VecDeque<Unit> {
    let mut units: Vec<(u64, Unit)> = Vec::new();
    for copied in tables {
        let size_bytes = copied.table.size_bytes / u64::from(copied.part_count);
        let ranges = ranges(copied.table.block_count, copied.part_count);
        let copied = Arc::new(copied);
        units.extend(
            ranges
                .into_iter()
                .zip(0..)
                .map(|(blocks, part)| (size_bytes, Unit { copied: Arc::clone(&copied), part, blocks })),
        );
    }
    units.sort_by_key(|(size_bytes, _)| Reverse(*size_bytes));
    units.into_iter().map(|(_, unit)| unit).collect()
}

/// Ranges that together hold every block there is or will be, each once.
fn ranges(block_count: u64, part_count: u32) -> Vec<Option<Blocks>> {
    if part_count <= 1 {
        return vec![None];
    }
    let bound = |part: u32| block_count * u64::from(part) / u64::from(part_count);
    let range = |part| Blocks { from: bound(part), to: (part + 1 < part_count).then(|| bound(part + 1)) };
    (0..part_count).map(|part| Some(range(part))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_every_block_once_and_have_no_end() {
        for (block_count, part_count) in [(2, 2), (1000, 7), (7, 7), (1_000_003, 64)] {
            let ranges: Vec<Blocks> = ranges(block_count, part_count).into_iter().flatten().collect();
            assert_eq!(ranges.len(), part_count as usize);
            assert_eq!(ranges[0].from, 0);
            assert_eq!(ranges.last().unwrap().to, None);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].to, Some(pair[1].from));
                assert!(pair[0].from < pair[1].from, "an empty range: {pair:?}");
            }
        }
        assert_eq!(ranges(1000, 1), [None]);
    }
}
