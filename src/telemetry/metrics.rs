//! Every metric name once. Labels: `migration`, `table`, `sink`, `stage`.

pub const LAG_BYTES: &str = "changeover_lag_bytes";
/// 0 when idle and caught up, growing when stuck.
pub const LAG_SECONDS: &str = "changeover_lag_seconds";
pub const SLOT_RETAINED_BYTES: &str = "changeover_slot_retained_bytes";
/// Label `op`: insert, update, delete, truncate.
pub const ROWS_TOTAL: &str = "changeover_rows_total";
pub const TRANSACTIONS_TOTAL: &str = "changeover_transactions_total";
pub const SNAPSHOT_ROWS_TOTAL: &str = "changeover_snapshot_rows_total";
pub const SNAPSHOT_PROGRESS_RATIO: &str = "changeover_snapshot_progress_ratio";
pub const TABLE_LAG_SECONDS: &str = "changeover_table_lag_seconds";
pub const TABLE_ROWS: &str = "changeover_table_rows";
pub const CHECKSUM_MATCH: &str = "changeover_checksum_match";
pub const VERIFIED_RATIO: &str = "changeover_verified_ratio";
pub const VERIFIED_POSITION: &str = "changeover_verified_position";
pub const QUEUE_BYTES: &str = "changeover_queue_bytes";
pub const QUEUE_CAPACITY_BYTES: &str = "changeover_queue_capacity_bytes";
pub const SPOOL_BYTES: &str = "changeover_spool_bytes";
pub const ERRORS_TOTAL: &str = "changeover_errors_total";
pub const CUTOVER_READY: &str = "changeover_cutover_ready";
pub const CUTOVER_PAUSE_SECONDS: &str = "changeover_cutover_pause_seconds";
pub const BUILD_INFO: &str = "changeover_build_info";

pub const LABEL_MIGRATION: &str = "migration";
pub const LABEL_TABLE: &str = "table";
pub const LABEL_SINK: &str = "sink";
pub const LABEL_STAGE: &str = "stage";
pub const LABEL_OP: &str = "op";
