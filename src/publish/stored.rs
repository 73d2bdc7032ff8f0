//! Reads the position back: the newest committed record of this migration in the position topic.

use std::time::Duration;

use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

use super::broker::consumer_config;
use super::position::Stored;
use super::{Error, Options};

/// How long the end of the topic may be out of reach: another migration's open transaction in the same topic holds back
/// readers until the broker times it out.
const READ_MAX: Duration = Duration::from_secs(70);
const CALL: Duration = Duration::from_secs(10);
/// Records at the end that are looked at first. The newest of ours is nearly always among them; if it is not, the next
/// look begins so many times further back.
const TAIL: i64 = 1024;
const FURTHER: i64 = 16;

/// How far to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Everything committed before the call, waiting for open transactions to end.
    End,
    /// Up to the first open transaction, which may be our own.
    Stable,
}

/// The position of this migration in `topic`, or `None` when there is none or it was removed. Refuses one that belongs
/// to another source.
pub(super) fn read(
    options: &Options,
    topic: &str,
    until: Until,
    give_up: &dyn Fn() -> bool,
) -> Result<Option<Stored>, Error> {
    let mut config = consumer_config(options)?;
    config.set("group.id", options.transactional_id()).set("enable.auto.commit", "false");
    let reader = Reader { options, topic, until, give_up, deadline: Instant::now() + READ_MAX };
    let (low, high) = reader.bounds(&config)?;

    // The end is told by a fetch that found nothing, which the broker would otherwise hold for half a second.
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true").set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().map_err(Error::Client)?;
    let mut tail = TAIL;
    loop {
        let from = high.saturating_sub(tail).max(low);
        let found = reader.newest(&consumer, from, high)?;
        match found {
            Some(value) => return value.map(|stored| stored.of(&options.identity)).transpose(),
            None if from == low => return Ok(None),
            None => tail = tail.saturating_mul(FURTHER),
        }
    }
}

struct Reader<'a> {
    options: &'a Options,
    topic: &'a str,
    until: Until,
    give_up: &'a dyn Fn() -> bool,
    deadline: Instant,
}

impl Reader<'_> {
    /// First offset and end. Read without regard to transactions, so that the end cannot be one that an open
    /// transaction hides ours behind.
    fn bounds(&self, config: &ClientConfig) -> Result<(i64, i64), Error> {
        let mut config = config.clone();
        let consumer: BaseConsumer =
            config.set("isolation.level", "read_uncommitted").create().map_err(Error::Client)?;
        consumer.fetch_watermarks(self.topic, 0, CALL).map_err(|source| self.error(source))
    }

    /// The newest record of ours from `from` on, once everything before `high` was seen. The inner `None` is a
    /// tombstone.
    fn newest(&self, consumer: &BaseConsumer, from: i64, high: i64) -> Result<Option<Option<Stored>>, Error> {
        if from >= high {
            return Ok(None);
        }
        let mut partitions = TopicPartitionList::new();
        partitions.add_partition_offset(self.topic, 0, Offset::Offset(from)).map_err(|source| self.error(source))?;
        consumer.assign(&partitions).map_err(|source| self.error(source))?;
        let mut newest = None;
        loop {
            if Instant::now() >= self.deadline || (self.give_up)() {
                return Err(Error::PositionBehindOpenTransaction { topic: self.topic.to_owned() });
            }
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(record)) if record.key() == Some(self.options.migration.as_str().as_bytes()) => {
                    let value = record.payload().map(|value| Stored::from_json(self.topic, value)).transpose()?;
                    newest = Some(value);
                }
                // Another migration's, or nothing yet.
                Some(Ok(_)) | None => {}
                // The last stable offset was reached: what is behind it belongs to open transactions.
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    if self.until == Until::Stable || self.stable_end(consumer)? >= high {
                        return Ok(newest);
                    }
                }
                Some(Err(source)) if is_passing(&source) => {}
                Some(Err(source)) => return Err(self.error(source)),
            }
        }
    }

    fn stable_end(&self, consumer: &BaseConsumer) -> Result<i64, Error> {
        let (_, end) = consumer.fetch_watermarks(self.topic, 0, CALL).map_err(|source| self.error(source))?;
        Ok(end)
    }

    fn error(&self, source: KafkaError) -> Error {
        Error::ReadPosition { topic: self.topic.to_owned(), source }
    }
}

/// What the consumer gets over by itself.
fn is_passing(error: &KafkaError) -> bool {
    use rdkafka::error::RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, OperationTimedOut};
    error
        .rdkafka_error_code()
        .is_some_and(|code| [AllBrokersDown, BrokerTransportFailure, OperationTimedOut].contains(&code))
}
