//! `[spool] release_source_wal`: blue writes gigabytes while nobody applies them, and keeps next to none of its log. The
//! daemon is killed in between; afterwards both sides are equal row by row, and Kafka was told of each change once.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use changeover::demo::StopMode;
use serde_json::Value;
use tokio::time::Instant;

use super::support::{Daemon, Db, Pair, TestConfig, bootstrap, each_committed, topic_prefix};

/// Random digits: nothing compresses them. Rows come, and most go with the next transaction, so that the tables stay small
/// while the log grows.
pub(super) const SCHEMA: &str = "
    CREATE TABLE wide (id bigint PRIMARY KEY, body text NOT NULL);
    ALTER TABLE wide ALTER COLUMN body SET STORAGE PLAIN;";
pub(super) const BODIES: u64 = 500;
pub(super) const BODY_BYTES: u64 = 7000;
/// Rows of one transaction.
pub(super) const ROWS: u64 = 100;
/// Of so many rows one stays.
const STAYS: u64 = 50;
/// What one transaction writes to the log at least.
pub(super) const TRANSACTION_BYTES: u64 = ROWS * BODY_BYTES;

const RETAINED_BYTES_MAX: u64 = 256 << 20;
/// The writer waits while this much is retained: what blue writes faster than a debug build decodes is no finding.
const RETAINED_BYTES_PACE: u64 = 128 << 20;
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// Of the daemon: the budget, and what a debug build is itself.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;

/// What the rows are made of, outside the migration.
pub(super) async fn prepare_bodies(db: &Db) {
    let digits = format!("substr(string_agg(md5(random()::text), ''), 1, {BODY_BYTES})");
    db.exec(&format!(
        "CREATE SCHEMA apart;
         CREATE TABLE apart.bodies AS SELECT n, (SELECT {digits} FROM generate_series(1, 220) m WHERE n >= 0) AS body
         FROM generate_series(0, {BODIES} - 1) n;
         ANALYZE apart.bodies"
    ))
    .await;
}

async fn retained(db: &Db) -> u64 {
    let sql = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots";
    db.scalar(sql).await.parse().unwrap()
}

pub(super) async fn write_one(db: &Db, number: u64) {
    let (first, last) = (number * ROWS, number * ROWS + ROWS - 1);
    db.exec(&format!(
        "BEGIN;
         INSERT INTO wide SELECT id, body FROM generate_series({first}, {last}) id JOIN apart.bodies ON n = id % {BODIES};
         DELETE FROM wide WHERE id BETWEEN {first} - {ROWS} AND {first} - 1 AND id % {STAYS} <> 0;
         COMMIT"
    ))
    .await;
}

