//! A Kafka broker for tests: one node, KRaft, from the jars that `docker/setup.sh --for test` copied.

use std::collections::HashSet;
use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use changeover::demo::{Workspace, free_port, tools_dir};
use rdkafka::Message;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::time::Instant;

const START_PATIENCE: Duration = Duration::from_secs(90);
const STOP_PATIENCE: Duration = Duration::from_secs(30);
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// A cluster id is a UUID in URL-safe base64. It need not be unique: nothing joins two of these brokers.
const CLUSTER_ID: &str = "Y2hhbmdlb3Zlci10ZXN0cw";

/// The bootstrap servers of the broker that the tests of a process share; started by the first who asks (that takes seconds).
/// Use a [`topic_prefix`] of your own. A test that kills its broker starts one with [`Broker::start`].
pub fn bootstrap() -> String {
    // A static is never dropped: the broker's watchdog ends it when this process goes.
    static SHARED: OnceLock<Broker> = OnceLock::new();
    match env::var("CHANGEOVER_TEST_KAFKA") {
        Ok(bootstrap) => bootstrap,
        Err(_) => SHARED.get_or_init(Broker::start).bootstrap(),
    }
}

/// A prefix for topics and transactional ids that no other test has.
pub fn topic_prefix(test: &str) -> String {
    format!("{test}-{:08x}", fastrand::u32(..))
}

/// A running broker. Gone when dropped.
pub struct Broker {
    workspace: Workspace,
    port: u16,
    properties: PathBuf,
}

impl Broker {
    pub fn start() -> Self {
        let workspace = Workspace::create_as_self("kafka").unwrap();
        let (port, controller_port) = (free_port().unwrap(), free_port().unwrap());
        let text = properties(port, controller_port, &workspace.dir().join("logs"));
        let properties = workspace.write("server.properties", text).unwrap();
        let mut format = java(&workspace);
        format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&properties);
        workspace.run(format).unwrap_or_else(|error| panic!("{error}"));
        let mut broker = Self { workspace, port, properties };
        broker.start_again();
        broker
    }

    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Waits until it answers. Also after [`kill`](Self::kill) and [`stop`](Self::stop), on the same port.
    pub fn start_again(&mut self) {
        let open = fs::OpenOptions::new().create(true).append(true).open(self.workspace.dir().join("broker.log"));
        let mut command = java(&self.workspace);
        command.arg("kafka.Kafka").arg(&self.properties).stderr(open.unwrap());
        self.workspace.start(&mut command).unwrap();
        let deadline = Instant::now() + START_PATIENCE;
        while !answers(&self.bootstrap()) {
            let running = self.workspace.pid().is_some();
            assert!(running && Instant::now() < deadline, "the broker did not start:\n{}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.workspace.kill();
    }

    /// A controlled shutdown.
    pub fn stop(&mut self) {
        self.workspace.stop("TERM", STOP_PATIENCE);
    }

    /// Stops it from answering without ending its connections, until [`thaw`](Self::thaw).
    pub fn freeze(&mut self) {
        self.workspace.signal("STOP");
    }

    pub fn thaw(&mut self) {
        self.workspace.signal("CONT");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.workspace.dir().join("broker.log")).unwrap_or_default()
    }
}

/// What a consumer got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub key: Option<Vec<u8>>,
    /// `None` for a tombstone.
    pub value: Option<Vec<u8>>,
}

/// Everything that a `read_committed` consumer finds in the topics whose name starts with `prefix`, in order within a
/// partition, up to the end as it is now.
pub fn read_committed(bootstrap: &str, prefix: &str) -> Vec<Record> {
    let mut records = Vec::new();
    each_committed(bootstrap, prefix, |record| records.push(record));
    records
}

