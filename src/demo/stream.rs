//! Reads the published stream back as a consumer would, `read_committed`, and compares it with what blue committed.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde::Deserialize;
use tokio::time::Instant;

use super::Error;
use super::ledger::Faults;

const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);

type WriteLog = HashMap<(usize, u64), u64>;

/// The part of a Debezium envelope that is looked at.
#[derive(Deserialize)]
struct Envelope {
    after: Option<Row>,
}

#[derive(Deserialize)]
struct Row {
    client: usize,
    n: u64,
}

/// Every row of the write log that `topic` holds, from its beginning to its end as it is now. Blocks.
pub(super) fn read(bootstrap: &str, topic: &str) -> Result<WriteLog, Error> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", format!("{topic}-reader"));
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    config.set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().map_err(Error::Kafka)?;
    let mut partitions_open = assign(&consumer, topic)?;
    let deadline = Instant::now() + PATIENCE;
    let mut log = WriteLog::new();
    while partitions_open > 0 {
        if Instant::now() > deadline {
            return Err(Error::Stream("the end of the topic does not come"));
        }
        match consumer.poll(POLL) {
            None => {}
            Some(Ok(message)) => count(message.payload(), &mut log)?,
            Some(Err(KafkaError::PartitionEOF(_))) => partitions_open -= 1,
            Some(Err(error)) => return Err(Error::Kafka(error)),
        }
    }
    Ok(log)
}

fn assign(consumer: &BaseConsumer, topic: &str) -> Result<usize, Error> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).map_err(Error::Kafka)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.map(|found| found.partitions()).unwrap_or_default();
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition_offset(topic, partition.id(), Offset::Beginning).map_err(Error::Kafka)?;
    }
    consumer.assign(&list).map_err(Error::Kafka)?;
    Ok(partitions.len())
}

/// Tombstones have no payload; the write log has none.
fn count(payload: Option<&[u8]>, log: &mut WriteLog) -> Result<(), Error> {
    let Some(payload) = payload else { return Ok(()) };
    let envelope: Envelope = serde_json::from_slice(payload).map_err(|_| Error::Stream("an event is no envelope"))?;
    if let Some(Row { client, n }) = envelope.after {
        *log.entry((client, n)).or_default() += 1;
    }
    Ok(())
}

/// Each row of blue's write log must be in the stream, and once, from the place on where the stream begins.
///
/// That place is the slot's, so what was committed before the slot was made is in the copy and not in the stream. A client
/// commits one transaction after the other, so the slot cuts its rows in two: nothing may be missing behind the first
/// that is in the stream, nor behind what the client had `begun` when the slot was there.
pub(super) fn compare(blue: &WriteLog, stream: &WriteLog, begun: &HashMap<usize, u64>) -> Faults {
    let mut first = begun.clone();
    for (client, n) in stream.keys() {
        let first = first.entry(*client).or_insert(*n);
        *first = (*first).min(n - 1);
    }
    let is_streamed = |(client, n): &&(usize, u64)| first.get(client).is_none_or(|before| n > before);
    Faults {
        lost: blue.keys().filter(is_streamed).filter(|key| !stream.contains_key(key)).count() as u64,
        duplicated: stream.iter().map(|(key, times)| times - blue.get(key).copied().unwrap_or(0).min(*times)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_held_against_what_blue_committed() {
        let mut stream = WriteLog::new();
        for payload in [
            r#"{"before":null,"after":{"id":1,"client":1,"n":1,"at":"x"},"op":"r"}"#,
            r#"{"after":{"client":1,"n":2},"op":"c"}"#,
            r#"{"after":{"client":1,"n":2},"op":"c"}"#,
            r#"{"before":{"client":1,"n":2},"after":null,"op":"d"}"#,
        ] {
            count(Some(payload.as_bytes()), &mut stream).unwrap();
        }
        assert_eq!(stream, WriteLog::from([((1, 1), 1), ((1, 2), 2)]));
        assert!(count(Some(b"no envelope"), &mut stream).is_err());
    }

    #[test]
    fn nothing_is_missing_behind_the_place_where_the_stream_begins() {
        let log = |ns: &[u64]| ns.iter().map(|n| ((1, *n), 1)).collect::<WriteLog>();
        let blue = log(&[1, 2, 3, 4]);
        for (stream, begun, lost) in [
            (log(&[3, 4]), 2, 0),
            // The slot was there before the client was looked at.
            (log(&[2, 3, 4]), 3, 0),
            (log(&[2, 4]), 3, 1),
            (log(&[4]), 2, 1),
            (log(&[]), 2, 2),
        ] {
            let faults = compare(&blue, &stream, &HashMap::from([(1, begun)]));
            assert_eq!(faults, Faults { lost, duplicated: 0 }, "{stream:?}");
        }
        let twice = WriteLog::from([((1, 4), 2), ((1, 5), 1)]);
        assert_eq!(compare(&blue, &twice, &HashMap::from([(1, 3)])).duplicated, 2);
    }
}
