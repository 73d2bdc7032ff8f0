//! `kill -9` of the daemon at random moments of copy, stream and apply, under load. Afterwards source, target and Kafka are
//! compared row by row and event by event.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use changeover::demo::StopMode;
use changeover::telemetry::Point;

use super::support::{Daemon, Db, Pair, TestConfig, bootstrap, from_environment, read_committed, topic_prefix};

const CLIENTS: u64 = 3;
const KILLS: u32 = 30;
/// Rows before the load begins: enough that the copy, in a debug build, takes longer than the daemon often lives.
const ROWS: u64 = 200_000;

/// `version` counts the changes of a row, so a reader of the stream can tell a lost or repeated one. `id`s are never used
/// twice. `note` has no key, so a repeated insert would show as one row more.
pub(super) const SCHEMA: &str = "
    CREATE TABLE item (id bigint PRIMARY KEY, version bigint NOT NULL, payload text, big text);
    CREATE TABLE note (client int, seq bigint, body text);
    ALTER TABLE note REPLICA IDENTITY FULL;
    CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL);
    INSERT INTO account SELECT n, 1000 FROM generate_series(1, 20) n;";

/// One client: inserts, updates, deletes, transfers, and transactions that are rolled back, until told to stop.
async fn client(url: String, number: u64, seed: u64, stop: Arc<AtomicBool>) {
    let db = Db::connect(&url).await;
    let mut rng = Rng::with_seed(seed);
    let mut next = 1_000_000 * (number + 1);
    let mut seq = 0;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        next += 1;
        // Each client changes rows of its own, so that no two wait for each other for long.
        let mine = rng.u64(0..ROWS / CLIENTS) * CLIENTS + number;
        // In one order, or two transfers that cross each other would deadlock.
        let (first, second) = (rng.u32(1..=10), rng.u32(11..=20));
        let amount = if rng.bool() { 1 } else { -1 };
        let end = if rng.u8(..) < 16 { "ROLLBACK" } else { "COMMIT" };
        db.exec(&format!(
            "BEGIN;
             INSERT INTO item VALUES ({next}, 1, 'new', CASE WHEN {next} % 7 = 0 THEN repeat(md5('{next}'), 300) END);
             UPDATE item SET version = version + 1, payload = 'seen {seq}' WHERE id = {mine};
             UPDATE item SET version = version + 1 WHERE id = {next} - 3;
             DELETE FROM item WHERE id = {next} - 10 AND {next} % 3 = 0;
             INSERT INTO note VALUES ({number}, {seq}, 'said');
             DELETE FROM note WHERE client = {number} AND seq = {seq} - 50;
             UPDATE account SET balance = balance - {amount} WHERE id = {first};
             UPDATE account SET balance = balance + {amount} WHERE id = {second};
             {end}"
        ))
        .await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..8))).await;
    }
}

pub(super) async fn seed_rows(db: &Db, count: u64) {
    db.exec(&format!("INSERT INTO item SELECT n, 1, repeat('x', 60), NULL FROM generate_series(0, {count} - 1) n"))
        .await;
}

pub(super) async fn assert_equal(source: &Db, target: &Db, tables: &[&str]) {
    for table in tables {
        let (left, right) = (source.rows(table).await, target.rows(table).await);
        assert_eq!(left.len(), right.len(), "{table}: row counts differ");
        assert!(left == right, "{table}: rows differ");
    }
}

/// Per key: which versions the stream told, in order.
fn versions(prefix: &str) -> BTreeMap<u64, Vec<Told>> {
    let topic = format!("{prefix}.public.item");
    let mut told: BTreeMap<u64, Vec<Told>> = BTreeMap::new();
    for record in read_committed(&bootstrap(), prefix) {
        if record.topic != topic {
            continue;
        }
        let key: Value = serde_json::from_slice(&record.key.expect("items have a key")).unwrap();
        let id = key["id"].as_u64().unwrap();
        // A tombstone follows its delete.
        let Some(value) = record.value else { continue };
        let value: Value = serde_json::from_slice(&value).unwrap();
        let event = match value["op"].as_str().unwrap() {
            "c" | "u" => Told::Version(value["after"]["version"].as_u64().unwrap()),
            "d" => Told::Deleted,
            other => panic!("unexpected op {other}"),
        };
        told.entry(id).or_default().push(event);
    }
    told
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Version(u64),
    Deleted,
}

