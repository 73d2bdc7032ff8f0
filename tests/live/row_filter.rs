//! Only some rows of a table: copied, streamed while they move in and out, compared and cut over; and what is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{Daemon, Db, Pair, TestConfig, source_and_target};

const KEPT: &str = "region = 'eu' AND amount >= 10";

/// `orders` is kept by a condition over plain columns, `items` by one over its key, `notes` whole.
const SCHEMA: &str = "
    CREATE TABLE orders (id int PRIMARY KEY, region text NOT NULL, amount int, note text);
    ALTER TABLE orders ALTER note SET STORAGE external, REPLICA IDENTITY FULL;
    CREATE TABLE items (bucket int, id int, v int, PRIMARY KEY (bucket, id));
    CREATE TABLE notes (id int PRIMARY KEY, v text);
    INSERT INTO orders SELECT n, CASE n % 3 WHEN 0 THEN 'eu' ELSE 'us' END, n % 40, repeat('x', 3000)
        FROM generate_series(1, 3000) n;
    INSERT INTO items SELECT n % 10, n, n FROM generate_series(1, 1000) n;
    INSERT INTO notes SELECT n, 'v' FROM generate_series(1, 100) n";

fn rows() -> String {
    format!("[tables.rows]\n\"public.orders\" = \"{KEPT} -- only ours\"\n\"public.items\" = \"bucket < 5\"")
}

fn config(name: &str, pair: &Pair) -> TestConfig {
    // So slow, and under snapshots so short, that the parts of a table are read under several and settled afterwards.
    let mut config = TestConfig::new(name, pair).with(&rows()).with("[snapshot.throttle]\nmax_rate = \"512KiB\"");
    config.snapshot = "mode = \"full\"\nworkers = 2\nsplit = \"1MiB\"\nmax_snapshot_age = \"1s\"".to_owned();
    config
}

/// Moves rows into the condition and out of it, in every way there is, until it is told to stop; moves made.
async fn moves(blue: Db, stop: Arc<AtomicBool>) -> u64 {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = round * 7 % 3000 + 1;
        // Large values that an UPDATE does not touch travel along.
        blue.exec(&format!("UPDATE orders SET region = CASE region WHEN 'eu' THEN 'us' ELSE 'eu' END WHERE id = {id}"))
            .await;
        blue.exec(&format!("UPDATE orders SET amount = (amount + 13) % 40 WHERE id % 500 = {}", round % 500)).await;
        blue.exec(&format!("UPDATE items SET bucket = (bucket + 3) % 10 WHERE id = {}", round % 1000 + 1)).await;
        blue.exec(&format!(
            "BEGIN; DELETE FROM orders WHERE id = {id}; INSERT INTO orders VALUES ({id}, 'eu', {}, 'again'); COMMIT",
            round % 40
        ))
        .await;
        blue.exec(&format!("UPDATE notes SET v = v || {round} WHERE id = {}", round % 100 + 1)).await;
        round += 1;
    }
    round
}

async fn assert_kept(blue: &Db, green: &Db) {
    for (table, condition) in [("orders", KEPT), ("items", "bucket < 5"), ("notes", "true")] {
        let kept = blue.rows(&format!("(SELECT * FROM {table} WHERE {condition})")).await;
        assert!(!kept.is_empty());
        assert_eq!(kept, green.rows(table).await, "{table}");
    }
}

