//! What can go wrong with a schema, and what is to be done about it.

use std::path::PathBuf;

use super::dump::Malformed;
use crate::model::{Disposition, MigrationName, TableName};
use crate::wire;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect for the schema")]
    Connect(#[source] wire::Error),
    #[error("{doing}")]
    Query {
        /// "read the tables", "create TABLE public.orders".
        doing: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("copy the rows of {what}")]
    Rows {
        what: String,
        #[source]
        source: wire::Error,
    },
    /// Without the server's detail, which holds values.
    #[error("{doing}: the rows do not allow it: {message}")]
    Violated { doing: String, message: String },
    #[error("read {what} from the catalog: {found:?} is not known to this version")]
    UnknownCatalogValue { what: &'static str, found: String },
    #[error("find a pg_dump of version {at_least_major} or newer")]
    PgDumpMissing { at_least_major: u32, newest: Option<u32> },
    #[error("use {path}, which is pg_dump {major}, for a server of version {at_least_major}", path = path.display())]
    PgDumpTooOld { path: PathBuf, major: u32, at_least_major: u32 },
    #[error("run {path} --version", path = path.display())]
    PgDumpUnusable { path: PathBuf },
    #[error("run {path}", path = path.display())]
    PgDumpStart {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("dump the schema: {complaint}")]
    PgDumpFailed { complaint: String },
    /// The server went, or somebody kept a lock.
    #[error("dump the schema: {complaint}")]
    PgDumpCutOff { complaint: String },
    #[error("dump the schema: it has more than {bytes_max} bytes")]
    DumpTooLarge { bytes_max: u64 },
    #[error("dump the schema: the text is not UTF-8")]
    DumpEncoding,
    #[error("take the dump apart")]
    Dump(#[source] Malformed),
    #[error("lock {table}, which {blocker} holds")]
    Locked { table: String, blocker: String },
    #[error("finish the schema: it was stopped")]
    Stopped,
    #[error("lead the migration {migration}: {holder} does already")]
    Led { migration: MigrationName, holder: String },
    #[error(
        "lead the migration {migration}: one of this name writes to the database {database} of the same server, led by \
         {holder}"
    )]
    LedElsewhere { migration: MigrationName, database: String, holder: String },
    #[error("find the migration {migration} in the target's schema changeover")]
    NoMigration { migration: MigrationName },
    #[error("go on with the migration {migration}: another daemon has taken it over")]
    Superseded { migration: MigrationName },
    #[error("read {what} of the migration {migration} from the target's schema changeover")]
    MalformedState { migration: MigrationName, what: &'static str },
    #[error("make tables on the target that are there already: {tables}")]
    TablesThere { tables: String },
    #[error("set the sequence {sequence}, which is not on that side")]
    MissingSequence { sequence: TableName },
}

impl Error {
    /// A query that failed while `doing`.
    pub(crate) fn query(doing: impl Into<String>) -> impl FnOnce(tokio_postgres::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Query { doing, source }
    }

    /// Rows that were copied with the schema, and were not.
    pub(crate) fn rows(what: impl Into<String>) -> impl FnOnce(wire::Error) -> Self {
        let what = what.into();
        move |source| Self::Rows { what, source }
    }

    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect(source) | Self::Rows { source, .. } => source.disposition(),
            Self::Query { source, .. } => of_query(source),
            Self::Locked { .. } | Self::Stopped => Disposition::Retry,
            Self::Violated { .. } => halt(
                "the target's rows break what holds on the source: see who else wrote to the target, and whether the \
                 source's index is corrupt (amcheck), then `resume`",
            ),
            Self::UnknownCatalogValue { .. } => halt("use a version of changeover that knows this server's version"),
            Self::PgDumpMissing { at_least_major, newest } => halt(format!(
                "install postgresql-client-{at_least_major} or newer (the newest found is {}), or name a pg_dump with \
                 CHANGEOVER_PG_DUMP",
                newest.map_or_else(|| "none".to_owned(), |major| major.to_string())
            )),
            Self::PgDumpTooOld { at_least_major, .. } => {
                halt(format!("name one of version {at_least_major} or newer, or none to have it looked for"))
            }
            Self::PgDumpUnusable { .. } | Self::PgDumpStart { .. } => halt("name a pg_dump that runs on this machine"),
            Self::PgDumpCutOff { .. } => Disposition::Retry,
            Self::PgDumpFailed { .. } => halt("see to what pg_dump says, then `run` again"),
            Self::DumpTooLarge { .. } | Self::DumpEncoding | Self::Dump(_) => {
                halt("prepare the target's schema by other means and set snapshot.mode = \"data\"")
            }
            Self::Led { .. } => halt("stop the other daemon, or let it go on"),
            Self::LedElsewhere { .. } => halt(
                "give one of the two another [migration] name: it names replication origins and slots, which all databases \
                 of a server share",
            ),
            Self::NoMigration { .. } => halt("`run` starts a migration"),
            Self::Superseded { .. } => halt("see which daemon runs with `status`; this one has stopped"),
            Self::MalformedState { .. } => halt("`abort` removes the state, `run` starts anew"),
            Self::TablesThere { .. } => halt(
                "DROP them on the target if they may go, or take them out of [tables] include and start again; then \
                 `changeover resume`",
            ),
            Self::MissingSequence { .. } => halt("create the sequence there, or leave it out of the migration"),
        }
    }
}

fn halt(hint: impl Into<String>) -> Disposition {
    Disposition::Halt { hint: hint.into() }
}

/// What the server ran out of in a transaction that makes thousands of tables does not come back by itself.
pub(crate) fn of_query(error: &tokio_postgres::Error) -> Disposition {
    let is = |state: &str| error.code().is_some_and(|code| code.code() == state);
    if is("53200") {
        return halt("raise max_locks_per_transaction on that server and restart it, then `run` again");
    }
    wire::disposition_of(error)
}
