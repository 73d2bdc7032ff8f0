//! The way to the applier that runs now: holding it, bringing it to a snapshot, letting it go on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::link;
use crate::model::{Aligned, ApplyCommand, Lsn, SnapshotSet};
use crate::verify::{AlignError, AlignFuture, Aligner};

/// A command is charged a flat size: they are few and small.
const COMMAND_BYTES: usize = 256;
const COMMAND_COUNT: usize = 16;
/// An applier that ends because tables were divided anew, or a connection broke, is followed by another within this.
const APPLIER_PATIENCE: Duration = Duration::from_secs(5);
const APPLIER_PAUSE: Duration = Duration::from_millis(50);

/// The applier is made anew after each failure; this always leads to the present one.
#[derive(Clone, Default)]
pub(super) struct Commands {
    now: Arc<Mutex<Option<link::Sender<ApplyCommand>>>>,
}

impl Commands {
    /// Leads to a new applier from now on.
    pub(super) fn renew(&self) -> link::Receiver<ApplyCommand> {
        let (sender, receiver) = link::channel(COMMAND_BYTES * COMMAND_COUNT, COMMAND_COUNT);
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    async fn hold_this_one(&self) -> Result<Lsn, AlignError> {
        let (reply, answer) = oneshot::channel();
        self.send(ApplyCommand::Hold { reply }).await?;
        answer.await.map_err(|_| AlignError::Gone)
    }

    async fn send(&self, command: ApplyCommand) -> Result<(), AlignError> {
        let sender = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sender = sender.ok_or(AlignError::Gone)?;
        sender.send(command, COMMAND_BYTES).await.map_err(|_| AlignError::Gone)
    }
}

impl Aligner for Commands {
    fn hold(&self) -> AlignFuture<'_, Lsn> {
        Box::pin(async move {
            let deadline = Instant::now() + APPLIER_PATIENCE;
            loop {
                match self.hold_this_one().await {
                    Err(AlignError::Gone) if Instant::now() < deadline => sleep(APPLIER_PAUSE).await,
                    held => return held,
                }
            }
        })
    }

    fn advance_to(&self, snapshot: SnapshotSet, until: Lsn) -> AlignFuture<'_, Aligned> {
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            self.send(ApplyCommand::AdvanceTo { snapshot, until, reply }).await?;
            Ok(answer.await.map_err(|_| AlignError::Gone)??)
        })
    }

    fn release(&self) -> AlignFuture<'_, ()> {
        Box::pin(self.send(ApplyCommand::Release))
    }
}
