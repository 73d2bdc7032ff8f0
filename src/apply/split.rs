//! Which changes of a group may be executed before the groups ahead of it are committed. Pure.
//!
//! They may when no change of those groups can tell: rows of other keys in tables whose rows have nothing to do with each
//! other ([`Table::independent`]), and new rows of tables without any key. Updates of one row by two sessions would wait
//! for each other by themselves, but a row that is not committed yet would not be found, so whatever is named by a group
//! ahead waits for its turn.

use std::collections::{HashMap, HashSet};

use crate::model::TableName;

use super::fold::{Layer, Run};
use super::group::{Extent, Group};
use super::net::Net;
use super::table::{RowKey, Table};

/// What of one layer may go ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Share {
    All,
    Nothing,
    /// By row of the net: those that may.
    Rows(Box<[bool]>),
}

/// Which rows of a net a statement is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    All,
    /// Those whose flag is this.
    Flagged(&'a [bool], bool),
}

/// What a group does to a table.
enum Mark<'a> {
    /// Rows that are told apart by key, of one shape.
    Keys {
        shape: u32,
        net: &'a Net,
    },
    /// New rows, which nothing finds.
    Appended,
    Anything,
}

impl Share {
    /// The layer's rows that go ahead, or those that wait; `None` where there are none.
    pub(super) fn rows(&self, ahead: bool) -> Option<Rows<'_>> {
        match self {
            Self::All => ahead.then_some(Rows::All),
            Self::Nothing => (!ahead).then_some(Rows::All),
            Self::Rows(flags) => Some(Rows::Flagged(flags, ahead)),
        }
    }
}

impl Rows<'_> {
    pub(super) fn has(self, at: usize) -> bool {
        match self {
            Self::All => true,
            Self::Flagged(flags, wanted) => flags[at] == wanted,
        }
    }
}

/// The share of each layer of `group` that may go ahead of `earlier` groups, which are under way and were committed by none
/// of their sessions. `None` when nothing may. `kept_back`: tables (by place) whose changes wait for their turn.
pub(super) fn split<'a>(
    group: &Group,
    earlier: impl Iterator<Item = &'a Group>,
    kept_back: &HashSet<u32>,
) -> Option<Vec<Share>> {
    let own = marks(group)?;
    let earlier: Vec<HashMap<&TableName, Mark<'_>>> = earlier.map(marks).collect::<Option<_>>()?;
    let mut shares = Vec::with_capacity(group.layers.list().len());
    for layer in group.layers.list() {
        let (Layer::Net { table, .. } | Layer::Run { table, .. }) = layer else { return None };
        let theirs: Vec<&Mark<'_>> = earlier.iter().filter_map(|marks| marks.get(&table.target)).collect();
        shares.push(if kept_back.contains(&table.place) {
            Share::Nothing
        } else {
            share(&own[&table.target], &theirs)
        });
    }
    shares.iter().any(|share| *share != Share::Nothing).then_some(shares)
}

/// `None` for a group that must be alone: one piece of a larger transaction, whose other pieces are not known here; a
/// TRUNCATE; tables whose writing has effects elsewhere.
fn marks(group: &Group) -> Option<HashMap<&TableName, Mark<'_>>> {
    if group.extent != Extent::Whole {
        return None;
    }
    let mut marks = HashMap::new();
    for layer in group.layers.list() {
        let (table, mark) = match layer {
            Layer::Truncate(_) => return None,
            Layer::Net { table, .. } | Layer::Run { table, .. } if !table.isolated => return None,
            Layer::Net { table, net } if table.independent => (table, Mark::Keys { shape: table.id, net }),
            Layer::Run { table, run: Run::Insert(_) } if is_keyless(table) => (table, Mark::Appended),
            Layer::Net { table, .. } | Layer::Run { table, .. } => (table, Mark::Anything),
        };
        // Two layers of one table keep their order.
        marks.entry(&table.target).and_modify(|mark| *mark = Mark::Anything).or_insert(mark);
    }
    Some(marks)
}

fn is_keyless(table: &Table) -> bool {
    table.independent && matches!(table.key, RowKey::WholeRow | RowKey::Nothing)
}

