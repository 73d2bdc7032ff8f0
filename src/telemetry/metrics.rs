//! Every metric name once. Labels: `migration`, `table`, `sink`, `stage`.

use std::sync::OnceLock;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::model::MigrationName;

pub const LAG_BYTES: &str = "changeover_lag_bytes";
/// 0 when idle and caught up, growing when stuck.
pub const LAG_SECONDS: &str = "changeover_lag_seconds";
pub const SLOT_RETAINED_BYTES: &str = "changeover_slot_retained_bytes";
/// Label `op`: insert, update, delete, truncate.
pub const ROWS_TOTAL: &str = "changeover_rows_total";
/// Label `way`: ahead, in_turn.
pub const GROUPS_TOTAL: &str = "changeover_groups_total";
pub const DEAD_LETTERS_TOTAL: &str = "changeover_dead_letters_total";
pub const FOREIGN_WRITES_TOTAL: &str = "changeover_foreign_writes_total";
pub const TRANSACTIONS_TOTAL: &str = "changeover_transactions_total";
/// Label `outcome`: committed, given_up, rolled_back.
pub const AHEAD_TOTAL: &str = "changeover_ahead_total";
pub const SNAPSHOT_ROWS_TOTAL: &str = "changeover_snapshot_rows_total";
pub const SNAPSHOT_BYTES_TOTAL: &str = "changeover_snapshot_bytes_total";
pub const SNAPSHOT_PROGRESS_RATIO: &str = "changeover_snapshot_progress_ratio";
/// Label `reason`: load, pause.
pub const SNAPSHOT_HELD: &str = "changeover_snapshot_held";
pub const SNAPSHOT_HELD_SECONDS_TOTAL: &str = "changeover_snapshot_held_seconds_total";
/// A second; 0 without a limit.
pub const SNAPSHOT_RATE_LIMIT_BYTES: &str = "changeover_snapshot_rate_limit_bytes";
pub const SNAPSHOT_TABLE_PROGRESS_RATIO: &str = "changeover_snapshot_table_progress_ratio";
pub const SNAPSHOT_TABLES: &str = "changeover_snapshot_tables";
pub const SNAPSHOT_TABLES_DONE: &str = "changeover_snapshot_tables_done";
/// Over the last half minute.
pub const SNAPSHOT_BYTES_PER_SECOND: &str = "changeover_snapshot_bytes_per_second";
/// NaN while nobody can tell, 0 when the copy is over.
pub const SNAPSHOT_ETA_SECONDS: &str = "changeover_snapshot_eta_seconds";
pub const SCHEMA_STEPS: &str = "changeover_schema_steps";
pub const SCHEMA_STEPS_DONE: &str = "changeover_schema_steps_done";
pub const SCHEMA_STEPS_RUNNING: &str = "changeover_schema_steps_running";
pub const SCHEMA_STEPS_WAITING: &str = "changeover_schema_steps_waiting";
pub const TABLE_LAG_SECONDS: &str = "changeover_table_lag_seconds";
pub const TABLE_ROWS: &str = "changeover_table_rows";
pub const CHECKSUM_MATCH: &str = "changeover_checksum_match";
pub const VERIFIED_RATIO: &str = "changeover_verified_ratio";
pub const VERIFIED_POSITION: &str = "changeover_verified_position";
pub const QUEUE_BYTES: &str = "changeover_queue_bytes";
pub const QUEUE_CAPACITY_BYTES: &str = "changeover_queue_capacity_bytes";
pub const SPOOL_BYTES: &str = "changeover_spool_bytes";
/// Log that the source need not keep because a durable spool holds it.
pub const SPOOL_RELEASED_BYTES: &str = "changeover_spool_released_bytes";
pub const ERRORS_TOTAL: &str = "changeover_errors_total";
pub const CUTOVER_READY: &str = "changeover_cutover_ready";
pub const CUTOVER_PAUSE_SECONDS: &str = "changeover_cutover_pause_seconds";
/// Values that the stream did not carry (unchanged TOAST) and that Kafka's readers got a placeholder for.
pub const UNAVAILABLE_VALUES_TOTAL: &str = "changeover_unavailable_values_total";
pub const BUILD_INFO: &str = "changeover_build_info";

pub const LABEL_MIGRATION: &str = "migration";
pub const LABEL_TABLE: &str = "table";
pub const LABEL_SINK: &str = "sink";
pub const LABEL_STAGE: &str = "stage";
pub const LABEL_OP: &str = "op";
pub const LABEL_REASON: &str = "reason";
pub const LABEL_WAY: &str = "way";
pub const LABEL_OUTCOME: &str = "outcome";

