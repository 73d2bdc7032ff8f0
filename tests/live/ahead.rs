//! Transactions of a backlog that are applied ahead of their commits: what is seen on green is what it would be otherwise,
//! whoever commits meanwhile and whatever breaks. Each test asserts by the log that the way was taken, or given up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changeover::telemetry::Point;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::crash::assert_equal;
use super::support::{Daemon, Db, Pair, TestConfig};

const SCHEMA: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0, u bigint UNIQUE, body text, big text);
    ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE other (id bigint PRIMARY KEY, n bigint NOT NULL DEFAULT 0);
    CREATE TABLE bare (id bigint, n int); ALTER TABLE bare REPLICA IDENTITY FULL;
    CREATE TABLE done (id bigint PRIMARY KEY);
    INSERT INTO t SELECT i, 0, i, md5(i::text), CASE WHEN i % 50 = 0 THEN repeat(md5(i::text), 100) END FROM generate_series(1, 5000) i;
    INSERT INTO other SELECT i FROM generate_series(1, 100) i;
    INSERT INTO bare SELECT 1, 1 FROM generate_series(1, 10);";
const TABLES: [&str; 4] = ["t", "other", "bare", "done"];
const BEGUN: &str = "applying a transaction ahead of its commit";
const COMMITTED: &str = "committed a transaction that was applied ahead";
const GIVEN_UP: &str = "is given up: it comes again at its commit";
const ROLLED_BACK: &str = "applied ahead of its commit is rolled back";
const PATIENCE: Duration = Duration::from_secs(90);

/// A migration that streams, and whose daemon is away while its backlog is made.
pub(super) struct World {
    pub(super) pair: Pair,
    pub(super) source: Db,
    /// Another session.
    pub(super) small: Db,
    pub(super) target: Db,
    pub(super) daemon: Daemon,
    markers: u32,
}

impl World {
    async fn of(majors: (u32, u32)) -> Self {
        Self::with(majors, "").await
    }

    async fn with(majors: (u32, u32), more: &str) -> Self {
        // Read in bulk, transactions as small as these come whole.
        Self::made(majors, "0", more).await
    }

    /// `bulk` as in `source.bulk`, `more` as in [`TestConfig::with`].
    pub(super) async fn made((blue, green): (u32, u32), bulk: &str, more: &str) -> Self {
        let pair = Pair::of(blue, green);
        let (source, small) = (pair.source.connect().await, pair.source.connect().await);
        let target = pair.target.connect().await;
        source.exec("ALTER SYSTEM SET logical_decoding_work_mem = '64kB'").await;
        source.exec("SELECT pg_reload_conf()").await;
        source.exec(SCHEMA).await;
        let mut daemon =
            Daemon::start(&TestConfig { bulk: bulk.to_owned(), ..TestConfig::new("away", &pair).with(more) });
        daemon.wait_for_phase("streaming");
        daemon.terminate();
        Self { pair, source, small, target, daemon, markers: 0 }
    }

    pub(super) async fn fill(&self) {
        self.small.fill_log("UPDATE other SET n = n + 1 WHERE id = 100").await;
    }

    /// Drains, and answers with all that a reader of green saw meanwhile.
    pub(super) async fn drain_watched(&mut self, sql: &'static str) -> BTreeSet<String> {
        let (stop, url) = (Arc::new(AtomicBool::new(false)), self.pair.target.url().to_owned());
        let mut reading = JoinSet::new();
        let stopped = Arc::clone(&stop);
        reading.spawn(async move {
            let green = Db::connect(&url).await;
            let mut seen = BTreeSet::new();
            while !stopped.load(Ordering::Relaxed) {
                seen.insert(green.scalar(sql).await);
            }
            seen
        });
        self.drain().await;
        stop.store(true, Ordering::Relaxed);
        reading.join_next().await.unwrap().unwrap()
    }

