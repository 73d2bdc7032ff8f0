//! A group: source transactions that become one target transaction, folded while they are collected. Pure.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::model::{Change, ChangeKind, Lsn, Part, RowCounts, Transaction, marker_prefix};

use super::error::Error;
use super::fold::{Layers, NoIdentity, Truncate};
use super::queue::{Arrived, Member};
use super::table::{RowChange, Table};

/// How large a group becomes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    pub(super) bytes: usize,
    /// That may each have one at a time.
    pub(super) sessions: usize,
}

impl Limit {
    /// For a single session.
    pub(super) const fn alone(bytes: usize) -> Self {
        Self { bytes, sessions: 1 }
    }
}

/// Which source transactions a group holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Whole ones: one target transaction, begun and committed.
    Whole,
    /// A piece of one that came in parts: the target transaction stays open from the first piece to the last.
    Piece { first: bool, last: bool },
}

/// Row changes by the source's OID.
pub(super) type Counts = BTreeMap<u32, (Arc<Table>, RowCounts)>;

#[derive(Debug)]
pub(super) struct Group {
    pub(super) layers: Layers,
    pub(super) members: Vec<Member>,
    pub(super) extent: Extent,
    pub(super) size_bytes: usize,
    /// Everything up to here is in this group or before it.
    pub(super) through: Option<Lsn>,
    /// Commit times of the source transactions that end in here, microseconds since the Unix epoch.
    pub(super) committed_at_us: Vec<i64>,
    pub(super) counts: Counts,
    pub(super) row_count: usize,
    /// Those of them that the target has to find.
    pub(super) found_count: usize,
    /// Somebody waits for the position: it carries one of our own messages.
    pub(super) urgent: bool,
}

impl Default for Group {
    fn default() -> Self {
        Self {
            layers: Layers::default(),
            members: Vec::new(),
            extent: Extent::Whole,
            size_bytes: 0,
            through: None,
            committed_at_us: Vec::new(),
            counts: Counts::new(),
            row_count: 0,
            found_count: 0,
            urgent: false,
        }
    }
}

/// A group with fewer rows to be found than one in so many has nothing to gain from its size.
const FEW_TO_FIND: usize = 8;
/// Such a group is full at this part of the limit: what a large one costs is room in the processors' caches.
const SMALLER: usize = 4;
/// Near the end of a backlog a group may be this much smaller.
const SMALLEST: usize = 8;

impl Group {
    /// Rows that are found share pages, the more of them the better; new rows go where there is room.
    pub(super) fn is_full(&self, limit: Limit) -> bool {
        let is_of_new_rows = self.found_count * FEW_TO_FIND < self.row_count;
        let enough = if is_of_new_rows { limit.bytes / SMALLER } else { limit.bytes };
        self.size_bytes >= enough || self.size_bytes >= limit.bytes / SMALLEST && self.is_its_share(limit.sessions)
    }

    /// What is left of the log is less than all sessions together would take: then each takes a part of it, and none has
    /// to apply the last group alone. Where a stream does not say how much is left, nothing is known of it.
    fn is_its_share(&self, sessions: usize) -> bool {
        let (Some(first), Some(last), Some(through)) = (self.members.first(), self.members.last(), self.through) else {
            return false;
        };
        let taken = through.bytes_since(first.transaction().end_at_least());
        let left = last.arrived.batch.wal_end.bytes_since(through);
        sessions > 1 && left > 0 && taken.saturating_mul(sessions as u64) >= left
    }

