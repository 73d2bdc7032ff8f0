//! The harness's broker.

use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::{Broker, bootstrap, read_committed, topic_prefix};

const PATIENCE: Duration = Duration::from_secs(30);

fn write(bootstrap: &str, topic: &str, value: &str, commit: bool) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).set("transactional.id", topic).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer.begin_transaction().unwrap();
    producer.send(BaseRecord::to(topic).key("k").payload(value)).unwrap();
    producer.flush(PATIENCE).unwrap();
    if commit { producer.commit_transaction(PATIENCE).unwrap() } else { producer.abort_transaction(PATIENCE).unwrap() }
}

fn values(bootstrap: &str, prefix: &str) -> Vec<String> {
    let values = read_committed(bootstrap, prefix).into_iter().filter_map(|record| record.value);
    values.map(|value| String::from_utf8(value).unwrap()).collect()
}

#[test]
fn a_reader_sees_what_was_committed_and_nothing_that_was_aborted() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("harness"));
    for (value, commit) in [("a", true), ("b", false), ("c", true)] {
        write(&bootstrap, &format!("{prefix}.t"), value, commit);
    }
    assert_eq!(values(&bootstrap, &prefix), ["a", "c"]);
}

#[test]
fn a_killed_broker_comes_back_on_its_port_with_its_records() {
    let mut broker = Broker::start();
    write(&broker.bootstrap(), "t", "kept", true);
    broker.kill();
    broker.start_again();
    assert_eq!(values(&broker.bootstrap(), "t"), ["kept"]);
}
