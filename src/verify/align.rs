//! What verification asks of the target's applier.

use std::future::Future;
use std::pin::Pin;

use crate::model::{Aligned, Lsn, Misaligned, SnapshotSet};

/// Boxed, so that `dyn Aligner` is possible.
pub type AlignFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, AlignError>> + Send + 'a>>;

/// Brings the target to exactly what a snapshot of the source sees. In the daemon: the applier's commands
/// ([`crate::model::ApplyCommand`]); in tests: two databases that nobody writes to.
pub trait Aligner: Send + Sync {
    /// The applier commits what is open and applies nothing more. Answers with the end of the last applied transaction.
    fn hold(&self) -> AlignFuture<'_, Lsn>;
    /// While held: the target is brought to `snapshot`; see [`crate::model::ApplyCommand::AdvanceTo`].
    fn advance_to(&self, snapshot: SnapshotSet, until: Lsn) -> AlignFuture<'_, Aligned>;
    /// The applier goes on. Called after every [`Self::hold`] that succeeded, whatever came of it.
    fn release(&self) -> AlignFuture<'_, ()>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlignError {
    /// This snapshot cannot be reached; another, taken a moment later, usually can.
    #[error(transparent)]
    Misaligned(#[from] Misaligned),
    /// The applier ended or is being restarted.
    #[error("the applier is not running")]
    Gone,
}
