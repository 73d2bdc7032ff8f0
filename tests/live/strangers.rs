//! Somebody else who writes to the target is named within seconds, and what was verified before does not count any more.

use serde_json::Value;

use crate::support::{Daemon, Db, Pair, TestConfig};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v int);
    CREATE TABLE quiet (id int PRIMARY KEY);
    CREATE TABLE \"Tor ten\" (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE part_1 PARTITION OF \"Tor ten\" FOR VALUES FROM (0) TO (10);
    INSERT INTO t SELECT n, 0 FROM generate_series(1, 1000) n; INSERT INTO quiet VALUES (1);
    INSERT INTO \"Tor ten\" SELECT n, n % 10 FROM generate_series(1, 100) n";

fn warned(status: &Value, text: &str) -> bool {
    status["warnings"].as_array().unwrap().iter().any(|it| it["error"].as_str().unwrap().contains(text))
}

async fn watched(green: &Db) {
    // `t`, `quiet`, the partitioned table and its partition.
    green.until("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'changeover_watch_%'", "4").await;
}

fn closed_gates(daemon: &Daemon) -> Vec<String> {
    let output = daemon.command(&["cutover", "--dry-run", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let closed = report["gates"].as_array().unwrap().iter().filter(|gate| gate["open"] == false);
    closed.map(|gate| gate["name"].as_str().unwrap().to_owned()).collect()
}

async fn names_whoever_writes(source: u32, target: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    let mut daemon = Daemon::start(&TestConfig::new(&format!("strangers_{source}"), &pair));
    daemon.wait_for_phase("streaming");
    watched(&green).await;
    blue.exec("UPDATE t SET v = 1; DELETE FROM \"Tor ten\" WHERE id < 5; TRUNCATE quiet; INSERT INTO quiet VALUES (2)")
        .await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    let status = daemon.wait_for("our own writes applied", |status| status["lag_bytes"] == 0);
    assert_eq!(status["warnings"], serde_json::json!([]), "we are nobody else");

    let stranger = pair.target.connect().await;
    stranger.exec("SET application_name = 'billing'; CREATE ROLE clerk; GRANT ALL ON t, \"Tor ten\", quiet TO clerk; SET ROLE clerk").await;
    // One that is rolled back has written nothing.
    stranger.exec("BEGIN; TRUNCATE quiet; ROLLBACK").await;
    stranger.exec("UPDATE t SET v = 1 WHERE id = 7").await;
    stranger.exec("DELETE FROM \"Tor ten\" WHERE id = 50").await;
    let status = daemon.wait_for("the stranger named", |status| {
        warned(status, "somebody else writes to public.t on the target: billing as postgres")
            && warned(status, "public.Tor ten")
    });
    assert!(!warned(&status, "quiet"), "{status}");
    assert!(daemon.log().contains("somebody else writes to the target table="), "{}", daemon.log());

    // Verified before, and not any more: one table was left as it was, the other was not.
    assert!(closed_gates(&daemon).contains(&"verified".to_owned()));
    assert_eq!(daemon.command(&["verify"]).status.code(), Some(1));
    daemon.wait_for("t found equal", |status| !warned(status, "public.t ") && warned(status, "Tor ten"));
    assert!(daemon.command(&["resync", "public.part_1"]).status.success());
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    daemon.wait_for("all found equal", |status| status["warnings"] == serde_json::json!([]));

    // A note that nobody has read yet counts for a cutover too.
    stranger.exec("UPDATE t SET v = 1 WHERE id = 8").await;
    assert!(closed_gates(&daemon).contains(&"verified".to_owned()));
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    green.exec("ANALYZE").await;
    let report = daemon.json(&["cutover", "--yes"]);
    assert_eq!(report["outcome"], "cut_over", "{report}");
    // Green owns the writes: nobody is a stranger any more.
    stranger.exec("UPDATE t SET v = 2 WHERE id = 9").await;
    assert_eq!(green.scalar("SELECT count(*) FROM changeover.stranger_note").await, "0");
    daemon.terminate();
    assert!(daemon.command(&["complete"]).status.success());
    assert_eq!(green.scalar("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal").await, "0");
    assert_eq!(green.scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'changeover'").await, "0");
}

#[tokio::test]
async fn somebody_else_is_named_from_13_to_15() {
    names_whoever_writes(13, 15).await;
}

#[tokio::test]
async fn somebody_else_is_named_from_18_to_18() {
    names_whoever_writes(18, 18).await;
}
