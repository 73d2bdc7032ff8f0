//! What is copied as one: whole tables, and block ranges of large ones. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::destination::Destination;
use super::split::TableCopy;
use crate::schema::Table;

/// A table that is to be copied, and where its rows go.
#[derive(Clone, Debug)]
pub(super) struct Copied {
    pub(super) table: Table,
    pub(super) destination: Destination,
    pub(super) cut: Cut,
    /// Which of its rows belong to the migration; `None`: all.
    pub(super) filter: Option<String>,
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

/// How many parts a table is copied in. TOAST counts into the size, since a part reads its share of both.
///
/// Before PostgreSQL 14 there is no TID range scan, and every part would read the whole table.
pub(super) fn cut(table: &Table, destination: &Destination, source_version: u32, split_bytes: u64) -> Cut {
    let block_count = table.block_count;
    if source_version < 140_000 || !destination.may_be_split {
        return Cut { part_count: 1, block_count };
    }
    let wanted = table.size_bytes.div_ceil(split_bytes.max(1)).min(block_count);
    Cut { part_count: u32::try_from(wanted).unwrap_or(u32::MAX).max(1), block_count }
}

/// What is left of all tables, the largest units first: what is begun last should be small, or the others wait for it.
/// Parts of one table stay together, so that few tables are open at a time.
pub(super) fn tasks(tables: &[(Arc<TableCopy>, BTreeSet<u32>)]) -> VecDeque<Task> {
    let mut tables: Vec<_> = tables.iter().collect();
    let size_bytes = |of: &TableCopy| of.copied.table.size_bytes / u64::from(of.copied.cut.part_count);
    tables.sort_by_key(|(of, _)| Reverse(size_bytes(of)));
    let left = |(of, done): &&(Arc<TableCopy>, BTreeSet<u32>)| -> Vec<Task> {
        let parts: Vec<u32> = (0..of.copied.cut.part_count).filter(|part| !done.contains(part)).collect();
        if parts.is_empty() {
            return vec![Task::Complete(Arc::clone(of))];
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
    use super::*;

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
