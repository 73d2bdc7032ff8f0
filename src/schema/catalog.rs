//! What a database holds, as far as a migration cares. Values only; [`super::read_catalog`] fills them in.

use std::collections::BTreeMap;

use crate::model::{GatheredLeaves, ReplicaIdentity, TableName, TypeName};

/// One side's inventory. Tables and sequences are sorted by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catalog {
    /// As `server_version_num` prints it: 150020 is 15.20.
    pub server_version_num: u32,
    pub database: Database,
    /// The streamed tables of the migration: permanent ordinary tables, partitioned tables and their leaves.
    pub tables: Vec<Table>,
    /// Relations that the filter names and logical replication cannot carry.
    pub not_streamed: Vec<NotStreamed>,
    pub sequences: Vec<Sequence>,
    pub extensions: Vec<Extension>,
    pub large_object_count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Database {
    pub name: String,
    /// `UTF8`, `LATIN1`, ...
    pub encoding: String,
    pub collate: String,
    pub ctype: String,
    /// ICU or built-in locale, where one is set (PostgreSQL 15 and later).
    pub locale: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    pub name: String,
    pub version: String,
    pub schema: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub name: TableName,
    pub oid: u32,
    pub kind: TableKind,
    /// What it is a partition of, with its bounds. A partitioned table below another one has both.
    pub partition: Option<Partition>,
    /// `RANGE (at)`; `None` for what is not partitioned.
    pub partition_key: Option<String>,
    /// How many leaves a partitioned table has, whether they are tables of the migration or not.
    pub leaf_count: usize,
    /// Set by [`super::gather`] for a partitioned table that the target keeps in another way: the leaves that hold its
    /// rows on the source. They are no tables of the catalog then; this one stands for them.
    pub leaves: Vec<Leaf>,
    /// The partitioned tables between a gathered one and its leaves.
    pub inner: Vec<TableName>,
    /// Parents by `INHERITS`, in order. Empty for partitions.
    pub inherits: Vec<TableName>,
    pub owner: String,
    /// In the order of `attnum`, without dropped ones.
    pub columns: Vec<Column>,
    /// Key columns of the primary key, in order; `None` when there is none.
    pub primary_key: Option<Vec<String>>,
    /// Every unique index, the primary key's and constraints' included.
    pub unique_keys: Vec<UniqueKey>,
    pub foreign_keys: Vec<ForeignKey>,
    pub replica_identity: ReplicaIdentity,
    /// The columns that tell a row in the stream: of the primary key, the chosen index, or all of them. Empty when
    /// UPDATE and DELETE cannot be published.
    pub identity_columns: Vec<String>,
    /// User triggers, without the internal ones of constraints.
    pub triggers: Vec<Trigger>,
    pub row_security: bool,
    /// The planner's estimate; `None` when the table has never been analysed.
    pub row_estimate: Option<u64>,
    /// Heap and TOAST, without indexes.
    pub size_bytes: u64,
    /// Blocks of the heap as the file system has them now, not as `ANALYZE` last saw them.
    pub block_count: u64,
}

