//! How far something has come in the source's one total order of changes.

use serde::{Deserialize, Serialize};

use super::Lsn;

/// Everything up to and including the transaction whose commit record ends at `commit_end` is done, and of the
/// transaction after it the first `ordinal` changes. `ordinal` is 0 except for a Kafka sink in the middle of a
/// transaction larger than its bound: LSNs of single events are neither unique nor monotonic, so nothing finer than
/// this pair orders changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    pub commit_end: Lsn,
    pub ordinal: u64,
}

impl Position {
    /// The position after the whole transaction ending at `commit_end`.
    pub const fn after(commit_end: Lsn) -> Self {
        Self { commit_end, ordinal: 0 }
    }
}

/// Which history a position belongs to. After a point-in-time recovery or on another cluster the same LSNs mean other
/// transactions, so every stored position is stored beside this (`IDENTIFY_SYSTEM`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// `system_identifier` as the decimal text the server prints (a 64-bit number).
    pub system_identifier: String,
    pub timeline: u32,
}

/// Which database a migration writes to: names of databases repeat from server to server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetIdentity {
    /// `system_identifier` as the decimal text the server prints (a 64-bit number).
    pub system_identifier: String,
    pub database: String,
}
