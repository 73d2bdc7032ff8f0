//! The configuration as the daemon relies on it: every value is valid, and an `Option` is a choice somebody made.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use crate::model::{MigrationName, RowFilters, Secret, TableFilter};
use crate::telemetry::LogFormat;
use crate::wire::Endpoint;

/// One migration. Made only by [`load`](super::load); passwords in it print as `***`.
#[derive(Clone, Debug)]
pub struct Config {
    pub migration: MigrationName,
    pub source: Source,
    pub target: Target,
    /// Which of the source's tables belong to the migration. `*.*` unless the file says otherwise; the server's own
    /// schemas never belong to it, whoever reads the catalog leaves them out.
    pub tables: TableFilter,
    /// Which of their rows, for tables that do not belong to it whole.
    pub rows: RowFilters,
    pub snapshot: Snapshot,
    /// `None`: nothing is published.
    pub kafka: Option<Kafka>,
    pub verify: Verify,
    pub limits: Limits,
    pub spool: Spool,
    pub apply: Apply,
    pub cutover: Cutover,
    pub control: Control,
    pub log: Log,
}

/// Blue.
#[derive(Clone, Debug)]
pub struct Source {
    pub endpoint: Endpoint,
    pub slot: Adoptable,
    pub publication: Adoptable,
    /// How long the creation of the slot may wait for transactions that are running.
    pub slot_timeout: Duration,
    /// So much of the log of a backlog is read in bulk at a time, at most; 0: none.
    pub bulk_bytes: u64,
}

/// A slot or a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adoptable {
    pub name: String,
    /// It was there before us: we use it, and neither make it nor remove it.
    pub adopted: bool,
}

/// Green.
#[derive(Clone, Debug)]
pub struct Target {
    pub endpoint: Endpoint,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    pub mode: SnapshotMode,
    /// Tables, or parts of tables, copied at once; each holds one connection on either side.
    pub workers: usize,
    /// A table larger than this is copied in parts of at most this size.
    pub split_bytes: u64,
    /// No snapshot is held on the source for longer while tables are copied.
    pub snapshot_age_max: Duration,
    /// Indexes and constraints built at once on the target, beside the copy.
    pub index_workers: usize,
    /// `max_parallel_maintenance_workers` of each index build; `None` leaves the target's own setting.
    pub index_parallel_workers: Option<u32>,
    /// `maintenance_work_mem` of each index build; `None` leaves the target's own setting.
    pub maintenance_work_mem_bytes: Option<u64>,
    /// The `pg_dump` to use; `None` looks for one that is new enough.
    pub pg_dump: Option<PathBuf>,
    pub throttle: Throttle,
}

/// Bytes a second. Slower than this a copy would not come to an end, and its snapshots would stay open for days.
pub const COPY_RATE_MIN: u64 = 64 << 10;

/// How the copy spares the source. A limit that is `None` is not asked about.
#[derive(Clone, Debug)]
pub struct Throttle {
    /// Bytes a second for all workers together, until `changeover throttle` says otherwise.
    pub rate_max: Option<u64>,
    pub standby_lag_bytes: Option<u64>,
    pub standby_delay: Option<Duration>,
    pub active_sessions: Option<u64>,
    /// The copy stands still while it says true.
    pub hold_query: Option<String>,
    /// Of each question that is asked about load.
    pub query_timeout: Duration,
    /// How often the source is asked, at most.
    pub interval: Duration,
    /// How long a unit may be held in the middle, altogether.
    pub hold_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Schema and data, into an empty target.
    Full,
    /// Data, into the empty tables of a schema that the user prepared.
    Data,
    /// Neither: the target already holds what the source held at the (adopted) slot's position.
    None,
}

#[derive(Clone)]
pub struct Kafka {
    pub bootstrap_servers: String,
    pub topic_prefix: String,
    pub format: KafkaFormat,
    /// Partitions of a topic that we create.
    pub partitions: u32,
    /// Copies of a topic that we create; `None` is one.
    pub replication_factor: Option<u16>,
    /// How long one Kafka transaction gathers changes before it is committed.
    pub transaction_ms: u64,
    /// Passed to librdkafka as they are, after ours. They may hold passwords.
    pub properties: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaFormat {
    /// Debezium's envelope without its schema part.
    Json,
}

#[derive(Clone, Debug)]
pub struct Verify {
    /// Tables compared at once; each holds one connection and one snapshot on either side.
    pub workers: usize,
    /// Differing keys that are listed per table; further ones are only counted.
    pub keys_listed: usize,
}

#[derive(Clone, Debug)]
pub struct Limits {
    /// Shared by everything between the source's socket and the sinks.
    pub memory_bytes: usize,
    pub spool_bytes: u64,
    /// This migration's own directory: the configured one with the migration's name appended.
    pub spool_dir: PathBuf,
}

#[derive(Clone, Copy, Debug)]
pub struct Spool {
    /// Make the spool durable and let the source forget what is in it.
    pub release_source_wal: bool,
}

#[derive(Clone, Debug)]
pub struct Apply {
    /// A group of source transactions is committed on the target when it holds this much.
    pub group_bytes: usize,
    /// ... or when its first transaction has waited this long.
    pub group_delay: Duration,
    /// While behind, so many groups are executed at once, each in a session of its own, and committed in order.
    pub sessions: usize,
    /// A row that the target refuses is set aside in `changeover.dead_letter`; otherwise it stops the target.
    pub dead_letters: bool,
}

#[derive(Clone, Debug)]
pub struct Cutover {
    /// Clients are held no longer than this; then everything is undone.
    pub max_pause: Duration,
    /// Lag above which a cutover does not start.
    pub max_lag_bytes: u64,
    /// Added to every sequence's value on the target.
    pub sequence_margin: u64,
    pub routers: Vec<Router>,
}

/// What sends the clients to one side or the other.
#[derive(Clone, Debug)]
pub enum Router {
    PgBouncer(Box<PgBouncer>),
    Command(CommandRouter),
    Http(HttpRouter),
}

#[derive(Clone, Debug)]
pub struct PgBouncer {
    /// The admin console: database `pgbouncer`.
    pub admin: Endpoint,
    /// The fragment that `pgbouncer.ini` includes and that we rewrite.
    pub databases_file: PathBuf,
    /// The database as PgBouncer's clients name it.
    pub database: String,
    /// What stands after `database =` once the clients belong on green, such as `host=green port=5432 dbname=shop`.
    pub green: String,
}

/// A program of the user's, called with one more argument: `hold`, `flip` or `release`.
#[derive(Clone, Debug)]
pub struct CommandRouter {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub timeout: Duration,
}

/// A service of the user's, called by POST with `{"migration": .., "step": "hold" | "flip" | "release"}`.
#[derive(Clone, Debug)]
pub struct HttpRouter {
    pub url: String,
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
pub struct Control {
    pub listen: SocketAddr,
    /// `None`: only clients on this machine may change anything.
    pub token: Option<Secret>,
}

#[derive(Clone, Copy, Debug)]
pub struct Log {
    pub format: LogFormat,
    pub level: LevelFilter,
}

impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("topic_prefix", &self.topic_prefix)
            .field("format", &self.format)
            .field("partitions", &self.partitions)
            .field("replication_factor", &self.replication_factor)
            .field("transaction_ms", &self.transaction_ms)
            .field("properties", &self.properties.keys())
            .finish()
    }
}
