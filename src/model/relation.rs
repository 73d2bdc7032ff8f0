//! A table's shape as the stream describes it at one position (pgoutput's Relation message).

use serde::{Deserialize, Serialize};

use super::TableName;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// The table's OID on the source.
    pub oid: u32,
    pub name: TableName,
    pub identity: ReplicaIdentity,
    /// Its values come in their types' binary form, which [`super::binary`] knows for every column; otherwise as text.
    pub binary: bool,
    /// In the order of the tuples. Dropped and (before PostgreSQL 18) generated columns are absent.
    pub columns: Vec<Column>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub type_oid: u32,
    /// `atttypmod`; -1 when there is none.
    pub type_modifier: i32,
    /// Part of the replica identity. Under FULL every column is flagged, so this is not the primary key.
    pub in_identity: bool,
    /// Known for types that are not built in (pgoutput's Type message); OIDs of those differ between databases.
    pub type_name: Option<TypeName>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeName {
    pub schema: String,
    pub name: String,
}

/// `pg_class.relreplident`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReplicaIdentity {
    /// `d`: the primary key.
    Default,
    /// `n`: none; UPDATE and DELETE fail on the source while the table publishes them.
    Nothing,
    /// `f`: the whole old row.
    Full,
    /// `i`: a chosen unique index.
    Index,
}
