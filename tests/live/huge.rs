//! One transaction that is larger than memory, while others commit: streamed before its commit and put away until then, and
//! as a backlog that the server has put away. Its readers on green see all of it or nothing.
//!
//! `CHANGEOVER_TRANSACTION_MIB` (160) is its size; `make campaign-huge` takes 10 GiB.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::spool::{BODIES, BODY_BYTES, SCHEMA, prepare_bodies, resident_bytes};
use super::support::{Daemon, Db, Pair, TestConfig, from_environment};

const SMALL: &str = "CREATE TABLE small (id bigint PRIMARY KEY, at timestamptz DEFAULT clock_timestamp())";
/// The budget is 64 MiB, and a debug build is some itself.
const RESIDENT_BYTES_MAX: u64 = 256 << 20;
/// Transactions before their commit, that is: protocol 2.
const STREAMS_SINCE: u32 = 14;
/// How late a small transaction may be while the large one is written. Here it is some milliseconds: what is asked is that it
/// does not wait for the other's end.
const LAG_MAX: Duration = Duration::from_secs(10);

fn size_mib() -> u64 {
    from_environment("CHANGEOVER_TRANSACTION_MIB").unwrap_or(160)
}

/// Half a minute, and a minute for each GiB: two servers and a debug build share the machine.
fn patience() -> Duration {
    Duration::from_secs(30 + size_mib() / 16)
}

/// A part of it is taken back, and what it has inserted is changed again.
fn transaction(rows: u64) -> String {
    let undone = rows / 10;
    format!(
        "BEGIN;
         INSERT INTO wide SELECT id, body FROM generate_series(1, {rows}) id JOIN apart.bodies ON n = id % {BODIES};
         SAVEPOINT s;
         INSERT INTO wide SELECT id, body FROM generate_series(-{undone}, -1) id JOIN apart.bodies ON n = -id % {BODIES};
         DELETE FROM wide WHERE id % 7 = 0;
         ROLLBACK TO s;
         UPDATE wide SET body = left(body, 100) WHERE id % 97 = 0;
         DELETE FROM wide WHERE id % 89 = 0;
         COMMIT"
    )
}

/// Commits small transactions until told to stop; how many.
async fn others(url: String, stop: Arc<AtomicBool>) -> u64 {
    let db = Db::connect(&url).await;
    let mut next = 0;
    while !stop.load(Ordering::Relaxed) {
        next += 1;
        db.exec(&format!("INSERT INTO small VALUES ({next})")).await;
        sleep(Duration::from_millis(20)).await;
    }
    next
}

/// Looks at green until it shows the large transaction. Returns the longest that small ones took to be shown while blue had
/// not `committed` it. Behind the commit they wait for it, as on blue's log.
async fn watch(green: &Db, rows: u64, committed: &AtomicBool) -> Duration {
    let last = rows - u64::from(rows.is_multiple_of(89));
    let sql = format!(
        "SELECT (SELECT count(*) FROM wide WHERE id IN (1, {last})),
                coalesce((SELECT extract(epoch FROM clock_timestamp() - max(at)) FROM small), 0)"
    );
    let (began, mut lag) = (Instant::now(), 0.0_f64);
    loop {
        let seen = green.query_text(&sql).await.pop().unwrap();
        let (ends, late) = seen.split_once('|').unwrap();
        match ends {
            "0" if committed.load(Ordering::Relaxed) => {}
            "0" => lag = lag.max(late.parse().unwrap()),
            "2" => return Duration::from_secs_f64(lag),
            _ => panic!("green shows a part of the transaction: {ends} of 2 rows"),
        }
        assert!(began.elapsed() < patience(), "not shown after {:?}", began.elapsed());
        sleep(Duration::from_millis(50)).await;
    }
}

async fn assert_equal(source: &Db, target: &Db, rows: u64, small: u64) {
    let sums = "SELECT count(*), sum(hashtextextended(id || body, 0)) FROM wide";
    let (blue, green) = (source.query_text(sums).await, target.query_text(sums).await);
    assert_eq!(blue, green);
    assert!(blue[0].starts_with(&format!("{}|", rows - rows / 89)), "{blue:?}");
    assert_eq!(target.query_text("SELECT count(*), max(id) FROM small").await, [format!("{small}|{small}")]);
}

async fn large_transaction((blue, green): (u32, u32), is_backlog: bool) {
    let rows = size_mib() * (1 << 20) / BODY_BYTES;
    let pair = Pair::of(blue, green);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    source.exec(SMALL).await;
    prepare_bodies(&source).await;
    let mut config = TestConfig::new("huge", &pair);
    config.spool = format!("{}MiB", size_mib() * 2 + 256);
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    if is_backlog {
        daemon.terminate();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    clients.spawn(others(pair.source.url().to_owned(), Arc::clone(&stop)));
    let began = Instant::now();
    let committed = AtomicBool::new(false);
    let write = async {
        source.exec(&transaction(rows)).await;
        committed.store(true, Ordering::Relaxed);
        began.elapsed()
    };
    let (written, lag) = if is_backlog {
        let written = write.await;
        daemon.start_again();
        (written, watch(&target, rows, &committed).await)
    } else {
        tokio::join!(write, watch(&target, rows, &committed))
    };
    let took = began.elapsed();
    assert!(lag < LAG_MAX, "small transactions waited for the large one: {lag:?}");
    stop.store(true, Ordering::Relaxed);
    let small = clients.join_next().await.unwrap().unwrap();
    while target.scalar("SELECT coalesce(max(id), 0) FROM small").await != small.to_string() {
        assert!(began.elapsed() < took + patience(), "{:?}\n{}", daemon.status(), daemon.log());
        sleep(Duration::from_millis(50)).await;
    }
    let resident = resident_bytes(&mut daemon);
    println!(
        "{} MiB in one transaction, {blue} to {green}, backlog {is_backlog}: on blue {written:?} and on green {took:?} after its begin; small ones \
         late by {lag:?} at most while it was open; memory {} MiB at most",
        size_mib(),
        resident >> 20
    );
    assert!(resident < RESIDENT_BYTES_MAX, "{resident}");
    let newest_session = daemon.log().lines().rev().find(|line| line.contains("source streams")).unwrap().to_owned();
    let may_stream = blue >= STREAMS_SINCE && !is_backlog;
    assert!(!may_stream || newest_session.contains("streaming=true"), "{newest_session}");
    assert_equal(&source, &target, rows, small).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_is_put_away_until_it_commits_and_nobody_waits_for_it() {
    large_transaction((16, 16), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_is_applied_as_the_server_sends_it_from_a_backlog() {
    large_transaction((16, 16), true).await;
}

/// Protocol 1: it comes at its commit, and those that commit meanwhile before it.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_comes_from_a_server_that_streams_none() {
    large_transaction((13, 16), false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_larger_than_memory_goes_between_the_newest_servers() {
    large_transaction((18, 18), false).await;
}