/// Every committed change of every row is in the topic once and in order: versions rise by one, a deletion ends them, and
/// the last one is what the source holds.
pub(super) async fn assert_told_exactly_once(source: &Db, prefix: &str) {
    let rows = source.query_text("SELECT id, version FROM item").await;
    let held: BTreeMap<u64, u64> = rows
        .iter()
        .map(|row| row.split_once('|').unwrap())
        .map(|(id, version)| (id.parse().unwrap(), version.parse().unwrap()))
        .collect();
    let told = versions(prefix);
    assert!(told.len() > 100, "the topic tells of {} rows only", told.len());
    for (id, events) in &told {
        for pair in events.windows(2) {
            let follows = match pair {
                [Told::Version(before), Told::Version(after)] => *after == before + 1,
                [Told::Version(_), Told::Deleted] => true,
                _ => false,
            };
            assert!(follows, "row {id}: {events:?}");
        }
        match (events.last().unwrap(), held.get(id)) {
            (Told::Version(version), Some(current)) => assert_eq!(version, current, "row {id}: {events:?}"),
            (Told::Deleted, None) => {}
            (last, current) => panic!("row {id}: the topic ends with {last:?}, the source holds {current:?}"),
        }
    }
    // What was changed since the beginning has been told: rows of the seed still at version 1 need no event.
    for (id, version) in &held {
        let untouched = *id < 4 * ROWS && *version == 1;
        assert!(untouched || told.contains_key(id), "row {id} at version {version} was never told");
    }
}

fn seed() -> u64 {
    let seed = from_environment("CHANGEOVER_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("CHANGEOVER_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_at_random_moments_lose_nothing_and_repeat_nothing() {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    let pair = Pair::of(15, 15);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    seed_rows(&source, ROWS).await;
    let prefix = topic_prefix("crash");
    let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}", bootstrap());
    let config = TestConfig::new("crash", &pair).with(&kafka);

    let mut daemon = Daemon::start(&config);
    // What was written before the slot is in the copy and not in the stream.
    slot_begins(&target).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(pair.source.url().to_owned(), number, seed ^ number, Arc::clone(&stop)));
    }
    let mut phases: BTreeMap<String, u32> = BTreeMap::new();
    for kill in 0..KILLS {
        // Short lives at first, which hit the copy; longer ones reach the stream; the longest let the producer come back,
        // which takes as long as the broker needs to end the transaction of the one that was killed.
        let life_ms = [100..900, 300..2500, 3000..6000][(kill * 3 / KILLS) as usize].clone();
        thread::sleep(Duration::from_millis(rng.u64(life_ms)));
        *phases.entry(phase(&target).await).or_default() += 1;
        assert!(daemon.is_running(), "the daemon ended by itself:\n{}", daemon.log());
        daemon.kill();
        daemon.start_again();
    }
    println!("killed in {phases:?}");
    daemon.wait_for_phase("streaming");
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    drain(&source, &mut daemon).await;
    assert_equal(&source, &target, &["item", "note", "account"]).await;
    assert_told_exactly_once(&source, &prefix).await;
    assert_eq!(target.scalar("SELECT sum(balance) FROM account").await, "20000");
}

pub(super) async fn slot_begins(target: &Db) {
    let ready = "SELECT count(*) FROM pg_class WHERE relname = 'migration'";
    let begun = "SELECT count(*) FROM changeover.migration WHERE consistent_point IS NOT NULL";
    for sql in [ready, begun] {
        target.until_not(sql, "0").await;
    }
}

async fn phase(target: &Db) -> String {
    let there = target.scalar("SELECT to_regclass('changeover.migration') IS NOT NULL").await;
    if there == "f" {
        return "nothing yet".to_owned();
    }
    target.query_text("SELECT phase FROM changeover.migration").await.pop().unwrap_or_default()
}

/// Both sinks hold everything that is committed now.
async fn drain(source: &Db, daemon: &mut Daemon) {
    let end = lsn(&source.scalar("SELECT pg_current_wal_flush_lsn()").await);
    daemon.wait_for("both sinks drained", |status| is_drained(status, end, 2));
}

/// Whether the daemon's so many sinks hold everything up to `end`.
pub(super) fn is_drained(status: &Value, end: u64, sinks: usize) -> bool {
    let received = status["source"]["received"].as_str().map_or(0, lsn);
    let all = status["sinks"].as_array().map_or(&[][..], Vec::as_slice);
    received >= end && all.len() == sinks && all.iter().all(|sink| sink["lag_seconds"] == 0.0)
}

pub(super) fn lsn(text: &str) -> u64 {
    text.parse::<changeover::model::Lsn>().unwrap().get()
}