#[cfg(test)]
impl Table {
    /// An ordinary one with nothing to it, for tests that care about little of it.
    pub(crate) fn sample(name: TableName) -> Self {
        Self {
            name,
            oid: 1,
            kind: TableKind::Ordinary,
            partition: None,
            partition_key: None,
            leaf_count: 0,
            leaves: Vec::new(),
            inner: Vec::new(),
            inherits: Vec::new(),
            owner: "me".to_owned(),
            columns: Vec::new(),
            primary_key: None,
            unique_keys: Vec::new(),
            foreign_keys: Vec::new(),
            replica_identity: ReplicaIdentity::Default,
            identity_columns: Vec::new(),
            triggers: Vec::new(),
            row_security: false,
            row_estimate: None,
            size_bytes: 0,
            block_count: 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Holds rows itself. May be a leaf, may have children by inheritance.
    Ordinary,
    /// Holds no rows: they are in its leaves.
    Partitioned,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub parent: TableName,
    /// `FOR VALUES ...` or `DEFAULT`.
    pub bounds: String,
}

/// A leaf of a gathered table: its changes come under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    pub table: Table,
    /// What its rows fulfil, and those of no other leaf, as SQL over the root's columns; `None` where the target cannot
    /// evaluate it.
    pub condition: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// `attnum`.
    pub number: i16,
    pub type_oid: u32,
    pub type_name: TypeName,
    /// `format_type`: what one would write in `CREATE TABLE`, modifiers included.
    pub type_text: String,
    /// `atttypmod`; -1 when there is none.
    pub type_modifier: i32,
    pub not_null: bool,
    pub identity: Option<IdentityKind>,
    pub generated: Option<GeneratedKind>,
    /// Qualified and quoted; `None` for the type's own collation.
    pub collation: Option<String>,
    /// The expression of the default, as SQL. A generated column's expression is not a default.
    pub default: Option<String>,
    pub binary_copy: BinaryCopy,
}

/// `pg_attribute.attidentity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityKind {
    Always,
    ByDefault,
}

/// `pg_attribute.attgenerated`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GeneratedKind {
    Stored,
    /// PostgreSQL 18 and later.
    Virtual,
}

/// Whether values of a type may travel by `COPY (FORMAT binary)`.
///
/// The documentation warns that binary files are less portable between versions. For built-in types that warning is
/// about history: their `typsend` forms are what every driver speaks, and none has changed since PostgreSQL 8.4 made
/// integer timestamps the default and 10 the only kind. What does differ between databases are OIDs, so types whose
/// value is one that stands for a name (`regclass` and its kin) travel as text, and so does every base type that is not
/// built in, because its format belongs to the version of its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BinaryCopy {
    Always,
    /// The value names the OID of a type that is not built in: an array or composite of one. Targets before
    /// PostgreSQL 14 compare that with their own OID (`array_recv`, `record_recv`) and fail.
    TargetFrom14,
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// Name of the index; of the constraint too where there is one.
    pub name: String,
    /// Key columns in order, without `INCLUDE`d ones; expressions are absent here.
    pub columns: Vec<String>,
    pub primary: bool,
    /// Backed by a constraint and not only by an index.
    pub constraint: bool,
    pub deferrable: bool,
    /// Has a `WHERE`.
    pub partial: bool,
    /// At least one key is an expression.
    pub expression: bool,
    pub nulls_not_distinct: bool,
    /// False after a failed `CREATE INDEX CONCURRENTLY`, and for a partitioned index that lacks a partition's.
    pub valid: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignKey {
    pub name: String,
    pub columns: Vec<String>,
    pub references: TableName,
    pub referenced_columns: Vec<String>,
    pub deferrable: bool,
    pub initially_deferred: bool,
    /// False for `NOT VALID`.
    pub validated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub name: String,
    pub enabled: TriggerState,
}

