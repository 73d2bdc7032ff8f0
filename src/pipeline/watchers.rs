//! What is looked at from time to time: the slot on the source. The metrics are set from the status when they are asked
//! for (`control`).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::board::Board;
use crate::config::Config;
use crate::source::{self, SlotState};
use crate::telemetry::chain;
use crate::wire::{self, Session};

/// How often the slot's retention is read: it grows by segments, so seconds are enough.
const SLOT_INTERVAL: Duration = Duration::from_secs(5);

/// Reads how much log the slot keeps, until `stop`.
pub(super) async fn watch_slot(config: Arc<Config>, board: Board, stop: CancellationToken) {
    let mut session: Option<Session> = None;
    while wait(&stop, SLOT_INTERVAL).await {
        match look(&config, session.take()).await {
            Ok((state, open)) => {
                board.slot_retains(state.as_ref().map_or(0, |state| state.retained_bytes));
                if let Some(end) = state.and_then(|state| state.wal_end) {
                    board.source_ends(end);
                }
                session = Some(open);
            }
            // The stream itself reports a source that is gone; here only a figure is missing.
            Err(error) => debug!(error = chain(&error), "slot not read"),
        }
    }
}

async fn look(config: &Config, session: Option<Session>) -> Result<(Option<SlotState>, Session), source::Error> {
    let session = match session {
        Some(session) => session,
        None => wire::connect(&config.source.endpoint, "watch").await?,
    };
    let state = source::slot_state(&session, &config.source.slot.name).await?;
    Ok((state, session))
}

/// False when the daemon stops.
pub(super) async fn wait(stop: &CancellationToken, interval: Duration) -> bool {
    tokio::select! { biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(interval) => true,
    }
}
