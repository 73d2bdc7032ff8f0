//! What can go wrong while comparing. A verdict of "different" is no error.

use std::fmt;

use super::align::AlignError;
use crate::model::{Disposition, Misaligned, TableName};
use crate::wire;

/// One of the two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    Source,
    Target,
}

impl Side {
    pub(super) const BOTH: [Self; 2] = [Self::Source, Self::Target];

    pub(super) const fn index(self) -> usize {
        match self {
            Self::Source => 0,
            Self::Target => 1,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "source",
            Self::Target => "target",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to the {side} for verification")]
    Connect {
        side: Side,
        #[source]
        source: wire::Error,
    },
    /// `what` is a step, never a value.
    #[error("{what} on the {side}")]
    Query {
        side: Side,
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("digest table {table} on the {side}")]
    Digest {
        side: Side,
        table: TableName,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("read the answer to {what} from the {side}")]
    Answer { side: Side, what: &'static str },
    #[error("find table {table} on the {side}")]
    Missing { side: Side, table: TableName },
    #[error("hold the applier for an aligned snapshot")]
    Align(#[from] AlignError),
    #[error("align the target with a snapshot of the source in {attempts} attempts")]
    NeverAligned {
        attempts: u32,
        #[source]
        last: Misaligned,
    },
    #[error("compare table {table}, which was truncated or rewritten during each of {attempts} attempts")]
    Restless { table: TableName, attempts: u32 },
    #[error("compare hashes between servers that compute them differently")]
    ForeignHash,
    #[error("judge table {table}, which has not been found equal since the daemon started")]
    NotVerified { table: TableName },
    /// A worker panicked: our own mistake, carried out of its task.
    #[error("finish a worker of the verification")]
    Worker(#[source] tokio::task::JoinError),
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Connect { source, .. } => source.disposition(),
            Self::Query { source, .. } | Self::Digest { source, .. } => match source.code() {
                Some(code) if *code == tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE => {
                    halt("grant SELECT on the table and USAGE on its schema to the migration's role, then `verify`")
                }
                // The snapshot went with its exporter's session (17 and later; the code is another one before that).
                Some(code) if *code == tokio_postgres::error::SqlState::UNDEFINED_OBJECT => Disposition::Retry,
                Some(code) if code.code().starts_with("42") => {
                    halt("compare the structure with `check`, then `verify`")
                }
                Some(_) | None => Disposition::Retry,
            },
            Self::Answer { .. } | Self::Align(_) | Self::NeverAligned { .. } => Disposition::Retry,
            Self::Missing { .. } => halt("the table was dropped or renamed: see `check`"),
            Self::Restless { .. } => halt("run `verify` when the table is not being truncated or rewritten"),
            Self::ForeignHash => {
                halt("the servers run on processors of different byte order, which verification does not support")
            }
            Self::NotVerified { .. } => halt("run `verify`, and look at the tables it reports"),
            Self::Worker(_) => halt("this is a mistake in changeover: please report it with the log"),
        }
    }
}
