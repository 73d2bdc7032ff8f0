//! The status as metrics. They are set when they are asked for, from the same values as `status`, so the two cannot
//! disagree.

use metrics::{Label, counter, gauge};

use crate::model::{Lsn, SinkName};
use crate::pipeline::{Phase, Status, TableStatus};
use crate::telemetry::metrics as names;

/// Tables beyond this many are left out of the metrics by table: each is a time series of its own in whatever collects
/// them. `status` has them all.
const TABLES_MAX: usize = 2000;

/// Sets everything that the status knows.
pub(super) fn set(status: &Status) {
    let migration = || vec![Label::new(names::LABEL_MIGRATION, status.migration.clone())];
    let with = |name: &'static str, value: &str| {
        let mut labels = migration();
        labels.push(Label::new(name, value.to_owned()));
        labels
    };
    gauge!(names::BUILD_INFO, with("version", &status.version)).set(1.0);
    if let Some(bytes) = status.source.slot_retained_bytes {
        gauge!(names::SLOT_RETAINED_BYTES, migration()).set(bytes as f64);
    }
    for sink in &status.sinks {
        let labels = || with(names::LABEL_SINK, sink.sink.as_str());
        gauge!(names::LAG_BYTES, labels()).set(sink.lag_bytes as f64);
        gauge!(names::LAG_SECONDS, labels()).set(sink.lag_seconds);
        // The target's are counted where they commit, with the rows by operation.
        if sink.sink != SinkName::Target {
            counter!(names::TRANSACTIONS_TOTAL, labels()).absolute(sink.transactions_total);
        }
    }
    gauge!(names::SPOOL_BYTES, migration()).set(status.spool.disk_bytes as f64);
    gauge!(names::SPOOL_RELEASED_BYTES, migration()).set(status.spool.released_bytes as f64);
    gauge!(names::QUEUE_BYTES, with(names::LABEL_STAGE, "spool")).set(status.spool.memory_bytes as f64);
    gauge!(names::QUEUE_CAPACITY_BYTES, with(names::LABEL_STAGE, "spool_disk"))
        .set(status.spool.disk_capacity_bytes as f64);
    gauge!(names::SNAPSHOT_PROGRESS_RATIO, migration()).set(snapshot_ratio(status));
    let held = |reason, held: bool| {
        gauge!(names::SNAPSHOT_HELD, with(names::LABEL_REASON, reason)).set(f64::from(u8::from(held)));
    };
    held("load", !status.throttle.held.is_empty());
    held("pause", status.paused && status.phase.copies());
    counter!(names::SNAPSHOT_HELD_SECONDS_TOTAL, migration()).absolute(status.throttle.held_seconds_total as u64);
    gauge!(names::SNAPSHOT_RATE_LIMIT_BYTES, migration()).set(status.throttle.max_rate_bytes.unwrap_or(0) as f64);
    gauge!(names::CUTOVER_READY, migration()).set(f64::from(u8::from(is_cutover_ready(status))));
    if let Some(pause_ms) = status.cutover.as_ref().and_then(|cutover| cutover.pause_ms) {
        gauge!(names::CUTOVER_PAUSE_SECONDS, migration()).set(pause_ms / 1000.0);
    }
    if let Some(verification) = &status.verification {
        gauge!(names::VERIFIED_RATIO, migration()).set(verification.ratio);
        if let Some(position) = verification.position.as_deref().and_then(|text| text.parse::<Lsn>().ok()) {
            gauge!(names::VERIFIED_POSITION, migration()).set(position.get() as f64);
        }
    }
    for table in status.tables.iter().take(TABLES_MAX) {
        set_table(table, &with(names::LABEL_TABLE, &table.table));
    }
}

fn set_table(table: &TableStatus, labels: &[Label]) {
    gauge!(names::TABLE_LAG_SECONDS, labels.to_vec()).set(table.lag_seconds);
    gauge!(names::TABLE_ROWS, labels.to_vec()).set(table.rows as f64);
    counter!(names::SNAPSHOT_ROWS_TOTAL, labels.to_vec()).absolute(table.rows_copied);
    if let Some(verdict) = &table.verdict {
        gauge!(names::CHECKSUM_MATCH, labels.to_vec()).set(f64::from(u8::from(verdict.equal)));
    }
}

fn snapshot_ratio(status: &Status) -> f64 {
    let snapshot = &status.snapshot;
    match status.phase {
        Phase::Preparing => 0.0,
        // The total is an estimate, so it may be passed before the last table is done.
        Phase::Copying if snapshot.bytes_total > 0 => {
            (snapshot.bytes_copied as f64 / snapshot.bytes_total as f64).min(0.999)
        }
        Phase::Copying => 0.0,
        Phase::Indexing | Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => 1.0,
    }
}

/// What can be told without asking the gates: streaming, nothing halted, not paused.
fn is_cutover_ready(status: &Status) -> bool {
    status.phase == Phase::Streaming && status.halted.is_empty() && !status.paused
}
