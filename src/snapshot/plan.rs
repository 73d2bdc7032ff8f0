//! What is copied as one: whole tables, and block ranges of large ones. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::destination::Destination;
use super::split::{TableCopy, settle_key};
use crate::schema::Table;

/// A table that is to be copied, and where its rows go.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    pub(super) table: Table,
    pub(super) destination: Destination,
    pub(super) cut: Cut,
    /// Which of its rows belong to the migration; `None`: all.
    pub(super) filter: Option<String>,
    /// The source reads no block range by itself: its parts come out of one pass over the table ([`super::in_order`]).
    pub(super) in_order: bool,
}

/// How a table is cut into parts. One that was begun by an earlier attempt stays as it was cut then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// 1: the whole table.
    pub(super) part_count: u32,
    /// What is shared out. The last part also holds whatever lies behind.
    pub(super) block_count: u64,
}

/// What one worker copies in one transaction.
#[derive(Clone)]
pub(super) struct Unit {
    pub(super) of: Arc<TableCopy>,
    pub(super) part: u32,
}

/// What a worker takes from the queue.
pub(super) enum Task {
    Copy(Unit),
    /// These parts of a table, in one pass.
    CopyInOrder(Arc<TableCopy>, VecDeque<u32>),
    /// Every part is recorded, and the table is not complete: the earlier attempt ended between the two.
    Complete(Arc<TableCopy>),
}

/// Heap blocks from `from` up to, not including, `to`. The last range has no end: the file may have grown since it was
/// measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) from: u64,
    pub(super) to: Option<u64>,
}

/// A table that is cut at all is cut into this many parts, where they are not too small to be worth it: at the end of a
/// table, workers wait for whoever copies its last part.
const PARTS_WANTED: u64 = 64;
/// Parts that are only cut for the sake of [`PARTS_WANTED`] are not smaller than this share of what a part may be.
const SMALLEST_SHARE: u64 = 8;

/// Before PostgreSQL 14 there is no TID range scan, and whoever reads a block range reads the whole table.
pub(super) const TID_RANGES_SINCE: u32 = 140_000;

/// How many parts a table is copied in: a gathered one leaf by leaf, any other by its size. TOAST counts into the size, since a part reads its share of both.
///
/// Where one worker reads all parts, they are worth having only for going on after an interruption.
pub(super) fn cut(table: &Table, source_version: u32, split_bytes: u64) -> Cut {
    let block_count = table.block_count;
    if table.is_gathered() {
        let part_count = u32::try_from(table.leaves.len()).expect("a server has fewer tables");
        return Cut { part_count, block_count };
    }
    let in_vain = source_version < TID_RANGES_SINCE && settle_key(table).is_empty();
    if in_vain {
        return Cut { part_count: 1, block_count };
    }
    let split_bytes = split_bytes.max(1);
    if table.size_bytes <= split_bytes {
        return Cut { part_count: 1, block_count };
    }
    let smallest = (split_bytes / SMALLEST_SHARE).max(1);
    let wanted = PARTS_WANTED.min(table.size_bytes / smallest).max(table.size_bytes.div_ceil(split_bytes));
    Cut { part_count: u32::try_from(wanted.min(block_count)).unwrap_or(u32::MAX).max(1), block_count }
}

/// What is left of all tables, the largest units first: what is begun last should be small, or the others wait for it.
/// Parts of one table stay together, so that few tables are open at a time.
pub(super) fn tasks(tables: &[(Arc<TableCopy>, BTreeSet<u32>)]) -> VecDeque<Task> {
    let mut tables: Vec<_> = tables.iter().collect();
    let size_bytes = |of: &TableCopy| {
        let pieces = if of.copied.in_order { 1 } else { of.copied.cut.part_count };
        of.copied.table.size_bytes / u64::from(pieces)
    };
    tables.sort_by_key(|(of, _)| Reverse(size_bytes(of)));
    let left = |(of, done): &&(Arc<TableCopy>, BTreeSet<u32>)| -> Vec<Task> {
        let parts: VecDeque<u32> = (0..of.copied.cut.part_count).filter(|part| !done.contains(part)).collect();
        if parts.is_empty() {
            return vec![Task::Complete(Arc::clone(of))];
        }
        if of.copied.in_order && of.is_split() {
            return vec![Task::CopyInOrder(Arc::clone(of), parts)];
        }
        parts.into_iter().map(|part| Task::Copy(Unit { of: Arc::clone(of), part })).collect()
    };
    tables.iter().flat_map(left).collect()
}

