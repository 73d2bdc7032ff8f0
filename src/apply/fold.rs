//! Folds the changes of a group into layers: pieces of work that are executed in order and are sets inside.
//!
//! An isolated table has one open layer that keeps taking changes wherever they stand in the group, because nothing
//! that happens to other tables can tell. The changes of any other table keep their place: a layer takes them only
//! while it is the last one of its sort. TRUNCATE closes everything.
//!
//! Leaves of the source that one table of the target gathers share a layer, since rows move between them; where their
//! columns stand in another order, a layer of their own follows.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::model::{OldTuple, Tuple};

use super::key::{self, Present};
use super::net::{self, Contradiction, Net};
use super::table::{RowChange, RowKey, Table};

/// Pieces of work in the order they are to be executed.
#[derive(Debug, Default)]
pub(super) struct Layers {
    list: Vec<Layer>,
    /// The layer that takes more changes, by [`Table::place`].
    open: HashMap<u32, usize>,
    /// The last layer of a table that is not isolated.
    last_in_place: Option<usize>,
    /// Whether the newest change came in binary form: a key is not the same bytes in both.
    binary: bool,
    scratch: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum Layer {
    Net { table: Arc<Table>, net: Net },
    Run { table: Arc<Table>, run: Run },
    Truncate(Truncate),
}

/// Consecutive changes of one kind.
#[derive(Debug)]
pub(super) enum Run {
    Insert(Vec<Tuple>),
    /// No key twice.
    Update {
        present: Present,
        rows: Vec<Tuple>,
        keys: HashSet<Box<[u8]>>,
    },
    Delete(Vec<Tuple>),
    /// Updates that change the key, as pairs of old and new row. No old key is another's new key.
    Move {
        present: Present,
        rows: Vec<(Tuple, Tuple)>,
        keys: HashSet<Box<[u8]>>,
    },
    /// One row found by all its values.
    UpdateOne {
        old: Tuple,
        new: Tuple,
    },
    DeleteOne {
        old: Tuple,
    },
}

/// One statement for all its tables.
///
/// CASCADE is not repeated, as native replication does not (`apply_handle_truncate`): every table of ours that it
/// reached is listed, and one that only the target has is not to lose its rows without anybody's having said so.
#[derive(Clone, Debug)]
pub(super) struct Truncate {
    pub(super) tables: Vec<Arc<Table>>,
    /// Leaves that were truncated without all others that are gathered with them: the rows that go, as a condition.
    pub(super) leaves: Vec<(Arc<Table>, String)>,
    pub(super) restart_identity: bool,
    /// The copy of a table beside these has seen it already. That one's foreign keys would forbid TRUNCATE.
    pub(super) partial: bool,
}

/// The stream does not say which row an UPDATE or DELETE meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoIdentity;

/// A change in the terms of the table's key.
enum Keyed {
    Insert(Tuple),
    Update(Tuple),
    Delete(Tuple),
    Move(Tuple, Tuple),
}

impl Layer {
    /// The only table whose rows it changes.
    pub(super) fn table(&self) -> Option<&Arc<Table>> {
        match self {
            Self::Net { table, .. } | Self::Run { table, .. } => Some(table),
            Self::Truncate(_) => None,
        }
    }
}

impl Layers {
    pub(super) fn list(&self) -> &[Layer] {
        &self.list
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Adds a row change. `folding` is whether the table's changes may be folded to their net effect.
    pub(super) fn row(&mut self, table: &Arc<Table>, change: RowChange, folding: bool) -> Result<(), NoIdentity> {
        if self.binary != table.relation.binary {
            self.binary = table.relation.binary;
            self.close();
        }
        match &table.key {
            RowKey::Columns(columns) => {
                let keyed = in_terms_of(table, columns, change)?;
                if folding && table.isolated {
                    self.fold(table, columns, keyed)
                } else {
                    self.append(table, columns, keyed)
                }
                Ok(())
            }
            RowKey::WholeRow | RowKey::Nothing => self.whole_row(table, change),
        }
    }

    pub(super) fn truncate(&mut self, truncate: Truncate) {
        self.close();
        self.list.push(Layer::Truncate(truncate));
    }

    /// What follows keeps its place behind everything so far.
    fn close(&mut self) {
        self.open.clear();
        self.last_in_place = None;
    }

    fn fold(&mut self, table: &Arc<Table>, columns: &[usize], change: Keyed) {
        let change = match change {
            Keyed::Move(..) => return self.append(table, columns, change),
            Keyed::Insert(_) | Keyed::Update(_) | Keyed::Delete(_) => change,
        };
        let net = self.open_net(table, columns);
        if let Err(change) = push(net, change) {
            self.open.remove(&table.place);
            let anew = push(self.open_net(table, columns), change);
            assert!(anew.is_ok(), "an empty fold contradicts nothing");
        }
    }

    /// The table's open net, or a new one behind everything.
    fn open_net(&mut self, table: &Arc<Table>, columns: &[usize]) -> &mut Net {
        let open = self.open.get(&table.place).copied();
        let at = match open.filter(|at| matches!(&self.list[*at], Layer::Net { table: of, .. } if of.id == table.id)) {
            Some(at) => at,
            None => self.add(table, Layer::Net { table: Arc::clone(table), net: Net::new(columns) }),
        };
        match &mut self.list[at] {
            Layer::Net { net, .. } => net,
            Layer::Run { .. } | Layer::Truncate(_) => unreachable!("it was found or made as a net above"),
        }
    }

    /// Adds to the table's open run, or opens a new one.
    fn append(&mut self, table: &Arc<Table>, columns: &[usize], change: Keyed) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let rejected = match self.open_run(table) {
            Some(run) => extend(run, columns, change, &mut scratch),
            None => Some(change),
        };
        if let Some(change) = rejected {
            let run = start(columns, change, &mut scratch);
            self.add(table, Layer::Run { table: Arc::clone(table), run });
        }
        self.scratch = scratch;
    }

