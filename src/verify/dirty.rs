//! Which rows have to be looked at again: the keys the applier wrote since a table was last found equal.
//!
//! A table that was never found equal records nothing: there is nothing to keep up with. Only our applier is heard
//! here; what anyone else writes to the target is found by the next full pass.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::report::TableVerdict;
use super::table::Table;
use crate::model::{Datum, Lsn, Relation, TableName, Touched, Tuple, binary};

/// Flat charge for a key: its place in the set and the allocator's overhead.
const KEY_BYTES: usize = 56;

/// Shared by the applier, which reports ([`Touched`]), and verification, which asks. Holds at most the budget; past
/// it the table with the most keys is marked as a whole and its keys are let go.
#[derive(Debug)]
pub struct DirtyKeys {
    tables: Arc<[Table]>,
    by_name: HashMap<TableName, usize>,
    budget_bytes: usize,
    ledger: Mutex<Ledger>,
}

/// For `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirtySummary {
    pub tables_total: usize,
    /// Found equal in full, and everything written since is known.
    pub tables_clean: usize,
    pub keys: usize,
    /// To be compared in full again although they were found equal: truncated, without a key, or with too many keys.
    pub whole_tables: usize,
    /// Every table was equal here.
    pub position: Option<Lsn>,
}

/// What of one table has to be compared.
#[derive(Clone, Debug)]
pub(super) struct Check {
    pub(super) table: usize,
    pub(super) what: Arc<Dirty>,
}