impl Cut {
    /// The blocks of a part; `None`: the whole table. The ranges of all parts together hold every block there is or will
    /// be, each once.
    pub(super) fn blocks(self, part: u32) -> Option<Blocks> {
        if self.part_count <= 1 {
            return None;
        }
        let bound = |part: u32| (u128::from(self.block_count) * u128::from(part) / u128::from(self.part_count)) as u64;
        Some(Blocks { from: bound(part), to: (part + 1 < self.part_count).then(|| bound(part + 1)) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql::tests::unit;
    use super::*;

    #[test]
    fn a_large_table_has_enough_parts_and_none_is_tiny_or_too_large() {
        const MIB: u64 = 1 << 20;
        let parts = |size_mib: u64, split_mib: u64| {
            let Copied { table, .. } = unit(vec![], 1).of.copied.clone();
            let sized = Table { size_bytes: size_mib * MIB, block_count: size_mib * 128, ..table };
            cut(&sized, 150_000, split_mib * MIB).part_count
        };
        assert_eq!([parts(0, 128), parts(128, 128), parts(129, 128)], [1, 1, 8], "what is not larger stays whole");
        assert_eq!([parts(1024, 128), parts(8192, 128)], [64, 64]);
        assert_eq!(parts(1 << 20, 128), 8192, "a part is never larger than asked for");
        assert_eq!([parts(3, 1), parts(100, 1)], [24, 100]);
    }

    #[test]
    fn a_table_that_is_read_in_one_pass_is_one_task_and_is_cut_only_if_it_can_be_gone_on_with() {
        let Copied { table, .. } = unit(vec![], 1).of.copied.clone();
        let table = Table { size_bytes: 1 << 30, block_count: 1 << 17, ..table };
        let keyless = Table { primary_key: None, ..table.clone() };
        let parts = |table, version| cut(table, version, 1 << 27).part_count;
        assert_eq!([parts(&table, 130_000), parts(&table, 140_000)], [64, 64]);
        assert_eq!([parts(&keyless, 130_000), parts(&keyless, 140_000)], [1, 64]);
        let in_order = Copied { in_order: true, ..unit(vec![], 4).of.copied.clone() };
        let left = tasks(&[(Arc::new(TableCopy::new(in_order, None)), BTreeSet::from([0]))]);
        assert!(matches!(&*Vec::from(left), [Task::CopyInOrder(_, parts)] if *parts == [1, 2, 3]));
    }

    #[test]
    fn parts_hold_every_block_once_and_have_no_end() {
        for (block_count, part_count) in [(2, 2), (1000, 7), (7, 7), (1_000_003, 64), (u64::from(u32::MAX), 50_000)] {
            let cut = Cut { part_count, block_count };
            let ranges: Vec<Blocks> = (0..part_count).filter_map(|part| cut.blocks(part)).collect();
            assert_eq!(ranges.len(), part_count as usize);
            assert_eq!(ranges[0].from, 0);
            assert_eq!(ranges.last().unwrap().to, None);
            for pair in ranges.windows(2) {
                assert_eq!(pair[0].to, Some(pair[1].from));
                assert!(pair[0].from < pair[1].from, "an empty range: {pair:?}");
            }
        }
        assert_eq!(Cut { part_count: 1, block_count: 1000 }.blocks(0), None);
    }
}
