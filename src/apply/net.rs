//! The net effect of many changes on the rows of one table, by key.
//!
//! Hot rows cost one write a group, and the rest becomes three sets: what is gone, what changed, what is new. Deletes
//! are written first, then updates, then inserts, so that a unique value that was freed can be taken again. An order
//! that this cannot satisfy fails on its constraint and never changes the result.

use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use crate::model::{Datum, Tuple};

use super::key;

/// Changes folded by key.
#[derive(Debug)]
pub(super) struct Net {
    columns: Vec<usize>,
    keys: Keys,
    /// In the order the keys first came.
    rows: Vec<NetRow>,
}

/// Keys one behind the other in one buffer: no allocation a key, and neighbours when they are compared.
#[derive(Debug, Default)]
struct Keys {
    bytes: Vec<u8>,
    /// Where each one ends.
    ends: Vec<usize>,
    places: HashTable<u32>,
    hasher: RandomState,
    scratch: Vec<u8>,
}

/// So much of a key is compared without looking into the buffer: all of it for a number, with what is written before it.
const PREFIX_BYTES: usize = size_of::<u128>();

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NetRow {
    /// Was not there, is there now.
    Inserted(Tuple),
    /// Was there, is there still. Holds a value for each column that any of the changes carried.
    Updated(Tuple),
    /// Was there, is gone. Holds the key.
    Deleted(Tuple),
    /// Was there, was deleted, is there anew: nothing of the old row is left.
    Replaced(Tuple),
    /// Was not there, came and went.
    Passed,
}

/// The change contradicts what the fold knows (an insert of a row that is there): only the target can tell what is
/// wrong, so the caller has to send what was folded and start over with this change.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contradiction(pub(super) Tuple);

impl Net {
    /// `columns`: the key's, ascending.
    pub(super) fn new(columns: &[usize]) -> Self {
        Self { columns: columns.to_vec(), keys: Keys::default(), rows: Vec::new() }
    }

    pub(super) fn rows(&self) -> &[NetRow] {
        &self.rows
    }

    /// Each key with the place of its row.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&[u8], usize)> {
        (0..self.rows.len()).map(|at| (self.keys.key(at), at))
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.keys.find(key).is_some()
    }

    /// The places of the rows by key, which for numbers and other keys of one kind is near the order of their index:
    /// neighbours share pages, so the server reads, logs and writes each once a group.
    pub(super) fn places_by_key(&self) -> Vec<usize> {
        let mut rows: Vec<(u128, usize)> = self.keys().map(|(key, at)| (prefix(key), at)).collect();
        rows.sort_unstable_by(|(one, at), (other, place)| {
            one.cmp(other).then_with(|| self.keys.key(*at).cmp(self.keys.key(*place)))
        });
        rows.into_iter().map(|(_, at)| at).collect()
    }

    pub(super) fn insert(&mut self, new: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&new) {
            None => self.first(NetRow::Inserted(new)),
            Some(row @ NetRow::Deleted(_)) => *row = NetRow::Replaced(new),
            Some(row @ NetRow::Passed) => *row = NetRow::Inserted(new),
            Some(NetRow::Inserted(_) | NetRow::Updated(_) | NetRow::Replaced(_)) => return Err(Contradiction(new)),
        }
        Ok(())
    }

    /// An update that leaves the key as it is.
    pub(super) fn update(&mut self, new: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&new) {
            None => self.first(NetRow::Updated(new)),
            Some(NetRow::Inserted(row) | NetRow::Updated(row) | NetRow::Replaced(row)) => *row = key::merge(row, new),
            Some(NetRow::Deleted(_) | NetRow::Passed) => return Err(Contradiction(new)),
        }
        Ok(())
    }

    /// `old` holds at least the key.
    pub(super) fn delete(&mut self, old: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&old) {
            None => self.first(NetRow::Deleted(old)),
            Some(row @ NetRow::Inserted(_)) => *row = NetRow::Passed,
            Some(row @ (NetRow::Updated(_) | NetRow::Replaced(_))) => *row = NetRow::Deleted(old),
            Some(NetRow::Deleted(_) | NetRow::Passed) => return Err(Contradiction(old)),
        }
        Ok(())
    }

    /// The row of the tuple's key; what has none yet is ready for [`Self::first`].
    fn row_of(&mut self, tuple: &Tuple) -> Option<&mut NetRow> {
        key::write(tuple, &self.columns, &mut self.keys.scratch);
        let at = self.keys.find(&self.keys.scratch)?;
        Some(&mut self.rows[at])
    }

    fn first(&mut self, row: NetRow) {
        self.keys.add_written();
        self.rows.push(row);
    }
}

impl Keys {
    fn key(&self, at: usize) -> &[u8] {
        slice(&self.bytes, &self.ends, at)
    }

    fn find(&self, key: &[u8]) -> Option<usize> {
        let found = self.places.find(self.hasher.hash_one(key), |at| self.key(*at as usize) == key);
        found.map(|at| *at as usize)
    }