impl Check {
    pub(super) fn is_empty(&self) -> bool {
        match &*self.what {
            Dirty::Keys(keys) => keys.is_empty(),
            Dirty::Whole => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dirty {
    /// Keys as [`encode`] writes them.
    Keys(HashSet<Box<[u8]>>),
    Whole,
}

#[derive(Debug)]
struct Ledger {
    states: Vec<State>,
    key_bytes: usize,
    /// Where the key's columns stand in the tuples of a relation, by the relation's OID.
    places: HashMap<u32, Places>,
}

#[derive(Debug)]
enum State {
    /// Never found equal, or found different. Entered at the start and by a different verdict.
    Unknown,
    /// A full comparison is under way at an aligned position; left when it is judged.
    Comparing { dirty: Dirty },
    /// Equal at `position` but for `dirty`, and for `checking` while those are being compared.
    Clean { verdict: TableVerdict, position: Lsn, dirty: Dirty, checking: Option<Arc<Dirty>> },
}

#[derive(Debug)]
struct Places {
    table: usize,
    columns: Vec<usize>,
}

impl DirtyKeys {
    /// `tables` as they are verified; `budget_bytes` bounds the memory for keys.
    pub fn new(tables: Arc<[Table]>, budget_bytes: usize) -> Self {
        let by_name = tables.iter().enumerate().map(|(index, table)| (table.source.clone(), index)).collect();
        let states = tables.iter().map(|_| State::Unknown).collect();
        let ledger = Mutex::new(Ledger { states, key_bytes: 0, places: HashMap::new() });
        Self { tables, by_name, budget_bytes, ledger }
    }

    pub fn tables(&self) -> &Arc<[Table]> {
        &self.tables
    }

    pub fn summary(&self) -> DirtySummary {
        let ledger = self.lock();
        let mut summary = DirtySummary { tables_total: self.tables.len(), ..DirtySummary::default() };
        let mut position: Option<Lsn> = None;
        for state in &ledger.states {
            let State::Clean { position: at, dirty, checking, .. } = state else { continue };
            summary.tables_clean += 1;
            position = Some(position.map_or(*at, |known| known.min(*at)));
            let parts = [Some(dirty), checking.as_deref()];
            summary.keys += parts.iter().flatten().map(|dirty| dirty.key_count()).sum::<usize>();
            summary.whole_tables += usize::from(parts.iter().flatten().any(|dirty| **dirty == Dirty::Whole));
        }
        summary.position = position.filter(|_| summary.tables_clean == summary.tables_total);
        summary
    }

    /// A full comparison of these tables begins at the position where the applier stands now. Called while it is held.
    pub(super) fn begin(&self, tables: &[usize]) {
        let mut ledger = self.lock();
        for table in tables {
            ledger.replace(*table, State::Comparing { dirty: Dirty::nothing() });
        }
    }

    /// The full comparison that began at `position` is judged.
    pub(super) fn judged(&self, table: usize, position: Lsn, verdict: &TableVerdict) {
        let mut ledger = self.lock();
        let previous = std::mem::replace(&mut ledger.states[table], State::Unknown);
        let state = match previous {
            State::Comparing { dirty } if verdict.equal => {
                State::Clean { verdict: verdict.clone(), position, dirty, checking: None }
            }
            State::Comparing { dirty } => {
                ledger.release(&dirty);
                State::Unknown
            }
            // Somebody has come to distrust it meanwhile.
            State::Unknown => State::Unknown,
            State::Clean { .. } => panic!("a table was judged that nobody began to compare"),
        };
        ledger.states[table] = state;
    }

    /// The full comparison came to nothing.
    pub(super) fn abandoned(&self, table: usize) {
        self.lock().replace(table, State::Unknown);
    }

    /// What has to be compared so that everything is verified at the position where the applier stands now, and the
    /// verdicts it builds upon. From here on keys are collected anew, and what was handed out is handed out again
    /// unless [`Self::confirm`] says that it was found equal. Called while the applier is held, or has drained.
    /// `Err` names a table that was never found equal.
    pub(super) fn take(&self) -> Result<Vec<(Check, TableVerdict)>, TableName> {
        let mut guard = self.lock();
        let ledger = &mut *guard;
        let mut checks = Vec::with_capacity(ledger.states.len());
        if let Some(unknown) = ledger.states.iter().position(|state| !matches!(state, State::Clean { .. })) {
            return Err(self.tables[unknown].source.clone());
        }
        for (index, state) in ledger.states.iter_mut().enumerate() {
            let State::Clean { verdict, dirty, checking, .. } = state else { continue };
            let fresh = std::mem::replace(dirty, Dirty::nothing());
            let what = Arc::new(match checking.take() {
                Some(unconfirmed) => fresh.merged(&unconfirmed),
                None => fresh,
            });
            *checking = Some(Arc::clone(&what));
            checks.push((Check { table: index, what }, verdict.clone()));
        }
        ledger.count_again();
        Ok(checks)
    }

    /// What was taken was found equal at `position`.
    pub(super) fn confirm(&self, table: usize, at: Lsn) {
        let mut ledger = self.lock();
        if let State::Clean { position, checking, .. } = &mut ledger.states[table] {
            *position = at;
            *checking = None;
        }
        ledger.count_again();
    }

    /// What was taken was found different: nothing is known of the table any more.
    pub(super) fn refute(&self, table: usize) {
        self.lock().replace(table, State::Unknown);
    }

    /// Another comparison, of chosen tables, found `table` (its name on the source) different: an earlier verdict that it
    /// is equal does not stand any more.
    pub fn distrust(&self, table: &str) {
        if let Some(place) = self.tables.iter().position(|known| known.source.to_string() == table) {
            self.refute(place);
        }
    }

    /// Whether `table` (its name on the source) was found equal in full, but for keys that the applier wrote since.
    pub fn is_held_equal(&self, table: &TableName) -> bool {
        let place = self.by_name.get(table);
        place.is_some_and(|place| matches!(self.lock().states[*place], State::Clean { .. }))
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the table and its key's columns, once for each shape of a relation.
    fn place<'a>(
        &self,
        places: &'a mut HashMap<u32, Places>,
        name: &TableName,
        relation: &Relation,
    ) -> Option<&'a Places> {
        let holds = |places: &Places| {
            let table = &self.tables[places.table];
            let stands = |(key, place): (&super::table::KeyColumn, &usize)| {
                relation.columns.get(*place).is_some_and(|column| column.name == key.name)
            };
            table.source == *name && table.key.iter().zip(&places.columns).all(stands)
        };
        if !places.get(&relation.oid).is_some_and(holds) {
            let table = *self.by_name.get(name)?;
            let find = |name: &str| relation.columns.iter().position(|column| column.name == name);
            // A key column that the stream does not carry: no key can be read, so none is recorded (see `key_of`).
            let columns: Option<Vec<usize>> = self.tables[table].key.iter().map(|key| find(&key.name)).collect();
            places.insert(relation.oid, Places { table, columns: columns.unwrap_or_default() });
        }
        places.get(&relation.oid)
    }
}

impl Touched for DirtyKeys {
    fn row(&self, table: &TableName, relation: &Relation, tuple: &Tuple) {
        let mut guard = self.lock();
        let ledger = &mut *guard;
        let Some(places) = self.place(&mut ledger.places, table, relation) else { return };
        let table = places.table;
        let dirty = match &mut ledger.states[table] {
            State::Unknown => return,
            State::Comparing { dirty } | State::Clean { dirty, .. } => dirty,
        };
        let Dirty::Keys(keys) = dirty else { return };
        match key_of(relation, &places.columns, tuple) {
            Some(key) => {
                let cost = key.len() + KEY_BYTES;
                if keys.insert(key) {
                    ledger.key_bytes += cost;
                }
            }
            None => ledger.mark_whole(table),
        }
        if ledger.key_bytes > self.budget_bytes {
            ledger.shed();
        }
    }

    fn table(&self, table: &TableName) {
        let Some(table) = self.by_name.get(table) else { return };
        self.lock().mark_whole(*table);
    }
}

impl Ledger {
    fn replace(&mut self, table: usize, state: State) {
        self.states[table] = state;
        self.count_again();
    }

    fn mark_whole(&mut self, table: usize) {
        match &mut self.states[table] {
            State::Unknown => return,
            State::Comparing { dirty } | State::Clean { dirty, .. } => *dirty = Dirty::Whole,
        }
        self.count_again();
    }

    fn release(&mut self, dirty: &Dirty) {
        self.key_bytes = self.key_bytes.saturating_sub(dirty.size_bytes());
    }

    /// Over the budget: the table with the most keys is compared in full next time.
    fn shed(&mut self) {
        let size = |state: &State| match state {
            State::Unknown => 0,
            State::Comparing { dirty } | State::Clean { dirty, .. } => dirty.size_bytes(),
        };
        let largest = (0..self.states.len()).max_by_key(|table| size(&self.states[*table]));
        if let Some(table) = largest {
            self.mark_whole(table);
        }
    }

    fn count_again(&mut self) {
        let size = |state: &State| match state {
            State::Unknown => 0,
            State::Comparing { dirty } => dirty.size_bytes(),
            State::Clean { dirty, checking, .. } => {
                dirty.size_bytes() + checking.as_ref().map_or(0, |checking| checking.size_bytes())
            }
        };
        self.key_bytes = self.states.iter().map(size).sum();
    }
}

impl Dirty {
    fn nothing() -> Self {
        Self::Keys(HashSet::new())
    }

    pub(super) fn key_count(&self) -> usize {
        match self {
            Self::Keys(keys) => keys.len(),
            Self::Whole => 0,
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Self::Keys(keys) => keys.iter().map(|key| key.len() + KEY_BYTES).sum(),
            Self::Whole => 0,
        }
    }

    fn merged(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Keys(mut keys), Self::Keys(others)) => {
                keys.extend(others.iter().cloned());
                Self::Keys(keys)
            }
            (Self::Whole, _) | (_, Self::Whole) => Self::Whole,
        }
    }
}

