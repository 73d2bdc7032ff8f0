//! What can go wrong while rows are copied, and what is to be done about it.

use crate::model::{Disposition, MigrationName, TableName};
use crate::{schema, wire};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect for the copy")]
    Connect(#[source] wire::Error),
    #[error("read the tables")]
    Catalog(#[source] schema::Error),
    #[error("{doing}")]
    Query {
        doing: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("copy {table}: {doing}")]
    Copy {
        table: TableName,
        doing: &'static str,
        #[source]
        source: Box<wire::Error>,
    },
    #[error("{doing}")]
    Prepare {
        doing: &'static str,
        #[source]
        source: wire::Error,
    },
    /// A lock that conflicts with reading: ALTER, TRUNCATE, VACUUM FULL and the like.
    #[error("lock the source's tables for reading: {blocker} is in the way")]
    Locked { blocker: String },
    /// The session that held locks and snapshot is gone, so what was read last may not be what the snapshot saw.
    #[error("keep the snapshot of the source")]
    SnapshotLost(#[source] tokio_postgres::Error),
    #[error("find a table on the target for the rows of {table}")]
    MissingTable { table: TableName },
    #[error("copy {table} into the target's table, which holds rows that this migration did not put there")]
    NotEmpty { table: TableName },
    #[error("copy {table}, of which an earlier attempt has just recorded a part")]
    Overtaken { table: TableName },
    /// It lost its lock together with its snapshot, and was truncated or rewritten before the next one.
    #[error("go on with the copy of {table}, which was truncated or rewritten on the source meanwhile")]
    Rewritten { table: TableName },
    #[error("copy {table} without firing the triggers and checking the foreign keys of the target's table")]
    WouldFire { table: TableName },
    #[error("copy {table}: the source sent {sent} rows and the target took {taken}")]
    RowsLost { table: TableName, sent: u64, taken: u64 },
    /// A pass over a table gives its rows in the order of its file, each with its place in front.
    #[error("read {table} in the order of its file: a row came without its place, or out of turn")]
    OutOfOrder { table: TableName },
    #[error("complete {table}: parts of it are not recorded")]
    PartsMissing { table: TableName },
    #[error("read {what} of the migration {migration} from changeover.unit")]
    MalformedState { migration: MigrationName, what: &'static str },
    #[error("read the snapshot that the source reports: {found:?}")]
    MalformedSnapshot { found: String },
    #[error("finish the copy: it was stopped")]
    Stopped,
}

impl Error {
    /// Copying `table` failed while `doing`.
    pub(super) fn copy(table: &TableName, doing: &'static str) -> impl FnOnce(wire::Error) -> Self + use<> {
        let table = table.clone();
        move |source| Self::Copy { table, doing, source: Box::new(source) }
    }

    pub(super) fn query(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Query { doing, source }
    }

    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Connect(source) | Self::Prepare { source, .. } => source.disposition(),
            Self::Copy { source, .. } => source.disposition(),
            Self::Catalog(source) => source.disposition(),
            Self::Query { source, .. } => wire::disposition_of(source),
            Self::Locked { .. }
            | Self::SnapshotLost(_)
            | Self::Overtaken { .. }
            | Self::Rewritten { .. }
            | Self::Stopped => Disposition::Retry,
            Self::MissingTable { .. } => halt("create the table on the target, or exclude it, then `resume`"),
            Self::NotEmpty { .. } => halt("empty the table on the target (TRUNCATE) or exclude it, then `resume`"),
            Self::WouldFire { .. } => halt(
                "let the target's role set session_replication_role (superuser, or GRANT SET ON PARAMETER \
                 from PostgreSQL 15 on), or drop the table's foreign keys and disable its triggers, then `resume`",
            ),
            Self::RowsLost { .. } | Self::PartsMissing { .. } => {
                halt("something removes rows on the way (a trigger or rule on the target?); see to it, then `resume`")
            }
            Self::OutOfOrder { .. } => {
                halt("report it with the source's version; `[snapshot] split` above the table's size copies it whole")
            }
            Self::MalformedState { .. } => halt("`abort` removes the state, `run` starts anew"),
            Self::MalformedSnapshot { .. } => halt("use a version of changeover that knows this server's version"),
        }
    }
}