/// `pg_trigger.tgenabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerState {
    /// Fires unless `session_replication_role` is `replica`.
    Origin,
    /// Fires only under `replica`, so also for what we apply.
    Replica,
    Always,
    Disabled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotStreamed {
    pub name: TableName,
    pub why: NotStreamedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStreamedKind {
    /// Writes no log, so neither copied nor streamed.
    Unlogged,
    Foreign,
    /// Its definition is copied; it is refreshed on the target.
    MaterializedView,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequence {
    pub name: TableName,
    pub owner: SequenceOwner,
    /// As of reading; `None` while `nextval` has not been called.
    pub last_value: Option<i64>,
    pub increment: i64,
    pub min_value: i64,
    pub max_value: i64,
    pub cache_size: i64,
    pub cycles: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SequenceOwner {
    /// Belongs to no column.
    None,
    /// `OWNED BY`, as `serial` makes it.
    Column { table: TableName, column: String },
    /// `GENERATED ... AS IDENTITY`.
    Identity { table: TableName, column: String },
}

/// What a comparison needs to know of each table beyond the inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Design {
    pub tables: BTreeMap<TableName, TableDesign>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableDesign {
    /// Foreign keys come last.
    pub constraints: Vec<Constraint>,
    /// Without those that stand for a constraint.
    pub indexes: Vec<Index>,
    /// Of generated columns, by name.
    pub expressions: BTreeMap<String, String>,
    /// Of columns of an enumeration, by name, in the enumeration's order.
    pub enum_labels: BTreeMap<String, Vec<String>>,
    /// `RANGE (at)`; `None` for what is not partitioned.
    pub partition_key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraint {
    pub name: String,
    pub kind: ConstraintKind,
    /// As in `ADD CONSTRAINT name ...`.
    pub definition: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConstraintKind {
    Check,
    Exclusion,
    ForeignKey,
    /// Primary keys too.
    Unique,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    pub name: String,
    /// The whole `CREATE INDEX`.
    pub definition: String,
    pub unique: bool,
}

impl Catalog {
    /// The server's major version: 15 for 15.20.
    pub const fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    pub fn table(&self, name: &TableName) -> Option<&Table> {
        self.tables.binary_search_by(|table| table.name.cmp(name)).ok().map(|index| &self.tables[index])
    }

    /// The tables that hold rows: what is copied, compared and copied again.
    pub fn row_tables(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| table.holds_rows())
    }

    /// The tables whose changes are in the stream: those that hold rows, a gathered one as its leaves.
    pub fn streamed_tables(&self) -> impl Iterator<Item = &Table> {
        self.row_tables().flat_map(Table::stored)
    }

    /// The tables that `table` is a partition of, the nearest first, as far as they are in the catalog.
    pub fn parents_of<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a TableName> {
        let above = |partition: &&'a Partition| self.table(&partition.parent)?.partition.as_ref();
        let partitions = std::iter::successors(table.partition.as_ref(), above);
        partitions.take(self.tables.len()).map(|partition| &partition.parent)
    }

    /// The gathered table that `name` is a partition of.
    pub fn gathered_from(&self, name: &TableName) -> Option<&Table> {
        let is_of =
            |table: &&Table| table.leaves.iter().any(|leaf| leaf.table.name == *name) || table.inner.contains(name);
        self.tables.iter().find(is_of)
    }

    /// Where the target keeps the rows of the leaves of gathered tables.
    pub fn gathered_leaves(&self) -> GatheredLeaves {
        let mut found = GatheredLeaves::default();
        for root in self.tables.iter().filter(|table| table.is_gathered()) {
            let leaves = root.leaves.iter().map(|leaf| (leaf.table.name.clone(), leaf.condition.clone()));
            found.add(&root.name, leaves, root.inner.iter().cloned());
        }
        found
    }
}

impl Table {
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Itself, or the leaves it stands for.
    pub fn holds_rows(&self) -> bool {
        self.kind == TableKind::Ordinary || self.is_gathered()
    }

    /// Its leaves are no tables of the migration.
    pub fn is_gathered(&self) -> bool {
        !self.leaves.is_empty()
    }

    /// The tables that its rows are in on the source: the leaves of a gathered one, else itself.
    pub fn stored(&self) -> impl Iterator<Item = &Self> {
        let itself = (!self.is_gathered()).then_some(self);
        itself.into_iter().chain(self.leaves.iter().map(|leaf| &leaf.table))
    }

    /// The columns a copy carries: all but generated ones, which the target computes.
    pub fn copied_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.generated.is_none())
    }

    /// Whether every copied column may travel in binary to a server of that version.
    pub fn binary_copy_to(&self, target_version_num: u32) -> bool {
        self.copied_columns().all(|column| match column.binary_copy {
            BinaryCopy::Always => true,
            BinaryCopy::TargetFrom14 => target_version_num >= 140_000,
            BinaryCopy::Never => false,
        })
    }

    /// Whether UPDATE and DELETE of this table can be published. A table without columns has no column to tell its rows
    /// by, and none to tell them apart.
    pub fn has_identity(&self) -> bool {
        self.replica_identity == ReplicaIdentity::Full || !self.identity_columns.is_empty()
    }
}
