//! A sink that is away for long, and a disk that is full: the other sink goes on, memory keeps its bound, and when there is
//! no room left the stream waits, says so, and goes on by itself.
//!
//! `CHANGEOVER_BACKLOG_MIB` (160) is what blue writes during an outage; `make campaign-outage` takes 5 GiB.

use std::ops::Range;
use std::process::Command;
use std::time::Duration;

use changeover::demo::StopMode;
use tokio::time::Instant;

use super::spool::{
    PATIENCE, ROWS, SCHEMA, TRANSACTION_BYTES, assert_equal, assert_told_once, drain, prepare_bodies, resident_bytes,
    write_one,
};
use super::support::{Broker, Daemon, Db, Pair, TestConfig, from_environment, topic_prefix};

/// How long a sink may take to show what is committed while the other is away.
const LAG_MAX: Duration = Duration::from_secs(10);
/// The budget is 64 MiB, and a debug build is some itself.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;

fn backlog_mib() -> u64 {
    from_environment("CHANGEOVER_BACKLOG_MIB").unwrap_or(160)
}

async fn write(source: &Db, transactions: Range<u64>) {
    for number in transactions {
        write_one(source, number).await;
    }
}

async fn until_full(daemon: &mut Daemon, source: &Db, mut next: u64, last: u64) -> u64 {
    while daemon.status().is_none_or(|status| status["spool"]["full"] != true) {
        assert!(next < last, "the spool takes more than it may: {:?}", daemon.status());
        write(source, next..next + 4).await;
        next += 4;
    }
    next
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_costs_the_target_nothing_until_the_spool_is_full_and_then_the_stream_waits() {
    let backlog_mib = backlog_mib();
    let pair = Pair::of(16, 16);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    let mut broker = Broker::start();
    let prefix = topic_prefix("outage");
    let kafka = format!("[kafka]\nbootstrap_servers = {:?}\ntopic_prefix = {prefix:?}", broker.bootstrap());
    let mut config = TestConfig::new("outage", &pair).with(&kafka);
    config.spool = format!("{}MiB", backlog_mib + 64);
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");

    broker.kill();
    let steps = backlog_mib * (1 << 20) / TRANSACTION_BYTES / 8;
    let (mut done, mut lags) = (0, Vec::new());
    for _ in 0..steps {
        write(&source, done..done + 8).await;
        done += 8;
        let newest = (done * ROWS - 1).to_string();
        lags.push(target.until("SELECT max(id) FROM wide", &newest).await);
    }
    lags.sort();
    assert!(lags.last() < Some(&LAG_MAX), "{lags:?}");
    println!(
        "broker away for {backlog_mib} MiB: the target shows what is committed after {:?}, at most {:?}",
        lags[lags.len() / 2],
        lags.last()
    );
    let status = daemon.status().unwrap();
    assert_eq!(status["spool"]["full"], false, "{}", status["spool"]);
    assert!(status["spool"]["disk_bytes"].as_u64().unwrap() > (backlog_mib << 20) / 2, "{}", status["spool"]);

    let done = until_full(&mut daemon, &source, done, done + (512 << 20) / TRANSACTION_BYTES).await;
    assert!(daemon.log().contains("spool full: the stream waits"), "{}", daemon.log());
    let resident = resident_bytes(&mut daemon);
    println!("the daemon's memory: {resident} bytes at most");
    assert!(resident < RESIDENT_BYTES_MAX, "{resident}");

    broker.start_again();
    drain(&source, &mut daemon).await;
    assert!(daemon.log().contains("spool has room again"), "{}", daemon.log());
    assert_equal(&source, &target, done).await;
    assert_told_once(&broker.bootstrap(), &prefix, done);
}

/// The same with the target away: nothing of what the daemon does needs it but its own sink.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_away_until_the_spool_is_full_is_caught_up_with_by_itself() {
    let mut pair = Pair::of(16, 16);
    let source = pair.source.connect().await;
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    let mut config = TestConfig::new("away", &pair);
    config.spool = format!("{}MiB", backlog_mib());
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    pair.target.cluster().stop(StopMode::Immediate);
    let done = until_full(&mut daemon, &source, 0, ((backlog_mib() + 256) << 20) / TRANSACTION_BYTES).await;
    let resident = resident_bytes(&mut daemon);
    println!("the daemon's memory: {resident} bytes at most");
    assert!(resident < RESIDENT_BYTES_MAX, "{resident}");
    pair.target.cluster().start_again().unwrap();
    drain(&source, &mut daemon).await;
    assert_equal(&source, &pair.target.connect().await, done).await;
}

/// Files may not grow beyond this, which the program sees as it sees a full disk: part of a write succeeds. Less than one
/// batch, and enough for the log.
const FILE_BYTES_MAX: u64 = 256 << 10;

async fn full_disk(is_durable: bool) {
    let pair = Pair::of(16, 16);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    prepare_bodies(&source).await;
    let mut config = TestConfig::new("disk", &pair).with(&format!("[spool]\nrelease_source_wal = {is_durable}"));
    config.spool = "256MiB".to_owned();
    let mut daemon = Daemon::prepare(&config);
    daemon.start_limited(FILE_BYTES_MAX);
    daemon.wait_for_phase("streaming");
    // Everybody may look and nobody write: the applier waits, and what comes has to be kept.
    let holder = pair.target.connect().await;
    holder.exec("BEGIN; LOCK TABLE wide IN SHARE MODE").await;
    let said = if is_durable { "the disk is full" } else { "until there is room on the disk again" };
    let (mut done, began) = (0, Instant::now());
    while !daemon.log().contains(said) {
        assert!(began.elapsed() < PATIENCE, "{:?}\n{}", daemon.status(), daemon.log());
        write(&source, done..done + 4).await;
        done += 4;
    }
    write(&source, done..done + 16).await;
    done += 16;
    let status = daemon.status().unwrap();
    assert_eq!(status["halted"].as_array().map(Vec::len), Some(0), "{status}");

    let pid = daemon.pid().unwrap().to_string();
    let raised = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited"]).status().unwrap();
    assert!(raised.success());
    holder.exec("ROLLBACK").await;
    drain(&source, &mut daemon).await;
    assert_equal(&source, &target, done).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_cache_makes_the_stream_wait_and_nothing_halts() {
    full_disk(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_the_durable_spool_makes_the_stream_wait_and_nothing_halts() {
    full_disk(true).await;
}
