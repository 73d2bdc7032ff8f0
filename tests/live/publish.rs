//! The Kafka sink against a real broker: exactly once over every kind of death.
//!
//! The stream here is made up, and the same each time: every change of a row counts the row up by one, so a reader can
//! tell a change that is missing, twice or out of order from the rows alone.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

#[path = "publish_stream.rs"]
mod stream;

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use changeover::link;
use changeover::model::{Batch, Disposition, Lsn, Part, Position, Secret, Settled, SourceIdentity, Transaction};
use changeover::publish::{self, Error, Options, Ports};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::stream::{Cut, assert_exactly_once, murmur2, options, whole_stream};
use crate::support::{Broker, Record, bootstrap, read_committed, topic_prefix};

const PATIENCE: Duration = Duration::from_secs(120);
/// Where a child of the crash test finds the broker and its topics.
const CHILD_BROKER: &str = "CHANGEOVER_TEST_PUBLISH_BROKER";
const CHILD_PREFIX: &str = "CHANGEOVER_TEST_PUBLISH_PREFIX";

/// A publisher on its thread, as the pipeline runs it.
struct Publisher {
    runtime: Runtime,
    batches: Option<link::Sender<Arc<Batch>>>,
    settled: watch::Receiver<Settled>,
    stop: CancellationToken,
    thread: JoinHandle<Result<(), Error>>,
}

impl Publisher {
    fn start(options: &Options) -> Self {
        let (batches, input) = link::channel(64 << 10, 16);
        let (settled, seen) = watch::channel(Settled::default());
        let stop = CancellationToken::new();
        let ports = Ports { input, settled, stop: stop.clone() };
        let options = options.clone();
        let thread = std::thread::spawn(move || {
            let ended = publish::run(options, ports);
            if let Err(error) = &ended {
                eprintln!("the publisher ended: {}", changeover::telemetry::chain(error));
            }
            ended
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Self { runtime, batches: Some(batches), settled: seen, stop, thread }
    }

    /// `Err` when the publisher is gone.
    fn feed(&self, batch: &Arc<Batch>) -> Result<(), link::Closed> {
        let batches = self.batches.as_ref().unwrap();
        batches.send_blocking(self.runtime.handle(), Arc::clone(batch), batch.size_bytes())
    }

    fn feed_all(&self, batches: &[Arc<Batch>]) {
        batches.iter().for_each(|batch| self.feed(batch).unwrap());
    }

    fn wait_for(&mut self, through: Lsn) {
        let settled = &mut self.settled;
        let reached = async { settled.wait_for(|settled| settled.through >= Some(through)).await.map(|_| ()) };
        let reached = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, reached).await });
        reached.unwrap_or_else(|_| panic!("{through} is not settled in time")).unwrap();
    }

    /// Waits until it has claimed the migration.
    fn wait_for_claim(&mut self) {
        let settled = &mut self.settled;
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, settled.changed()).await }).unwrap().unwrap();
    }

    fn end(mut self) -> Result<(), Error> {
        self.batches = None;
        self.thread.join().unwrap()
    }

    /// Waits until it ends by itself: one that is told to end while it waits to try again ends without trying.
    fn own_end(self) -> Result<(), Error> {
        let until = Instant::now() + PATIENCE;
        while !self.thread.is_finished() {
            assert!(Instant::now() < until, "the publisher has not ended in time");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.thread.join().unwrap()
    }

    fn stop(self) -> Result<(), Error> {
        self.stop.cancel();
        self.thread.join().unwrap()
    }
}

/// From the first batch that is not published, as a restarted daemon would be sent it.
fn after(batches: &[Arc<Batch>], position: Option<Position>) -> &[Arc<Batch>] {
    let done = position.map(|position| position.commit_end);
    let first = batches.iter().position(|batch| {
        batch.transactions.iter().any(|transaction| Some(transaction.end) > done) || Some(batch.through) > done
    });
    &batches[first.unwrap_or(batches.len())..]
}