/// The code that the server answers with became another one in 17.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_session_is_cut_before_a_worker_adopts_it_is_taken_anew() {
    for version in [15, 18] {
        let pair = Pair::of(version, version);
        let (source, target) = (pair.source.connect().await, pair.target.connect().await);
        for side in [&source, &target] {
            side.exec(SCHEMA).await;
        }
        target.exec("TRUNCATE account").await;
        seed_rows(&source, 100).await;
        let mut config = TestConfig::new("handed", &pair);
        config.snapshot = "mode = \"data\"".to_owned();
        let mut daemon = Daemon::prepare(&config);
        daemon.hold_at(Point::SnapshotHanded);
        daemon.start_again();
        daemon.wait_until_held_at(Point::SnapshotHanded);
        let its_session = "FROM pg_stat_activity WHERE application_name LIKE 'changeover%snapshot'";
        let cut = format!("SELECT count(pg_terminate_backend(pid)) {its_session}");
        assert_eq!(source.scalar(&cut).await, "1");
        source.until(&format!("SELECT count(*) {its_session}"), "0").await;
        daemon.let_go();
        daemon.wait_for_phase("streaming");
        assert!(daemon.log().contains("keep the snapshot of the source"), "{}", daemon.log());
        assert_equal(&source, &target, &["item", "note", "account"]).await;
    }
}

const BLOWS: u32 = 50;

/// What interrupts a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    KillDaemon,
    CutSource,
    CrashTarget,
}

/// Beside [`SCHEMA`]: rows that wander between pages and keys, and a table that is emptied and refilled.
const RESTLESS: &str = "
    CREATE TABLE wander (id bigint PRIMARY KEY, code text UNIQUE, pad text);
    CREATE TABLE churn (id bigint PRIMARY KEY, generation bigint, pad text);";

const RESTLESS_ROWS: &str = "
    INSERT INTO wander SELECT n, 'c' || n, repeat('x', 200) FROM generate_series(1, 20000) n;
    INSERT INTO churn SELECT n, 0, repeat('x', 700) FROM generate_series(1, 3000) n;";

/// Makes each row of the copy take its time, so that the blows hit it.
const SLOW: &str = "
    CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.id % 100 = 0 THEN PERFORM pg_catalog.pg_sleep(0.001); END IF; RETURN NEW; END $$;
    CREATE TRIGGER slow BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION slow();
    ALTER TABLE item ENABLE ALWAYS TRIGGER slow;
    CREATE TRIGGER slow BEFORE INSERT ON wander FOR EACH ROW EXECUTE FUNCTION slow();
    ALTER TABLE wander ENABLE ALWAYS TRIGGER slow";

const FAST_AGAIN: &str = "DROP TRIGGER slow ON item; DROP TRIGGER slow ON wander";

/// Moves rows to other pages and under other keys, and takes keys that were freed.
async fn wanderer(url: String, seed: u64, stop: Arc<AtomicBool>) {
    let db = Db::connect(&url).await;
    let mut rng = Rng::with_seed(seed);
    while !stop.load(Ordering::Relaxed) {
        let (row, width) = (rng.u32(1..20_000), rng.u32(1..900));
        db.exec(&format!(
            "BEGIN;
             UPDATE wander SET pad = repeat('{}', {width}) WHERE id IN ({row}, {row} + 7, {row} + 100000);
             UPDATE wander SET id = id + 100000 WHERE id = {row} + 1
                 AND NOT EXISTS (SELECT FROM wander WHERE id = {row} + 100001);
             DELETE FROM wander WHERE id = {row} + 2;
             INSERT INTO wander VALUES ({row} + 3, 'again' || {row}, NULL) ON CONFLICT DO NOTHING;
             DELETE FROM wander WHERE id = {row} + 4;
             UPDATE wander SET id = {row} + 4 WHERE id = {row} + 5;
             COMMIT",
            rng.lowercase(),
        ))
        .await;
        tokio::time::sleep(Duration::from_millis(rng.u64(0..10))).await;
    }
}