async fn keeps_only_those_rows(source: u32, target: u32) {
    let pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut load = JoinSet::new();
    load.spawn(moves(pair.source.connect().await, Arc::clone(&stop)));
    let mut daemon = Daemon::start(&config(&format!("kept_{source}"), &pair));
    daemon.wait_for_phase("streaming");
    assert!(daemon.log().contains("settled table=public.orders"), "one snapshot was enough: {}", daemon.log());
    // Under load, and again: by the keys that were written since.
    for _ in 0..2 {
        let verified = daemon.json(&["verify"]);
        assert_eq!(verified["verdict"], "equal", "{verified}");
    }
    stop.store(true, Ordering::Relaxed);
    let rounds = load.join_next().await.unwrap().unwrap();
    assert!(rounds > 10, "{rounds} rounds");
    // A load that went on for long has moved every row in.
    blue.exec("UPDATE orders SET region = 'us' WHERE id = 1").await;
    // TRUNCATE knows no conditions, and needs none.
    blue.exec("TRUNCATE items; INSERT INTO items SELECT n % 10, n, n FROM generate_series(1, 50) n").await;
    daemon.json(&["verify"]);
    daemon.wait_for("everything applied", |status| status["lag_bytes"] == 0);
    assert_kept(&blue, &green).await;

    // A row that only the target has is found, though the source has it too, left out by the condition.
    let left_out = blue.scalar("SELECT min(id) FROM orders WHERE region = 'us'").await;
    green.exec(&format!("INSERT INTO orders SELECT {left_out}, 'us', 1, 'x'")).await;
    let output = daemon.command(&["verify", "--table", "public.orders"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && text.contains(&format!("({left_out}): only on the target")), "{text}");
    green.exec(&format!("DELETE FROM orders WHERE id = {left_out}")).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");

    // Written after the last verification: what is compared inside the pause is compared under the condition too.
    blue.exec("UPDATE orders SET region = 'eu', amount = 20 WHERE id % 10 = 1").await;
    blue.exec("UPDATE orders SET region = 'us' WHERE id % 10 = 2").await;
    // TRUNCATE has taken the statistics along; a gate asks for them.
    green.exec("ANALYZE").await;
    let report = daemon.json(&["cutover", "--yes"]);
    assert_eq!(report["outcome"], "cut_over", "{report}");
    assert_kept(&blue, &green).await;
    daemon.terminate();
    assert!(daemon.command(&["complete"]).status.success());
    // Its end has ended the sessions on blue.
    let blue = pair.source.connect().await;
    assert_eq!(blue.scalar("SELECT count(*) FROM pg_publication").await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_in_and_out_of_the_condition_from_15_to_18() {
    keeps_only_those_rows(15, 18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_move_in_and_out_of_the_condition_from_18_to_18() {
    keeps_only_those_rows(18, 18).await;
}

/// What `check` says under `rows` (and `[source]` keys): verdict, message and remedy of one check.
fn finding(pair: &Pair, rows: &str, source: &str, check: &str) -> Option<(String, String, String)> {
    let daemon = Daemon::prepare(&TestConfig::new("refused", pair).with(&format!("[tables.rows]\n{rows}")));
    if !source.is_empty() {
        let text = std::fs::read_to_string(daemon.config_path()).unwrap();
        std::fs::write(daemon.config_path(), text.replace("[target]", &format!("{source}\n[target]"))).unwrap();
    }
    let output = daemon.command(&["check", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == check);
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
    found.map(|found| (text(found, "verdict"), text(found, "message"), text(found, "remedy")))
}

#[tokio::test]
async fn what_the_server_would_refuse_is_refused_beforehand_with_the_remedy() {
    let pair = Pair::of(15, 15);
    let blue = pair.source.connect().await;
    blue.exec(
        "CREATE TABLE t (id int PRIMARY KEY, region text, at timestamptz);
         CREATE TABLE whole (id int PRIMARY KEY);
         CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
         CREATE FUNCTION mine(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true'",
    )
    .await;
    let check = |rows: &str| finding(&pair, rows, "", "source.row_filters").unwrap();
    for (rows, words, remedy) in [
        (r#""public.t" = "at > now()""#, "mutable functions are not allowed", "immutable functions"),
        (r#""public.t" = "public.mine(id)""#, "User-defined", "immutable functions"),
        (r#""public.t" = "ctid = '(0,1)'""#, "System columns", "own columns"),
        (r#""public.t" = "missing = 1""#, "column \"missing\" does not exist", "own columns"),
        (r#""public.t" = "id IN (SELECT id FROM public.whole)""#, "public.t: ", "own columns"),
        (
            r#""public.t" = "region = 'eu' AND id > 0""#,
            "UPDATE and DELETE would fail on the source: public.t (region)",
            r#"ALTER TABLE "public"."t" REPLICA IDENTITY FULL;"#,
        ),
        (r#""public.nothing" = "true""#, "no table of the migration: public.nothing", "changeover inspect"),
        (r#""public.parts" = "id > 5""#, "no table of the migration: public.parts", "(public.parts_1)"),
    ] {
        let (verdict, message, said) = check(rows);
        assert!(verdict == "fail" && message.contains(words) && said.contains(remedy), "{rows}: {message} → {said}");
    }
    // Nothing is left of having tried.
    assert_eq!(blue.scalar("SELECT count(*) FROM pg_publication").await, "0");
    // The key tells rows apart, but a row that moves in may lack its large values.
    let (verdict, message, _) = check(r#""public.t" = "id > 5""#);
    assert!(verdict == "warn" && message.contains("large enough for TOAST: public.t"), "{message}");
    assert_eq!(check(r#""public.whole" = "id > 5""#).0, "pass");
    blue.exec("ALTER TABLE t REPLICA IDENTITY FULL").await;
    assert_eq!(check(r#""public.t" = "region = 'eu'""#).0, "pass");
}

#[tokio::test]
async fn servers_before_15_are_refused_by_name_and_a_pattern_before_any_server() {
    let pair = Pair::of(14, 15);
    pair.source.connect().await.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let (verdict, message, _) = finding(&pair, r#""public.t" = "id > 5""#, "", "source.row_filters").unwrap();
    assert_eq!(verdict, "fail");
    assert_eq!(message, "row filters need PostgreSQL 15 or later, and the source is 14: public.t");
    for wrong in [r#""public.*" = "id > 5""#, r#""public.t" = " ""#, r#""t" = "true""#] {
        let config = TestConfig::new("wrong", &pair).with(&format!("[tables.rows]\n{wrong}"));
        let output = Daemon::prepare(&config).command(&["check"]);
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && complaint.contains("tables.rows"), "{wrong}: {complaint}");
    }
}

#[tokio::test]
async fn an_adopted_publication_must_carry_the_same_rows() {
    let pair = Pair::of(15, 15);
    let blue = pair.source.connect().await;
    blue.exec("CREATE TABLE t (id int PRIMARY KEY, v varchar(9)); CREATE TABLE u (id int PRIMARY KEY)").await;
    blue.exec("ALTER TABLE t REPLICA IDENTITY FULL").await;
    let source = "publication = \"theirs\"";
    let check = |rows: &str| finding(&pair, rows, source, "source.publication").unwrap();
    blue.exec("CREATE PUBLICATION theirs FOR TABLE t WHERE (v = 'a' AND id > 1), u").await;
    // The same in other words: blanks, brackets, and the cast that the server writes.
    let (verdict, message, _) = check("\"public.t\" = \"(v='a')  and (id>1)\"");
    assert_eq!((verdict.as_str(), message.as_str()), ("pass", "theirs is adopted and holds the rows of tables.rows"));
    let (verdict, message, remedy) = check("\"public.t\" = \"v = 'b' AND id > 1\"");
    assert!(verdict == "fail" && message.ends_with("of public.t"), "{message}");
    assert!(remedy.contains(r#"ADD TABLE ONLY "public"."t" WHERE (v = 'b' AND id > 1);"#), "{remedy}");
    blue.exec(&remedy).await;
    assert_eq!(check("\"public.t\" = \"v = 'b' AND id > 1\"").0, "pass");
    // Rows that are filtered and should not be, and the other way round.
    let (verdict, message, _) = check("\"public.u\" = \"id > 1\"");
    assert!(verdict == "fail" && message.ends_with("of public.t, public.u"), "{message}");
    blue.exec("ALTER PUBLICATION theirs SET TABLE t (id, v), u").await;
    let (verdict, message, _) = check("\"public.u\" = \"id > 1\"");
    assert!(verdict == "fail" && message.ends_with("of public.u"), "{message}");
    blue.exec("DROP PUBLICATION theirs; CREATE PUBLICATION theirs FOR ALL TABLES").await;
    assert_eq!(check("\"public.t\" = \"id > 1\"").0, "fail", "it publishes all rows");
}

#[tokio::test]
async fn kept_rows_whose_parents_are_left_behind_are_warned_of() {
    let pair = Pair::of(15, 15);
    let blue = pair.source.connect().await;
    blue.exec(
        "CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id);
         CREATE TABLE parent_1 PARTITION OF parent FOR VALUES FROM (0) TO (100);
         CREATE TABLE parent_2 PARTITION OF parent FOR VALUES FROM (100) TO (200);
         CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
         INSERT INTO parent SELECT generate_series(1, 150); INSERT INTO child VALUES (1, 20), (2, 120), (3, NULL)",
    )
    .await;
    let check = |rows: &str| finding(&pair, rows, "", "source.filtered_parents").unwrap();
    assert_eq!(check("\"public.parent_1\" = \"id > 10\"").0, "pass");
    let (verdict, message, _) = check("\"public.parent_1\" = \"id > 50\"");
    assert!(verdict == "warn" && message.contains("public.child (child_parent_fkey → public.parent)"), "{message}");
    // The child's own condition keeps only what has its parent.
    assert_eq!(check("\"public.parent_1\" = \"id > 50\"\n\"public.child\" = \"id > 1\"").0, "pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_shot_copy_takes_only_those_rows_from_any_version() {
    let pair = Pair::of(13, 15);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    Daemon::prepare(&config("once", &pair)).json(&["copy"]);
    assert_kept(&blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_goes_on_with_the_rows_it_began_with() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(SCHEMA).await;
    let mut daemon = Daemon::start(&config("changed", &pair));
    daemon.wait_for_phase("streaming");
    daemon.terminate();
    let text = std::fs::read_to_string(daemon.config_path()).unwrap();
    std::fs::write(daemon.config_path(), text.replace("bucket < 5", "bucket < 6")).unwrap();
    let output = daemon.command(&["run"]);
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("carries other rows than [tables] rows says of public.items"), "{complaint}");
    std::fs::write(daemon.config_path(), text).unwrap();
    daemon.start_again();
    blue.exec("UPDATE items SET bucket = 1 WHERE bucket = 9").await;
    let moved = blue.scalar("SELECT count(*) FROM items WHERE bucket = 1").await;
    green.until("SELECT count(*) FROM items WHERE bucket = 1", &moved).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    assert_kept(&blue, &green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_moves_in_without_its_large_value_stops_the_apply_and_is_told() {
    let pair = source_and_target().await;
    let blue = pair.source.connect().await;
    blue.exec(
        "CREATE TABLE t (region text, id int, v text, PRIMARY KEY (region, id)); ALTER TABLE t ALTER v SET STORAGE external;
         INSERT INTO t VALUES ('us', 1, repeat('x', 9000)), ('eu', 2, 'short')",
    )
    .await;
    let config = TestConfig::new("toast", &pair).with("[tables.rows]\n\"public.t\" = \"region = 'eu'\"");
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    blue.exec("UPDATE t SET region = 'eu' WHERE id = 1").await;
    daemon.expect_error("the stream left out a value");
    let status = daemon.wait_for("a halt", |status| status["halted"][0]["part"] == "target");
    let trouble = &status["halted"][0];
    assert!(trouble["error"].as_str().unwrap().contains("apply a new row of public.t"), "{trouble}");
    assert!(trouble["hint"].as_str().unwrap().contains("REPLICA IDENTITY FULL"), "{trouble}");
}