    /// Holds nothing, not even a position.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.through.is_none()
    }

    /// Has something that must not wait: rows, the first or last piece of a transaction, a message of ours.
    pub(super) fn has_work(&self) -> bool {
        !self.layers.is_empty() || self.extent != Extent::Whole || self.urgent
    }

    /// Whether this part of a transaction may join. Pieces and whole transactions keep apart, so that a transaction in
    /// parts never delays those before it.
    pub(super) fn accepts(&self, part: Part) -> bool {
        match self.extent {
            _ if self.members.is_empty() => true,
            Extent::Whole => part == Part::Whole,
            Extent::Piece { last, .. } => !last && !part.begins(),
        }
    }

    /// Adds a transaction, or a part of one. `ordered`: tables (by place) whose changes are not to be folded.
    pub(super) fn add(&mut self, member: Member, ordered: &HashSet<u32>) -> Result<(), Error> {
        let transaction = member.transaction();
        debug_assert!(self.accepts(transaction.part), "the caller asks first");
        self.extend(transaction.part);
        for (_, change) in changes(&member) {
            self.urgent |= matches!(&change.kind, ChangeKind::Message { prefix, .. } if prefix == marker_prefix());
            for table in tables_of(&member.arrived, change).filter(|table| table.takes(transaction)) {
                self.count(table, &change.kind, transaction.committed_at_us);
            }
            add_change(&mut self.layers, &member.arrived, transaction, change, ordered)?;
        }
        self.size_bytes += transaction.size_bytes();
        if transaction.part.ends() {
            self.through = Some(transaction.end);
            self.committed_at_us.push(transaction.committed_at_us);
        }
        self.members.push(member);
        Ok(())
    }

    /// Everything up to `through` has been added.
    pub(super) fn reach(&mut self, through: Lsn) {
        self.through = self.through.max(Some(through));
    }

    /// Adds what earlier pieces of the transaction did.
    pub(super) fn count_earlier(&mut self, pieces: Counts) {
        for (id, (table, earlier)) in pieces {
            let (_, counts) = self.counts.entry(id).or_insert((table, RowCounts::default()));
            counts.inserts += earlier.inserts;
            counts.updates += earlier.updates;
            counts.deletes += earlier.deletes;
            counts.truncates += earlier.truncates;
            counts.committed_at_us = counts.committed_at_us.max(earlier.committed_at_us);
        }
    }

    fn extend(&mut self, part: Part) {
        self.extent = match (self.extent, part) {
            (Extent::Whole, Part::Whole) => Extent::Whole,
            (Extent::Whole, _) => Extent::Piece { first: part == Part::First, last: part == Part::Last },
            (Extent::Piece { first, .. }, _) => Extent::Piece { first, last: part.ends() },
        };
    }

    fn count(&mut self, table: &Arc<Table>, kind: &ChangeKind, committed_at_us: i64) {
        let (_, counts) =
            self.counts.entry(table.relation.oid).or_insert_with(|| (Arc::clone(table), RowCounts::default()));
        counts.committed_at_us = committed_at_us;
        self.row_count += 1;
        self.found_count += usize::from(matches!(kind, ChangeKind::Update { .. } | ChangeKind::Delete { .. }));
        match kind {
            ChangeKind::Insert { .. } => counts.inserts += 1,
            ChangeKind::Update { .. } => counts.updates += 1,
            ChangeKind::Delete { .. } => counts.deletes += 1,
            ChangeKind::Truncate { .. } => counts.truncates += 1,
            ChangeKind::Message { .. } => {}
        }
    }
}

/// The changes that this migration applies, with their ordinals: of its tables, and not in the copy already. Messages
/// are among them.
pub(super) fn changes(member: &Member) -> impl Iterator<Item = (u64, &Change)> {
    let transaction = member.transaction();
    let ordinals = transaction.first_ordinal..;
    let all = ordinals.zip(&transaction.changes);
    all.filter(|(_, change)| {
        matches!(change.kind, ChangeKind::Message { .. })
            || tables_of(&member.arrived, change).any(|table| table.takes(transaction))
    })
}

