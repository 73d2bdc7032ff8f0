//! The configuration as typed: every key optional, sizes and times still texts. `document` has made sure of names and
//! kinds, [`check`](super::check) makes sure of the rest.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Raw {
    pub migration: RawMigration,
    pub source: RawSource,
    pub target: RawTarget,
    pub tables: RawTables,
    pub snapshot: RawSnapshot,
    pub kafka: Option<RawKafka>,
    pub transform: BTreeMap<String, BTreeMap<String, String>>,
    pub verify: RawVerify,
    pub limits: RawLimits,
    pub spool: RawSpool,
    pub apply: RawApply,
    pub cutover: RawCutover,
    pub control: RawControl,
    pub log: RawLog,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawMigration {
    pub name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSource {
    pub url: Option<String>,
    pub password_file: Option<String>,
    pub slot: Option<String>,
    pub publication: Option<String>,
    pub slot_timeout: Option<String>,
    pub bulk: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTarget {
    pub url: Option<String>,
    pub password_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawTables {
    pub include: Option<Vec<String>>,
    pub exclude: Option<Vec<String>>,
    pub rows: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSnapshot {
    pub mode: Option<String>,
    pub workers: Option<i64>,
    pub split: Option<String>,
    pub max_snapshot_age: Option<String>,
    pub index_workers: Option<i64>,
    pub index_parallel_workers: Option<i64>,
    pub maintenance_work_mem: Option<String>,
    pub pg_dump: Option<String>,
    pub throttle: RawThrottle,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawThrottle {
    pub max_rate: Option<String>,
    pub max_standby_lag: Option<String>,
    pub max_standby_delay: Option<String>,
    pub max_active_sessions: Option<i64>,
    pub hold_query: Option<String>,
    pub query_timeout: Option<String>,
    pub interval: Option<String>,
    pub max_hold: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawKafka {
    pub bootstrap_servers: Option<String>,
    pub topic_prefix: Option<String>,
    pub format: Option<String>,
    pub partitions: Option<i64>,
    pub replication_factor: Option<i64>,
    pub transaction: Option<String>,
    pub properties: BTreeMap<String, String>,
    pub property_files: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawVerify {
    pub workers: Option<i64>,
    pub keys_listed: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLimits {
    pub memory: Option<String>,
    pub spool: Option<String>,
    pub spool_dir: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawSpool {
    pub release_source_wal: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawApply {
    pub group: Option<String>,
    pub group_delay: Option<String>,
    pub sessions: Option<i64>,
    pub refused_rows: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawCutover {
    pub max_pause: Option<String>,
    pub max_lag: Option<String>,
    pub sequence_margin: Option<i64>,
    pub router: Vec<RawRouter>,
}

/// The keys of every kind of router; which of them belong together is checked afterwards.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawRouter {
    pub kind: Option<String>,
    pub admin_url: Option<String>,
    pub password_file: Option<String>,
    pub databases_file: Option<String>,
    pub database: Option<String>,
    pub green: Option<String>,
    pub command: Option<Vec<String>>,
    pub url: Option<String>,
    pub timeout: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawControl {
    pub listen: Option<String>,
    pub token_file: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawLog {
    pub format: Option<String>,
    pub level: Option<String>,
}