fn end_of(batches: &[Arc<Batch>]) -> Lsn {
    batches.last().unwrap().through
}

#[test]
fn a_stream_is_published_once_in_order_and_resumed_at_its_end() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("stream"));
    let (options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Coarse));
    assert_eq!(publish::resume_point(&options).unwrap(), None);
    let mut publisher = Publisher::start(&options);
    publisher.feed_all(&batches);
    publisher.wait_for(end_of(&batches));
    let settled = publisher.settled.borrow().clone();
    publisher.end().unwrap();

    let read = read_committed(&bootstrap, &prefix);
    assert_exactly_once(&read, &batches);
    assert_eq!(settled.rows_total, batches.iter().map(|batch| batch.change_count() as u64).sum::<u64>());
    assert_eq!(publish::resume_point(&options).unwrap(), Some(Position::after(end_of(&batches))));
    assert_partitions_are_javas(&read);
}

/// `Utils.toPositive(Utils.murmur2(key)) % partitions` of Kafka's DefaultPartitioner.
fn assert_partitions_are_javas(read: &[Record]) {
    let partition_count = 3;
    let mut seen = BTreeMap::new();
    for record in read.iter().filter(|record| record.topic.contains(".public.")) {
        let key = record.key.as_ref().unwrap();
        let expected = (murmur2(key) & 0x7FFF_FFFF) % partition_count;
        assert_eq!(record.partition, i32::try_from(expected).unwrap(), "{}", String::from_utf8_lossy(key));
        seen.insert(record.partition, ());
    }
    assert_eq!(seen.len(), 3, "the keys are spread");
}

#[test]
fn killing_the_publisher_anywhere_neither_loses_nor_repeats_a_change() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("kill"));
    let seed = env::var("SEED").map_or_else(|_| fastrand::u64(..), |seed| seed.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut kills = 0;
    // At first a child dies early, then it gets further.
    while !child_finishes(&bootstrap, &prefix, (kills < 12).then(|| random.usize(0..15))) {
        kills += 1;
    }
    eprintln!("SEED={seed} kills={kills}");
    assert!(kills >= 3, "the children were killed {kills} times, too seldom to show anything");
    assert_exactly_once(&read_committed(&bootstrap, &prefix), &whole_stream(Cut::Coarse));
}

/// Runs a child until it has settled `kill_after` times and kills it, or lets it finish.
fn child_finishes(bootstrap: &str, prefix: &str, kill_after: Option<usize>) -> bool {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["publish::child_of_the_crash_test", "--exact", "--ignored", "--nocapture"])
        .env(CHILD_BROKER, bootstrap)
        .env(CHILD_PREFIX, prefix)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut settled = lines.filter(|line| line.starts_with("settled"));
    let killed = kill_after.is_some_and(|kill_after| settled.nth(kill_after).is_some());
    if killed {
        child.kill().unwrap();
    } else {
        settled.for_each(drop);
    }
    let status = child.wait().unwrap();
    assert!(killed || status.success(), "the child failed by itself: {status}");
    !killed
}

#[test]
#[ignore = "started by killing_the_publisher_anywhere_neither_loses_nor_repeats_a_change"]
fn child_of_the_crash_test() {
    let (Ok(bootstrap), Ok(prefix)) = (env::var(CHILD_BROKER), env::var(CHILD_PREFIX)) else { return };
    let (options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Coarse));
    let rest = after(&batches, publish::resume_point(&options).unwrap());
    let Some(last) = rest.last() else { return };
    let mut publisher = Publisher::start(&options);
    let mut settled = publisher.settled.clone();
    let teller = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        while runtime.block_on(settled.changed()).is_ok() {
            println!("\nsettled {:?}", settled.borrow_and_update().through);
        }
    });
    publisher.feed_all(rest);
    publisher.wait_for(last.through);
    publisher.end().unwrap();
    teller.join().unwrap();
}