/// The same one by one, for topics larger than memory.
pub fn each_committed(bootstrap: &str, prefix: &str, mut take: impl FnMut(Record)) {
    let consumer: BaseConsumer = client(bootstrap)
        .set("group.id", format!("{prefix}-reader"))
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        // The end is told by a fetch that found nothing, which the broker would otherwise hold for half a second.
        .set("fetch.wait.max.ms", "20")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut open = assign_all(&consumer, prefix);
    let deadline = Instant::now() + READ_PATIENCE;
    while !open.is_empty() {
        assert!(Instant::now() < deadline, "no end in sight of {open:?}");
        match consumer.poll(Duration::from_millis(200)) {
            None => {}
            Some(Ok(message)) => take(Record {
                topic: message.topic().to_owned(),
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().map(<[u8]>::to_vec),
                value: message.payload().map(<[u8]>::to_vec),
            }),
            // It does not say of which topic: with several topics a partition ends when all of that number have.
            Some(Err(KafkaError::PartitionEOF(_))) => {
                open.retain(|(topic, partition)| !at_end(&consumer, topic, *partition))
            }
            Some(Err(error)) => panic!("read {prefix}*: {error}"),
        }
    }
}

fn assign_all(consumer: &BaseConsumer, prefix: &str) -> HashSet<(String, i32)> {
    let metadata = consumer.fetch_metadata(None, READ_PATIENCE).unwrap();
    let topics = metadata.topics().iter().filter(|topic| topic.name().starts_with(prefix));
    let partitions = topics.flat_map(|topic| {
        topic.partitions().iter().map(|partition| (topic.name().to_owned(), partition.id())).collect::<Vec<_>>()
    });
    let all: HashSet<(String, i32)> = partitions.collect();
    let mut list = TopicPartitionList::new();
    for (topic, partition) in &all {
        list.add_partition_offset(topic, *partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    all
}

/// For a `read_committed` consumer the high watermark is the last stable offset, and its position passes the markers of
/// transactions.
fn at_end(consumer: &BaseConsumer, topic: &str, partition: i32) -> bool {
    let (_, end) = consumer.fetch_watermarks(topic, partition, READ_PATIENCE).unwrap();
    let positions = consumer.position().unwrap();
    let position = positions.find_partition(topic, partition).map(|found| found.offset());
    end == 0 || matches!(position, Some(Offset::Offset(at)) if at >= end)
}

fn answers(bootstrap: &str) -> bool {
    let consumer: Result<BaseConsumer, _> = client(bootstrap).create();
    consumer.is_ok_and(|consumer| {
        consumer.fetch_metadata(None, Duration::from_secs(2)).is_ok_and(|metadata| !metadata.brokers().is_empty())
    })
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    // Connection failures while a broker starts or is killed on purpose are not news.
    config.set("bootstrap.servers", bootstrap).set("log_level", "0").set("reconnect.backoff.max.ms", "500");
    config
}

fn java(workspace: &Workspace) -> Command {
    let libs = tools_dir().join("kafka/libs");
    assert!(libs.is_dir(), "find Kafka in {}: install it with `docker/setup.sh --for test`", libs.display());
    let mut command = workspace.command("java");
    command.args(["-Xmx320m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    command.arg("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn").arg("-cp").arg(libs.join("*"));
    command
}

fn properties(port: u16, controller_port: u16, logs: &std::path::Path) -> String {
    let logs = logs.display();
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller_port}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         controller.listener.names=CONTROLLER\n\
         listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n\
         log.dirs={logs}\n\
         num.partitions=3\n\
         offsets.topic.num.partitions=1\n\
         offsets.topic.replication.factor=1\n\
         transaction.state.log.num.partitions=1\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         share.coordinator.state.topic.num.partitions=1\n\
         share.coordinator.state.topic.replication.factor=1\n\
         share.coordinator.state.topic.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         broker.session.timeout.ms=3000\n\
         broker.heartbeat.interval.ms=500\n\
         log.cleaner.dedupe.buffer.size=8388608\n\
         log.segment.bytes=16777216\n\
         log.index.size.max.bytes=1048576\n"
    )
}