/// Blue's clients: one transaction after the other, with checkpoints between. Returns the most that blue had to keep for
/// the slot.
async fn write(db: &Db, transactions: std::ops::Range<u64>, daemon: &mut Daemon) -> u64 {
    let mut most = 0;
    for number in transactions {
        write_one(db, number).await;
        if number % 16 != 0 {
            continue;
        }
        if number % 64 == 0 {
            db.exec("CHECKPOINT").await;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let kept = retained(db).await;
            most = most.max(kept);
            if kept < RETAINED_BYTES_PACE {
                break;
            }
            assert!(Instant::now() < deadline, "blue keeps {kept} bytes\n{}", daemon.log());
            db.exec("CHECKPOINT").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    most
}

pub(super) fn resident_bytes(daemon: &mut Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

pub(super) async fn drain(source: &Db, daemon: &mut Daemon) {
    let end: changeover::model::Lsn = source.scalar("SELECT pg_current_wal_flush_lsn()").await.parse().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = daemon.wait_for("an answer", |status| status["source"]["received"].is_string());
        let received: changeover::model::Lsn = status["source"]["received"].as_str().unwrap().parse().unwrap();
        if received >= end && status["sinks"].as_array().unwrap().iter().all(|sink| sink["lag_seconds"] == 0.0) {
            return;
        }
        assert!(Instant::now() < deadline, "not drained: {status}\n{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

pub(super) async fn assert_equal(source: &Db, target: &Db, transactions: u64) {
    let (left, right) = (source.rows("wide").await, target.rows("wide").await);
    assert_eq!((left.len(), right.len() as u64), (right.len(), transactions * 2 + ROWS - 2));
    assert!(left == right, "the rows differ");
}

/// With the spool durable and large enough.
fn config(name: &str, pair: &Pair, snapshot: &str) -> TestConfig {
    let mut config = TestConfig::new(name, pair).with("[spool]\nrelease_source_wal = true");
    config.spool = "6GiB".to_owned();
    config.memory = "128MiB".to_owned();
    config.snapshot = snapshot.to_owned();
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_held_while_two_gigabytes_are_written_keeps_nothing_on_blue() {
    let count = (2 << 30) / TRANSACTION_BYTES;
    let pair = Pair::of(16, 16);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    target.exec(SCHEMA).await;
    // Lets everybody look and nobody write: the copy waits, and holds no lock or transaction id on blue.
    let holder = pair.target.connect().await;
    holder.exec("BEGIN; LOCK TABLE wide IN SHARE MODE").await;

    let mut daemon = Daemon::start(&config("held", &pair, "mode = \"data\"\nworkers = 1"));
    daemon.wait_for_phase("copying");
    target.until_not("SELECT count(*) FROM pg_locks WHERE NOT granted", "0").await;
    let began = Instant::now();
    let start = source.scalar("SELECT pg_current_wal_lsn()").await;
    let first = write(&source, 0..count / 2, &mut daemon).await;
    daemon.kill();
    daemon.start_again();
    daemon.wait_for("the stream", |status| status["source"]["connected"] == true);
    let second = write(&source, count / 2..count, &mut daemon).await;
    let sql = format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{start}')::bigint");
    let written: u64 = source.scalar(&sql).await.parse().unwrap();
    println!("blue wrote {written} bytes in {:?} and kept {first} and {second} at most", began.elapsed());
    assert!(written >= 2 << 30, "only {written} bytes were written");
    assert!(first.max(second) < RETAINED_BYTES_MAX, "blue kept {first}, {second}");

    let status = daemon.status().unwrap();
    assert_eq!((&status["phase"], &status["spool"]["releases_source_wal"]), (&"copying".into(), &true.into()));
    assert!(status["spool"]["released_bytes"].as_u64().unwrap() > 1 << 30, "{}", status["spool"]);
    assert!(status["spool"]["disk_bytes"].as_u64().unwrap() > 1 << 30, "{}", status["spool"]);
    let resident = resident_bytes(&mut daemon);
    println!("the daemon's memory: {resident} bytes at most");
    assert!(resident < RESIDENT_BYTES_MAX, "{resident}");

    holder.exec("ROLLBACK").await;
    daemon.wait_for_phase("streaming");
    drain(&source, &mut daemon).await;
    assert_equal(&source, &target, count).await;
    let spool = daemon.wait_for("an empty spool", |status| status["spool"]["disk_bytes"].as_u64() < Some(64 << 20));
    assert_eq!(spool["spool"]["released_bytes"], 0, "{}", spool["spool"]);
    daemon.terminate();
    let removed = daemon.command(&["abort"]);
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert!(!daemon.spool_dir().join("held").exists());
}

/// Per row what the stream told, in order: `c` for its creation, `d` for its end.
fn told(bootstrap: &str, prefix: &str) -> BTreeMap<u64, String> {
    let topic = format!("{prefix}.public.wide");
    let mut told: BTreeMap<u64, String> = BTreeMap::new();
    each_committed(bootstrap, prefix, |record| {
        // A tombstone follows its delete.
        let Some(value) = record.value.filter(|_| record.topic == topic) else { return };
        let value: Value = serde_json::from_slice(&value).unwrap();
        let key: Value = serde_json::from_slice(&record.key.unwrap()).unwrap();
        told.entry(key["id"].as_u64().unwrap()).or_default().push_str(value["op"].as_str().unwrap());
    });
    told
}

/// Kafka was told of each row's creation once, and once of its end where it has one.
pub(super) fn assert_told_once(bootstrap: &str, prefix: &str, transactions: u64) {
    let told = told(bootstrap, prefix);
    assert_eq!(told.len() as u64, transactions * ROWS);
    for (id, events) in told {
        let stays = id % STAYS == 0 || id >= (transactions - 1) * ROWS;
        assert_eq!(events, if stays { "c" } else { "cd" }, "row {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_while_a_gigabyte_is_written_keeps_nothing_on_blue() {
    let count = (1 << 30) / TRANSACTION_BYTES;
    let mut pair = Pair::of(16, 16);
    let source = pair.source.connect().await;
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    let prefix = topic_prefix("outage");
    let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}", bootstrap());
    let mut daemon = Daemon::start(&config("outage", &pair, "mode = \"full\"\nworkers = 1").with(&kafka));
    daemon.wait_for_phase("streaming");
    let start = source.scalar("SELECT pg_current_wal_lsn()").await;
    let mut kept = Vec::new();
    for half in [0..count / 2, count / 2..count] {
        pair.target.cluster().stop(StopMode::Immediate);
        kept.push(write(&source, half, &mut daemon).await);
        // Who leads is told by the target, so a daemon starts only where that is up.
        daemon.kill();
        pair.target.cluster().start_again().unwrap();
        daemon.start_again();
        daemon.wait_for("the stream", |status| status["source"]["connected"] == true);
    }
    let sql = format!("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{start}')::bigint");
    let written: u64 = source.scalar(&sql).await.parse().unwrap();
    println!("blue wrote {written} bytes and kept {kept:?} at most");
    assert!(written >= 1 << 30, "only {written} bytes were written");
    assert!(kept.iter().all(|kept| *kept < RETAINED_BYTES_MAX), "blue kept {kept:?}");
    drain(&source, &mut daemon).await;
    assert_equal(&source, &pair.target.connect().await, count).await;
    assert_told_once(&bootstrap(), &prefix, count);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_was_lost_is_refused_with_what_to_do() {
    let pair = Pair::of(16, 16);
    let source = pair.source.connect().await;
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    let target = pair.target.connect().await;
    target.exec(SCHEMA).await;
    let holder = pair.target.connect().await;
    holder.exec("BEGIN; LOCK TABLE wide IN SHARE MODE").await;
    let mut daemon = Daemon::start(&config("lost", &pair, "mode = \"data\"\nworkers = 1"));
    daemon.wait_for_phase("copying");
    write(&source, 0..10, &mut daemon).await;
    let end = source.scalar("SELECT pg_current_wal_flush_lsn()").await;
    source.until(&format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots"), "t").await;
    // Stopped properly: what nobody has applied stays.
    daemon.terminate();
    let (spool, aside) = (daemon.spool_dir(), daemon.spool_dir().with_extension("aside"));
    fs::rename(&spool, &aside).unwrap();
    let refused = daemon.command(&["run"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("the source has forgotten everything through") && said.contains("abort"), "{said}");
    // Put back, it goes on as if nothing had been.
    fs::remove_dir_all(&spool).unwrap();
    fs::rename(&aside, &spool).unwrap();
    daemon.start_again();
    holder.exec("ROLLBACK").await;
    daemon.wait_for_phase("streaming");
    drain(&source, &mut daemon).await;
    assert_equal(&source, &target, 10).await;
}
