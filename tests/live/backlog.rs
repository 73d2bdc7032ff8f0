//! A daemon that was away for long: what blue wrote meanwhile comes in binary form where every type is known, and as text
//! from the first column on that is not.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::support::{Daemon, Db, Pair, TestConfig};

const SCHEMA: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok');
    CREATE TABLE t (id bigint PRIMARY KEY, n numeric, at timestamptz, a int[], j jsonb, b bytea);
    CREATE TABLE bare (id int, f float8); ALTER TABLE bare REPLICA IDENTITY FULL;";

async fn write(source: &Db, from: u32) {
    let to = from + 299;
    source
        .exec(&format!(
            "INSERT INTO t SELECT i, i * 1.50, '2020-02-29'::timestamptz + i * interval '1.5 s', ARRAY[i, NULL], jsonb_build_object('k', i), decode(md5(i::text), 'hex') FROM generate_series({from}, {to}) i;
             UPDATE t SET n = -n, a = a || 7 WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 0;
             UPDATE t SET id = id + 100000 WHERE id = {from} + 1;
             INSERT INTO bare VALUES ({from}, 0.1), ({from}, 0.1), ({to}, 1e20); DELETE FROM bare WHERE ctid = (SELECT min(ctid) FROM bare WHERE id = {from});
             UPDATE bare SET f = f / 3 WHERE id = {to}"
        ))
        .await;
}

async fn caught_up(source: &Db, target: &Db, daemon: &mut Daemon, columns: &str) {
    source.exec("INSERT INTO bare VALUES (-1, -1)").await;
    while target.scalar("SELECT count(*) FROM bare WHERE id = -1").await == "0" {
        assert!(daemon.is_running(), "{}", daemon.log());
        sleep(Duration::from_millis(20)).await;
    }
    source.exec("DELETE FROM bare WHERE id = -1").await;
    target.until("SELECT count(*) FROM bare WHERE id = -1", "0").await;
    for table in [format!("(SELECT {columns} FROM t)"), "bare".to_owned()] {
        assert_eq!(source.rows(&table).await, target.rows(&table).await, "{table}");
    }
}

/// How the sessions of the stream took their values, newest last.
fn sessions(log: &str) -> Vec<bool> {
    let begins = |line: &&str| line.contains("source streams") || line.contains("source's backlog is read in bulk");
    log.lines().filter(begins).map(|line| line.contains("binary=true")).collect()
}

/// The session that took the backlog ends when the sinks have confirmed it.
async fn until_streamed(daemon: &Daemon) {
    let began = Instant::now();
    while sessions(&daemon.log()).last() != Some(&false) {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", daemon.log());
        sleep(Duration::from_millis(20)).await;
    }
}

/// Read in bulk, or streamed.
async fn migrated(major: u32, bulk: &str) -> (Pair, Db, Db, Daemon) {
    let pair = Pair::of(major, major);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(SCHEMA).await;
    write(&source, 1).await;
    let mut daemon = Daemon::start(&TestConfig { bulk: bulk.to_owned(), ..TestConfig::new("backlog", &pair) });
    daemon.wait_for_phase("streaming");
    daemon.terminate();
    (pair, source, target, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_known_types_comes_in_binary_form() {
    for (major, bulk) in [(14, "0"), (14, "256MiB"), (18, "0"), (18, "256MiB")] {
        let (_pair, source, target, mut daemon) = migrated(major, bulk).await;
        write(&source, 1001).await;
        source.fill_log("INSERT INTO bare VALUES (0, 0)").await;
        write(&source, 2001).await;
        daemon.start_again();
        caught_up(&source, &target, &mut daemon, "*").await;
        until_streamed(&daemon).await;
        let sessions = sessions(&daemon.log());
        assert_eq!(sessions[sessions.len() - 2..], [true, false], "{}", daemon.log());
        // What the other session sends is no less than what it would have been.
        write(&source, 3001).await;
        caught_up(&source, &target, &mut daemon, "*").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_that_the_log_still_has_and_whose_binary_form_is_unknown_makes_it_come_as_text() {
    for bulk in ["0", "256MiB"] {
        let (_pair, source, target, mut daemon) = migrated(16, bulk).await;
        write(&source, 1001).await;
        source.exec("ALTER TABLE t ADD m mood DEFAULT 'ok'").await;
        target.exec("ALTER TABLE t ADD m mood DEFAULT 'ok'").await;
        write(&source, 2001).await;
        source.fill_log("INSERT INTO bare VALUES (0, 0)").await;
        source.exec("ALTER TABLE t DROP m").await;
        write(&source, 3001).await;
        daemon.start_again();
        caught_up(&source, &target, &mut daemon, "id, n, at, a, j, b").await;
        until_streamed(&daemon).await;
        let sessions = sessions(&daemon.log());
        assert!(sessions.contains(&true) && sessions.last() == Some(&false), "{}", daemon.log());
        assert!(daemon.log().contains("which is taken as text"), "{}", daemon.log());
        assert_eq!(target.scalar("SELECT count(*) FROM t WHERE m IS DISTINCT FROM 'ok'").await, "0");
    }
}