#[test]
fn a_broker_that_dies_or_hangs_in_a_transaction_costs_nothing_but_time() {
    survive_outages(None);
}

/// The transaction is over before the broker is back: sent again if it was not committed, and only then.
#[test]
fn a_transaction_that_times_out_is_decided_by_what_kafka_holds() {
    survive_outages(Some(Duration::from_secs(2)));
}

fn survive_outages(transaction_timeout: Option<Duration>) {
    let mut broker = Broker::start();
    let (bootstrap, prefix) = (broker.bootstrap(), topic_prefix("outage"));
    let (mut options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Coarse));
    if let Some(timeout) = transaction_timeout {
        let milliseconds = Secret::new(timeout.as_millis().to_string());
        options.properties.insert("transaction.timeout.ms".into(), milliseconds);
    }
    let quarter = batches.len() / 4;
    let mut publisher = Publisher::start(&options);
    publisher.feed_all(&batches[..quarter]);
    // A transaction is open or being committed whenever something is in the link.
    broker.kill();
    publisher.feed(&batches[quarter]).unwrap();
    broker.start_again();
    publisher.feed_all(&batches[quarter + 1..2 * quarter]);
    broker.freeze();
    publisher.feed(&batches[2 * quarter]).unwrap();
    // Long enough to time out; how long is what this is about.
    std::thread::sleep(transaction_timeout.unwrap_or_default() * 2);
    broker.thaw();
    publisher.feed_all(&batches[2 * quarter + 1..3 * quarter]);
    broker.stop();
    broker.start_again();
    publisher.feed_all(&batches[3 * quarter..]);
    publisher.wait_for(end_of(&batches));
    publisher.end().unwrap();
    assert_exactly_once(&read_committed(&bootstrap, &prefix), &batches);
}

#[test]
fn an_older_daemon_is_fenced_and_ends_without_fencing_back() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("zombie"));
    let (options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Coarse));
    let half = batches.len() / 2;
    let mut older = Publisher::start(&options);
    older.feed_all(&batches[..half]);
    older.wait_for(batches[half / 2].through);

    let mut newer = Publisher::start(&options);
    newer.wait_for_claim();
    // What the older one still has goes nowhere. It may be gone before it has taken all.
    batches[half..].iter().take_while(|batch| older.feed(batch).is_ok()).for_each(drop);
    let error = older.own_end().unwrap_err();
    assert!(matches!(error, Error::Superseded), "{error}");
    assert!(matches!(error.disposition(), Disposition::Halt { .. }));

    newer.feed_all(after(&batches, publish_position(&newer)));
    newer.wait_for(end_of(&batches));
    newer.end().unwrap();
    assert_exactly_once(&read_committed(&bootstrap, &prefix), &batches);
}

/// The publisher's own resume point: asking with `resume_point` would fence it.
fn publish_position(publisher: &Publisher) -> Option<Position> {
    publisher.settled.borrow().through.map(Position::after)
}

#[test]
fn a_divided_transaction_is_resumed_inside_however_the_stream_is_cut_then() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("divided"));
    let (options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Fine));
    // Everything before the last part of the first transaction that comes in parts.
    let last = |one: &Transaction| one.part == Part::Last;
    let upto = batches.iter().position(|batch| batch.transactions.iter().any(last)).unwrap();
    let publisher = Publisher::start(&options);
    publisher.feed_all(&batches[..upto]);
    while position_read(&bootstrap, &prefix)["ordinal"].as_u64().unwrap_or_default() == 0 {
        assert!(!publisher.thread.is_finished(), "the publisher ended by itself");
    }
    publisher.stop().unwrap();
    let position = publish::resume_point(&options).unwrap().unwrap();
    assert!(position.ordinal > 0, "{position:?}");

    let batches = whole_stream(Cut::Coarse);
    let mut publisher = Publisher::start(&options);
    publisher.feed_all(after(&batches, Some(position)));
    publisher.wait_for(end_of(&batches));
    publisher.end().unwrap();
    assert_exactly_once(&read_committed(&bootstrap, &prefix), &batches);
}