    /// Adds what stands in `scratch`, and is not there yet.
    fn add_written(&mut self) {
        let at = u32::try_from(self.ends.len()).expect("a group holds fewer than 2^32 changes");
        let hash = self.hasher.hash_one(self.scratch.as_slice());
        self.bytes.extend_from_slice(&self.scratch);
        self.ends.push(self.bytes.len());
        let Self { bytes, ends, hasher, .. } = self;
        let rehash = |at: &u32| hasher.hash_one(slice(bytes, ends, *at as usize));
        self.places.insert_unique(hash, at, rehash);
    }
}

fn slice<'a>(bytes: &'a [u8], ends: &[usize], at: usize) -> &'a [u8] {
    let begin = at.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[begin..ends[at]]
}

/// The key's first bytes as a number that sorts as they do; a shorter key goes before one that it begins.
fn prefix(key: &[u8]) -> u128 {
    let mut bytes = [0; PREFIX_BYTES];
    let length = key.len().min(PREFIX_BYTES);
    bytes[..length].copy_from_slice(&key[..length]);
    u128::from_be_bytes(bytes)
}

/// Whether an update with this tuple can be folded: its key has to be in it.
pub(super) fn has_key(tuple: &Tuple, columns: &[usize]) -> bool {
    let mut wanted = columns.iter().peekable();
    tuple
        .iter()
        .enumerate()
        .all(|(at, datum)| wanted.next_if(|column| **column == at).is_none() || datum != Datum::Unchanged)
}

#[cfg(test)]
mod tests {
    use super::super::key::tests::tuple;
    use super::*;

    fn folded(changes: &[(&str, &[&str])]) -> Result<Vec<NetRow>, Contradiction> {
        let mut net = Net::new(&[0]);
        for (kind, values) in changes {
            let row = tuple(values);
            match *kind {
                "insert" => net.insert(row)?,
                "update" => net.update(row)?,
                _ => net.delete(row)?,
            }
        }
        Ok(net.rows().to_vec())
    }

    #[test]
    fn each_history_of_a_row_has_one_net_effect() {
        let old: &[&str] = &["1", "-"];
        let (a, b): (&[&str], &[&str]) = (&["1", "a"], &["1", "b"]);
        type Case<'a> = (&'a [(&'a str, &'a [&'a str])], NetRow);
        let cases: [Case<'_>; 9] = [
            (&[("insert", a), ("update", b)], NetRow::Inserted(tuple(b))),
            (&[("insert", a), ("delete", old)], NetRow::Passed),
            (&[("insert", a), ("delete", old), ("insert", b)], NetRow::Inserted(tuple(b))),
            (&[("update", a), ("update", b)], NetRow::Updated(tuple(b))),
            (&[("update", a), ("update", &["1", "?"])], NetRow::Updated(tuple(a))),
            (&[("update", a), ("delete", old)], NetRow::Deleted(tuple(old))),
            (&[("delete", old), ("insert", b)], NetRow::Replaced(tuple(b))),
            (&[("delete", old), ("insert", a), ("update", b)], NetRow::Replaced(tuple(b))),
            (&[("delete", old), ("insert", a), ("delete", old)], NetRow::Deleted(tuple(old))),
        ];
        for (changes, expected) in cases {
            assert_eq!(folded(changes), Ok(vec![expected]), "{changes:?}");
        }
    }

    #[test]
    fn rows_can_be_had_in_the_order_of_their_numbers() {
        let mut net = Net::new(&[0]);
        for id in ["10", "9", "100", "1"] {
            net.update(tuple(&[id])).unwrap();
        }
        let sorted = ["1", "9", "10", "100"].map(|id| NetRow::Updated(tuple(&[id])));
        assert!(net.places_by_key().into_iter().map(|at| &net.rows()[at]).eq(&sorted));
    }

    /// Longer than what is compared first, and where one begins another.
    #[test]
    fn rows_are_sorted_by_their_keys_as_bytes() {
        let long = "x".repeat(PREFIX_BYTES);
        let keys =
            [format!("{long}b"), format!("{long}a"), long.clone(), format!("{}\0", &long[1..]), long[1..].to_owned()];
        let mut net = Net::new(&[0]);
        for key in &keys {
            net.update(tuple(&[key])).unwrap();
        }
        let mut sorted: Vec<(Vec<u8>, usize)> = net.keys().map(|(key, at)| (key.to_vec(), at)).collect();
        sorted.sort();
        assert!(net.places_by_key().into_iter().eq(sorted.into_iter().map(|(_, at)| at)));
        assert!(net.keys().all(|(key, at)| net.has(key) && net.keys.find(key) == Some(at)) && !net.has(b"t"));
    }

    #[test]
    fn what_cannot_be_is_left_to_the_target_to_refuse() {
        let row: &[&str] = &["1", "a"];
        for changes in [
            [("insert", row), ("insert", row)],
            [("update", row), ("insert", row)],
            [("delete", row), ("update", row)],
            [("delete", row), ("delete", row)],
        ] {
            assert_eq!(folded(&changes), Err(Contradiction(tuple(changes[1].1))), "{changes:?}");
        }
    }
}
