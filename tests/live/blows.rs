//! Daemon, servers and connections are struck while the daemon stands still at a named point, under load. Afterwards source,
//! target and Kafka are compared row by row and event by event, and with a ledger of what was committed.
//!
//! `CHANGEOVER_SEEDS` of them, from `CHANGEOVER_SEED` on: `make campaign-crash`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;

use changeover::demo::StopMode;
use changeover::telemetry::Point;

use super::crash::{SCHEMA, assert_equal, assert_told_exactly_once, is_drained, lsn, seed_rows, slot_begins};
use super::support::{Daemon, Db, Pair, TestConfig, bootstrap, from_environment, topic_prefix};

const SEEDS: u64 = 20;
const BLOWS: u32 = 4;
const CLIENTS: u64 = 2;
const ROWS: u64 = 2000;
/// How long a point is waited for before the blow falls wherever the daemon is.
const POINT_PATIENCE: Duration = Duration::from_secs(2);
const END_PATIENCE: Duration = Duration::from_secs(90);
/// Source and target: the oldest (protocol 1 sends no transaction before its commit), the usual, and the newest.
const VERSIONS: [(u32, u32); 3] = [(15, 15), (18, 18), (13, 16)];

/// Beside the tables of `crash`: what each client committed, with no key, so that a repeated row would show.
const LEDGER: &str = "
    CREATE TABLE ledger (client int, seq bigint, body text);
    ALTER TABLE ledger REPLICA IDENTITY FULL";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillDaemon,
    EndDaemon,
    CrashTarget,
    CrashSource,
    RestartSource,
    CutConnections,
}

const BLOW_KINDS: [Blow; 7] = [
    Blow::KillDaemon,
    Blow::KillDaemon,
    Blow::EndDaemon,
    Blow::CrashTarget,
    Blow::CrashSource,
    Blow::RestartSource,
    Blow::CutConnections,
];

/// What a seed decides before anything begins.
#[derive(Debug)]
struct Plan {
    has_kafka: bool,
    is_durable: bool,
    group: &'static str,
    /// Before some of the blows the daemon is away until there is enough log to be read in bulk, in spans of this.
    bulk: &'static str,
    /// Before some of the blows it is away until there is a backlog with a large transaction, which comes before its commit.
    is_ahead: bool,
}

/// Reached only where a large transaction comes before its commit.
const AHEAD: [Point; 3] = [Point::AheadDue, Point::AheadCommitted, Point::AheadTold];

impl Plan {
    fn new(rng: &mut Rng, source: u32) -> Self {
        let group = ["64KiB", "256KiB", "8MiB"][rng.usize(..3)];
        let (has_kafka, is_durable) = (rng.u8(..3) == 0, rng.bool());
        let bulk = ["0", "1MiB", "256MiB"][rng.usize(..3)];
        // Read in bulk, transactions as small as these come whole.
        Self { has_kafka, is_durable, group, bulk, is_ahead: bulk == "0" && !has_kafka && source >= 14 }
    }

    /// The points that can be reached under it.
    fn points(&self) -> Vec<Point> {
        let reachable = |point: &Point| match point {
            // Passed before the blows begin: see `snapshot`.
            Point::SnapshotHanded => false,
            Point::AheadDue | Point::AheadCommitted | Point::AheadTold => self.is_ahead,
            Point::SpanDue | Point::SpanRead => self.bulk != "0",
            Point::ReportDue | Point::Reported | Point::GroupDue | Point::GroupCommitted | Point::GroupTold => true,
            // Only full groups go ahead of their turn.
            Point::GroupAhead => self.group == "64KiB",
            Point::SegmentCreated
            | Point::SegmentWritten
            | Point::SegmentSynced
            | Point::BeginningNoted
            | Point::SegmentsRemoved => self.is_durable,
            Point::RecordsSealed | Point::RecordsFlushed | Point::RecordsCommitted | Point::RecordsTold => {
                self.has_kafka
            }
        };
        Point::ALL.into_iter().filter(reachable).collect()
    }