/// The newest position record, as an operator would read it.
fn position_read(bootstrap: &str, prefix: &str) -> Value {
    let read = read_committed(bootstrap, &format!("{prefix}.changeover.position"));
    read.last().map_or(Value::Null, |record| serde_json::from_slice(record.value.as_ref().unwrap()).unwrap())
}

#[test]
fn the_fence_reaches_every_partition() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("fence"));
    let (options, fence) = (options(&bootstrap, &prefix), stream::fence());
    let mut publisher = Publisher::start(&options);
    publisher.feed(&fence).unwrap();
    publisher.wait_for(fence.through);
    publisher.end().unwrap();
    let mut reached = BTreeMap::<_, Vec<_>>::new();
    for record in read_committed(&bootstrap, &prefix) {
        let value: Value = serde_json::from_slice(&record.value.unwrap()).unwrap();
        if value["op"] == "fence" {
            assert_eq!((&value["fence"], &value["new_owner"]), (&"shop/1".into(), &"green".into()));
            reached.entry(record.topic).or_default().push(record.partition);
        }
    }
    let topics = ["public.account", "public.entry", "transaction"].map(|topic| format!("{prefix}.{topic}"));
    assert_eq!(reached.keys().collect::<Vec<_>>(), topics.iter().collect::<Vec<_>>());
    reached.values_mut().for_each(|partitions| partitions.sort_unstable());
    assert!(reached.values().all(|partitions| *partitions == [0, 1, 2]), "{reached:?}");
}

#[test]
fn a_position_of_another_source_is_refused_and_one_that_is_forgotten_is_gone() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("other"));
    let (options, batches) = (options(&bootstrap, &prefix), whole_stream(Cut::Coarse));
    let mut publisher = Publisher::start(&options);
    publisher.feed(&batches[0]).unwrap();
    publisher.wait_for(batches[0].through);
    publisher.end().unwrap();

    for identity in [
        SourceIdentity { timeline: 2, ..options.identity.clone() },
        SourceIdentity { system_identifier: "1".into(), ..options.identity.clone() },
    ] {
        let error = publish::resume_point(&Options { identity, ..options.clone() }).unwrap_err();
        assert!(matches!(error, Error::OtherSource { .. }), "{error}");
    }
    assert_eq!(publish::resume_point(&options).unwrap(), Some(Position::after(batches[0].through)));
    publish::forget(&options).unwrap();
    assert_eq!(publish::resume_point(&options).unwrap(), None);
}

#[test]
fn a_position_topic_that_would_forget_is_refused() {
    let (bootstrap, prefix) = (bootstrap(), topic_prefix("retention"));
    let topic = format!("{prefix}.changeover.position");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &bootstrap).create().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("cleanup.policy", "delete");
    for created in runtime.block_on(admin.create_topics(&[new], &AdminOptions::new())).unwrap() {
        created.unwrap();
    }
    let error = publish::resume_point(&options(&bootstrap, &prefix)).unwrap_err();
    assert!(matches!(error, Error::PositionNotCompacted { .. }), "{error}");
}

#[test]
fn a_broker_that_is_not_there_is_waited_for_and_does_not_keep_a_stop_waiting() {
    // Nothing listens on the discard port of a test machine; if something does, it speaks no Kafka.
    let options = options("127.0.0.1:9", "nobody");
    let error = publish::resume_point(&options).unwrap_err();
    assert_eq!(error.disposition(), Disposition::Retry, "{error}");
    let started = tokio::time::Instant::now();
    let publisher = Publisher::start(&options);
    publisher.feed(&whole_stream(Cut::Coarse)[0]).unwrap();
    publisher.stop().unwrap();
    assert!(started.elapsed() < Duration::from_secs(30));
}