    fn whole_row(&mut self, table: &Arc<Table>, change: RowChange) -> Result<(), NoIdentity> {
        let run = match change {
            RowChange::Insert { new } => match self.open_run(table) {
                Some(Run::Insert(rows)) => {
                    rows.push(new);
                    return Ok(());
                }
                Some(_) | None => Run::Insert(vec![new]),
            },
            RowChange::Update { old: Some(old), new } if table.finds_by(&old) => Run::UpdateOne { old: old.tuple, new },
            RowChange::Delete { old } if table.finds_by(&old) => Run::DeleteOne { old: old.tuple },
            RowChange::Update { .. } | RowChange::Delete { .. } => return Err(NoIdentity),
        };
        self.add(table, Layer::Run { table: Arc::clone(table), run });
        Ok(())
    }

    fn open_run(&mut self, table: &Table) -> Option<&mut Run> {
        let at = *self.open.get(&table.place)?;
        if !table.isolated && self.last_in_place != Some(at) {
            return None;
        }
        match &mut self.list[at] {
            Layer::Run { table: of, run } if of.id == table.id => Some(run),
            Layer::Run { .. } | Layer::Net { .. } | Layer::Truncate(_) => None,
        }
    }

    fn add(&mut self, table: &Table, layer: Layer) -> usize {
        let at = self.list.len();
        self.list.push(layer);
        self.open.insert(table.place, at);
        if !table.isolated {
            self.last_in_place = Some(at);
        }
        at
    }
}

/// What the change means for the key. An update that carries an old row with another key is a move.
fn in_terms_of(table: &Table, columns: &[usize], change: RowChange) -> Result<Keyed, NoIdentity> {
    let found_by = |old: OldTuple| if table.finds_by(&old) { Ok(old.tuple) } else { Err(NoIdentity) };
    Ok(match change {
        RowChange::Insert { new } => Keyed::Insert(new),
        RowChange::Delete { old } => Keyed::Delete(found_by(old)?),
        RowChange::Update { old: None, new } if names_key(table, columns) && net::has_key(&new, columns) => {
            Keyed::Update(new)
        }
        RowChange::Update { old: None, .. } => return Err(NoIdentity),
        RowChange::Update { old: Some(old), new } => {
            let old = found_by(old)?;
            if !key::is_same(&old, &new, columns) {
                Keyed::Move(old, new)
            } else if net::has_key(&new, columns) {
                Keyed::Update(new)
            } else {
                // A key value that was left out as unchanged (a TOASTed key) stands in the old row.
                Keyed::Update(with_key(&old, &new, columns))
            }
        }
    })
}

/// Without an old row the key is known not to have changed only when it is inside the replica identity.
fn names_key(table: &Table, columns: &[usize]) -> bool {
    columns.iter().all(|at| table.relation.columns[*at].in_identity)
}

fn with_key(old: &Tuple, new: &Tuple, columns: &[usize]) -> Tuple {
    let mut builder = crate::model::TupleBuilder::default();
    for (at, (earlier, later)) in old.iter().zip(new.iter()).enumerate() {
        builder.push(if columns.contains(&at) { earlier } else { later });
    }
    builder.finish()
}

/// Hands back what contradicts.
fn push(net: &mut Net, change: Keyed) -> Result<(), Keyed> {
    match change {
        Keyed::Insert(new) => net.insert(new).map_err(|Contradiction(new)| Keyed::Insert(new)),
        Keyed::Update(new) => net.update(new).map_err(|Contradiction(new)| Keyed::Update(new)),
        Keyed::Delete(old) => net.delete(old).map_err(|Contradiction(old)| Keyed::Delete(old)),
        Keyed::Move(..) => unreachable!("a move is a run of its own"),
    }
}

/// Adds the change to the run, or hands it back when it does not fit.
fn extend(run: &mut Run, columns: &[usize], change: Keyed, scratch: &mut Vec<u8>) -> Option<Keyed> {
    match (run, change) {
        (Run::Insert(rows), Keyed::Insert(new)) => rows.push(new),
        (Run::Delete(rows), Keyed::Delete(old)) => rows.push(old),
        (Run::Update { present, rows, keys }, Keyed::Update(new)) => {
            key::write(&new, columns, scratch);
            if *present != Present::of(&new) || keys.contains(scratch.as_slice()) {
                return Some(Keyed::Update(new));
            }
            keys.insert(scratch.as_slice().into());
            rows.push(new);
        }
        (Run::Move { present, rows, keys }, Keyed::Move(old, new)) => {
            key::write(&old, columns, scratch);
            if *present != Present::of(&new) || keys.contains(scratch.as_slice()) {
                return Some(Keyed::Move(old, new));
            }
            keys.insert(scratch.as_slice().into());
            key::write(&key::merge(&old, new.clone()), columns, scratch);
            keys.insert(scratch.as_slice().into());
            rows.push((old, new));
        }
        (_, change) => return Some(change),
    }
    None
}

fn start(columns: &[usize], change: Keyed, scratch: &mut Vec<u8>) -> Run {
    let mut run = match &change {
        Keyed::Insert(_) => Run::Insert(Vec::new()),
        Keyed::Delete(_) => Run::Delete(Vec::new()),
        Keyed::Update(new) => Run::Update { present: Present::of(new), rows: Vec::new(), keys: HashSet::new() },
        Keyed::Move(_, new) => Run::Move { present: Present::of(new), rows: Vec::new(), keys: HashSet::new() },
    };
    let rejected = extend(&mut run, columns, change, scratch);
    debug_assert!(rejected.is_none(), "an empty run of its kind takes any change");
    run
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::facts::Facts;
    use super::super::facts::tests::{facts, relation, table};
    use super::super::key::tests::tuple;
    use super::super::net::NetRow;
    use super::*;
    use crate::model::{Datum, OldKind, ReplicaIdentity};

    /// Rows by key, values of the other columns.
    pub(crate) type Rows = BTreeMap<String, Vec<String>>;

    const COLUMNS: &[&str] = &["id", "a", "b"];

    fn values(tuple: &Tuple) -> Vec<Option<String>> {
        let value = |datum| match datum {
            Datum::Text(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            Datum::Null | Datum::Unchanged | Datum::Binary(_) => None,
        };
        tuple.iter().map(value).collect()
    }

    /// What the target does with the statements of the layers. A row that is missing or there already is `Err`, as a
    /// count or a constraint would have it.
    fn execute(layers: &Layers, rows: &mut Rows) -> Result<(), String> {
        for layer in layers.list() {
            match layer {
                Layer::Net { net, .. } => net_effect(net, rows)?,
                Layer::Run { run, .. } => run_effect(run, rows)?,
                Layer::Truncate(_) => rows.clear(),
            }
        }
        Ok(())
    }

    fn net_effect(net: &Net, rows: &mut Rows) -> Result<(), String> {
        for row in net.rows() {
            if let NetRow::Deleted(row) | NetRow::Replaced(row) = row {
                delete(rows, row)?;
            }
        }
        for row in net.rows() {
            if let NetRow::Updated(row) = row {
                update(rows, row, row)?;
            }
        }
        for row in net.rows() {
            if let NetRow::Inserted(row) | NetRow::Replaced(row) = row {
                insert(rows, row)?;
            }
        }
        Ok(())
    }

    pub(crate) fn run_effect(run: &Run, rows: &mut Rows) -> Result<(), String> {
        match run {
            Run::Insert(new) => new.iter().try_for_each(|row| insert(rows, row)),
            Run::Delete(old) => old.iter().try_for_each(|row| delete(rows, row)),
            Run::Update { rows: new, .. } => {
                let keys: HashSet<_> = new.iter().map(|row| values(row)[0].clone()).collect();
                assert_eq!(keys.len(), new.len(), "UPDATE … FROM takes any one of two rows with one key");
                new.iter().try_for_each(|row| update(rows, row, row))
            }
            Run::Move { rows: moves, .. } => {
                // A set sees the rows as they were before it.
                let before = rows.clone();
                for (old, new) in moves {
                    assert!(before.contains_key(values(old)[0].as_ref().unwrap()), "a move of what the set made");
                    update(rows, old, new)?;
                }
                Ok(())
            }
            Run::UpdateOne { .. } | Run::DeleteOne { .. } => unreachable!("the table has a key"),
        }
    }

    pub(crate) fn insert(rows: &mut Rows, row: &Tuple) -> Result<(), String> {
        let mut values = values(row).into_iter().map(|value| value.expect("an insert has every value"));
        let key = values.next().unwrap();
        match rows.insert(key.clone(), values.collect()) {
            None => Ok(()),
            Some(_) => Err(format!("{key} is there already")),
        }
    }

    pub(crate) fn delete(rows: &mut Rows, old: &Tuple) -> Result<(), String> {
        let key = values(old)[0].clone().unwrap();
        rows.remove(&key).map(drop).ok_or(format!("{key} is missing"))
    }

    pub(crate) fn update(rows: &mut Rows, old: &Tuple, new: &Tuple) -> Result<(), String> {
        let key = values(old)[0].clone().unwrap();
        let mut row = rows.remove(&key).ok_or(format!("{key} is missing"))?;
        let new = values(new);
        for (value, new) in row.iter_mut().zip(&new[1..]) {
            if let Some(new) = new {
                value.clone_from(new);
            }
        }
        match rows.insert(new[0].clone().unwrap_or(key), row) {
            None => Ok(()),
            Some(_) => Err("the key is taken".to_owned()),
        }
    }

    #[derive(Clone, Debug)]
    pub(crate) enum Op {
        Insert(u8, u8),
        /// Leaves `b` out as unchanged when there is no second value.
        Update(u8, u8, Option<u8>),
        Move(u8, u8, Option<u8>),
        Delete(u8),
        Truncate,
    }

    pub(crate) fn op() -> impl Strategy<Value = Op> {
        let (key, value) = (0_u8..6, 0_u8..200);
        prop_oneof![
            4 => (key.clone(), value.clone()).prop_map(|(key, value)| Op::Insert(key, value)),
            4 => (key.clone(), value.clone(), proptest::option::of(value.clone()))
                .prop_map(|(key, a, b)| Op::Update(key, a, b)),
            2 => (key.clone(), key.clone(), proptest::option::of(value)).prop_map(|(old, new, b)| Op::Move(old, new, b)),
            2 => key.prop_map(Op::Delete),
            1 => Just(Op::Truncate),
        ]
    }

    pub(crate) fn text(number: u8) -> String {
        number.to_string()
    }

    /// The change as the stream would carry it, or `None` when the source could not have done it.
    pub(crate) fn change(op: &Op, rows: &mut Rows) -> Option<RowChange> {
        let full = |rows: &Rows, key: &str, a: u8, b: Option<u8>| {
            let b = b.map_or_else(|| "?".to_owned(), text);
            rows.contains_key(key).then(|| tuple(&[key, &text(a), &b]))
        };
        Some(match op {
            Op::Insert(key, value) => {
                let new = tuple(&[&text(*key), &text(*value), "x"]);
                insert(&mut rows.clone(), &new).ok()?;
                insert(rows, &new).unwrap();
                RowChange::Insert { new }
            }
            Op::Update(key, a, b) => {
                let new = full(rows, &text(*key), *a, *b)?;
                update(rows, &new, &new).unwrap();
                RowChange::Update { old: None, new }
            }
            Op::Move(from, to, b) => {
                let (from, to) = (text(*from), text(*to));
                if !rows.contains_key(&from) || rows.contains_key(&to) {
                    return None;
                }
                let old = tuple(&[&from, "-", "-"]);
                let new = tuple(&[&to, "moved", &b.map_or_else(|| "?".to_owned(), text)]);
                update(rows, &old, &new).unwrap();
                RowChange::Update { old: Some(OldTuple { kind: OldKind::Key, tuple: old }), new }
            }
            Op::Delete(key) => {
                let old = tuple(&[&text(*key), "-", "-"]);
                delete(rows, &old).ok()?;
                RowChange::Delete { old: OldTuple { kind: OldKind::Key, tuple: old } }
            }
            Op::Truncate => unreachable!("it is no row change"),
        })
    }

    pub(crate) fn sample(isolated: bool) -> Arc<Table> {
        let relation = relation(ReplicaIdentity::Default, COLUMNS, &["id"]);
        table(&relation, &Facts { acts: !isolated, ..facts(COLUMNS, &[&["id"]]) })
    }

    /// Applies the operations one by one and folded, and compares.
    fn check(ops: &[Op], isolated: bool, folding: bool) {
        let table = sample(isolated);
        let before: Rows = (0..3).map(|key| (text(key), vec!["old".to_owned(), "old".to_owned()])).collect();
        let (mut one_by_one, mut layers) = (before.clone(), Layers::default());
        for op in ops {
            if let Op::Truncate = op {
                one_by_one.clear();
                let tables = vec![Arc::clone(&table)];
                layers.truncate(Truncate { tables, leaves: Vec::new(), restart_identity: false, partial: false });
            } else if let Some(change) = change(op, &mut one_by_one) {
                layers.row(&table, change, folding).unwrap();
            }
        }
        let mut folded = before;
        assert_eq!(execute(&layers, &mut folded), Ok(()), "{ops:?}");
        assert_eq!(folded, one_by_one, "{ops:?}");
    }

    proptest! {
        #[test]
        fn folded_or_in_order_the_result_is_that_of_one_by_one(ops in proptest::collection::vec(op(), 0..40)) {
            check(&ops, true, true);
            check(&ops, true, false);
            check(&ops, false, true);
        }
    }

    fn insert_of(id: &str) -> RowChange {
        RowChange::Insert { new: tuple(&[id, "a", "b"]) }
    }

    #[test]
    fn hot_rows_cost_one_write_a_group() {
        let (table, mut layers) = (sample(true), Layers::default());
        for value in 0..100 {
            let new = tuple(&["1", &text(value), "b"]);
            layers.row(&table, RowChange::Update { old: None, new }, true).unwrap();
        }
        let [Layer::Net { net, .. }] = layers.list() else { panic!("{layers:?}") };
        assert_eq!(net.rows(), [NetRow::Updated(tuple(&["1", "99", "b"]))]);
    }

    #[test]
    fn tables_on_which_something_fires_keep_their_places() {
        let one = sample(false);
        let relation = Arc::new(crate::model::Relation { oid: 2, ..(*one.relation).clone() });
        let other = table(&relation, &Facts { acts: true, ..facts(COLUMNS, &[]) });
        let mut layers = Layers::default();
        for (table, id) in [(&one, "1"), (&one, "2"), (&other, "1"), (&one, "3")] {
            layers.row(table, insert_of(id), true).unwrap();
        }
        let ids = layers.list().iter().map(|layer| match layer {
            Layer::Net { table, .. } | Layer::Run { table, .. } => table.id,
            Layer::Truncate(_) => 0,
        });
        assert_eq!(ids.collect::<Vec<_>>(), [1, 2, 1]);
    }

    #[test]
    fn without_a_replica_identity_only_inserts_can_be_applied() {
        let relation = relation(ReplicaIdentity::Nothing, COLUMNS, &[]);
        let table = table(&relation, &facts(COLUMNS, &[]));
        let mut layers = Layers::default();
        layers.row(&table, insert_of("1"), true).unwrap();
        let update = RowChange::Update { old: None, new: tuple(&["1", "a", "b"]) };
        assert_eq!(layers.row(&table, update, true), Err(NoIdentity));
    }
}
