//! Several groups at once on the target: shown one after the other, whatever strikes in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use changeover::model::Lsn;
use changeover::telemetry::Point;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Daemon, Db, Pair, TestConfig};

const ACCOUNTS: u32 = 20_000;

/// Transfers between `accounts`, all of them through a few hot `branches`, each noted in `history`, which has no key;
/// `orders` come and go, and their `code` is unique.
fn schema() -> String {
    format!(
        "CREATE TABLE accounts (id int PRIMARY KEY, v int NOT NULL, filler text);
         CREATE TABLE branches (id int PRIMARY KEY, v int NOT NULL);
         CREATE TABLE history (account int, v int, at timestamptz DEFAULT now());
         ALTER TABLE history REPLICA IDENTITY FULL;
         CREATE TABLE orders (id int PRIMARY KEY, code int UNIQUE, note text);
         CREATE TABLE items (id int PRIMARY KEY, note text);
         INSERT INTO accounts SELECT n, 0, repeat('x', 60) FROM generate_series(1, {ACCOUNTS}) n;
         INSERT INTO branches SELECT n, 0 FROM generate_series(1, 5) n"
    )
}

/// Thousands of transactions, some of which name rows that those right before them have made.
async fn write(blue: &Db, rounds: u32) {
    blue.exec(
        "CREATE OR REPLACE PROCEDURE spread(first int, last int) LANGUAGE plpgsql AS $$
         DECLARE account int; sum int;
         BEGIN
             FOR n IN first .. last LOOP
                 account := n * 7919 % 20000 + 1;
                 sum := n % 100;
                 UPDATE accounts SET v = v + sum WHERE id = account;
                 UPDATE branches SET v = v + sum WHERE id = n % 5 + 1;
                 INSERT INTO history (account, v) VALUES (account, sum);
                 INSERT INTO items VALUES (n, 'new');
                 IF n % 3 = 0 THEN UPDATE items SET note = 'later' WHERE id = n - 1; END IF;
                 IF n % 5 = 0 THEN DELETE FROM items WHERE id = n - 40; END IF;
                 IF n % 7 = 0 THEN UPDATE items SET id = -id WHERE id = n - 2; END IF;
                 IF n % 11 = 0 THEN DELETE FROM history WHERE ctid = (SELECT max(ctid) FROM history); END IF;
                 IF n % 11 = 0 THEN INSERT INTO history (account, v) VALUES (account, sum); END IF;
                 INSERT INTO orders VALUES (n, n, 'o');
                 IF n % 4 = 0 THEN DELETE FROM orders WHERE id = n; INSERT INTO orders VALUES (-n, n, 'again'); END IF;
                 COMMIT;
             END LOOP;
         END $$",
    )
    .await;
    for round in 0..rounds {
        let first = blue.scalar("SELECT coalesce(max(abs(id)), 0) + 1 FROM orders").await.parse::<u32>().unwrap();
        blue.exec(&format!("CALL spread({first}, {first} + 999)")).await;
        // Alone among the others, and in their midst.
        if round % 3 == 1 {
            blue.exec("TRUNCATE items").await;
        }
    }
}

/// Without lag is also who has not heard of the source yet.
async fn wait_for_all(daemon: &mut Daemon, blue: &Db) {
    let end: Lsn = blue.scalar("SELECT pg_current_wal_lsn()").await.parse().unwrap();
    let through = |status: &Value| status["sinks"][0]["through"].as_str().and_then(|text| text.parse::<Lsn>().ok());
    daemon.wait_for("the backlog applied", |status| through(status) >= Some(end));
}

async fn assert_equal(blue: &Db, green: &Db) {
    for table in ["accounts", "branches", "history", "orders", "items"] {
        let (theirs, ours) = (blue.rows(table).await, green.rows(table).await);
        let different = theirs.iter().zip(&ours).find(|(one, other)| one != other);
        assert!(theirs == ours, "{table}: {} rows, {} rows, {different:?}", theirs.len(), ours.len());
    }
}

