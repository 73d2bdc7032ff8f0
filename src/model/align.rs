//! What verification and cutover ask of the target's applier: to stand still at a place the source can be compared at.

use tokio::sync::oneshot;

use super::{Lsn, SnapshotSet};

/// A command to the applier. Commands are obeyed between groups, in the order they were sent.
#[derive(Debug)]
pub enum ApplyCommand {
    /// Commit what is open, apply nothing more, answer with the end of the last applied transaction.
    Hold { reply: oneshot::Sender<Lsn> },
    /// While held: apply exactly the transactions that `snapshot` sees and hold again. `until` was the end of the log
    /// just after the snapshot had been taken (the position `pg_logical_emit_message` returned), so all of them end
    /// before it: once the stream has passed `until` (a batch's `through`, or a transaction that commits later) nothing
    /// that the snapshot sees can follow. By position and not by the message itself, because pgoutput sends messages
    /// only from PostgreSQL 14 on.
    AdvanceTo { snapshot: SnapshotSet, until: Lsn, reply: oneshot::Sender<Result<Aligned, Misaligned>> },
    /// While held: go on with the stream.
    Release,
}

/// The target now holds exactly what the snapshot saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aligned {
    /// End of the last applied transaction.
    pub position: Lsn,
}

/// Why the target cannot be brought to the snapshot by applying a prefix of the stream. A new snapshot, taken a moment
/// later, usually can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misaligned {
    /// A transaction that the snapshot does not see committed before one that it sees: visibility follows the process
    /// array, the stream follows commit records.
    #[error("the snapshot sees a transaction that committed after one it does not see")]
    OutOfOrder,
    /// The applier had passed the snapshot already.
    #[error("the applier had already gone past the snapshot")]
    Passed,
    /// More than the applier may hold back arrived before the stream had passed `until`.
    #[error("too much was committed between the snapshot and the end of the log just after it")]
    TooMuch,
}

/// Prefix of our logical messages in the source's log, followed by nothing: the content tells them apart.
pub const fn marker_prefix() -> &'static str {
    "changeover"
}