fn share(own: &Mark<'_>, earlier: &[&Mark<'_>]) -> Share {
    match own {
        Mark::Anything => Share::Nothing,
        _ if earlier.is_empty() => Share::All,
        Mark::Appended if earlier.iter().all(|mark| matches!(mark, Mark::Appended)) => Share::All,
        Mark::Appended => Share::Nothing,
        Mark::Keys { shape, net } => {
            let nets = earlier.iter().map(|mark| match mark {
                // Another shape may write the same key in other bytes.
                Mark::Keys { shape: other, net } if other == shape => Some(*net),
                Mark::Keys { .. } | Mark::Appended | Mark::Anything => None,
            });
            nets.collect::<Option<Vec<&Net>>>().map_or(Share::Nothing, |nets| rows_apart(net, &nets))
        }
    }
}

fn rows_apart(net: &Net, earlier: &[&Net]) -> Share {
    let mut apart = vec![true; net.rows().len()];
    for (key, at) in net.keys() {
        apart[at] = !earlier.iter().any(|other| other.has(key));
    }
    if apart.iter().all(|apart| *apart) {
        Share::All
    } else if apart.iter().any(|apart| *apart) {
        Share::Rows(apart.into())
    } else {
        Share::Nothing
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::facts::Facts;
    use super::super::facts::tests::{facts, relation, table};
    use super::super::fold::Truncate;
    use super::super::fold::tests::{Op, Rows as Model, change, delete, insert, op, run_effect, sample, text, update};
    use super::super::key::tests::tuple;
    use super::super::net::NetRow;
    use super::super::table::RowChange;
    use super::*;
    use crate::model::ReplicaIdentity;

    const COLUMNS: &[&str] = &["id", "a", "b"];

    fn group(changes: Vec<RowChange>, table: &Arc<Table>, folding: bool) -> Group {
        let mut group = Group::default();
        for change in changes {
            group.layers.row(table, change, folding).unwrap();
        }
        group
    }

    /// What the target does with the rows that go ahead, or with those that wait.
    fn execute(group: &Group, shares: &[Share], ahead: bool, model: &mut Model) {
        for (layer, share) in group.layers.list().iter().zip(shares) {
            match (layer, share.rows(ahead)) {
                (_, None) => {}
                (Layer::Run { run, .. }, Some(_)) => run_effect(run, model).unwrap(),
                (Layer::Net { net, .. }, Some(rows)) => net_effect(net, rows, model),
                (Layer::Truncate(_), _) => unreachable!("a group with it is not split"),
            }
        }
    }

    fn net_effect(net: &Net, rows: super::Rows<'_>, model: &mut Model) {
        let chosen: Vec<&NetRow> =
            net.rows().iter().enumerate().filter(|(at, _)| rows.has(*at)).map(|(_, row)| row).collect();
        for row in &chosen {
            if let NetRow::Deleted(row) | NetRow::Replaced(row) = row {
                delete(model, row).unwrap();
            }
        }
        for row in &chosen {
            match row {
                NetRow::Updated(row) => update(model, row, row).unwrap(),
                NetRow::Inserted(row) | NetRow::Replaced(row) => insert(model, row).unwrap(),
                NetRow::Deleted(_) | NetRow::Passed => {}
            }
        }
    }

    /// Three groups under way at once, the later ones first with all that may go ahead: the result is that of one after
    /// the other.
    fn check(ops: [&[Op]; 3], folding: bool) {
        let table = sample(true);
        let mut model: Model = (0..6).map(|key| (text(key), vec!["old".to_owned(), "old".to_owned()])).collect();
        let mut one_by_one = model.clone();
        let mut groups = Vec::new();
        for ops in ops {
            let changes = ops.iter().filter(|op| !matches!(op, Op::Truncate));
            let changes = changes.filter_map(|op| change(op, &mut one_by_one)).collect();
            groups.push(group(changes, &table, folding));
        }
        let shares: Vec<Option<Vec<Share>>> =
            (0..3).map(|at| split(&groups[at], groups[..at].iter(), &HashSet::new())).collect();
        let none = |group: &Group| vec![Share::Nothing; group.layers.list().len()];
        let shares: Vec<Vec<Share>> =
            shares.into_iter().zip(&groups).map(|(shares, group)| shares.unwrap_or_else(|| none(group))).collect();
        for at in [2, 1] {
            execute(&groups[at], &shares[at], true, &mut model);
        }
        execute(&groups[0], &none(&groups[0]), false, &mut model);
        for at in [1, 2] {
            execute(&groups[at], &shares[at], false, &mut model);
        }
        assert_eq!(model, one_by_one, "{ops:?}");
    }

    proptest! {
        #[test]
        fn what_goes_ahead_changes_nothing(
            ops in [
                proptest::collection::vec(op(), 0..6),
                proptest::collection::vec(op(), 0..6),
                proptest::collection::vec(op(), 0..6),
            ]
        ) {
            let [one, two, three] = &ops;
            check([one, two, three], true);
            check([one, two, three], false);
        }
    }

    #[test]
    fn rows_of_other_keys_go_ahead_and_the_others_wait() {
        let table = sample(true);
        let update = |id: &str| RowChange::Update { old: None, new: tuple(&[id, "a", "b"]) };
        let earlier = group(vec![update("1"), update("2")], &table, true);
        let later = |ids: &[&str]| group(ids.iter().map(|id| update(id)).collect(), &table, true);
        let of = |later: &Group| split(later, [&earlier].into_iter(), &HashSet::new());
        assert_eq!(of(&later(&["3", "4"])), Some(vec![Share::All]));
        assert_eq!(of(&later(&["2", "3"])), Some(vec![Share::Rows([false, true].into())]));
        assert_eq!(of(&later(&["2"])), None);
        let kept_back = HashSet::from([table.place]);
        assert_eq!(split(&later(&["3"]), [&earlier].into_iter(), &kept_back), None);
        // Nothing of a larger transaction's piece is known to be all of it.
        let piece = Group { extent: Extent::Piece { first: false, last: true }, ..Group::default() };
        assert_eq!(split(&later(&["3"]), [&piece].into_iter(), &HashSet::new()), None);
    }

    #[test]
    fn a_table_with_anything_else_unique_or_firing_or_truncated_waits() {
        let relation = relation(ReplicaIdentity::Default, COLUMNS, &["id"]);
        let insert = |id: &str| RowChange::Insert { new: tuple(&[id, "a", "b"]) };
        let split_by = |facts: &Facts| {
            let table = table(&relation, facts);
            let (earlier, later) = (group(vec![insert("1")], &table, true), group(vec![insert("2")], &table, true));
            split(&later, [&earlier].into_iter(), &HashSet::new()).is_some()
        };
        let plain = || Facts { exclusive_count: 1, ..facts(COLUMNS, &[&["id"]]) };
        assert!(split_by(&plain()));
        assert!(!split_by(&Facts { exclusive_count: 2, ..plain() }));
        assert!(!split_by(&Facts { keys: vec![vec!["a".to_owned()]], ..plain() }));
        assert!(!split_by(&Facts { acts: true, ..plain() }));
        let table = table(&relation, &plain());
        let mut truncates = group(vec![insert("1")], &table, true);
        let tables = vec![Arc::clone(&table)];
        truncates.layers.truncate(Truncate { tables, leaves: Vec::new(), restart_identity: false, partial: false });
        let other = group(vec![insert("2")], &table, true);
        assert_eq!(split(&other, [&truncates].into_iter(), &HashSet::new()), None);
        assert_eq!(split(&truncates, [&other].into_iter(), &HashSet::new()), None);
    }

    #[test]
    fn new_rows_without_key_go_ahead_of_each_other_and_of_nothing_else() {
        let relation = relation(ReplicaIdentity::Full, COLUMNS, COLUMNS);
        let table = table(&relation, &facts(COLUMNS, &[]));
        let new = || tuple(&["1", "a", "b"]);
        let old = || crate::model::OldTuple { kind: crate::model::OldKind::Full, tuple: new() };
        let inserts = || group(vec![RowChange::Insert { new: new() }], &table, true);
        let deletes = group(vec![RowChange::Delete { old: old() }], &table, true);
        let of = |later: &Group, earlier: &Group| split(later, [earlier].into_iter(), &HashSet::new());
        assert_eq!(of(&inserts(), &inserts()), Some(vec![Share::All]));
        assert_eq!(of(&deletes, &inserts()), None);
        assert_eq!(of(&inserts(), &deletes), None);
    }
}
