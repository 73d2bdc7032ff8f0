//! What verification and cutover ask of the target's applier: to stand still at a place the source can be compared at.

use tokio::sync::oneshot;

use super::{Lsn, SnapshotSet};

/// A command to the applier. Commands are obeyed between groups, in the order they were sent.
#[derive(Debug)]
pub enum ApplyCommand {
    /// Commit what is open, apply nothing more, answer with the end of the last applied transaction.
    Hold { reply: oneshot::Sender<Lsn> },
    /// While held: apply exactly the transactions that `snapshot` sees and hold again. They all stand before the
    /// transaction that carries a logical message with prefix [`marker_prefix`] and content `marker`.
    AdvanceTo { snapshot: SnapshotSet, marker: String, reply: oneshot::Sender<Result<Aligned, Misaligned>> },
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
    /// More than the applier may hold back arrived before the marker.
    #[error("too much was committed between the snapshot and its marker")]
    TooMuch,
}

/// Prefix of our logical messages in the source's log, followed by nothing: the content tells them apart.
pub const fn marker_prefix() -> &'static str {
    "changeover"
}
