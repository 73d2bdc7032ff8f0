//! What can go wrong with the source's stream, and what is to be done about it.

use std::fmt;

use crate::model::{Disposition, Lsn, SourceIdentity, TableName};
use crate::wire;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reach the source")]
    Reach(#[from] wire::Error),
    #[error("{what}")]
    Wire {
        what: &'static str,
        #[source]
        source: wire::Error,
    },
    #[error("{what}")]
    Query {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    /// An answer of the server that we do not understand.
    #[error("understand the source: {what}")]
    Malformed { what: &'static str },
    #[error(
        "recognise the source: it is system {} on timeline {}, and our positions belong to system {} on timeline {}",
        found.system_identifier, found.timeline, expected.system_identifier, expected.timeline
    )]
    OtherSource { expected: SourceIdentity, found: SourceIdentity },
    #[error("read from slot {slot}: there is no such slot")]
    SlotMissing { slot: String },
    /// The log that the slot needs is gone, or the server gave the slot up for another reason.
    #[error("read from slot {slot}: the source has invalidated it ({reason})")]
    SlotInvalidated { slot: String, reason: String },
    /// Passes when it is the session of a daemon that was killed, which the source gives up when it next sends to it.
    #[error(
        "read from slot {slot}: process {pid} of the source reads from it, for a daemon that was killed or for another \
         reader; SELECT pg_terminate_backend({pid}) ends it"
    )]
    SlotActive { slot: String, pid: i32 },
    /// The server would skip to its own position without a word (PITFALLS 23).
    #[error(
        "read from slot {slot} from {resume}: it stands at {confirmed_flush} already, and what lies between would be lost"
    )]
    SlotAhead { slot: String, confirmed_flush: Lsn, resume: Lsn },
    #[error("read from slot {slot}: it belongs to {found}, not to {wanted}")]
    SlotOfAnother { slot: String, found: String, wanted: String },
    #[error("create slot {slot}: it exists already")]
    SlotExists { slot: String },
    #[error("create slot {slot} within {seconds} s: transactions that were running are still open: {blockers}")]
    SlotNotCreated { slot: String, seconds: u64, blockers: Blockers },
    #[error("find publication {publication} on the source")]
    PublicationMissing { publication: String },
    #[error("create publication {publication}: it exists already, with other tables or rows")]
    PublicationExists { publication: String },
    #[error("publish only some rows of {table}: row filters need PostgreSQL 15 or later")]
    RowFilters { table: TableName },
    #[error("wait {seconds} s for the transactions that were running when the publication was made: {blockers}")]
    TransactionsOpen { seconds: u64, blockers: Blockers },
    /// A server does so when it shuts down.
    #[error("go on with the stream: the source has ended it")]
    StreamEnded,
    #[error("go on with the stream: the source has said nothing for {seconds} s")]
    SourceSilent { seconds: u64 },
    #[error("let the source stop: it waits for us, and the sinks are behind at {confirmed}")]
    SourceStopping { confirmed: String },
}

/// Sessions that others have to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blockers(pub Vec<Blocker>);

/// Who, since when; not what: a query holds values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocker {
    /// `None` for a prepared transaction.
    pub pid: Option<i32>,
    pub user: String,
    /// The application's name, or the name of the prepared transaction.
    pub application: String,
    pub database: String,
    pub age_seconds: u64,
    pub xid: String,
}

impl Error {
    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: String| Disposition::Halt { hint };
        match self {
            Self::Wire { source, .. } | Self::Reach(source) => source.disposition(),
            Self::Query { source, .. } => wire::disposition_of(source),
            Self::StreamEnded | Self::SourceSilent { .. } | Self::SourceStopping { .. } | Self::SlotActive { .. } => {
                Disposition::Retry
            }
            Self::Malformed { .. } => {
                halt("check that the source is a PostgreSQL server of version 13 to 18".to_owned())
            }
            Self::OtherSource { .. } => halt(
                "point source.url at the cluster this migration began with; after a restore or a promotion the same \
                 positions mean other transactions, so `changeover abort` and begin again"
                    .to_owned(),
            ),
            Self::SlotMissing { .. } | Self::SlotInvalidated { .. } => halt(
                "changes may be missing from here on: `changeover abort`, then begin again with a new copy; raise \
                 max_slot_wal_keep_size on the source before that"
                    .to_owned(),
            ),
            Self::SlotAhead { .. } => halt(
                "somebody else has read from this slot or moved it; the target misses what lies between: `changeover \
                 abort`, then begin again with a new copy"
                    .to_owned(),
            ),
            Self::SlotOfAnother { slot, .. } => {
                halt(format!("choose another name in source.slot, or drop {slot} if nobody needs it"))
            }
            Self::SlotExists { .. } => {
                halt("`changeover abort` removes what an earlier run left; or adopt it with source.slot".to_owned())
            }
            Self::SlotNotCreated { .. } | Self::TransactionsOpen { .. } => {
                halt("wait for those transactions to end, or end them, then start again".to_owned())
            }
            Self::PublicationMissing { publication } => halt(format!(
                "create publication {publication} again only together with a new copy: `changeover abort`, then begin \
                 again"
            )),
            Self::RowFilters { table } => halt(format!("take {table} out of tables.rows, or exclude it")),
            Self::PublicationExists { .. } => halt(
                "`changeover abort` removes what an earlier run left; or adopt it with source.publication".to_owned(),
            ),
        }
    }

    pub(super) fn wire(what: &'static str) -> impl FnOnce(wire::Error) -> Self {
        move |source| Self::Wire { what, source }
    }

    pub(super) fn query(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Query { what, source }
    }

    /// What the server said, by its code.
    pub(super) fn sqlstate(&self) -> Option<&str> {
        if let Self::Wire { source, .. } = self {
            return source.server().map(wire::ServerError::sqlstate);
        }
        let Self::Query { source, .. } = self else { return None };
        source.code().map(tokio_postgres::error::SqlState::code)
    }
}

impl fmt::Display for Blockers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none that our role may see (GRANT pg_monitor to it)");
        }
        for (index, blocker) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let Blocker { pid, user, application, database, age_seconds, xid } = blocker;
            match pid {
                Some(pid) => write!(f, "{separator}process {pid}")?,
                None => write!(f, "{separator}prepared transaction")?,
            }
            write!(f, " of {user} ({application}) in {database}, open for {age_seconds} s, xid {xid}")?;
        }
        Ok(())
    }
}
