//! Migrations of one name keep out of each other's way: slots and origins are the server's, not a database's.

use crate::support::{Daemon, Db, TestConfig, source_and_target};

const TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 100) n";

/// With the database of that name, which is made, on the server of this URL.
async fn another_database(url: &str, name: &str) -> String {
    Db::connect(url).await.exec(&format!("CREATE DATABASE {name}")).await;
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

/// Each of the three is refused and does nothing. It says `why`, or who leads the other one while that runs.
fn assert_refused(other: &Daemon, why: &str) {
    for command in ["check", "run", "abort"] {
        let (code, said) = other.said(&[command]);
        assert_eq!(code, 1, "{command}: {said}");
        assert!(said.contains(why) || said.contains("of the same server, led by"), "{command}: {said}");
        assert!(said.contains("[migration] name"), "{command}: {said}");
        assert!(!said.contains("changeover abort") && !said.contains("removed"), "{command}: {said}");
    }
}

async fn assert_follows(daemon: &mut Daemon, source: &Db, target: &Db) {
    daemon.wait_for_phase("streaming");
    source.exec("UPDATE t SET v = v + 1").await;
    target.until("SELECT min(v)::text FROM t", &source.scalar("SELECT max(v) FROM t").await).await;
}

#[tokio::test]
async fn another_migration_of_the_same_name_is_refused_and_takes_nothing_away() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(TABLE).await;
    let config = TestConfig::new("shop", &pair);
    let mut daemon = Daemon::start(&config);
    assert_follows(&mut daemon, &source, &target).await;

    let other_source = another_database(pair.source.url(), "other").await;
    Db::connect(&other_source).await.exec(TABLE).await;
    let other_target = another_database(pair.target.url(), "other").await;
    let other = |source: &str, target: &str| {
        let (source, target) = (source.to_owned(), target.to_owned());
        Daemon::prepare(&TestConfig { source, target, ..TestConfig::new("shop", &pair) })
    };
    let other_pair = other(&other_source, &other_target);
    let other_target_only = other(pair.source.url(), &other_target);
    // Whether it runs or not.
    for _ in 0..2 {
        assert_refused(&other_pair, "the slot changeover_shop on the source belongs to its database \"postgres\"");
        assert_refused(&other_target_only, "are for the database \"postgres\" of the server with system identifier");
        daemon.terminate();
    }
    assert_eq!(
        source.scalar("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'changeover_shop'").await,
        "1"
    );
    daemon.start_again();
    assert_follows(&mut daemon, &source, &target).await;
    daemon.terminate();
    assert_eq!(daemon.said(&["abort"]).0, 0);
    assert_eq!(source.scalar("SELECT count(*) FROM pg_publication").await, "0");
    assert_eq!(source.scalar("SELECT count(*) FROM pg_replication_slots").await, "0");
}

#[tokio::test]
async fn two_sources_and_one_target_server_need_two_names() {
    let (pair, second) = (source_and_target().await, source_and_target().await);
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source.exec(TABLE).await;
    second.source.connect().await.exec(TABLE).await;
    let mut daemon = Daemon::start(&TestConfig::new("shop", &pair));
    assert_follows(&mut daemon, &source, &target).await;
    let elsewhere = another_database(pair.target.url(), "other").await;
    let mut other = TestConfig::new("shop", &second);
    other.target.clone_from(&elsewhere);
    assert_refused(&Daemon::prepare(&other), "writes to the database postgres of the same server");

    other.name = "shop_2".to_owned();
    let mut other = Daemon::start(&other);
    assert_follows(&mut other, &second.source.connect().await, &Db::connect(&elsewhere).await).await;
    assert_follows(&mut daemon, &source, &target).await;
}

/// The target database was thrown away, and what is left on the source is nobody's.
#[tokio::test]
async fn what_a_target_that_is_gone_has_left_is_removed_when_nobody_reads_it() {
    let pair = source_and_target().await;
    let source = pair.source.connect().await;
    source.exec(TABLE).await;
    let green = another_database(pair.target.url(), "green").await;
    let config = TestConfig { target: green.clone(), ..TestConfig::new("shop", &pair) };
    let mut daemon = Daemon::start(&config);
    assert_follows(&mut daemon, &source, &Db::connect(&green).await).await;
    // It notices in its own time, and reads on until then.
    let admin = Db::connect(pair.target.url()).await;
    admin.exec("DROP DATABASE green WITH (FORCE)").await;
    admin.exec("CREATE DATABASE green").await;
    let (code, complaint) = Daemon::prepare(&config).said(&["abort"]);
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("reads the slot changeover_shop"), "{complaint}");
    daemon.kill();
    source.until("SELECT count(*) FROM pg_replication_slots WHERE active", "0").await;
    let (code, report) = daemon.said(&["abort"]);
    assert_eq!(code, 0, "{report}");
    assert!(report.contains("removed slot changeover_shop"), "{report}");
    assert_eq!(source.scalar("SELECT count(*) FROM pg_publication").await, "0");
}