    fn config(&self, prefix: &str) -> String {
        let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}\n", bootstrap());
        format!(
            "[apply]\ngroup = {:?}\n[spool]\nrelease_source_wal = {}\n{}",
            self.group,
            self.is_durable,
            if self.has_kafka { kafka } else { String::new() }
        )
    }
}

/// One client: inserts, updates, deletes, transfers, large transactions, rolled back ones and rolled back parts, until
/// told to stop. A broken connection is made anew. Returns what it was told is committed.
async fn client(url: String, number: u64, seed: u64, stop: Arc<AtomicBool>) -> Vec<u64> {
    let mut rng = Rng::with_seed(seed);
    let mut next = 1_000_000 * (number + 1);
    let (mut seq, mut told) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let Ok((session, connection)) = tokio_postgres::connect(&url, NoTls).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut driving = JoinSet::new();
        driving.spawn(async move { drop(connection.await) });
        while !stop.load(Ordering::Relaxed) {
            seq += 1;
            let count = if rng.u8(..) < 16 { 1500 } else { 1 };
            next += count;
            let sql = transaction(&mut rng, number, seq, next - count + 1, count);
            if session.batch_execute(&sql).await.is_err() {
                break;
            }
            if sql.ends_with("COMMIT") {
                told.push(seq);
            }
            sleep(Duration::from_millis(rng.u64(0..8))).await;
        }
    }
    told
}

/// `count` new rows from `first` on, and changes of others. Each client changes rows of its own.
fn transaction(rng: &mut Rng, client: u64, seq: u64, first: u64, count: u64) -> String {
    let mine = rng.u64(0..ROWS / CLIENTS) * CLIENTS + client;
    // In one order, or two transfers that cross each other would deadlock.
    let (from, to) = (rng.u32(1..=10), rng.u32(11..=20));
    let amount = if rng.bool() { 1 } else { -1 };
    let undone = if rng.u8(..) < 64 {
        format!("SAVEPOINT s; UPDATE item SET version = version + 1 WHERE id = {mine}; ROLLBACK TO s;")
    } else {
        String::new()
    };
    let end = if rng.u8(..) < 16 { "ROLLBACK" } else { "COMMIT" };
    format!(
        "BEGIN;
         INSERT INTO item SELECT n, 1, 'new', CASE WHEN n % 40 = 0 THEN repeat(md5(n::text), 300) END
             FROM generate_series({first}, {first} + {count} - 1) n;
         UPDATE item SET version = version + 1, payload = 'seen {seq}' WHERE id = {mine};
         {undone}
         UPDATE item SET version = version + 1 WHERE id = {first} - 3;
         DELETE FROM item WHERE id = {first} - 10 AND {first} % 3 = 0;
         INSERT INTO note VALUES ({client}, {seq}, 'said');
         DELETE FROM note WHERE client = {client} AND seq = {seq} - 50;
         INSERT INTO ledger VALUES ({client}, {seq}, 'done');
         UPDATE account SET balance = balance - {amount} WHERE id = {from};
         UPDATE account SET balance = balance + {amount} WHERE id = {to};
         {end}"
    )
}

/// Much of what clients change too, and new rows that it changes again. What is rolled back and said again tells its sinks
/// to forget what they have been sent ahead.
fn large(number: u32, undoes: bool) -> String {
    let first = 100_000_000 + number * 10_000;
    let again = format!("UPDATE item SET version = version + 1 WHERE id BETWEEN {first} + 100 AND {first} + 4500;");
    let undone = if undoes { format!("SAVEPOINT s; {again} ROLLBACK TO s;") } else { String::new() };
    format!(
        "BEGIN;
         UPDATE item SET version = version + 1, payload = 'large' WHERE id < {ROWS} AND id % 4 < 2;
         INSERT INTO item SELECT n, 1, 'new', NULL FROM generate_series({first}, {first} + 8000) n;
         {undone}
         {again}
         DELETE FROM item WHERE id BETWEEN {first} + 5000 AND {first} + 5200;
         COMMIT"
    )
}

fn versions(seed: u64) -> (u32, u32) {
    VERSIONS[(seed % VERSIONS.len() as u64) as usize]
}

