//! One round of a full pass: which part of which table is digested next, and what the digests say of the table. Pure.
//!
//! Each side is read in parts of its own (rows stand in other blocks on either side); sums add up whatever the parts
//! were, so a table is judged when both sides have added all of theirs.

use super::digest::Digest;
use super::error::Side;

/// A part of one table on one side, by index into what the round was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) table: usize,
    pub(super) side: Side,
    pub(super) part: usize,
}

/// Both sides of a table are digested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digested {
    pub(super) table: usize,
    pub(super) digests: [Digest; 2],
}

#[derive(Debug)]
pub(super) struct Round {
    /// In the order they are begun.
    tables: Vec<TableParts>,
    /// Whether tables may still be begun. Once it is late the snapshots are wanted back: what was begun is finished,
    /// the rest waits for the next round.
    open: bool,
}

#[derive(Debug)]
struct TableParts {
    sides: [SideParts; 2],
}

#[derive(Debug, Default)]
struct SideParts {
    count: usize,
    taken: usize,
    done: usize,
    digest: Digest,
}

impl Round {
    /// `parts` holds for each table the number of parts on either side; at least one each.
    pub(super) fn new(parts: impl IntoIterator<Item = [usize; 2]>) -> Self {
        let side = |count: usize| {
            assert!(count > 0, "a table is read in at least one part");
            SideParts { count, ..SideParts::default() }
        };
        let tables = parts.into_iter().map(|counts| TableParts { sides: counts.map(side) }).collect();
        Self { tables, open: true }
    }

    /// The next part for a free worker of `side`; `None` when there is nothing left for it to do in this round.
    pub(super) fn next(&mut self, side: Side) -> Option<Unit> {
        let open = self.open;
        let takes = |table: &TableParts| table.sides[side.index()].left() && (open || table.begun());
        let table = self.tables.iter().position(takes)?;
        let parts = &mut self.tables[table].sides[side.index()];
        parts.taken += 1;
        Some(Unit { table, side, part: parts.taken - 1 })
    }

    /// A part was digested. Answers with the table when this was its last.
    pub(super) fn done(&mut self, unit: Unit, digest: Digest) -> Option<Digested> {
        let parts = &mut self.tables[unit.table].sides[unit.side.index()];
        assert!(parts.done < parts.taken, "a part was digested that nobody took");
        parts.done += 1;
        parts.digest += digest;
        let table = &self.tables[unit.table];
        table
            .complete()
            .then(|| Digested { table: unit.table, digests: [table.sides[0].digest, table.sides[1].digest] })
    }

    /// No further table is begun.
    pub(super) fn close(&mut self) {
        self.open = false;
    }
}

impl TableParts {
    fn begun(&self) -> bool {
        self.sides.iter().any(|side| side.taken > 0)
    }

    fn complete(&self) -> bool {
        self.sides.iter().all(|side| side.done == side.count)
    }
}

impl SideParts {
    const fn left(&self) -> bool {
        self.taken < self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(rows: u64) -> Digest {
        Digest { row_count: rows, sums: [i128::from(rows) * 7, i128::from(rows) * 11] }
    }

    /// Drains the round with both sides in an order drawn from `seed`; returns what was judged.
    fn run(parts: &[[usize; 2]], seed: u64, close_after: usize) -> Vec<Digested> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut round = Round::new(parts.iter().copied());
        let (mut judged, mut running, mut taken) = (Vec::new(), Vec::new(), 0);
        loop {
            if taken == close_after {
                round.close();
            }
            let first = if random.bool() { Side::BOTH } else { [Side::Target, Side::Source] };
            let next = first.into_iter().find_map(|side| round.next(side));
            match next {
                Some(unit) if random.bool() || running.is_empty() => {
                    taken += 1;
                    running.push(unit);
                }
                Some(unit) => {
                    taken += 1;
                    running.push(unit);
                    let at = random.usize(..running.len());
                    judged.extend(round.done(running.swap_remove(at), digest(1)));
                }
                None if running.is_empty() => return judged,
                None => judged.extend(round.done(running.pop().unwrap(), digest(1))),
            }
        }
    }

    #[test]
    fn every_table_is_judged_once_when_all_parts_of_both_sides_are_in() {
        for seed in 0..200 {
            let parts = [[3, 1], [1, 1], [2, 5]];
            let mut judged = run(&parts, seed, usize::MAX);
            judged.sort_by_key(|judged| judged.table);
            assert_eq!(judged.iter().map(|judged| judged.table).collect::<Vec<_>>(), [0, 1, 2], "seed {seed}");
            for (judged, counts) in judged.iter().zip(parts) {
                assert_eq!(judged.digests.map(|digest| digest.row_count), counts.map(|count| count as u64));
            }
        }
    }

    #[test]
    fn a_closed_round_finishes_on_both_sides_what_either_began_and_begins_nothing() {
        for seed in 0..200 {
            for close_after in 0..8 {
                let judged = run(&[[3, 2], [2, 2], [1, 4]], seed, close_after);
                assert!(close_after > 0 || judged.is_empty(), "seed {seed}");
                // `run` ends only when no worker can take a part: then nothing begun is left unfinished.
                assert!(judged.len() <= 3);
            }
        }
        let mut round = Round::new([[1, 1], [1, 1]]);
        let begun = round.next(Side::Source).unwrap();
        round.close();
        assert_eq!(round.next(Side::Source), None);
        let other = round.next(Side::Target).unwrap();
        assert_eq!(other.table, begun.table);
        assert_eq!(round.next(Side::Target), None);
        assert_eq!(round.done(begun, digest(1)), None);
        assert!(round.done(other, digest(1)).is_some());
    }
}
