//! A copy that spares its source: it stands still under load, keeps to a rate, and can be paused.

use std::thread;
use std::time::Duration;

use changeover::demo::{PgCluster, Workspace, free_port};
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{Daemon, Db, Pair, TestConfig, source_and_target};

/// Rows whose bytes the server cannot compress away, in many small parts.
async fn filled(pair: &Pair, megabytes: u32) -> (Db, Db) {
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec("CREATE TABLE t (id int PRIMARY KEY, v text); ALTER TABLE t ALTER v SET STORAGE external").await;
    let row = "repeat(md5(n::text), 32)";
    blue.exec(&format!("INSERT INTO t SELECT n, {row} FROM generate_series(1, {}) n", megabytes * 1024)).await;
    blue.exec("CREATE TABLE small (id int PRIMARY KEY); INSERT INTO small VALUES (1)").await;
    // Outside the migration, so that nothing of ours locks it.
    blue.exec("CREATE SCHEMA ops; CREATE TABLE ops.load (held bool); INSERT INTO ops.load VALUES (true)").await;
    blue.exec("VACUUM ANALYZE").await;
    (blue, green)
}

/// Parts of a megabyte, by one worker, and what `throttle` says.
fn config(pair: &Pair, throttle: &str) -> TestConfig {
    let mut config = TestConfig::new("gentle", pair);
    config.snapshot = "mode = \"full\"\nworkers = 1\nsplit = \"1MiB\"".to_owned();
    config.with(&format!("[snapshot.throttle]\ninterval = \"100ms\"\n{throttle}"))
}