/// Adds up what only whole transactions change alike, until it is told to stop; how often it looked.
async fn read(green: Db, stop: Arc<AtomicBool>) -> u32 {
    let mut looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let sums = "SELECT (SELECT sum(v) FROM accounts) = (SELECT sum(v) FROM branches)
                       AND (SELECT sum(v) FROM branches) = (SELECT coalesce(sum(v), 0) FROM history)
                       AND (SELECT count(*) FROM orders) = (SELECT count(*) FROM history)";
        assert_eq!(green.scalar(sums).await, "t", "half a transaction, or a later one before an earlier one");
        looks += 1;
    }
    looks
}

/// `changeover_groups_total` by way, as a scrape has it.
fn groups(status: &str, way: &str) -> u64 {
    let line = status.lines().find(|line| line.starts_with("changeover_groups_total") && line.contains(way));
    line.and_then(|line| line.rsplit(' ').next()).map_or(0, |count| count.parse().unwrap())
}

fn config(name: &str, pair: &Pair, sessions: u32) -> TestConfig {
    TestConfig::new(name, pair).with(&format!("[apply]\ngroup = \"64KiB\"\nsessions = {sessions}"))
}

async fn drains(source: u32, target: u32, sessions: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(&schema()).await;
    let mut daemon = Daemon::start(&config("beside", &pair, sessions));
    daemon.wait_for_phase("streaming");
    daemon.terminate();
    write(&blue, 8).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut reading = JoinSet::new();
    reading.spawn(read(pair.target.connect().await, Arc::clone(&stop)));
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    wait_for_all(&mut daemon, &blue).await;
    stop.store(true, Ordering::Relaxed);
    assert!(reading.join_next().await.unwrap().unwrap() > 2);
    assert_equal(&blue, &green).await;
    let metrics = daemon.metrics();
    let (ahead, in_turn) = (groups(&metrics, "ahead"), groups(&metrics, "in_turn"));
    if sessions == 1 {
        assert!(ahead == 0 && in_turn > 20, "{ahead} {in_turn}");
    } else {
        assert!(ahead > 20, "{ahead} groups went ahead, {in_turn} did not: {}", daemon.log());
    }
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    daemon.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_applied_in_three_sessions_and_shown_in_order_from_15_to_15() {
    drains(15, 15, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_in_two_from_13_to_18() {
    drains(13, 18, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_session_nothing_goes_ahead() {
    drains(15, 15, 1).await;
}

/// Killed, or its sessions cut, while one group is half executed and another one is ahead of it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_what_went_ahead_is_left_when_it_is_struck() {
    let pair = Pair::of(15, 15);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(&schema()).await;
    let mut daemon = Daemon::start(&config("struck", &pair, 3));
    daemon.wait_for_phase("streaming");
    daemon.terminate();
    write(&blue, 6).await;
    for strike in 0..4 {
        daemon.hold_at(Point::GroupAhead);
        daemon.start_again();
        daemon.wait_until_held_at(Point::GroupAhead);
        if strike % 2 == 0 {
            daemon.kill();
            daemon.let_go();
        } else {
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                       WHERE application_name LIKE 'changeover apply%' AND application_name NOT LIKE '%catalog'";
            let cut: u32 = green.scalar(cut).await.parse().unwrap();
            assert!(cut >= 2, "{cut} sessions");
            daemon.let_go();
            daemon.terminate();
        }
        let sums = "SELECT (SELECT sum(v) FROM accounts) = (SELECT sum(v) FROM branches) \
                    AND (SELECT sum(v) FROM branches) = (SELECT coalesce(sum(v), 0) FROM history)";
        assert_eq!(green.scalar(sums).await, "t");
    }
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    wait_for_all(&mut daemon, &blue).await;
    assert_equal(&blue, &green).await;
    daemon.terminate();
}

/// Green's key takes two of blue's values for the same. One after the other the insert is refused while the other value
/// is there; here the other value's end goes ahead and is not committed, so the insert waits for a session that waits for
/// it. The server cannot see that.
#[tokio::test(flavor = "multi_thread")]
async fn what_holds_up_those_before_it_is_given_up() {
    let pair = Pair::of(15, 15);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec("CREATE TABLE words (word text PRIMARY KEY, v text)").await;
    blue.exec("INSERT INTO words VALUES ('AA', 'old')").await;
    let mut daemon = Daemon::start(&config("held_up", &pair, 2));
    daemon.wait_for_phase("streaming");
    daemon.terminate();
    green
        .exec(
            "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false); \
             ALTER TABLE words ALTER word TYPE text COLLATE blind",
        )
        .await;
    let fill = |from: u32| {
        format!("INSERT INTO words SELECT n, repeat('x', 1000) FROM generate_series({from}, {from} + 79) n")
    };
    blue.exec(&fill(1_000)).await;
    blue.exec(&fill(2_000)).await;
    blue.exec(&format!(
        "INSERT INTO words VALUES ('f', 'new'); {}; INSERT INTO words VALUES ('aa', 'new')",
        fill(3_000)
    ))
    .await;
    blue.exec(&format!("DELETE FROM words WHERE word = 'AA'; {}", fill(4_000))).await;
    blue.exec(&fill(5_000)).await;
    blue.exec(&fill(6_000)).await;
    // The group with the insert waits for us (shorter keys are written first), until the one with the other value's end
    // has gone ahead.
    let ours = pair.target.connect().await;
    ours.exec("BEGIN; INSERT INTO words VALUES ('f', 'ours')").await;
    daemon.start_again();
    daemon.expect_error("public.words");
    let ahead = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name LIKE 'changeover apply%'";
    green.until(ahead, "1").await;
    ours.exec("ROLLBACK").await;
    let status = daemon.wait_for("the target halted", |status| status["halted"][0]["part"] == "target");
    let trouble = &status["halted"][0];
    assert!(trouble["error"].as_str().unwrap().contains("public.words"), "{trouble}");
    assert!(daemon.log().contains("waits for one that went ahead"), "{}", daemon.log());
    // The remedy: what the two sides take for the same is made the same.
    green.exec("ALTER TABLE words ALTER word TYPE text COLLATE \"default\"").await;
    assert!(daemon.command(&["resume"]).status.success());
    wait_for_all(&mut daemon, &blue).await;
    assert_eq!(blue.rows("words").await, green.rows("words").await);
    daemon.terminate();
}

/// Somebody deleted rows on green. A group that goes ahead learns from the server's answer that it found too few, and
/// nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_missing_is_found_out_ahead_of_its_turn_too() {
    let pair = Pair::of(15, 15);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    blue.exec("INSERT INTO t SELECT n, 'old' FROM generate_series(1, 2000) n").await;
    let mut daemon = Daemon::start(&config("missing", &pair, 3).with("[log]\nlevel = \"debug\""));
    daemon.wait_for_phase("streaming");
    for (first, change) in [(0, "UPDATE t SET v = repeat('x', 1000)"), (1000, "DELETE FROM t")] {
        daemon.terminate();
        for from in (first..first + 500).step_by(100) {
            let fill =
                format!("INSERT INTO t SELECT n, repeat('z', 1000) FROM generate_series(-{from} - 99, -{from} - 1) n");
            blue.exec(&format!("BEGIN; {change} WHERE id BETWEEN {from} + 1 AND {from} + 99; {fill}; COMMIT")).await;
        }
        let id = first + 150;
        green.exec(&format!("DELETE FROM t WHERE id = {id}")).await;
        // The first group waits for us until the second one has gone ahead.
        let ours = pair.target.connect().await;
        ours.exec(&format!("BEGIN; SELECT FROM t WHERE id = {first} + 50 FOR UPDATE")).await;
        const REFUSED: &str = "refused ahead of its turn";
        let before = daemon.count(REFUSED);
        daemon.expect_error("public.t");
        daemon.start_again();
        daemon.wait_until_logged(REFUSED, before + 1);
        ours.exec("ROLLBACK").await;
        let status = daemon.wait_for("the target halted", |status| status["halted"][0]["part"] == "target");
        let trouble = status["halted"][0]["error"].as_str().unwrap();
        assert!(trouble.contains("public.t") && trouble.contains("key (\"id\")"), "{trouble}");
        green.exec(&format!("INSERT INTO t VALUES ({id}, 'back')")).await;
        assert!(daemon.command(&["resume"]).status.success());
        wait_for_all(&mut daemon, &blue).await;
        assert_eq!(blue.rows("t").await, green.rows("t").await);
    }
    daemon.terminate();
}
