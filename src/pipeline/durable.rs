//! Makes the spool durable at a bounded interval, and tells what the source may therefore forget.

use std::sync::Arc;
use std::time::Duration;

use super::error::Error;
use super::flow::Flow;
use super::supervise::Supervisor;
use crate::spool::Spool;

/// How long a change may wait to be made durable with others. The source is told ten times a second at most anyway, and
/// a crash makes it send again what it was not told of.
const SYNC_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Durable {
    pub(super) flow: Arc<Flow>,
    pub(super) spool: Spool,
    pub(super) supervisor: Supervisor,
}

impl Durable {
    /// Runs until the daemon stops. A full disk is tried again and again; meanwhile the stream waits for room in memory.
    pub(super) async fn run(self) {
        self.supervisor.keep("spool", || self.once()).await;
    }

    async fn once(&self) -> Result<(), Error> {
        while self.wait().await {
            self.sync().await?;
            self.supervisor.troubles.clear("spool");
        }
        // What is left when the daemon stops: the next start then has less to ask for.
        self.sync().await
    }

    /// False when the daemon stops.
    async fn wait(&self) -> bool {
        let grouped = async {
            self.spool.unsynced().await;
            tokio::select! { biased;
                () = self.spool.crowded() => {}
                () = tokio::time::sleep(SYNC_INTERVAL) => {}
            }
        };
        tokio::select! { biased;
            () = self.supervisor.stop.cancelled() => false,
            () = grouped => true,
        }
    }

    async fn sync(&self) -> Result<(), Error> {
        let spool = self.spool.clone();
        let synced = match tokio::task::spawn_blocking(move || spool.sync()).await {
            Ok(synced) => synced?,
            Err(failure) => std::panic::resume_unwind(failure.into_panic()),
        };
        if let Some(through) = synced {
            self.flow.kept(through);
        }
        Ok(())
    }
}
