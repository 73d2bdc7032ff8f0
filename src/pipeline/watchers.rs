//! What is looked at from time to time: the slot on the source, and the numbers for the metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::board::Board;
use super::status::{Phase, Status, TableStatus};
use crate::config::Config;
use crate::source;
use crate::telemetry::{chain, metrics as names};
use crate::wire::{self, Session};

/// How often the slot's retention is read: it grows by segments, so seconds are enough.
const SLOT_INTERVAL: Duration = Duration::from_secs(5);
const METRICS_INTERVAL: Duration = Duration::from_secs(1);

/// Reads how much log the slot keeps, until `stop`.
pub(super) async fn watch_slot(config: Arc<Config>, board: Board, stop: CancellationToken) {
    let mut session: Option<Session> = None;
    while wait(&stop, SLOT_INTERVAL).await {
        match retained(&config, session.take()).await {
            Ok((bytes, open)) => {
                board.slot_retains(bytes);
                session = Some(open);
            }
            // The stream itself reports a source that is gone; here only a figure is missing.
            Err(error) => debug!(error = chain(&error), "slot not read"),
        }
    }
}

async fn retained(config: &Config, session: Option<Session>) -> Result<(u64, Session), source::Error> {
    let session = match session {
        Some(session) => session,
        None => wire::connect(&config.source.endpoint, "watch").await?,
    };
    let state = source::slot_state(&session, &config.source.slot.name).await?;
    Ok((state.map_or(0, |state| state.retained_bytes), session))
}

/// Brings the gauges up to date, until `stop`.
pub(super) async fn export_metrics(board: Board, stop: CancellationToken) {
    while wait(&stop, METRICS_INTERVAL).await {
        export(&board.status());
    }
}

fn export(status: &Status) {
    let migration = status.migration.clone();
    let gauge = |name: &'static str, value: f64| {
        metrics::gauge!(name, names::LABEL_MIGRATION => migration.clone()).set(value);
    };
    for sink in &status.sinks {
        let labels = [(names::LABEL_MIGRATION, migration.clone()), (names::LABEL_SINK, sink.sink.to_string())];
        metrics::gauge!(names::LAG_BYTES, &labels).set(sink.lag_bytes as f64);
        metrics::gauge!(names::LAG_SECONDS, &labels).set(sink.lag_seconds);
    }
    gauge(names::SLOT_RETAINED_BYTES, status.source.slot_retained_bytes.unwrap_or_default() as f64);
    gauge(names::SPOOL_BYTES, (status.spool.memory_bytes + status.spool.disk_bytes) as f64);
    let ready = status.phase == Phase::Streaming && status.halted.is_empty();
    gauge(names::CUTOVER_READY, f64::from(u8::from(ready)));
    for table in &status.tables {
        export_table(&migration, table);
    }
}

fn export_table(migration: &str, table: &TableStatus) {
    let labels = [(names::LABEL_MIGRATION, migration.to_owned()), (names::LABEL_TABLE, table.table.clone())];
    let progress = table.bytes_copied as f64 / table.bytes_total.max(1) as f64;
    metrics::gauge!(names::SNAPSHOT_PROGRESS_RATIO, &labels).set(progress.min(1.0));
    metrics::gauge!(names::TABLE_LAG_SECONDS, &labels).set(table.lag_seconds);
    metrics::gauge!(names::TABLE_ROWS, &labels).set(table.rows as f64);
    metrics::counter!(names::SNAPSHOT_ROWS_TOTAL, &labels).absolute(table.rows_copied);
}

/// False when the daemon stops.
async fn wait(stop: &CancellationToken, interval: Duration) -> bool {
    tokio::select! { biased;
        () = stop.cancelled() => false,
        () = tokio::time::sleep(interval) => true,
    }
}
