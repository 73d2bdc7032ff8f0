//! A backlog that is read in bulk, in spans: what is seen on green is what it would be otherwise, whoever is struck where, and
//! whatever the source does not allow. Each test asserts by the log that the way was taken, or given up.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use changeover::demo::StopMode;
use changeover::telemetry::Point;
use tokio::time::sleep;

use super::ahead::{World, mixed};

const BEGUN: &str = "source's backlog is read in bulk";
const AS_A_STREAM: &str = "what is left of the backlog comes as a stream";
/// Many spans in a backlog of a test's size.
const SMALL_SPANS: &str = "2MiB";

/// Whether the sessions that followed each other on the source were streams.
fn streams(world: &World) -> Vec<bool> {
    let begun = |line: &str| (line.contains(BEGUN) || line.contains("source streams")).then(|| !line.contains(BEGUN));
    world.daemon.log().lines().filter_map(begun).collect()
}

/// A slot of ours that is not the migration's is gone with its session, at once or a moment later.
async fn nothing_is_left(world: &World) {
    let others = "SELECT count(*) FROM pg_replication_slots WHERE slot_name <> 'changeover_away'";
    world.source.until(others, "0").await;
}

async fn in_bulk(majors: (u32, u32), bulk: &str) {
    let mut world = World::made(majors, bulk, "").await;
    for _ in 0..2 {
        mixed(&world).await;
        world
            .small
            .exec("BEGIN; INSERT INTO bare VALUES (2, 2), (2, 2); SAVEPOINT s; TRUNCATE bare; ROLLBACK TO s; COMMIT")
            .await;
        world.small.exec("DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE id = 2)").await;
        world.fill().await;
        world.small.exec("UPDATE t SET id = id + 200000, u = NULL WHERE id < 50").await;
        let began = streams(&world).len();
        world.drain().await;
        assert!(!streams(&world)[began], "{}", world.daemon.log());
        world.assert_equal().await;
        world.verify();
        assert_eq!((world.count(AS_A_STREAM), world.count("broke off")), (0, 0), "{}", world.daemon.log());
        nothing_is_left(&world).await;
        world
            .source
            .exec("TRUNCATE t, bare, other; INSERT INTO t SELECT i, 0, i FROM generate_series(1, 5000) i")
            .await;
        world.source.exec("INSERT INTO other SELECT i FROM generate_series(1, 100) i").await;
        world.caught_up().await;
        assert_eq!(streams(&world).last(), Some(&true), "what comes next is streamed");
        world.daemon.terminate();
    }
    assert!(!world.pair.source.cluster().log().contains("ERROR"), "{}", world.pair.source.cluster().log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_read_in_bulk_from_every_version() {
    for major in [13, 14, 16, 17] {
        in_bulk((major, 16), SMALL_SPANS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_read_in_bulk_in_spans_of_the_usual_size() {
    in_bulk((15, 15), "256MiB").await;
    in_bulk((18, 18), "256MiB").await;
}

/// Where the next span is asked for, where all of one is handed on and its end is not, and where the source is about to
/// forget, and has forgotten, what has arrived.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_struck_between_spans_loses_nothing_and_repeats_nothing() {
    for (number, more) in ["", "[spool]\nrelease_source_wal = true"].into_iter().enumerate() {
        let mut world = World::made((16, 16), SMALL_SPANS, more).await;
        for point in [Point::SpanDue, Point::SpanRead, Point::ReportDue, Point::Reported] {
            world.small.exec("UPDATE other SET n = n + 1; INSERT INTO bare VALUES (3, 3)").await;
            world.source.exec("UPDATE t SET n = n + 1 WHERE id % 7 = 0").await;
            world.fill().await;
            world.small.exec("UPDATE t SET n = n + 1; INSERT INTO bare SELECT id, 4 FROM other").await;
            world.daemon.hold_at(point);
            world.daemon.start_again();
            world.daemon.wait_until_held_at(point);
            assert_eq!(streams(&world).last(), Some(&false), "{}", world.daemon.log());
            match (point, number) {
                // The daemon reads on by itself.
                (Point::SpanRead, 0) => {
                    world.daemon.expect_error(" ERROR ");
                    world.pair.source.cluster().restart(StopMode::Immediate).unwrap();
                    world.source = world.pair.source.connect().await;
                    world.small = world.pair.source.connect().await;
                    world.daemon.let_go();
                    world.caught_up().await;
                }
                (Point::SpanDue, 0) => {
                    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                                 WHERE application_name = 'changeover catch up'";
                    assert_eq!(world.source.scalar(ended).await, "2");
                    world.daemon.let_go();
                    world.caught_up().await;
                }
                _ => {
                    world.daemon.kill();
                    world.daemon.let_go();
                    world.drain().await;
                }
            }
            world.assert_equal().await;
            world.verify();
            nothing_is_left(&world).await;
            world.daemon.terminate();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_without_a_slot_to_spare_streams_its_backlog() {
    let mut world = World::made((15, 15), "256MiB", "").await;
    let free = "SELECT pg_create_logical_replication_slot('s' || i, 'pgoutput') FROM \
                generate_series(1, current_setting('max_replication_slots')::int - (SELECT count(*)::int FROM pg_replication_slots)) i";
    world.source.exec(free).await;
    mixed(&world).await;
    world.fill().await;
    world.drain().await;
    world.assert_equal().await;
    assert_eq!(streams(&world)[1..3], [false, true], "{}", world.daemon.log());
    assert_eq!(world.count(AS_A_STREAM), 1, "{}", world.daemon.log());
    assert!(world.daemon.log().contains("all replication slots are in use"), "{}", world.daemon.log());
}

/// Nothing commits in a lot of log: what is open is applied while the source still decodes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_transaction_in_a_backlog_is_left_to_the_stream() {
    let mut world = World::made((16, 16), "256MiB", "").await;
    world.small.exec("UPDATE other SET n = 5 WHERE id = 5").await;
    world.source.exec("BEGIN; UPDATE t SET n = n + 1").await;
    for _ in 0..8 {
        world.source.exec("UPDATE t SET n = n + 1").await;
        world.small.exec("SELECT pg_switch_wal()").await;
    }
    world.source.exec("COMMIT").await;
    world.small.exec("UPDATE other SET n = 6 WHERE id = 6").await;
    world.drain().await;
    world.assert_equal().await;
    assert_eq!(streams(&world)[1..3], [false, true], "{}", world.daemon.log());
    assert_eq!(world.count(AS_A_STREAM), 1, "{}", world.daemon.log());
    assert_eq!(world.count("committed a transaction that was applied ahead"), 1, "{}", world.daemon.log());
}

/// The statement that a span comes by holds a snapshot on blue.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_takes_nothing_holds_no_snapshot_on_the_source_for_long() {
    let mut world = World::made((16, 16), "256MiB", "").await;
    let path = world.daemon.config_path().to_owned();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("[snapshot]", "[snapshot]\nmax_snapshot_age = \"1s\"")).unwrap();
    // More than is read ahead of the target.
    for _ in 0..40 {
        world.source.exec("INSERT INTO t SELECT i FROM generate_series(10001, 50000) i").await;
        world.source.exec("DELETE FROM t WHERE id > 10000").await;
    }
    let lock = world.pair.target.connect().await;
    lock.exec("BEGIN; LOCK TABLE t").await;
    world.daemon.start_again();
    world.daemon.wait_until_logged(AS_A_STREAM, 1);
    assert!(world.daemon.log().contains("nobody takes what is read"), "{}", world.daemon.log());
    let held =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'changeover%' AND backend_xmin IS NOT NULL";
    world.source.until(held, "0").await;
    lock.exec("ROLLBACK").await;
    world.caught_up().await;
    world.assert_equal().await;
    nothing_is_left(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_told_to_stop_leaves_nothing_behind() {
    let mut world = World::made((16, 16), SMALL_SPANS, "").await;
    mixed(&world).await;
    world.fill().await;
    world.daemon.hold_at(Point::SpanRead);
    world.daemon.start_again();
    world.daemon.wait_until_held_at(Point::SpanRead);
    world.daemon.signal("TERM");
    sleep(Duration::from_millis(100)).await;
    world.daemon.let_go();
    world.daemon.terminate();
    nothing_is_left(&world).await;
    world.drain().await;
    world.assert_equal().await;
    world.verify();
}

/// Each group is of whole transactions, wherever spans end.
#[tokio::test(flavor = "multi_thread")]
async fn readers_of_green_see_transactions_whole() {
    let mut world = World::made((16, 16), "1MiB", "[apply]\ngroup = \"64KiB\"").await;
    world.source.exec("UPDATE other SET n = 0; UPDATE t SET n = 0").await;
    world.fill().await;
    for _ in 0..150 {
        world
            .source
            .exec("BEGIN; UPDATE other SET n = n + 1 WHERE id = 1; UPDATE t SET n = n + 1 WHERE id <= 900; UPDATE other SET n = n + 1 WHERE id = 2; COMMIT")
            .await;
    }
    let sql = "SELECT string_agg(DISTINCT n::text, ',') || ' ' || (SELECT n FROM other WHERE id = 1) || ' ' || (SELECT n FROM other WHERE id = 2)
               FROM t WHERE id <= 900";
    let seen = world.drain_watched(sql).await;
    let whole = |row: &String| row.split(' ').collect::<BTreeSet<_>>().len() == 1;
    assert!(seen.iter().all(whole), "{seen:?}");
    assert!(seen.len() > 3, "too few states were seen: {seen:?}");
    world.assert_equal().await;
}
