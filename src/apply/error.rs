//! What can go wrong at the target, and what is to be done about it.

use crate::model::{Disposition, Lsn, TableName, Xid};
use crate::wire::{self, ServerError};

/// `Display` names tables, columns, positions and SQLSTATEs, never row values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("open a session on the target")]
    Connect(#[source] wire::Error),
    #[error("{what}")]
    Query {
        /// Verb and object: "read the position".
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    /// The connection broke, or what came over it was not the protocol. Whether the group committed is told by the
    /// position.
    #[error("talk to the target")]
    Talk(#[source] wire::Error),
    #[error("{what}")]
    Refused {
        what: &'static str,
        #[source]
        source: ServerError,
    },
    #[error("apply change {ordinal} of transaction {xid} at {position} to table {table}")]
    Row {
        table: TableName,
        xid: Xid,
        /// End of the source transaction's commit record.
        position: Lsn,
        ordinal: u64,
        #[source]
        source: ServerError,
    },
    #[error(
        "apply change {ordinal} of transaction {xid} at {position}: table {table} does not hold exactly one row with its {key}"
    )]
    RowMissing {
        table: TableName,
        /// The key's column names; its values are data.
        key: String,
        xid: Xid,
        position: Lsn,
        ordinal: u64,
    },
    #[error("apply changes of {table}: the target has no table {target}")]
    MissingTable { table: TableName, target: TableName },
    #[error("apply changes of {table}: the target's table {target} has no column {column}")]
    MissingColumn { table: TableName, target: TableName, column: String },
    #[error("apply changes of {table}: column {column} is generated on the target, but the source sends its values")]
    GeneratedColumn { table: TableName, column: String },
    #[error(
        "apply changes of {table}: its foreign key {constraint} acts by itself on the target (ON DELETE or ON UPDATE)"
    )]
    ActingConstraint { table: TableName, constraint: String },
    #[error("apply a change of {table}: the stream carries no replica identity for it")]
    NoIdentity { table: TableName },
    #[error(
        "apply a TRUNCATE of {leaf}: it is a partition of {root}, which the target partitions otherwise, and the target cannot \
         tell which of its rows were in {leaf}"
    )]
    LeafTruncated {
        leaf: TableName,
        root: TableName,
        /// `None`: it was not asked, since the source tells them by a hash of its own.
        #[source]
        source: Option<ServerError>,
    },
    #[error("apply a change of {table}: a value came in a form that its type does not have")]
    BinaryValue { table: TableName },
    #[error("read {what} of the migration {migration} from the state on the target")]
    MalformedState { migration: String, what: &'static str },
    /// Nothing is wrong: tables were set apart or taken back since this applier began.
    #[error("apply to the tables as they were divided")]
    Divided,
    /// See [`super::encode::Unwritable::Unchanged`].
    #[error("apply a new row of {table}: the stream left out a value that the row's last UPDATE did not touch")]
    Incomplete { table: TableName },
    #[error("write the position of migration {migration}: another daemon has taken it over (our epoch is {epoch})")]
    Superseded { migration: String, epoch: i64 },
}

impl Error {
    /// Retry: run again from [`super::read_position`]. Halt: an operator has to change something first.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Connect(source) | Self::Talk(source) => source.disposition(),
            Self::Query { source, .. } => wire::disposition_of(source),
            Self::Refused { source, .. } => source.disposition(),
            Self::Row { source, table, .. } => match source.disposition() {
                Disposition::Retry => Disposition::Retry,
                Disposition::Halt { .. } => Disposition::Halt {
                    hint: format!(
                        "make the target's table {table} accept the row (a constraint or a type differs from the \
                         source), then `changeover resume`; or set such rows aside: apply.refused_rows = \"dead-letter\""
                    ),
                },
            },
            Self::RowMissing { table, .. } => Disposition::Halt {
                hint: format!(
                    "somebody else wrote to the target's table {table}: `changeover verify --table {table}` shows the keys, `changeover resync {table}` copies it again"
                ),
            },
            Self::MissingTable { .. } => halt("create the table on the target or exclude it, then `changeover resume`"),
            Self::MissingColumn { .. } => halt("add the column to the target, then `changeover resume`"),
            Self::GeneratedColumn { .. } => {
                halt("make it a plain column on the target (ALTER COLUMN … DROP EXPRESSION), then `changeover resume`")
            }
            Self::ActingConstraint { .. } => halt(
                "let the target's role set session_replication_role (GRANT SET ON PARAMETER), or drop the foreign key until the cutover",
            ),
            Self::NoIdentity { table } => Disposition::Halt {
                hint: format!("ALTER TABLE {} REPLICA IDENTITY FULL on the source", table.quoted()),
            },
            Self::LeafTruncated { source: Some(source), .. } if source.disposition() == Disposition::Retry => {
                Disposition::Retry
            }
            Self::LeafTruncated { root, .. } => Disposition::Halt {
                hint: format!(
                    "the target still holds the rows, and nothing of that transaction was applied: `changeover resync \
                     {root}` empties its table there and copies it again, and the rest goes on"
                ),
            },
            Self::BinaryValue { .. } => {
                halt("nothing of it was applied: report it with the source's version and the columns' types")
            }
            Self::MalformedState { .. } => halt("`changeover abort` removes the state, `changeover run` starts anew"),
            Self::Divided => Disposition::Retry,
            Self::Incomplete { table } => Disposition::Halt {
                hint: format!(
                    "a row was moved into the table's row filter: ALTER TABLE {} REPLICA IDENTITY FULL on the source, \
                     then `changeover resync {table}`",
                    table.quoted()
                ),
            },
            Self::Superseded { .. } => halt("stop this daemon: the other one goes on"),
        }
    }
}
