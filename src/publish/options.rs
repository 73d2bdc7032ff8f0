//! What the room is told: where to publish, what, and within which bounds.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::Receiver;
use crate::model::{Batch, MigrationName, Secret, Settled, SourceIdentity, TableName};

use super::Error;

/// Everything about one migration's Kafka sink.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the producer (`changeover_<migration>`) and keys the position.
    pub migration: MigrationName,
    /// The history positions belong to. A stored position of another one is refused.
    pub identity: SourceIdentity,
    /// The source database's name, for `source.db`.
    pub database: String,
    pub bootstrap_servers: String,
    /// First part of every topic's name, and Debezium's logical name (`source.name`).
    pub topic_prefix: String,
    pub format: Format,
    /// Every table of the migration, by its name on the source. Tables that come later get their topic when their first
    /// change does.
    pub tables: Vec<TableName>,
    /// Primary keys from the catalog, in key order. Needed where the stream does not tell: under replica identity FULL
    /// every column is flagged. A table without an entry and without another identity has null keys.
    pub keys: BTreeMap<TableName, Vec<String>>,
    /// Of topics that we create.
    pub partition_count: u32,
    /// Of topics that we create. `None`: as the brokers are configured (`default.replication.factor`).
    pub replication_factor: Option<u16>,
    pub window: WindowLimits,
    /// Bytes of records waiting for the broker (`queue.buffering.max.kbytes`).
    pub buffer_bytes_max: usize,
    /// Publish other programs' transactional logical messages to `<prefix>.message`.
    pub logical_messages: bool,
    /// Who owns the writes after the fence of this stream, as the fence event names it: `green`, or `blue` for a reverse
    /// stream.
    pub owner_after_fence: String,
    /// Further librdkafka properties. Values may be passwords, so none is ever printed.
    pub properties: BTreeMap<String, Secret>,
}

/// When a Kafka transaction is closed. Whatever comes first. Its batches are kept until it is committed, so the publisher
/// holds up to `transaction_bytes_max` and one batch, beside the records that wait for the broker.
#[derive(Clone, Copy, Debug)]
pub struct WindowLimits {
    pub transactions_max: u64,
    pub bytes_max: usize,
    pub age_max: Duration,
    /// A source transaction that arrives in parts is kept in one Kafka transaction up to this size; what is larger is
    /// divided between batches. Every event of a transaction that arrived in parts says `partial`.
    pub transaction_bytes_max: usize,
}

/// How keys and values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Debezium's JSON envelope without schema.
    Json,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0:?} is no format of this build: use \"json\" (json-schema and avro are not built yet)")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// What connects the room with the others.
#[derive(Debug)]
pub struct Ports {
    pub input: Receiver<Arc<Batch>>,
    pub settled: watch::Sender<Settled>,
    pub stop: CancellationToken,
}

/// Properties that exactly-once, order or the memory bound rest on, with where they are decided instead.
const OURS: &[(&str, &str)] = &[
    ("bootstrap.servers", "kafka.bootstrap_servers"),
    ("metadata.broker.list", "kafka.bootstrap_servers"),
    ("transactional.id", "the migration's name"),
    ("enable.idempotence", "always on"),
    ("enable.gapless.guarantee", "implied by the transactions"),
    ("acks", "always all"),
    ("request.required.acks", "always all"),
    ("retries", "without limit inside the transaction"),
    ("message.send.max.retries", "without limit inside the transaction"),
    ("max.in.flight", "bounded by idempotence"),
    ("max.in.flight.requests.per.connection", "bounded by idempotence"),
    ("message.timeout.ms", "bounded by the transaction"),
    ("delivery.timeout.ms", "bounded by the transaction"),
    ("partitioner", "always murmur2_random, as Java clients"),
    ("queue.buffering.max.kbytes", "the memory limit"),
    ("queue.buffering.max.messages", "the memory limit"),
    ("isolation.level", "always read_committed"),
    ("group.id", "positions are ours, not a group's"),
    ("enable.auto.commit", "positions are ours, not a group's"),
    ("auto.offset.reset", "positions are ours, not a group's"),
    ("enable.partition.eof", "needed to find the end of the positions"),
];

impl Options {
    /// Refuses what cannot work, without asking the broker: properties that are not the user's to set, security this
    /// build cannot speak, topic names that are illegal or that two tables would share.
    pub fn check(&self) -> Result<(), Error> {
        super::Topics::new(self)?;
        self.properties.iter().try_for_each(|(property, value)| check_property(property, value))
    }

    pub(super) fn transactional_id(&self) -> String {
        self.migration.object_name()
    }
}

fn check_property(property: &str, value: &Secret) -> Result<(), Error> {
    if let Some((_, instead)) = OURS.iter().find(|(name, _)| *name == property) {
        return Err(Error::PropertyIsOurs { property: property.to_owned(), instead });
    }
    let encrypted = property == "security.protocol" && !value.reveal().eq_ignore_ascii_case("plaintext");
    let secured = encrypted || property.starts_with("ssl.") || property.starts_with("sasl.");
    if secured && !cfg!(feature = "kafka-tls") {
        return Err(Error::NotBuiltWithTls { property: property.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exactly_once_rests_on_is_refused_by_name() {
        for property in ["transactional.id", "acks", "enable.idempotence", "partitioner", "queue.buffering.max.kbytes"]
        {
            let error = check_property(property, &Secret::new("hunter2")).unwrap_err().to_string();
            assert!(error.contains(property) && !error.contains("hunter2"), "{error}");
        }
        assert!(check_property("linger.ms", &Secret::new("20")).is_ok());
        assert!(check_property("security.protocol", &Secret::new("PLAINTEXT")).is_ok());
    }

    #[cfg(not(feature = "kafka-tls"))]
    #[test]
    fn security_that_is_not_built_in_is_refused_with_the_feature_that_would_build_it() {
        for (property, value) in
            [("security.protocol", "SASL_SSL"), ("sasl.password", "hunter2"), ("ssl.ca.location", "x")]
        {
            let error = check_property(property, &Secret::new(value)).unwrap_err().to_string();
            assert!(error.contains("kafka-tls") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_format_that_is_not_built_says_so() {
        assert_eq!("json".parse(), Ok(Format::Json));
        assert!("avro".parse::<Format>().unwrap_err().to_string().contains("avro"));
    }
}