/// TRUNCATE and refill whenever nobody holds the table's lock: between two lives of the daemon.
async fn churner(url: String, stop: Arc<AtomicBool>) -> u64 {
    let db = Db::connect(&url).await;
    let mut generation = 0;
    while !stop.load(Ordering::Relaxed) {
        let next = generation + 1;
        let refill = format!(
            "BEGIN; SET LOCAL lock_timeout = '20ms'; TRUNCATE churn;
             INSERT INTO churn SELECT n, {next}, repeat('{}', 700) FROM generate_series(1, 3000 + {next}) n; COMMIT",
            next % 10
        );
        match db.batch_execute(&refill).await {
            Ok(()) => generation = next,
            Err(_) => db.exec("ROLLBACK").await,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    generation
}

/// Parts of `item`, which nobody truncates, and when they were finished.
async fn finished_parts(target: &Db) -> Vec<String> {
    target.query_text("SELECT part, finished_at FROM changeover.unit WHERE table_name = 'item' AND part > 0").await
}

/// Waits until so many more parts are recorded, so that blows come at the pace of the copy on any machine; not for long,
/// because a life may be too short for any.
async fn parts_more(target: &Db, wanted: usize) {
    let count = async || -> usize { target.scalar("SELECT count(*) FROM changeover.unit").await.parse().unwrap() };
    let (before, began) = (count().await, Instant::now());
    while count().await < before + wanted && began.elapsed() < Duration::from_secs(3) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Daemon, source connections and target are killed while the tables are copied in parts, with snapshots that may live for
/// a second. `make campaign` does it again and again.
#[tokio::test(flavor = "multi_thread")]
async fn fifty_blows_while_copying_cost_no_finished_part_and_no_row() {
    let seed = seed();
    let mut rng = Rng::with_seed(seed);
    // One reads block ranges, the other gives them out of one pass.
    let mut pair = Pair::of(if seed.is_multiple_of(2) { 15 } else { 13 }, 15);
    let source = pair.source.connect().await;
    let mut target = pair.target.connect().await;
    for side in [&source, &target] {
        side.exec(SCHEMA).await;
        side.exec(RESTLESS).await;
    }
    target.exec("TRUNCATE account").await;
    target.exec(SLOW).await;
    seed_rows(&source, 4 * ROWS).await;
    source.exec(RESTLESS_ROWS).await;
    let prefix = topic_prefix("blows");
    let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}", bootstrap());
    let mut config = TestConfig::new("blows", &pair).with(&kafka);
    config.snapshot = "mode = \"data\"\nworkers = 2\nsplit = \"1MiB\"\nmax_snapshot_age = \"1s\"".to_owned();

    let mut daemon = Daemon::start(&config);
    slot_begins(&target).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(client(pair.source.url().to_owned(), number, seed ^ number, Arc::clone(&stop)));
    }
    clients.spawn(wanderer(pair.source.url().to_owned(), seed ^ 77, Arc::clone(&stop)));
    let mut churning = JoinSet::new();
    churning.spawn(churner(pair.source.url().to_owned(), Arc::clone(&stop)));
    let mut landed: BTreeMap<Blow, u32> = BTreeMap::new();
    let mut finished: Vec<String> = Vec::new();
    let began = Instant::now();
    for _ in 0..BLOWS {
        parts_more(&target, rng.usize(0..4)).await;
        thread::sleep(Duration::from_millis(rng.u64(0..200)));
        let now = finished_parts(&target).await;
        let lost: Vec<&String> = finished.iter().filter(|part| !now.contains(part)).collect();
        assert!(lost.is_empty(), "finished parts were copied again: {lost:?}");
        finished = now;
        let blow = [Blow::KillDaemon, Blow::KillDaemon, Blow::CutSource, Blow::CrashTarget][rng.usize(..4)];
        if phase(&target).await == "copying" {
            *landed.entry(blow).or_default() += 1;
        }
        match blow {
            Blow::KillDaemon => {
                daemon.kill();
                thread::sleep(Duration::from_millis(rng.u64(0..300)));
                daemon.start_again();
            }
            Blow::CutSource => {
                source
                    .exec(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE application_name LIKE 'changeover%' AND pid <> pg_backend_pid()",
                    )
                    .await;
            }
            Blow::CrashTarget => {
                pair.target.cluster().restart(StopMode::Immediate).unwrap();
                target = pair.target.connect().await;
                // Parts are committed without waiting for the disk: the newest may be gone, with their records.
                finished = finished_parts(&target).await;
            }
        }
        // A blow that hits the start is told as what it is, and left to whoever starts daemons again.
        if !daemon.is_running() {
            daemon.kill();
            daemon.start_again();
        }
    }
    let done = finished_parts(&target).await.len();
    println!("hit while copying: {landed:?}; {done} parts of item finished by then");
    assert!(done > 10, "only {done} parts were finished in all that time");
    assert!(landed.values().sum::<u32>() >= BLOWS / 2, "most blows came too late: {landed:?}");
    println!("the blows took {:?}", began.elapsed());
    target.exec(FAST_AGAIN).await;
    // Snapshots that live for a second make it many passes over a table, which a machine with other work takes its time for.
    let patience = Instant::now() + Duration::from_secs(180);
    while phase(&target).await != "streaming" && Instant::now() < patience {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.wait_for_phase("streaming");
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap();
    }
    let generations = churning.join_next().await.unwrap().unwrap();
    println!("the table was emptied and refilled {generations} times");
    assert!(generations > 0);
    drain(&source, &mut daemon).await;
    assert_equal(&source, &target, &["item", "note", "account", "wander", "churn"]).await;
    assert_told_exactly_once(&source, &prefix).await;
    assert!(daemon.log().contains("going on inside the table"), "no copy was gone on with");
    assert!(daemon.log().contains("settled"), "no table was settled");
}