/// Adds one change to the layers, as it is to be applied.
pub(super) fn add_change(
    layers: &mut Layers,
    arrived: &Arrived,
    transaction: &Transaction,
    change: &Change,
    ordered: &HashSet<u32>,
) -> Result<(), Error> {
    let row = match &change.kind {
        ChangeKind::Insert { new, .. } => RowChange::Insert { new: new.clone() },
        ChangeKind::Update { old, new, .. } => RowChange::Update { old: old.clone(), new: new.clone() },
        ChangeKind::Delete { old, .. } => RowChange::Delete { old: old.clone() },
        ChangeKind::Truncate { relations, restart_identity, .. } => {
            let tables: Vec<Arc<Table>> =
                tables_of(arrived, change).filter(|table| table.takes(transaction)).cloned().collect();
            // What another lane truncates may refer to these by foreign key.
            let all = if arrived.divided { relations.len() } else { tables_of(arrived, change).count() };
            let partial = tables.len() < all;
            layers.truncate(truncate_of(tables, *restart_identity, partial)?);
            return Ok(());
        }
        ChangeKind::Message { .. } => return Ok(()),
    };
    let (mut tables, mut row) = (tables_of(arrived, change).peekable(), Some(row));
    while let Some(table) = tables.next() {
        let folding = !ordered.contains(&table.place);
        // One table is the rule.
        let row = if tables.peek().is_some() { row.clone() } else { row.take() };
        let Some(row) = row else { break };
        let added = layers.row(table, row, folding);
        added.map_err(|NoIdentity| Error::NoIdentity { table: table.relation.name.clone() })?;
    }
    Ok(())
}

/// What a TRUNCATE of these leaves empty on the target, and what it takes only some rows of: a gathered table is empty
/// when it, or each of its leaves, was named.
fn truncate_of(named: Vec<Arc<Table>>, restart_identity: bool, partial: bool) -> Result<Truncate, Error> {
    let (leaves, tables): (Vec<Arc<Table>>, Vec<Arc<Table>>) = named.into_iter().partition(|it| it.leaf.is_some());
    let mut truncate = Truncate { tables, leaves: Vec::new(), restart_identity, partial };
    for table in &leaves {
        let Some(leaf) = &table.leaf else { continue };
        if truncate.tables.iter().any(|other| other.target == table.target) {
            continue;
        }
        if leaves.iter().filter(|other| other.place == table.place).count() == leaf.leaf_count {
            truncate.tables.push(Arc::clone(table));
            continue;
        }
        let (leaf_name, root) = (table.relation.name.clone(), table.member.clone());
        let untold = Error::LeafTruncated { leaf: leaf_name, root, source: None };
        truncate.leaves.push((Arc::clone(table), leaf.condition.clone().ok_or(untold)?));
    }
    Ok(truncate)
}

/// The migration's tables that a change concerns: one, or those of a TRUNCATE.
pub(super) fn tables_of<'a>(arrived: &'a Arrived, change: &'a Change) -> impl Iterator<Item = &'a Arc<Table>> {
    let relations = match &change.kind {
        ChangeKind::Insert { relation, .. }
        | ChangeKind::Update { relation, .. }
        | ChangeKind::Delete { relation, .. } => std::slice::from_ref(relation),
        ChangeKind::Truncate { relations, .. } => relations.as_slice(),
        ChangeKind::Message { .. } => &[],
    };
    relations.iter().filter_map(|relation| arrived.tables[*relation as usize].as_ref())
}

#[cfg(test)]
mod tests {
    use super::super::facts::tests::{facts, relation, table};
    use super::super::sql;
    use super::super::table::LeafOf;
    use super::*;
    use crate::model::{Batch, Relation, ReplicaIdentity, TableName, Xid};

    #[test]
    fn a_group_of_new_rows_is_full_sooner() {
        let full_at = |found_count, row_count| {
            let is_full = |size_bytes| {
                Group { size_bytes, found_count, row_count, ..Group::default() }
                    .is_full(Limit { bytes: 4000, sessions: 2 })
            };
            (0..=4000).find(|size_bytes| is_full(*size_bytes)).unwrap()
        };
        assert_eq!([full_at(0, 100), full_at(12, 100), full_at(13, 100), full_at(100, 100)], [1000, 1000, 4000, 4000]);
        assert_eq!(full_at(0, 0), 4000, "nothing but messages");
    }