/// Starts collecting, with the label `migration` on whatever does not carry it. One recorder a process, whoever asks
/// first: it is a process of one migration.
pub fn install_recorder(migration: &MigrationName) -> PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    let install = || {
        let recorder = PrometheusBuilder::new().add_global_label(LABEL_MIGRATION, migration.as_str()).build_recorder();
        let handle = recorder.handle();
        if metrics::set_global_recorder(recorder).is_err() {
            tracing::warn!("another recorder of metrics is in place: /metrics stays empty");
        }
        describe_all();
        handle
    };
    RECORDER.get_or_init(install).clone()
}

/// Tells the recorder what each metric means, for the `# HELP` lines.
fn describe_all() {
    use metrics::{Unit, describe_counter, describe_gauge};

    describe_gauge!(LAG_BYTES, Unit::Bytes, "Bytes of the source's log that are not applied; by sink with label sink");
    describe_gauge!(LAG_SECONDS, Unit::Seconds, "Age of the oldest change not applied; 0 when idle and caught up");
    describe_gauge!(SLOT_RETAINED_BYTES, Unit::Bytes, "Bytes of log that the slot keeps on the source");
    describe_counter!(ROWS_TOTAL, "Row changes applied on the target, by table and operation");
    describe_counter!(GROUPS_TOTAL, "Transactions on the target, by whether part of them went ahead of their turn");
    describe_counter!(DEAD_LETTERS_TOTAL, "Changes that the target refused, set aside in changeover.dead_letter");
    describe_counter!(
        FOREIGN_WRITES_TOTAL,
        "Times that somebody else was seen to have written to a table of the target"
    );
    describe_counter!(TRANSACTIONS_TOTAL, "Source transactions that are durable in the sink");
    describe_counter!(AHEAD_TOTAL, "Source transactions that were applied ahead of their commits, by outcome");
    describe_counter!(SNAPSHOT_ROWS_TOTAL, "Rows copied before streaming");
    describe_counter!(SNAPSHOT_BYTES_TOTAL, Unit::Bytes, "Bytes copied before streaming, as they travelled");
    describe_gauge!(
        SNAPSHOT_PROGRESS_RATIO,
        "Share of the initial copy that is done, 0 to 1; 1 when every row is there"
    );
    describe_gauge!(SNAPSHOT_HELD, "1 while the copy stands still for the reason: load on the source, or a pause");
    describe_counter!(SNAPSHOT_HELD_SECONDS_TOTAL, "How long load on the source has held the copy, in whole seconds");
    describe_gauge!(SNAPSHOT_RATE_LIMIT_BYTES, "Bytes a second that the copy may read, 0 without a limit");
    describe_gauge!(SNAPSHOT_TABLE_PROGRESS_RATIO, "Share of the table's initial copy that is done, 0 to 1");
    describe_gauge!(SNAPSHOT_TABLES, "Tables that are copied or to be copied");
    describe_gauge!(SNAPSHOT_TABLES_DONE, "Tables of which every row is there");
    describe_gauge!(SNAPSHOT_BYTES_PER_SECOND, "Bytes copied a second, over the last half minute");
    describe_gauge!(SNAPSHOT_ETA_SECONDS, Unit::Seconds, "Until the last row is copied; NaN while nobody can tell");
    describe_gauge!(SCHEMA_STEPS, "Steps of the schema after the rows: indexes, keys, statistics, later constraints");
    describe_gauge!(SCHEMA_STEPS_DONE, "Those of them that are done");
    describe_gauge!(SCHEMA_STEPS_RUNNING, "Those of them that run now");
    describe_gauge!(SCHEMA_STEPS_WAITING, "Those of them that wait for somebody else's lock");
    describe_gauge!(TABLE_LAG_SECONDS, Unit::Seconds, "Age of the table's oldest change not applied");
    describe_gauge!(TABLE_ROWS, "Rows of the table on the target, by our own count");
    describe_gauge!(CHECKSUM_MATCH, "1 when the table's last comparison found both sides equal, 0 when not");
    describe_gauge!(VERIFIED_RATIO, "Share of the rows that the current or last verification has compared, 0 to 1");
    describe_gauge!(VERIFIED_POSITION, "Log position of the last verdict, in bytes");
    describe_gauge!(QUEUE_BYTES, Unit::Bytes, "Bytes held in memory between two stages");
    describe_gauge!(QUEUE_CAPACITY_BYTES, Unit::Bytes, "Bytes that may be held there");
    describe_gauge!(SPOOL_BYTES, Unit::Bytes, "Bytes of the stream held on disk");
    let released = "Bytes of log that the source need not keep because the durable spool holds them for a sink";
    describe_gauge!(SPOOL_RELEASED_BYTES, Unit::Bytes, released);
    describe_counter!(ERRORS_TOTAL, "Errors handled, by stage");
    describe_gauge!(CUTOVER_READY, "1 when streaming, nothing is halted and nothing is paused");
    describe_gauge!(CUTOVER_PAUSE_SECONDS, Unit::Seconds, "How long clients waited in the last cutover");
    describe_gauge!(BUILD_INFO, "Always 1; the label version says what runs");
}
