//! One shape of a source table and how it is written to its target table.

use std::sync::Arc;

use crate::model::{Lsn, OldKind, OldTuple, Relation, TableHandover, TableName, Transaction, Tuple};

/// Made once for each shape (a relation at one position) and shared by everything that refers to it.
#[derive(Debug)]
pub(super) struct Table {
    /// Tells shapes apart in the cache of prepared statements. Leaves that are gathered in one table and laid out alike
    /// have one.
    pub(super) id: u32,
    /// Tells apart the tables of the target that rows move between: one for all leaves that are gathered in a table.
    pub(super) place: u32,
    /// The name that the migration knows it by: the relation's, or that of the root which a leaf is gathered in.
    pub(super) member: TableName,
    /// Set for a leaf that is gathered with others.
    pub(super) leaf: Option<LeafOf>,
    pub(super) relation: Arc<Relation>,
    pub(super) target: TableName,
    /// In the order of the stream's tuples.
    pub(super) columns: Vec<TargetColumn>,
    pub(super) key: RowKey,
    /// Nothing fires and nothing is rewritten when it is written, so its changes may be folded, and may change places
    /// with those of other tables.
    pub(super) isolated: bool,
    /// No unique value but the key's own could be freed by one row of a set for another: rows may be put in any order.
    pub(super) sortable: bool,
    /// No value but the key is unique, so what happens to rows of other keys cannot tell in which order it happened.
    pub(super) independent: bool,
    /// The only key column, where it is a whole number with an index of its own.
    pub(super) number_key: Option<usize>,
    /// COPY FROM is refused under row security and passes rules by.
    pub(super) copies: bool,
    /// Its values come in binary form, and the target's columns have the same types: COPY takes them as they are.
    pub(super) binary_copy: bool,
    /// Its rows live in partitions: no ONLY.
    pub(super) partitioned: bool,
    pub(super) handover: Option<Arc<TableHandover>>,
    /// What ends at or before this was applied by another lane.
    pub(super) after: Option<Lsn>,
}

/// One of several relations whose rows are in one table of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeafOf {
    /// What its rows fulfil, and those of no other; `None` where the target cannot evaluate it.
    pub(super) condition: Option<String>,
    /// How many such relations there are.
    pub(super) leaf_count: usize,
}

#[derive(Debug)]
pub(super) struct TargetColumn {
    /// Quoted.
    pub(super) name: String,
    /// What follows a text expression to make it the column's base type by the type's own input function, without
    /// length or precision: the assignment checks those, and refuses where a cast would cut.
    pub(super) cast: String,
    /// The equality operator, `OPERATOR(schema.=)`.
    pub(super) equals: String,
    /// Equality is a B-tree's, so an index can serve it.
    pub(super) indexable: bool,
    /// The type of its values as parameters: text, or the type itself where they come in its binary form.
    pub(super) travels_as: u32,
    /// GENERATED ALWAYS AS IDENTITY: INSERT takes it with OVERRIDING SYSTEM VALUE, UPDATE never does.
    pub(super) identity_always: bool,
}

/// How an old row is found on the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RowKey {
    /// By these columns (indexes into the tuple), which are unique and not null.
    Columns(Vec<usize>),
    /// By all of them, one row an event: replica identity FULL and no key on the target.
    WholeRow,
    /// Not at all: only inserts can be applied.
    Nothing,
}

/// A row change, freed of everything but its row.
#[derive(Clone, Debug)]
pub(super) enum RowChange {
    Insert { new: Tuple },
    Update { old: Option<OldTuple>, new: Tuple },
    Delete { old: OldTuple },
}

impl Table {
    /// What another lane has applied is not applied again, nor, by the rule of [`TableHandover`], what the copy has seen.
    pub(super) fn takes(&self, transaction: &Transaction) -> bool {
        Some(transaction.end_at_least()) > self.after
            && self
                .handover
                .as_deref()
                .is_none_or(|handover| transaction.end > handover.until || !handover.snapshot.sees(transaction.xid))
    }

    /// Whether `old` holds the columns that rows are found by.
    pub(super) fn finds_by(&self, old: &OldTuple) -> bool {
        match (&self.key, old.kind) {
            (RowKey::Columns(columns), OldKind::Key) => columns.iter().all(|at| self.relation.columns[*at].in_identity),
            (RowKey::Columns(_) | RowKey::WholeRow, OldKind::Full) => true,
            (RowKey::WholeRow, OldKind::Key) | (RowKey::Nothing, _) => false,
        }
    }

    /// The key's column names, for errors.
    pub(super) fn key_names(&self) -> String {
        match &self.key {
            RowKey::Columns(columns) => {
                let names: Vec<&str> = columns.iter().map(|at| self.columns[*at].name.as_str()).collect();
                format!("key ({})", names.join(", "))
            }
            RowKey::WholeRow => "values of all columns".to_owned(),
            RowKey::Nothing => "missing key".to_owned(),
        }
    }

    /// The table as UPDATE and DELETE name it. ONLY, because an heir's rows are in the stream under its own name.
    pub(super) fn own_rows(&self) -> String {
        let only = if self.partitioned { "" } else { "ONLY " };
        format!("{only}{}", self.target.quoted())
    }
}
