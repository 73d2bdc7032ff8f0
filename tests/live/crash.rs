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

use super::support::{Daemon, Db, Pair, TestConfig, bootstrap, read_committed, topic_prefix};

const CLIENTS: u64 = 3;
const KILLS: u32 = 30;
/// Rows before the load begins: enough that the copy, in a debug build, takes longer than the daemon often lives.
const ROWS: u64 = 200_000;

/// `version` counts the changes of a row, so a reader of the stream can tell a lost or repeated one. `id`s are never used
/// twice. `note` has no key, so a repeated insert would show as one row more.
const SCHEMA: &str = "
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

async fn seed_rows(db: &Db) {
    db.exec(SCHEMA).await;
    db.exec(&format!("INSERT INTO item SELECT n, 1, repeat('x', 60), NULL FROM generate_series(0, {ROWS} - 1) n"))
        .await;
}

async fn assert_equal(source: &Db, target: &Db) {
    for table in ["item", "note", "account"] {
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
async fn assert_told_exactly_once(source: &Db, prefix: &str) {
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
        let untouched = *id < ROWS && *version == 1;
        assert!(untouched || told.contains_key(id), "row {id} at version {version} was never told");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thirty_kills_at_random_moments_lose_nothing_and_repeat_nothing() {
    let seed =
        std::env::var("CHANGEOVER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("CHANGEOVER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let pair = Pair::of(15, 15);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    seed_rows(&source).await;
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
    assert_equal(&source, &target).await;
    assert_told_exactly_once(&source, &prefix).await;
    assert_eq!(target.scalar("SELECT sum(balance) FROM account").await, "20000");
}

async fn slot_begins(target: &Db) {
    let ready = "SELECT count(*) FROM pg_class WHERE relname = 'migration'";
    let begun = "SELECT count(*) FROM changeover.migration WHERE consistent_point IS NOT NULL";
    for sql in [ready, begun] {
        while target.scalar(sql).await == "0" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
    daemon.wait_for("both sinks drained", |status| {
        let received = status["source"]["received"].as_str().map_or(0, lsn);
        let sinks = status["sinks"].as_array().unwrap();
        received >= end && sinks.len() == 2 && sinks.iter().all(|sink| sink["lag_seconds"] == 0.0)
    });
}

fn lsn(text: &str) -> u64 {
    text.parse::<changeover::model::Lsn>().unwrap().get()
}
