//! What the configuration and the budget mean for each room.

use std::time::Duration;

use super::prepare::Prepared;
use crate::config::{Config, KafkaFormat};
use crate::model::{Secret, SourceIdentity};
use crate::schema::Table;
use crate::snapshot::{LoadLimits, ThrottleOptions};
use crate::{apply, publish};

/// Source transactions in one Kafka transaction, at most: a reader sees them when it commits.
const KAFKA_TRANSACTIONS_MAX: u64 = 10_000;

/// How the memory budget is divided. What the parts hold beside these (statements, buffers of fixed size) is small.
pub(super) struct Shares {
    pub(super) spool_bytes: usize,
    pub(super) stash_bytes: usize,
    pub(super) link_bytes: usize,
    pub(super) group_bytes: usize,
    /// Below it a transaction is decoded whole.
    pub(super) part_bytes: usize,
    pub(super) dirty_bytes: usize,
    pub(super) kafka_bytes: usize,
}

impl Shares {
    pub(super) fn of(memory_bytes: usize) -> Self {
        Self {
            spool_bytes: memory_bytes / 4,
            stash_bytes: memory_bytes / 8,
            link_bytes: memory_bytes / 32,
            group_bytes: memory_bytes / 16,
            part_bytes: memory_bytes / 128,
            dirty_bytes: memory_bytes / 8,
            kafka_bytes: memory_bytes / 8,
        }
    }

    /// What two sessions hold is budgeted; more of them share it.
    fn group_bytes_with(&self, sessions: usize) -> usize {
        self.group_bytes * 2 / sessions.max(2)
    }
}

/// How the copy spares the source.
pub(super) fn throttle_options(config: &Config) -> ThrottleOptions {
    let throttle = config.snapshot.throttle.clone();
    ThrottleOptions {
        source: config.source.endpoint.clone(),
        limits: LoadLimits {
            standby_lag_bytes: throttle.standby_lag_bytes,
            standby_delay: throttle.standby_delay,
            active_sessions: throttle.active_sessions,
            hold_query: throttle.hold_query,
        },
        interval: throttle.interval,
        query_timeout: throttle.query_timeout,
        hold_max: throttle.hold_max,
        rate_max: throttle.rate_max,
    }
}

/// How the target is applied to.
pub(super) fn apply_options(config: &Config, prepared: &Prepared, shares: &Shares) -> apply::Options {
    apply::Options {
        endpoint: config.target.endpoint.clone(),
        migration: config.migration.clone(),
        lane: apply::Lane::Main,
        epoch: prepared.epoch,
        start: Some(prepared.target_position),
        filter: config.tables.clone(),
        renames: Default::default(),
        gathered: prepared.wanted.gathered_leaves(),
        handovers: Vec::new(),
        group_bytes: config.apply.group_bytes.min(shares.group_bytes_with(config.apply.sessions)),
        sessions: config.apply.sessions,
        group_delay: config.apply.group_delay,
        dead_letters: config.apply.dead_letters,
        held_bytes: shares.link_bytes,
    }
}

/// How Kafka is published to; `None` when it is not. `tables` may be empty where only the position matters.
pub(super) fn kafka_options(config: &Config, identity: &SourceIdentity, tables: &[&Table]) -> Option<publish::Options> {
    let kafka = config.kafka.as_ref()?;
    let shares = Shares::of(config.limits.memory_bytes);
    let key = |table: &&Table| table.primary_key.clone().map(|key| (table.name.clone(), key));
    Some(publish::Options {
        migration: config.migration.clone(),
        identity: identity.clone(),
        database: config.source.endpoint.dbname().to_owned(),
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        topic_prefix: kafka.topic_prefix.clone(),
        format: match kafka.format {
            KafkaFormat::Json => publish::Format::Json,
        },
        tables: tables.iter().map(|table| table.name.clone()).collect(),
        keys: tables.iter().filter_map(key).collect(),
        partition_count: kafka.partitions,
        replication_factor: kafka.replication_factor,
        window: publish::WindowLimits {
            transactions_max: KAFKA_TRANSACTIONS_MAX,
            bytes_max: shares.kafka_bytes / 4,
            age_max: Duration::from_millis(kafka.transaction_ms),
            transaction_bytes_max: shares.kafka_bytes,
        },
        buffer_bytes_max: shares.kafka_bytes,
        logical_messages: false,
        owner_after_fence: "green".to_owned(),
        properties: kafka.properties.iter().map(|(name, value)| (name.clone(), Secret::new(value))).collect(),
    })
}
