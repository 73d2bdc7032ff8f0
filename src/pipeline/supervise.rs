//! Acts on errors: the only place that does.

use std::future::Future;

use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::backoff::Backoff;
use super::error::Error;
use super::troubles::Troubles;
use crate::model::Disposition;
use crate::telemetry::chain;

/// What a part needs to be kept running.
#[derive(Clone)]
pub(super) struct Supervisor {
    pub(super) troubles: Troubles,
    /// The operator's `resume`: halted parts try again.
    pub(super) resume: std::sync::Arc<Notify>,
    pub(super) stop: CancellationToken,
}

impl Supervisor {
    /// Runs `attempt` until it ends well or the daemon stops. What is worth retrying is retried with back-off; what is
    /// not stands still, says so, and waits for `resume`. `None` means the daemon is stopping.
    pub(super) async fn keep<T, F>(&self, part: &'static str, mut attempt: impl FnMut() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let error = match attempt().await {
                Ok(value) => {
                    self.troubles.clear(part);
                    return Some(value);
                }
                Err(error) => error,
            };
            if self.stop.is_cancelled() {
                return None;
            }
            match error.disposition() {
                Disposition::Retry => {
                    let wait = backoff.after(started.elapsed());
                    warn!(part, error = chain(&error), wait_ms = wait.as_millis() as u64, "retrying");
                    self.troubles.retrying(part, chain(&error));
                    tokio::select! {
                        () = self.stop.cancelled() => return None,
                        () = self.resume.notified() => {}
                        () = tokio::time::sleep(wait) => {}
                    }
                }
                Disposition::Halt { hint } => {
                    error!(part, error = chain(&error), hint, "halted");
                    self.troubles.halted(part, chain(&error), hint);
                    tokio::select! {
                        () = self.stop.cancelled() => return None,
                        () = self.resume.notified() => info!(part, "trying again as asked"),
                    }
                    self.troubles.clear(part);
                }
            }
        }
    }
}
