//! What can be wrong with a stream. Tags, positions and ids only: never row values.

use std::fmt;

use crate::model::{AheadGivenUp, Disposition, Lsn, StashError, Xid};

use super::Tag;

/// Why the stream cannot be decoded any further. The decoder is left where it was: after an error only
/// [`super::Decoder::begin_session`] may follow.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the {tag} message at {at}: {what}")]
    Malformed { tag: Tag, at: At, what: &'static str },
    #[error("read the message at {at}: it is empty")]
    Empty { at: At },
    #[error("read the message at {at}: pgoutput has no message with tag {tag}")]
    UnknownTag { tag: Tag, at: At },
    #[error("take the {tag} message at {at} {state}")]
    Unexpected { tag: Tag, at: At, state: &'static str },
    #[error("take the {tag} message at {at}: the slot was made with two_phase")]
    TwoPhase { tag: Tag, at: At },
    #[error("take the {tag} message at {at}: no Relation message described the table with oid {oid}")]
    UnknownRelation { tag: Tag, at: At, oid: u32 },
    #[error("take the {tag} message at {at}: its row has {found} columns, {table} was described with {expected}")]
    ColumnCount { tag: Tag, at: At, table: String, found: usize, expected: usize },
    #[error("take the {tag} message at {at}: no first chunk of streamed transaction {top} came before it")]
    UnknownStream { tag: Tag, at: At, top: Xid },
    #[error("take the Stream Start message at {at}: streamed transaction {top} had begun already")]
    StreamBegunTwice { at: At, top: Xid },
    #[error("keep track of streamed transaction {top}: more than {limit} of its sub-transactions were rolled back")]
    TooManyAborted { top: Xid, limit: usize },
    #[error(
        "replay streamed transaction {top} committed at {commit}: a roll-back inside it may concern a logical message"
    )]
    AmbiguousMessages { top: Xid, commit: Lsn },
    #[error("go on with the transaction committed at {expected}: the source sent the one committed at {found} instead")]
    NotResent { expected: Lsn, found: Lsn },
    #[error("go on with the transaction committed at {commit} after {emitted} changes: this time it has only {found}")]
    Diverged { commit: Lsn, emitted: u64, found: u64 },
    #[error(
        "take values in binary form: column {column} of {table} has the type with oid {type_oid}, which is taken as text"
    )]
    NoBinaryForm { table: String, column: String, type_oid: u32 },
    /// Nothing of it was emitted: the source is to send it again, at its commit.
    #[error("apply transaction {top} ahead of its commit")]
    AheadGivenUp {
        top: Xid,
        #[source]
        source: AheadGivenUp,
    },
    #[error("decode the stream")]
    Stash(#[from] StashError),
}

/// What stopped [`super::Decoder::on_frames`].
#[derive(Debug, thiserror::Error)]
pub enum Interrupted<E> {
    #[error(transparent)]
    Decode(#[from] Error),
    /// What `emit` returned.
    #[error("hand on a batch")]
    Emit(#[source] E),
}

/// Where in the log a message stands. Some (Stream Start) carry no position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At(pub Option<Lsn>);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(lsn) => lsn.fmt(f),
            None => f.write_str("an unknown position"),
        }
    }
}

impl Error {
    /// Whether the source can help by not sending transactions in progress.
    pub(super) fn is_about_streams(&self) -> bool {
        match self {
            Self::TooManyAborted { .. } | Self::AmbiguousMessages { .. } | Self::Stash(_) => true,
            Self::Malformed { .. }
            | Self::Empty { .. }
            | Self::UnknownTag { .. }
            | Self::Unexpected { .. }
            | Self::TwoPhase { .. }
            | Self::UnknownRelation { .. }
            | Self::ColumnCount { .. }
            | Self::UnknownStream { .. }
            | Self::StreamBegunTwice { .. }
            | Self::NotResent { .. }
            | Self::NoBinaryForm { .. }
            | Self::AheadGivenUp { .. }
            | Self::Diverged { .. } => false,
        }
    }

    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Malformed { .. }
            | Self::Empty { .. }
            | Self::UnknownTag { .. }
            | Self::Unexpected { .. }
            | Self::UnknownRelation { .. }
            | Self::ColumnCount { .. }
            | Self::UnknownStream { .. }
            | Self::StreamBegunTwice { .. } => halt(
                "the source sent what its protocol does not allow; nothing of it was applied. Keep the log, report it with \
                 the source's version, and restart to read the stream again from the confirmed position",
            ),
            Self::TwoPhase { .. } => {
                halt("drop the slot and let changeover make its own, or make one with two_phase = false")
            }
            // The next session does without: see `Decoder::takes_streams`, `Decoder::takes_binary`.
            Self::TooManyAborted { .. }
            | Self::AmbiguousMessages { .. }
            | Self::NoBinaryForm { .. }
            | Self::AheadGivenUp { .. } => Disposition::Retry,
            Self::NotResent { .. } | Self::Diverged { .. } => halt(
                "the source's log is not the one this migration was reading: check that it is the same server and \
                 timeline, then restart; what was applied so far is kept",
            ),
            Self::Stash(error) => error.disposition.clone(),
        }
    }
}
