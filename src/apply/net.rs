//! The net effect of many changes on the rows of one table, by key.
//!
//! Hot rows cost one write a group, and the rest becomes three sets: what is gone, what changed, what is new. Deletes
//! are written first, then updates, then inserts, so that a unique value that was freed can be taken again. An order
//! that this cannot satisfy fails on its constraint and never changes the result.

use std::collections::HashMap;

use crate::model::{Datum, Tuple};

use super::key;

/// Changes folded by key.
#[derive(Debug)]
pub(super) struct Net {
    columns: Vec<usize>,
    by_key: HashMap<Box<[u8]>, u32>,
    /// In the order the keys first came.
    rows: Vec<NetRow>,
    scratch: Vec<u8>,
}

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
pub(super) struct Contradiction;

impl Net {
    /// `columns`: the key's, ascending.
    pub(super) fn new(columns: &[usize]) -> Self {
        Self { columns: columns.to_vec(), by_key: HashMap::new(), rows: Vec::new(), scratch: Vec::new() }
    }

    pub(super) fn rows(&self) -> &[NetRow] {
        &self.rows
    }

    /// Each key with the place of its row.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&[u8], usize)> {
        self.by_key.iter().map(|(key, at)| (&**key, *at as usize))
    }

    pub(super) fn has(&self, key: &[u8]) -> bool {
        self.by_key.contains_key(key)
    }

    /// The places of the rows by key, which for numbers and other keys of one kind is near the order of their index:
    /// neighbours share pages, so the server reads, logs and writes each once a group.
    pub(super) fn places_by_key(&self) -> Vec<usize> {
        let mut rows: Vec<(&[u8], usize)> = self.keys().collect();
        rows.sort_unstable();
        rows.into_iter().map(|(_, at)| at).collect()
    }

    pub(super) fn insert(&mut self, new: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&new) {
            None => self.first(NetRow::Inserted(new)),
            Some(row @ NetRow::Deleted(_)) => *row = NetRow::Replaced(new),
            Some(row @ NetRow::Passed) => *row = NetRow::Inserted(new),
            Some(NetRow::Inserted(_) | NetRow::Updated(_) | NetRow::Replaced(_)) => return Err(Contradiction),
        }
        Ok(())
    }

    /// An update that leaves the key as it is.
    pub(super) fn update(&mut self, new: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&new) {
            None => self.first(NetRow::Updated(new)),
            Some(NetRow::Inserted(row) | NetRow::Updated(row) | NetRow::Replaced(row)) => *row = key::merge(row, &new),
            Some(NetRow::Deleted(_) | NetRow::Passed) => return Err(Contradiction),
        }
        Ok(())
    }

    /// `old` holds at least the key.
    pub(super) fn delete(&mut self, old: Tuple) -> Result<(), Contradiction> {
        match self.row_of(&old) {
            None => self.first(NetRow::Deleted(old)),
            Some(row @ NetRow::Inserted(_)) => *row = NetRow::Passed,
            Some(row @ (NetRow::Updated(_) | NetRow::Replaced(_))) => *row = NetRow::Deleted(old),
            Some(NetRow::Deleted(_) | NetRow::Passed) => return Err(Contradiction),
        }
        Ok(())
    }

    /// The row of the tuple's key; leaves the key's bytes in `scratch` for [`Self::first`].
    fn row_of(&mut self, tuple: &Tuple) -> Option<&mut NetRow> {
        key::write(tuple, &self.columns, &mut self.scratch);
        let at = *self.by_key.get(self.scratch.as_slice())?;
        Some(&mut self.rows[at as usize])
    }

    fn first(&mut self, row: NetRow) {
        let at = u32::try_from(self.rows.len()).expect("a group holds fewer than 2^32 changes");
        self.by_key.insert(self.scratch.as_slice().into(), at);
        self.rows.push(row);
    }
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

    #[test]
    fn what_cannot_be_is_left_to_the_target_to_refuse() {
        let row: &[&str] = &["1", "a"];
        for changes in [
            [("insert", row), ("insert", row)],
            [("update", row), ("insert", row)],
            [("delete", row), ("update", row)],
            [("delete", row), ("delete", row)],
        ] {
            assert_eq!(folded(&changes), Err(Contradiction), "{changes:?}");
        }
    }
}
