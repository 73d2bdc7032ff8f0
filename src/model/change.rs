//! One row change of the stream.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Lsn, Tuple};

/// Index into [`super::Batch::relations`].
pub type RelationIndex = u32;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Where the change's record starts. For information (Debezium's `source.lsn`): it neither orders nor identifies.
    pub lsn: Option<Lsn>,
    pub kind: ChangeKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    Insert {
        relation: RelationIndex,
        new: Tuple,
    },
    /// `old` is absent under replica identity DEFAULT or INDEX when no identity column changed.
    Update {
        relation: RelationIndex,
        old: Option<OldTuple>,
        new: Tuple,
    },
    Delete {
        relation: RelationIndex,
        old: OldTuple,
    },
    /// One statement for all of them (PITFALLS: cascade lists only published tables).
    Truncate {
        relations: Vec<RelationIndex>,
        cascade: bool,
        restart_identity: bool,
    },
    /// `pg_logical_emit_message(true, prefix, content)`.
    Message {
        prefix: String,
        content: Bytes,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldTuple {
    pub kind: OldKind,
    /// As many columns as the relation; under [`OldKind::Key`] those outside the identity are NULL and mean nothing.
    pub tuple: Tuple,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OldKind {
    /// `K`: only the identity's columns.
    Key,
    /// `O`: the whole row (replica identity FULL).
    Full,
}

impl Change {
    /// Bytes it holds, for the budgets: its row bytes and a flat charge for the rest. A tuple is a slice of the buffer it
    /// was read into, which keeps the framing around it alive: CopyData (5), XLogData (25), and what pgoutput puts before a
    /// tuple (6).
    pub fn size_bytes(&self) -> usize {
        const FRAMING: usize = 36;
        const FLAT: usize = size_of::<Change>() + FRAMING;
        FLAT + match &self.kind {
            ChangeKind::Insert { new, .. } => new.size_bytes(),
            ChangeKind::Update { old, new, .. } => {
                new.size_bytes() + old.as_ref().map_or(0, |old| old.tuple.size_bytes())
            }
            ChangeKind::Delete { old, .. } => old.tuple.size_bytes(),
            ChangeKind::Truncate { relations, .. } => relations.len() * size_of::<RelationIndex>(),
            ChangeKind::Message { prefix, content } => prefix.len() + content.len(),
        }
    }
}