/// What fell where; `None`: at no named point.
type Fallen = BTreeMap<(Option<Point>, Blow), u32>;

#[tokio::test(flavor = "multi_thread")]
async fn blows_at_named_points_lose_nothing_and_repeat_nothing() {
    let first = from_environment("CHANGEOVER_SEED");
    let count = from_environment("CHANGEOVER_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let first = first.unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let mut pairs: HashMap<u32, Pair> = HashMap::new();
    let mut fallen = Fallen::new();
    for seed in first..first + count {
        let (source, target) = versions(seed);
        let pair = pairs.entry(source).or_insert_with(|| Pair::of(source, target));
        let began = Instant::now();
        println!("CHANGEOVER_SEED={seed}, {source} to {target}");
        strike(pair, seed, &mut fallen).await;
        println!("equal after {:?}", began.elapsed());
    }
    for ((point, blow), times) in &fallen {
        println!("{times:4} {blow:?} at {}", point.map_or("no named point", Point::name));
    }
    let hits: u32 = fallen.iter().filter(|((point, _), _)| point.is_some()).map(|(_, times)| times).sum();
    let all: u32 = fallen.values().sum();
    println!("{hits} of {all} blows fell at a named point");
    assert!(u64::from(all) == count * u64::from(BLOWS) && hits >= all / 2, "too few points were reached");
}

/// One migration of a database of its own, struck [`BLOWS`] times.
async fn strike(pair: &mut Pair, seed: u64, fallen: &mut Fallen) {
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::new(&mut rng, versions(seed).0);
    println!("{plan:?}");
    let name = format!("blows_{seed:x}");
    let create = format!("CREATE DATABASE {name}");
    pair.source.connect().await.exec(&create).await;
    pair.target.connect().await.exec(&create).await;
    // The least: transactions of some hundred rows are sent before their commit. Or no client's, whose tables without keys
    // cannot be changed ahead of it.
    let held = if plan.is_ahead { "1MB" } else { "64kB" };
    let eager = format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '{held}'");
    pair.source.connect().await.exec(&eager).await;
    let (blue, green) = (pair.source.cluster().url(&name), pair.target.cluster().url(&name));
    {
        let source = Db::connect(&blue).await;
        source.exec(SCHEMA).await;
        source.exec(LEDGER).await;
        seed_rows(&source, ROWS).await;
    }
    let prefix = topic_prefix("blows");
    let mut config = TestConfig::new(&name, pair).with(&plan.config(&prefix));
    (config.source, config.target, config.spool) = (blue.clone(), green.clone(), "64MiB".to_owned());
    config.bulk = plan.bulk.to_owned();
    let mut daemon = Daemon::start(&config);
    // Servers go and come; what is asserted on is the data.
    daemon.expect_error(" ERROR ");
    slot_begins(&Db::connect(&green).await).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let (url, stop) = (blue.clone(), Arc::clone(&stop));
        clients.spawn(async move { (number, client(url, number, seed ^ number, stop).await) });
    }
    let points = plan.points();
    for number in 0..BLOWS {
        // Of the others every plan reaches some.
        let point = if plan.is_ahead && rng.bool() {
            AHEAD[rng.usize(..AHEAD.len())]
        } else {
            points[rng.usize(..points.len())]
        };
        sleep(Duration::from_millis(rng.u64(0..600))).await;
        let needs_backlog = AHEAD.contains(&point) || matches!(point, Point::SpanDue | Point::SpanRead);
        if (plan.bulk != "0" || plan.is_ahead) && (needs_backlog || rng.u8(..4) == 0) {
            daemon.kill();
            if plan.is_ahead {
                Db::connect(&blue).await.exec(&large(number, rng.u8(..8) == 0)).await;
            }
            Db::connect(&blue).await.fill_log("UPDATE account SET balance = balance + 0 WHERE id = 20").await;
            daemon.hold_at(point);
            daemon.start_again();
        } else {
            daemon.hold_at(point);
        }
        let (armed, mut reached) = (Instant::now(), false);
        // Besides, the daemon has to start and to read what was left.
        let patience = if needs_backlog { POINT_PATIENCE * 3 } else { POINT_PATIENCE };
        while !reached && armed.elapsed() < patience {
            sleep(Duration::from_millis(2)).await;
            reached = daemon.is_held_at(point);
        }
        let blow = BLOW_KINDS[rng.usize(..BLOW_KINDS.len())];
        *fallen.entry((reached.then_some(point), blow)).or_default() += 1;
        fall(blow, &mut daemon, pair, &name).await;
    }
    sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let told = clients.join_all().await;
    settle(&mut daemon, &blue, plan.has_kafka).await;
    compare(&blue, &green, &told).await;
    if plan.has_kafka {
        assert_told_exactly_once(&Db::connect(&blue).await, &prefix).await;
    }
    for error in daemon.log().lines().filter(|line| line.contains(" ERROR ")) {
        println!("{error}");
    }
    clear(daemon, pair, &name).await;
}

