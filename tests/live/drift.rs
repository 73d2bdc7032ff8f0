//! Blue's schema goes on changing after it was copied.

use serde_json::Value;

use crate::support::{Daemon, TestConfig, source_and_target};

const SCHEMA: &str = "
    CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i;
    CREATE TABLE p (id int, k int, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
    CREATE TABLE p_1 PARTITION OF p FOR VALUES FROM (0) TO (10);
    CREATE TABLE left_out (id int PRIMARY KEY); CREATE TABLE refers (id int PRIMARY KEY REFERENCES left_out);
    CREATE INDEX nobody_finished ON t (v); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'nobody_finished'::regclass";

/// What is asked for as `(is open, detail, remedy)`.
fn gate(daemon: &Daemon) -> (bool, String, String) {
    let output = daemon.command(&["cutover", "--dry-run", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let gates = report["gates"].as_array().unwrap();
    let found = gates.iter().find(|gate| gate["name"] == "schema_equal").unwrap_or_else(|| panic!("{report}"));
    let is_open = found["open"].as_bool().unwrap();
    let all_open = gates.iter().all(|gate| gate["open"] == true);
    assert_eq!(is_open, all_open, "no other gate is closed: {report}");
    assert_eq!(output.status.code(), Some(i32::from(!is_open)));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (is_open, text("detail"), text("remedy"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_to_blue_since_lets_nobody_over_until_green_has_it() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    let named = ["public.t", "public.p*", "public.refers", "public.new*"];
    let include = named.map(str::to_owned).to_vec();
    let mut daemon = Daemon::start(&TestConfig { include, ..TestConfig::new("shop", &pair) });
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    let (is_open, detail, _) = gate(&daemon);
    assert!(is_open, "{detail}");

    // A table that somebody has for himself is not waited for.
    let alone = pair.source.connect().await;
    alone.exec("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await;
    let (_, detail, remedy) = gate(&daemon);
    assert!(detail.contains("lock timeout") && remedy.contains("pg_locks"), "{detail} {remedy}");
    alone.exec("ROLLBACK").await;

    blue.exec(
        "CREATE TABLE new_one (id int PRIMARY KEY); INSERT INTO new_one VALUES (1);
         CREATE TABLE p_2 PARTITION OF p FOR VALUES FROM (10) TO (20); INSERT INTO p VALUES (1, 15);
         CREATE TABLE skipped (id int PRIMARY KEY); ALTER TABLE t ADD COLUMN note text;
         CREATE INDEX later ON t (v); CREATE UNIQUE INDEX one_of_each ON t (id, v); CREATE SEQUENCE free",
    )
    .await;
    let (is_open, detail, remedy) = gate(&daemon);
    assert!(!is_open);
    for name in
        ["table public.new_one came", "table public.p_2 came", "column note", "later", "one_of_each", "public.free"]
    {
        assert!(detail.contains(name), "no {name} in {detail}");
    }
    assert!(!detail.contains("skipped") && !detail.contains("nobody_finished"), "{detail}");
    for statement in remedy.lines().filter(|line| line.ends_with(';')) {
        green.exec(statement).await;
    }
    let (_, detail, remedy) = gate(&daemon);
    let expected = "table public.new_one came since the daemon started, and is not migrated; \
                    table public.p_2 came since the daemon started, and is not migrated";
    assert_eq!(detail, expected, "{remedy}");

    daemon.terminate();
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    let joined = "SELECT count(*)::text FROM changeover.member WHERE table_name IN ('new_one', 'p_2') AND added AND lane = 0 AND step IS NULL";
    green.until(joined, "2").await;
    assert_eq!(
        (green.rows("new_one").await, green.rows("p").await),
        (blue.rows("new_one").await, blue.rows("p").await)
    );
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    let (is_open, detail, _) = gate(&daemon);
    assert!(is_open, "{detail}");
}