    /// Starts the daemon and waits until green has everything.
    pub(super) async fn drain(&mut self) {
        self.daemon.start_again();
        self.caught_up().await;
    }

    pub(super) async fn caught_up(&mut self) {
        self.markers += 1;
        self.source.exec(&format!("INSERT INTO done VALUES ({})", self.markers)).await;
        let (began, sql) = (Instant::now(), format!("SELECT count(*) FROM done WHERE id = {}", self.markers));
        while self.target.scalar(&sql).await == "0" {
            assert!(self.daemon.is_running() && began.elapsed() < PATIENCE, "{}", self.daemon.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn assert_equal(&self) {
        assert_equal(&self.source, &self.target, &TABLES).await;
    }

    pub(super) fn count(&self, line: &str) -> usize {
        self.daemon.count(line)
    }

    #[track_caller]
    fn assert_ways(&self, begun: usize, committed: usize, given_up: usize) {
        let found = [BEGUN, COMMITTED, GIVEN_UP].map(|line| self.count(line));
        assert_eq!(found, [begun, committed, given_up], "{}", self.daemon.log());
    }

    /// What was written becomes a backlog and is applied: in these ways, with the same rows.
    async fn drains_equal(&mut self, begun: usize, committed: usize, given_up: usize) {
        self.fill().await;
        self.drain().await;
        self.assert_equal().await;
        self.assert_ways(begun, committed, given_up);
    }

    /// Only what was dirtied is looked at again, by the daemon's own account.
    pub(super) fn verify(&self) {
        let verified = self.daemon.command(&["verify"]);
        let text = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "{text}\n{}", self.daemon.log());
    }
}

/// Much of everything: keys change, values are left out, rows come and go, small transactions commit on the same tables
/// before, between and after, and build on what it did.
pub(super) async fn mixed(world: &World) {
    let (large, small) = (&world.source, &world.small);
    small.exec("UPDATE t SET n = n + 1 WHERE id <= 100; INSERT INTO t VALUES (10001, 1, 10001, 'before', NULL)").await;
    large.exec("BEGIN").await;
    large.exec("UPDATE t SET n = n + 10 WHERE id BETWEEN 50 AND 3000").await;
    small.exec("UPDATE t SET n = n + 100 WHERE id > 4000; DELETE FROM t WHERE id = 4500; UPDATE other SET n = 7 WHERE id = 1")
        .await;
    large.exec("INSERT INTO t SELECT i, 5, i, 'new', NULL FROM generate_series(20001, 24000) i").await;
    small.exec("INSERT INTO t VALUES (4500, 9, 4500, 'again', NULL); UPDATE t SET body = 'seen' WHERE id = 4600").await;
    // On top of what committed while it was open.
    large.exec("UPDATE t SET n = n * 2, body = body || '!' WHERE id BETWEEN 4500 AND 4700").await;
    large.exec("UPDATE t SET id = id + 100000 WHERE id BETWEEN 100 AND 300").await;
    large.exec("DELETE FROM t WHERE id BETWEEN 2000 AND 2500").await;
    // A value that its own rows have given up.
    large.exec("INSERT INTO t SELECT i + 500000, 1, i, 'u', NULL FROM generate_series(2000, 2500) i").await;
    small.exec("INSERT INTO other VALUES (200), (201); UPDATE other SET n = n + 1 WHERE id = 100").await;
    large.exec("TRUNCATE other; INSERT INTO other SELECT i FROM generate_series(1, 100) i").await;
    large.exec("UPDATE t SET n = n + 1 WHERE id BETWEEN 20001 AND 24000").await;
    small.exec("UPDATE t SET n = -1 WHERE id = 4999").await;
    large.exec("COMMIT").await;
    small.exec("UPDATE t SET n = n + 1000 WHERE id BETWEEN 20500 AND 20600; DELETE FROM t WHERE id = 500100").await;
    small.exec("UPDATE t SET body = 'after' WHERE id BETWEEN 100150 AND 100160; INSERT INTO other VALUES (202)").await;
}

async fn backlog_is_applied_ahead(majors: (u32, u32)) {
    let mut world = World::of(majors).await;
    mixed(&world).await;
    world.fill().await;
    world.drain().await;
    world.assert_ways(1, 1, 0);
    world.assert_equal().await;
    // Once more, after one full look and one at what was dirtied meanwhile.
    world.verify();
    world.daemon.terminate();
    world
        .source
        .exec("BEGIN; UPDATE t SET n = n + 3 WHERE id > 20000; UPDATE t SET body = 'x' WHERE id < 3000; COMMIT")
        .await;
    world.fill().await;
    world.drain().await;
    world.assert_ways(2, 2, 0);
    world.verify();
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_a_backlog_is_applied_ahead_of_its_commit() {
    backlog_is_applied_ahead((15, 15)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_a_backlog_is_applied_ahead_from_the_oldest_that_streams_to_the_newest() {
    backlog_is_applied_ahead((14, 18)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_of_a_backlog_is_applied_ahead_between_the_newest() {
    backlog_is_applied_ahead((18, 18)).await;
}

/// A server as it comes holds 64 MB of a transaction before it sends the first of it, which this one never has.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_a_few_ten_megabytes_is_sent_early_enough_to_be_applied_ahead() {
    let mut world = World::of((15, 15)).await;
    world.source.exec("ALTER SYSTEM RESET logical_decoding_work_mem").await;
    world.source.exec("SELECT pg_reload_conf()").await;
    let insert = "INSERT INTO t SELECT i, 0, i, repeat(md5(i::text), 8), NULL FROM generate_series(100001, 200000) i";
    world.source.exec(insert).await;
    world.drains_equal(1, 1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_rolled_back_makes_it_come_at_its_commit() {
    let mut world = World::of((16, 16)).await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; SAVEPOINT s; INSERT INTO t SELECT i, 0, i, 'gone', NULL FROM generate_series(30001, 34000) i").await;
    world.small.exec("UPDATE other SET n = 3 WHERE id = 3").await;
    world.source.exec("ROLLBACK TO s; INSERT INTO t VALUES (30001, 1, 30001, 'kept', NULL)").await;
    world.source.exec("SAVEPOINT r; UPDATE t SET n = n + 2 WHERE id < 3000; RELEASE r; COMMIT").await;
    world.drains_equal(1, 0, 0).await;
    assert_eq!(world.count(ROLLED_BACK), 1, "{}", world.daemon.log());
    assert_eq!(world.count("a part of it was rolled back"), 1, "{}", world.daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_were_released_are_applied_ahead() {
    let mut world = World::of((16, 16)).await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; SAVEPOINT s; INSERT INTO t SELECT i, 0, i, 'kept', NULL FROM generate_series(30001, 34000) i").await;
    world.source.exec("RELEASE s; SAVEPOINT s; UPDATE t SET n = n + 2 WHERE id > 30000; COMMIT").await;
    world.drains_equal(1, 1, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_rolled_back_leaves_nothing_and_the_next_is_applied_ahead() {
    let mut world = World::of((16, 16)).await;
    // The server knows the table by then: it only finds out that a transaction was rolled back when it has to look.
    world.small.exec("UPDATE t SET n = 0 WHERE id = 1").await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; ROLLBACK").await;
    world.small.exec("UPDATE other SET n = 3 WHERE id = 3").await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 5; UPDATE t SET n = n * 2 WHERE id % 3 = 0; COMMIT").await;
    world.drains_equal(2, 1, 0).await;
    assert_eq!(world.count(ROLLED_BACK), 1, "{}", world.daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_are_open_at_once_one_is_applied_ahead() {
    let mut world = World::of((16, 16)).await;
    let (first, second) = (&world.source, &world.small);
    first.exec("BEGIN; UPDATE t SET n = n + 1 WHERE id <= 2000").await;
    second.exec("BEGIN; UPDATE t SET n = n + 2 WHERE id > 2000").await;
    first.exec("INSERT INTO t SELECT i, 0, i, 'first', NULL FROM generate_series(30001, 33000) i").await;
    second.exec("INSERT INTO t SELECT i, 0, i, 'second', NULL FROM generate_series(40001, 43000) i; COMMIT").await;
    // What the other one has committed meanwhile.
    first.exec("UPDATE t SET n = n + 7 WHERE id > 40000; DELETE FROM t WHERE id BETWEEN 4000 AND 4100").await;
    first.exec("UPDATE t SET n = n + 1 WHERE id <= 2000; COMMIT").await;
    world.drains_equal(1, 1, 0).await;
}

/// Green's role may not be a replica, or its tables do what blue's do not.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_target_cannot_take_ahead_comes_at_its_commit() {
    let mut world = World::of((16, 16)).await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; UPDATE bare SET n = n + 1; UPDATE t SET n = n + 1; COMMIT").await;
    world.drains_equal(1, 0, 1).await;
    assert!(world.count("rows of public.bare have no key") > 0, "{}", world.daemon.log());
    // Once that backlog is done, the next may.
    world.daemon.terminate();
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; UPDATE t SET n = n + 1; COMMIT").await;
    world.drains_equal(2, 1, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_missing_on_the_target_is_told_as_ever() {
    let mut world = World::of((16, 16)).await;
    world.target.exec("DELETE FROM t WHERE id = 77").await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1; UPDATE t SET n = n + 1; COMMIT").await;
    world.fill().await;
    world.daemon.expect_error("does not hold exactly one row");
    world.daemon.start_again();
    world.daemon.wait_until_logged("does not hold exactly one row", 1);
    world.assert_ways(1, 0, 1);
    assert_eq!(world.target.scalar("SELECT count(*) FROM t WHERE n > 0").await, "0");
    world.target.exec("INSERT INTO t VALUES (77, 0, 77, md5('77'), NULL)").await;
    assert!(world.daemon.command(&["resume"]).status.success());
    world.caught_up().await;
    world.assert_equal().await;
}

/// A unique key that only green has: the small ones wait for the large one, and it for them.
#[tokio::test(flavor = "multi_thread")]
async fn those_that_would_wait_for_each_other_do_not_for_long() {
    let mut world = World::with((16, 16), "[apply]\ngroup = \"64KiB\"").await;
    world.target.exec("CREATE UNIQUE INDEX ON other (n) WHERE n > 1000").await;
    world.source.exec("BEGIN; UPDATE other SET n = 5000 WHERE id = 1; UPDATE t SET n = n + 1 WHERE id < 4000").await;
    world.small.exec("UPDATE other SET n = 5000 WHERE id = 2").await;
    // Not in one group with what follows.
    world.small.exec("UPDATE t SET body = repeat('x', 200000) WHERE id = 4500").await;
    world.small.exec("UPDATE other SET n = 6 WHERE id = 2").await;
    world.source.exec("UPDATE t SET n = n + 1 WHERE id < 4000; COMMIT").await;
    world.fill().await;
    // The large one comes first: the small ones wait for somebody else until it is there.
    let first = world.pair.target.connect().await;
    first.exec("BEGIN; UPDATE other SET n = n WHERE id = 2").await;
    world.daemon.start_again();
    let open = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND application_name LIKE 'changeover%'";
    world.target.until_not(open, "0").await;
    first.exec("COMMIT").await;
    world.caught_up().await;
    world.assert_equal().await;
    world.assert_ways(1, 0, 1);
    assert!(world.count("waits for it on the target") > 0, "{}", world.daemon.log());
}

/// Open when the backlog has been read: it is none of it.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_open_for_longer_than_the_backlog_is_put_away_until_it_commits() {
    let mut world = World::of((16, 16)).await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1").await;
    world.small.exec("UPDATE other SET n = 3 WHERE id = 3").await;
    world.fill().await;
    world.daemon.start_again();
    world.daemon.wait_until_logged("it has not committed yet", 1);
    let applied = "SELECT count(*) FROM other WHERE id = 3 AND n = 3";
    world.target.until_not(applied, "0").await;
    world.source.exec("UPDATE t SET n = n + 1; COMMIT").await;
    world.caught_up().await;
    world.assert_equal().await;
    world.assert_ways(1, 0, 0);
    assert_eq!(world.count(ROLLED_BACK), 1, "{}", world.daemon.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_green_see_all_of_it_or_nothing() {
    let mut world = World::of((16, 16)).await;
    for _ in 0..3 {
        world
            .source
            .exec("BEGIN; UPDATE t SET n = n + 1 WHERE id <= 2500; UPDATE other SET n = n + 1 WHERE id = 1")
            .await;
        world.small.exec("UPDATE other SET n = n + 1 WHERE id = 2").await;
        world.source.exec("UPDATE t SET n = n + 1 WHERE id > 2500; COMMIT").await;
    }
    world.fill().await;
    let sql = "SELECT string_agg(DISTINCT n::text, ',') || '|' || (SELECT n FROM other WHERE id = 1) FROM t";
    let seen = world.drain_watched(sql).await;
    assert!(seen.iter().all(|row| ["0|0", "1|1", "2|2", "3|3"].contains(&row.as_str())), "{seen:?}");
    world.assert_ways(3, 3, 0);
    world.assert_equal().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_the_target_that_is_ended_costs_only_time() {
    let mut world = World::of((16, 16)).await;
    mixed(&world).await;
    world.fill().await;
    world.daemon.hold_at(Point::AheadDue);
    world.daemon.start_again();
    world.daemon.wait_until_held_at(Point::AheadDue);
    let ahead = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                 WHERE state = 'idle in transaction' AND application_name LIKE 'changeover%'";
    assert_eq!(world.target.scalar(ahead).await, "1");
    world.daemon.let_go();
    world.caught_up().await;
    world.assert_equal().await;
    world.assert_ways(1, 0, 1);
}

/// At each point, and in each kind of spool: what comes again is known to be here, or is not here at all.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_around_its_commit_loses_nothing_and_repeats_nothing() {
    for more in ["", "[spool]\nrelease_source_wal = true"] {
        let mut world = World::with((16, 16), more).await;
        for point in [Point::AheadDue, Point::AheadCommitted, Point::AheadTold] {
            world
                .source
                .exec("BEGIN; UPDATE t SET n = n + 1; INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t")
                .await;
            world.small.exec("UPDATE other SET n = n + 1").await;
            world.source.exec("UPDATE t SET n = n * 2; COMMIT").await;
            world.small.exec("UPDATE t SET n = n + 1 WHERE id = 3").await;
            world.fill().await;
            let begun = world.count(BEGUN);
            world.daemon.hold_at(point);
            world.daemon.start_again();
            world.daemon.wait_until_held_at(point);
            assert_eq!(world.count(BEGUN), begun + 1);
            world.daemon.kill();
            world.daemon.let_go();
            world.drain().await;
            world.assert_equal().await;
            world.verify();
            world.daemon.terminate();
        }
    }
}

/// Whoever lets the target stand still sees nothing of it, and everything after.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_gives_it_up() {
    let mut world = World::of((16, 16)).await;
    mixed(&world).await;
    world.fill().await;
    world.daemon.start_again();
    world.daemon.wait_until_logged(BEGUN, 1);
    assert!(world.daemon.command(&["pause"]).status.success());
    assert!(world.daemon.command(&["resume"]).status.success());
    world.caught_up().await;
    world.assert_equal().await;
    world.verify();
}