async fn fall(blow: Blow, daemon: &mut Daemon, pair: &mut Pair, name: &str) {
    match blow {
        Blow::KillDaemon => {
            daemon.kill();
            daemon.let_go();
            daemon.start_again();
        }
        Blow::EndDaemon => {
            daemon.signal("TERM");
            sleep(Duration::from_millis(20)).await;
            daemon.let_go();
            daemon.terminate();
            daemon.start_again();
        }
        Blow::CrashTarget => pair.target.cluster().restart(StopMode::Immediate).unwrap(),
        Blow::CrashSource => pair.source.cluster().restart(StopMode::Immediate).unwrap(),
        Blow::RestartSource => {
            // Before it ends, the server waits for its walsenders to be answered.
            daemon.let_go();
            pair.source.cluster().restart(StopMode::Fast).unwrap();
        }
        Blow::CutConnections => {
            let cut = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                 WHERE datname = '{name}' AND application_name LIKE 'changeover%'"
            );
            for side in [&pair.source, &pair.target] {
                side.connect().await.exec(&cut).await;
            }
        }
    }
    daemon.let_go();
}

/// Until the sinks hold everything that is committed now. A daemon that ended is started again, as an operator's service
/// manager does.
async fn settle(daemon: &mut Daemon, blue: &str, has_kafka: bool) {
    let end = lsn(&Db::connect(blue).await.scalar("SELECT pg_current_wal_flush_lsn()").await);
    let sinks = 1 + usize::from(has_kafka);
    let began = Instant::now();
    loop {
        if !daemon.is_running() {
            daemon.kill();
            daemon.start_again();
        }
        if daemon.status().is_some_and(|status| is_drained(&status, end, sinks)) {
            return;
        }
        assert!(began.elapsed() < END_PATIENCE, "not settled at {:?}\n{}", daemon.status(), daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn compare(blue: &str, green: &str, told: &[(u64, Vec<u64>)]) {
    let (source, target) = (Db::connect(blue).await, Db::connect(green).await);
    assert_equal(&source, &target, &["item", "note", "account", "ledger"]).await;
    assert_eq!(target.scalar("SELECT sum(balance) FROM account").await, "20000");
    for (client, told) in told {
        let held = target.query_text(&format!("SELECT seq FROM ledger WHERE client = {client} ORDER BY seq")).await;
        let held: Vec<u64> = held.iter().map(|seq| seq.parse().unwrap()).collect();
        assert!(held.windows(2).all(|pair| pair[0] < pair[1]), "client {client}: a commit came twice");
        assert!(!told.is_empty(), "client {client} committed nothing");
        let lost = told.iter().find(|seq| held.binary_search(seq).is_err());
        assert_eq!(lost, None, "client {client} was told of a commit that the target does not hold");
    }
}

/// Ends the migration and removes its databases, or slots and segments would gather.
async fn clear(mut daemon: Daemon, pair: &mut Pair, name: &str) {
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    daemon.terminate();
    let aborted = daemon.command(&["abort"]);
    assert!(aborted.status.success(), "{}", String::from_utf8_lossy(&aborted.stderr));
    for side in [&pair.source, &pair.target] {
        side.connect().await.exec(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }
}