fn held(status: &Value) -> String {
    status["throttle"]["held"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}

async fn rows_on(green: &Db) -> u64 {
    green.scalar("SELECT coalesce(sum(row_count), 0)::bigint FROM changeover.unit").await.parse().unwrap()
}

async fn assert_copied(mut daemon: Daemon, blue: &Db, green: &Db) {
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    for table in ["t", "small"] {
        assert_eq!(blue.rows(table).await, green.rows(table).await, "{table}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copy_stands_still_while_a_query_says_so_and_goes_on_when_it_does_not() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 4).await;
    let mut daemon = Daemon::start(&config(&pair, "hold_query = \"SELECT held FROM ops.load\""));
    let status = daemon.wait_for("held", |status| !held(status).is_empty());
    assert_eq!(held(&status), "hold_query says true");
    assert!(status["throttle"]["held_since_us"].as_i64().unwrap() > 0, "{status}");
    // One connection asks, however long it takes.
    let asking = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'changeover throttle'";
    assert_eq!(blue.scalar(asking).await, "1");
    let metrics = daemon.metrics();
    assert!(metrics.contains("changeover_snapshot_held{migration=\"gentle\",reason=\"load\"} 1"), "{metrics}");
    // What was in the middle of being copied when the first answer came stays so; nothing else is begun.
    let before = rows_on(&green).await;
    blue.exec("SELECT pg_sleep(1)").await;
    assert!(rows_on(&green).await <= before + 1024, "the copy went on");
    assert_eq!(daemon.status().unwrap()["phase"], "copying");
    // An error holds it as well, and is told.
    blue.exec("ALTER TABLE ops.load RENAME COLUMN held TO holds").await;
    daemon.wait_for("the failure", |status| held(status).contains("hold_query failed, which counts as true"));
    assert!(held(&daemon.status().unwrap()).contains("column \"held\" does not exist"));
    blue.exec("ALTER TABLE ops.load RENAME COLUMN holds TO held").await;
    // So does one that takes too long.
    let blocker = pair.source.connect().await;
    blocker.exec("BEGIN; LOCK TABLE ops.load").await;
    daemon.wait_for("the timeout", |status| held(status).contains("statement timeout"));
    blocker.exec("ROLLBACK").await;
    blue.exec("UPDATE ops.load SET held = false").await;
    let status = daemon.wait_for_phase("streaming");
    assert_eq!(held(&status), "", "{status}");
    assert!(status["throttle"]["held_seconds_total"].as_f64().unwrap() >= 1.0, "{status}");
    assert_eq!(blue.scalar(asking).await, "0", "nobody asks when nothing is copied");
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_is_not_held_in_the_middle_for_longer_than_it_may_be() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 3).await;
    let mut config =
        config(&pair, "hold_query = \"SELECT held FROM ops.load\"\nmax_hold = \"1s\"\nmax_rate = \"64KiB\"");
    // The whole table is one unit, so slow that the first answer finds it in the middle.
    config.snapshot = "mode = \"full\"\nworkers = 1".to_owned();
    blue.exec("UPDATE ops.load SET held = false").await;
    let mut daemon = Daemon::start(&config);
    daemon.wait_for("a unit in the middle", |status| status["snapshot"]["bytes_copied"].as_u64() > Some(100_000));
    blue.exec("UPDATE ops.load SET held = true").await;
    daemon.wait_for("held", |status| !held(status).is_empty());
    // The rate is out of the way: only the hold is left.
    assert_eq!(daemon.json(&["throttle", "--off"])["max_rate_bytes"], Value::Null);
    let deadline = Instant::now() + Duration::from_secs(60);
    while rows_on(&green).await < 3 * 1024 {
        assert!(Instant::now() < deadline, "the unit was held for good: {}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
    let status = daemon.status().unwrap();
    assert_eq!((held(&status).as_str(), &status["phase"]), ("hold_query says true", &Value::from("copying")));
    assert_eq!(rows_on(&green).await, 3 * 1024, "no other unit was begun");
    blue.exec("UPDATE ops.load SET held = false").await;
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn active_sessions_hold_the_copy_and_our_own_do_not_count() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 4).await;
    let mut daemon = Daemon::start(&config(&pair, "max_active_sessions = 2\nmax_rate = \"256KiB\""));
    daemon.wait_for("copied rows", |status| status["snapshot"]["bytes_copied"].as_u64() > Some(100_000));
    assert_eq!(held(&daemon.status().unwrap()), "", "ours were counted");
    let mut sleepers = Vec::new();
    for _ in 0..3 {
        let sleeper = pair.source.connect().await;
        sleeper.exec("BEGIN; SELECT 1").await;
        sleepers.push(sleeper);
    }
    let status = daemon.wait_for("held", |status| !held(status).is_empty());
    assert!(held(&status).starts_with("3 client sessions are active (max_active_sessions is 2)"), "{status}");
    drop(sleepers);
    daemon.wait_for("released", |status| held(status).is_empty());
    daemon.json(&["throttle", "--off"]);
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_by_all_workers_together_and_can_be_changed_while_they_copy() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 6).await;
    let mut config = config(&pair, "max_rate = \"1MiB\"");
    config.snapshot = "mode = \"full\"\nworkers = 3\nsplit = \"1MiB\"".to_owned();
    let mut daemon = Daemon::start(&config);
    let copied = |status: &Value| status["snapshot"]["bytes_copied"].as_u64().unwrap_or(0);
    let first = daemon.wait_for("some rows", |status| copied(status) > 0);
    let began = Instant::now();
    let second = daemon.wait_for("more rows", |status| copied(status) > copied(&first) + (2 << 20));
    let (moved, elapsed) = (copied(&second) - copied(&first), began.elapsed().as_secs_f64());
    // Slower is no wonder on a busy machine; faster is. A burst, and a chunk for each worker, may pass at once.
    let allowed = 1.25 * (1 << 20) as f64 * (elapsed + 1.0);
    assert!((moved as f64) < allowed, "{moved} bytes in {elapsed} s");
    assert_eq!(second["throttle"]["max_rate_bytes"], 1 << 20);
    let output = daemon.command(&["throttle", "--max-rate", "1B"]);
    assert_eq!(output.status.code(), Some(1), "a rate that never ends is refused");
    assert_eq!(daemon.json(&["throttle", "--max-rate", "64KiB"])["max_rate_bytes"], 64 << 10);
    assert_eq!(daemon.status().unwrap()["throttle"]["max_rate_bytes"], 64 << 10);
    // At that rate it would take a minute and a half.
    let text = String::from_utf8(daemon.command(&["throttle", "--off"]).stdout).unwrap();
    assert_eq!(text.trim(), "the copy reads as fast as it can");
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_what_is_under_way_and_begins_nothing_until_it_is_resumed() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 6).await;
    let mut daemon = Daemon::start(&config(&pair, "max_rate = \"512KiB\""));
    daemon.wait_for("copied rows", |status| status["snapshot"]["bytes_copied"].as_u64() > Some(100_000));
    assert_eq!(daemon.json(&["pause"])["paused"], true);
    daemon.json(&["throttle", "--off"]);
    // The unit under way is recorded; after that nothing is read and nothing written.
    // None of ours has a snapshot that keeps blue from clearing dead rows, nor a lock on the tables.
    let idle = "SELECT count(*) FROM pg_stat_activity a WHERE a.application_name LIKE 'changeover %' AND (\
                    a.backend_type = 'client backend' AND (a.state = 'active' OR a.backend_xmin IS NOT NULL) OR EXISTS (\
                    SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.relation = 't'::regclass))";
    let deadline = Instant::now() + Duration::from_secs(30);
    while blue.scalar(idle).await != "0" || rows_on(&green).await == 0 {
        assert!(Instant::now() < deadline, "the unit under way did not end");
        thread::sleep(Duration::from_millis(50));
    }
    let before = rows_on(&green).await;
    assert!(before < 6 * 1024, "{before}: nothing is left to pause");
    blue.exec("SELECT pg_sleep(1)").await;
    assert_eq!(rows_on(&green).await, before);
    // What is written meanwhile reaches rows that are copied and rows that are not.
    blue.exec("UPDATE t SET v = 'changed' WHERE id % 100 = 0; DELETE FROM t WHERE id % 100 = 1").await;
    blue.exec("INSERT INTO t SELECT n, 'new' FROM generate_series(100001, 100100) n").await;
    let status = daemon.status().unwrap();
    assert_eq!((&status["paused"], &status["phase"]), (&Value::from(true), &Value::from("copying")));
    assert!(daemon.metrics().contains("changeover_snapshot_held{migration=\"gentle\",reason=\"pause\"} 1"));
    assert_eq!(daemon.json(&["resume"])["paused"], false);
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_over_after_a_restart() {
    let pair = source_and_target().await;
    let (blue, green) = filled(&pair, 4).await;
    let mut daemon = Daemon::start(&config(&pair, "max_rate = \"256KiB\""));
    daemon.wait_for("copied rows", |status| status["snapshot"]["bytes_copied"].as_u64() > Some(100_000));
    daemon.json(&["pause"]);
    daemon.kill();
    daemon.start_again();
    let status = daemon.wait_for("an answer", |_| true);
    assert_eq!(status["paused"], false);
    daemon.json(&["throttle", "--off"]);
    assert_copied(daemon, &blue, &green).await;
}

/// A streaming standby of a cluster, made by `pg_basebackup`. Gone when dropped.
struct Standby {
    _workspace: Workspace,
    port: u16,
}

impl Standby {
    fn of(primary: &PgCluster) -> Self {
        let mut workspace = Workspace::create("standby").unwrap();
        let data = workspace.dir().join("data");
        let mut backup = workspace.command(primary.programs().program("pg_basebackup"));
        backup.args(["-X", "stream", "-c", "fast", "-R", "-D"]).arg(&data).arg("-d").arg(primary.url("postgres"));
        workspace.run(backup).unwrap_or_else(|error| panic!("{error}"));
        let port = free_port().unwrap();
        let sockets = format!("unix_socket_directories={}", workspace.dir().display());
        let mut server = workspace.command(primary.programs().program("postgres"));
        server.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", &sockets]);
        workspace.start(&mut server).unwrap();
        Self { _workspace: workspace, port }
    }

    async fn connect(&self) -> Db {
        let url = format!("postgres://postgres@127.0.0.1:{}/postgres", self.port);
        let deadline = Instant::now() + Duration::from_secs(60);
        while tokio_postgres::connect(&url, tokio_postgres::NoTls).await.is_err() {
            assert!(Instant::now() < deadline, "the standby does not answer");
            thread::sleep(Duration::from_millis(100));
        }
        Db::connect(&url).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_falls_behind_holds_the_copy_and_our_own_stream_does_not() {
    let mut pair = source_and_target().await;
    let (blue, green) = filled(&pair, 4).await;
    let standby = Standby::of(pair.source.cluster());
    let replica = standby.connect().await;
    let limits = "max_standby_lag = \"1MiB\"\nmax_standby_delay = \"1s\"\nmax_rate = \"256KiB\"";
    let mut daemon = Daemon::start(&config(&pair, limits));
    daemon.wait_for("copied rows", |status| status["snapshot"]["bytes_copied"].as_u64() > Some(100_000));
    replica.exec("SELECT pg_wal_replay_pause()").await;
    // More than both limits; our own slot is as far behind, and does not count.
    blue.exec(
        "CREATE TABLE busy (v text); INSERT INTO busy SELECT repeat(md5(n::text), 30) FROM generate_series(1, 4000) n",
    )
    .await;
    let status = daemon.wait_for("both reasons", |status| {
        held(status).contains("bytes behind (max_standby_lag is 1048576)")
            && held(status).contains("max_standby_delay (1s)")
    });
    assert!(held(&status).starts_with("standby walreceiver is "), "{status}");
    assert_eq!(status["throttle"]["held"].as_array().unwrap().len(), 2, "only the standby is named: {status}");
    replica.exec("SELECT pg_wal_replay_resume()").await;
    daemon.wait_for("released", |status| held(status).is_empty());
    daemon.json(&["throttle", "--off"]);
    assert_copied(daemon, &blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_that_could_not_be_asked_about_are_refused_beforehand() {
    let pair = source_and_target().await;
    let blue = pair.source.connect().await;
    blue.exec("CREATE ROLE mover LOGIN REPLICATION; GRANT CREATE ON DATABASE postgres TO mover").await;
    blue.exec("CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t OWNER TO mover").await;
    let finding = |throttle: &str| {
        let mut config = config(&pair, throttle);
        config.source = config.source.replace("postgres://postgres@", "postgres://mover@");
        let output = Daemon::prepare(&config).command(&["check", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == "source.throttle");
        found.map(|finding| {
            (
                finding["verdict"].as_str().unwrap().to_owned(),
                finding["message"].to_string(),
                finding["remedy"].to_string(),
            )
        })
    };
    assert_eq!(finding("max_rate = \"1MiB\""), None, "a rate asks nothing");
    let (verdict, message, remedy) = finding("max_active_sessions = 5").unwrap();
    assert!(verdict == "fail" && remedy.contains("GRANT pg_read_all_stats TO"), "{message} {remedy}");
    blue.exec("GRANT pg_read_all_stats TO mover").await;
    assert_eq!(finding("max_active_sessions = 5").unwrap().0, "pass");
    assert_eq!(finding("hold_query = \"SELECT count(*) > 100 FROM public.t;\"").unwrap().0, "pass");
    for (query, words) in [
        ("SELECT 1", "returns int4 where boolean is expected"),
        ("SELECT true FROM missing", "does not exist"),
        ("SELECT pg_sleep(9) IS NULL", "statement timeout"),
        ("VALUES (true), (true)", "more than one row"),
        ("WITH x AS (DELETE FROM public.t RETURNING true) SELECT * FROM x", "must be at the top level"),
    ] {
        let (verdict, message, _) = finding(&format!("hold_query = \"{query}\"\nquery_timeout = \"200ms\"")).unwrap();
        assert!(verdict == "fail" && message.contains(words), "{query}: {message}");
    }
}