    /// A transaction that ends at `end`, sent when the source's log ended at `wal_end`.
    fn member(end: Lsn, wal_end: Lsn) -> Member {
        let transaction = Transaction {
            xid: Xid(1),
            commit: Lsn::new(1).unwrap(),
            end,
            committed_at_us: 0,
            origin: None,
            part: Part::Whole,
            first_ordinal: 0,
            changes: Vec::new(),
        };
        let batch = Batch { seq: 1, relations: Vec::new(), transactions: vec![transaction], through: end, wal_end };
        Member { arrived: Arc::new(Arrived::new(Arc::new(batch), Vec::new(), false)), at: 0 }
    }

    #[test]
    fn near_the_end_of_a_backlog_each_session_gets_its_share() {
        let lsn = |raw| Lsn::new(raw).unwrap();
        let is_full = |size_bytes, through, wal_end, sessions| {
            let (members, through) = (vec![member(lsn(100), lsn(wal_end))], Some(lsn(through)));
            let group = Group { size_bytes, row_count: 9, found_count: 9, members, through, ..Group::default() };
            group.is_full(Limit { bytes: 8000, sessions })
        };
        assert!(is_full(1000, 200, 400, 2), "half of what is left");
        assert!(!is_full(1000, 199, 400, 2), "less");
        assert!(is_full(1000, 200, 500, 3), "a third of what is left");
        assert!(!is_full(999, 200, 201, 2), "too small to be worth it");
        assert!(!is_full(7999, 200, 200, 2), "nothing is known of what is left");
        assert!(!is_full(7999, 200, 201, 1), "nobody to share with");
    }

    /// A leaf of `p`, which the target gathers together with another one.
    fn leaf(name: &str, condition: Option<&str>) -> Arc<Table> {
        let of_leaf = Relation { name: TableName::new("s", name), ..(*relation_of(name)).clone() };
        let plain = table(&Arc::new(of_leaf), &facts(&["a"], &[&["a"]]));
        let target = TableName::new("s", "p");
        let leaf = LeafOf { condition: condition.map(str::to_owned), leaf_count: 2 };
        let plain = Arc::into_inner(plain).expect("nobody else has it");
        Arc::new(Table { place: 9, member: target.clone(), target, leaf: Some(leaf), partitioned: true, ..plain })
    }

    fn relation_of(name: &str) -> Arc<Relation> {
        let oid = u32::from(name.as_bytes()[name.len() - 1]);
        Arc::new(Relation { oid, ..(*relation(ReplicaIdentity::Default, &["a"], &["a"])).clone() })
    }

    #[test]
    fn a_truncate_empties_a_gathered_table_only_when_all_of_it_is_named() {
        let (one, two) = (leaf("p_1", Some("k = 1")), leaf("p_2", Some("k = 2")));
        let other = table(&relation_of("other"), &facts(&["a"], &[&["a"]]));
        let root = Arc::new(Table { leaf: None, ..Arc::into_inner(leaf("p", None)).unwrap() });
        let sql = |named: &[&Arc<Table>]| {
            let named = named.iter().map(|table| Arc::clone(table)).collect();
            sql::truncate(&truncate_of(named, true, false).unwrap())
        };
        assert_eq!(sql(&[&one]), [r#"DELETE FROM "s"."p" WHERE k = 1"#]);
        let all = [r#"TRUNCATE "s"."p" RESTART IDENTITY"#];
        assert_eq!(
            (sql(&[&one, &two]), sql(&[&two, &root])),
            (all.map(str::to_owned).to_vec(), all.map(str::to_owned).to_vec())
        );
        assert_eq!(sql(&[&two, &other]), [r#"DELETE FROM ONLY "public"."t""#, r#"DELETE FROM "s"."p" WHERE k = 2"#]);
        let untold = truncate_of(vec![leaf("p_3", None)], false, false).unwrap_err();
        assert!(matches!(untold, Error::LeafTruncated { leaf, .. } if leaf.name == "p_3"));
    }
}