/// The key's values, each behind its length. `None` when they cannot be read from this tuple: no key, a value that the
/// stream left out, or one outside the replica identity (NULL in an old key).
fn key_of(relation: &Relation, columns: &[usize], tuple: &Tuple) -> Option<Box<[u8]>> {
    if columns.is_empty() {
        return None;
    }
    let mut key = Vec::with_capacity(32);
    for place in columns {
        let text = text_of(relation.columns[*place].type_oid, tuple.iter().nth(*place)?)?;
        key.extend_from_slice(&u32::try_from(text.len()).ok()?.to_be_bytes());
        key.extend_from_slice(text.as_bytes());
    }
    Some(key.into_boxed_slice())
}

/// A key column's value as text.
fn text_of(type_oid: u32, datum: Datum<'_>) -> Option<String> {
    let text = match datum {
        Datum::Null | Datum::Unchanged => return None,
        Datum::Text(text) => text.to_vec(),
        Datum::Binary(value) => binary::to_text(type_oid, value).ok()?,
    };
    String::from_utf8(text).ok()
}

/// Keys as query parameters: one list a key column.
pub(super) fn columns_of<'a>(keys: impl Iterator<Item = &'a [u8]>, column_count: usize) -> Vec<Vec<&'a str>> {
    let mut columns = vec![Vec::new(); column_count];
    for mut rest in keys {
        for column in &mut columns {
            let (length, tail) = rest.split_first_chunk::<4>().expect("`key_of` wrote a length before each value");
            let (text, tail) = tail.split_at(u32::from_be_bytes(*length) as usize);
            column.push(std::str::from_utf8(text).expect("`key_of` wrote text"));
            rest = tail;
        }
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, ReplicaIdentity, TupleBuilder};
    use crate::verify::table::tests::table;

    fn relation(columns: &[(&str, u32)]) -> Relation {
        let column = |&(name, type_oid): &(&str, u32)| Column {
            name: name.to_owned(),
            type_oid,
            type_modifier: -1,
            in_identity: true,
            type_name: None,
        };
        Relation {
            binary: false,
            oid: 1,
            name: TableName::new("public", "t"),
            identity: ReplicaIdentity::Default,
            columns: columns.iter().map(column).collect(),
        }
    }

    fn touch(dirty: &DirtyKeys, relation: &Relation, values: &[Datum<'_>]) {
        let mut tuple = TupleBuilder::default();
        for value in values {
            tuple.push(*value);
        }
        dirty.row(&relation.name, relation, &tuple.finish());
    }

    fn verdict(equal: bool) -> TableVerdict {
        let digest = |row_count| super::super::digest::Digest { row_count, sums: [0, 0] };
        let digests = [digest(5), digest(if equal { 5 } else { 4 })];
        let at = Lsn::new(1).unwrap();
        TableVerdict::new(&table("t", &["a", "b"], &[]), digests, at, std::time::Duration::ZERO)
    }

    fn clean(key: &[(&str, &str)], budget_bytes: usize) -> DirtyKeys {
        let dirty = DirtyKeys::new(vec![table("t", &["a", "b"], key)].into(), budget_bytes);
        dirty.begin(&[0]);
        dirty.judged(0, Lsn::new(1).unwrap(), &verdict(true));
        dirty
    }

    fn taken(dirty: &DirtyKeys) -> Arc<Dirty> {
        Arc::clone(&dirty.take().unwrap()[0].0.what)
    }

    #[test]
    fn keys_are_collected_from_the_position_on_where_the_comparison_began() {
        let dirty = DirtyKeys::new(vec![table("t", &["a", "b"], &[("b", "text")])].into(), 1 << 20);
        let shape = relation(&[("a", 25), ("b", 25)]);
        touch(&dirty, &shape, &[Datum::Null, Datum::Text(b"before")]);
        dirty.begin(&[0]);
        touch(&dirty, &shape, &[Datum::Null, Datum::Text(b"during")]);
        dirty.judged(0, Lsn::new(1).unwrap(), &verdict(true));
        // Another shape of the same table.
        touch(&dirty, &relation(&[("b", 25)]), &[Datum::Text(b"after")]);
        let Dirty::Keys(keys) = &*taken(&dirty) else { panic!("keys") };
        let mut columns = columns_of(keys.iter().map(AsRef::as_ref), 1).remove(0);
        columns.sort_unstable();
        assert_eq!(columns, ["after", "during"]);
    }

    #[test]
    fn what_was_taken_is_taken_again_until_it_is_confirmed() {
        let dirty = clean(&[("a", "integer")], 1 << 20);
        let shape = relation(&[("a", 23)]);
        touch(&dirty, &shape, &[Datum::Text(b"1")]);
        assert_eq!(taken(&dirty).key_count(), 1);
        touch(&dirty, &shape, &[Datum::Binary(&2_i32.to_be_bytes())]);
        assert_eq!(taken(&dirty).key_count(), 2);
        touch(&dirty, &shape, &[Datum::Text(b"3")]);
        dirty.confirm(0, Lsn::new(2).unwrap());
        assert_eq!(dirty.summary().position, Lsn::new(2));
        assert_eq!(taken(&dirty).key_count(), 1, "3 came after the look and is still to be looked at");
        dirty.refute(0);
        assert_eq!(dirty.take().unwrap_err(), TableName::new("public", "t"));
    }

    #[test]
    fn what_cannot_be_named_by_key_makes_the_whole_table_dirty() {
        let shape = relation(&[("a", 23), ("b", 25)]);
        let dirty = clean(&[], 1 << 20);
        touch(&dirty, &shape, &[Datum::Text(b"1"), Datum::Null]);
        assert_eq!(*taken(&dirty), Dirty::Whole);
        for value in [Datum::Null, Datum::Unchanged, Datum::Binary(b"not an int4"), Datum::Text(b"\xff")] {
            let dirty = clean(&[("a", "integer")], 1 << 20);
            touch(&dirty, &shape, &[value, Datum::Null]);
            assert_eq!(*taken(&dirty), Dirty::Whole, "{value:?}");
        }
        let dirty = clean(&[("a", "integer")], 1 << 20);
        dirty.table(&shape.name);
        touch(&dirty, &shape, &[Datum::Text(b"1"), Datum::Null]);
        assert_eq!(*taken(&dirty), Dirty::Whole, "TRUNCATE");
        let dirty = clean(&[("a", "integer")], 1 << 20);
        touch(&dirty, &relation(&[("b", 25)]), &[Datum::Text(b"the key is not in the stream")]);
        assert_eq!(*taken(&dirty), Dirty::Whole);
    }

    #[test]
    fn memory_stays_under_the_budget() {
        let dirty = clean(&[("a", "integer")], 100 * (8 + KEY_BYTES));
        let shape = relation(&[("a", 23)]);
        for number in 0..1000_i32 {
            touch(&dirty, &shape, &[Datum::Binary(&number.to_be_bytes())]);
            assert!(dirty.lock().key_bytes <= 101 * (8 + KEY_BYTES));
        }
        assert_eq!(*taken(&dirty), Dirty::Whole);
        assert_eq!(
            dirty.summary(),
            DirtySummary {
                tables_total: 1,
                tables_clean: 1,
                whole_tables: 1,
                position: Lsn::new(1),
                ..DirtySummary::default()
            }
        );
    }

    #[test]
    fn a_different_table_is_unknown() {
        let dirty = DirtyKeys::new(vec![table("t", &["a", "b"], &[])].into(), 1 << 20);
        dirty.begin(&[0]);
        dirty.judged(0, Lsn::new(1).unwrap(), &verdict(false));
        assert_eq!(dirty.summary().tables_clean, 0);
        assert!(dirty.take().is_err());
    }
}
