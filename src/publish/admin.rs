//! The topics: made when missing, and the position topic held to what a position needs.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::runtime::Runtime;
use tracing::info;

use super::broker::consumer_config;
use super::{Error, Options};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A broker learns of a new topic's settings a moment after the topic itself, and tells its defaults until then.
const SETTINGS_LAG: Duration = Duration::from_millis(500);
const SETTINGS_LOOKS: u32 = 4;

/// What keeps the position topic short: one live record a migration, the rest compacted within minutes.
const POSITION_SETTINGS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "600000"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
];

/// Makes topics. Its futures need no I/O of ours, only a thread that waits for them.
pub(super) struct Admin<'a> {
    client: AdminClient<DefaultClientContext>,
    options: &'a Options,
    runtime: &'a Runtime,
}

impl<'a> Admin<'a> {
    pub(super) fn new(options: &'a Options, runtime: &'a Runtime) -> Result<Self, Error> {
        let client = consumer_config(options)?.create().map_err(Error::Client)?;
        Ok(Self { client, options, runtime })
    }

    /// Makes what is missing of `topics`; what is there stays as it is.
    pub(super) fn create(&self, topics: &[Arc<str>]) -> Result<(), Error> {
        let new: Vec<NewTopic<'_>> =
            topics.iter().map(|topic| self.new_topic(topic, self.options.partition_count)).collect();
        self.create_new(&new)
    }

    /// Makes the position topic, and refuses one whose records the broker would delete after a while.
    pub(super) fn create_position(&self, topic: &str) -> Result<(), Error> {
        let new = POSITION_SETTINGS.iter().fold(self.new_topic(topic, 1), |new, (name, value)| new.set(name, value));
        self.create_new(&[new])?;
        let mut policy = self.cleanup_policy(topic)?;
        for _ in 0..SETTINGS_LOOKS {
            if policy == "compact" {
                return Ok(());
            }
            self.runtime.block_on(async { tokio::time::sleep(SETTINGS_LAG).await });
            policy = self.cleanup_policy(topic)?;
        }
        Err(Error::PositionNotCompacted { topic: topic.to_owned(), policy })
    }

    fn cleanup_policy(&self, topic: &str) -> Result<String, Error> {
        let wrong = |source| Error::Topic { topic: topic.to_owned(), source };
        let this = ResourceSpecifier::Topic(topic);
        let described = self.client.describe_configs([&this], &admin_options());
        let resources = self.runtime.block_on(described).map_err(wrong)?;
        let resource = resources.into_iter().next().ok_or_else(|| wrong(KafkaError::Canceled))?;
        let resource = resource.map_err(|code| wrong(KafkaError::AdminOp(code)))?;
        Ok(resource.get("cleanup.policy").and_then(|entry| entry.value.clone()).unwrap_or_default())
    }

    fn new_topic<'t>(&self, topic: &'t str, partition_count: u32) -> NewTopic<'t> {
        let partition_count = i32::try_from(partition_count).unwrap_or(i32::MAX);
        // -1: the broker's default (KIP-464, brokers from 2.4 on).
        let replication = TopicReplication::Fixed(self.options.replication_factor.map_or(-1, i32::from));
        NewTopic::new(topic, partition_count, replication)
    }

    fn create_new(&self, topics: &[NewTopic<'_>]) -> Result<(), Error> {
        if topics.is_empty() {
            return Ok(());
        }
        let all = || topics.iter().map(|topic| topic.name).collect::<Vec<_>>().join(", ");
        let created = self.runtime.block_on(self.client.create_topics(topics, &admin_options()));
        for result in created.map_err(|source| Error::CreateTopic { topic: all(), source })? {
            match result {
                Ok(topic) => info!(topic, "topic created"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(Error::CreateTopic { topic, source: KafkaError::AdminOp(code) });
                }
            }
        }
        Ok(())
    }
}

/// Waiting for the leaders too, so that the first record finds one.
fn admin_options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT))
}
