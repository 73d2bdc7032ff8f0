//! Tables that join and leave by the configuration.

use std::fs;

use super::world::{TABLES, arrives, assert_equal, burst, settle, sides, wait_for_step};
use crate::support::{Daemon, Db, TestConfig, source_and_target};

/// Rewrites `[tables] include` for the next start.
fn include(daemon: &Daemon, before: &str, after: &str) {
    let text = fs::read_to_string(daemon.config_path()).unwrap();
    assert!(text.contains(before), "{text}");
    fs::write(daemon.config_path(), text.replace(before, after)).unwrap();
}

const OLD: &str = r#"include = ["public.*"]"#;
const NEW: &str = r#"include = ["public.*", "late.*"]"#;

/// With all that a table may bring along, and an existing one that refers to it.
const LATE: &str = "
    CREATE SCHEMA late;
    CREATE TYPE late.mood AS ENUM ('sad', 'ok');
    CREATE DOMAIN late.positive AS int CHECK (value > 0);
    CREATE FUNCTION late.shout(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT upper($1)';
    CREATE TABLE late.comer (
        id serial PRIMARY KEY, mood late.mood NOT NULL, weight late.positive, body text,
        loud text GENERATED ALWAYS AS (late.shout(body)) STORED, customer bigint REFERENCES public.customer);
    COMMENT ON TABLE late.comer IS 'came late';
    CREATE INDEX comer_by_body ON late.comer (body);
    CREATE TABLE late.root (id int, place int, PRIMARY KEY (place, id)) PARTITION BY LIST (place);
    CREATE TABLE late.leaf PARTITION OF late.root FOR VALUES IN (1);
    INSERT INTO late.comer (mood, weight, body, customer) SELECT 'ok', n, 'before', n FROM generate_series(1, 50) n;
    INSERT INTO late.root SELECT n, 1 FROM generate_series(1, 20) n;";

async fn shape(db: &Db) -> Vec<String> {
    let sql = "SELECT conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
               WHERE connamespace = 'late'::regnamespace AND contype IN ('p', 'f') ORDER BY 1";
    let mut shape = db.query_text(sql).await;
    shape.extend(db.query_text("SELECT indexdef FROM pg_indexes WHERE schemaname = 'late' ORDER BY 1").await);
    shape.push(db.scalar("SELECT obj_description('late.comer'::regclass)").await);
    shape
}

/// PITFALLS 20: what a transaction wrote before the table was published is in no stream, and a snapshot taken before it
/// ends does not see it.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_joins_with_a_transaction_open_across_the_change_of_the_publication() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("joins", &pair));
    daemon.wait_for_phase("streaming");
    source.exec(LATE).await;
    let open = pair.source.connect().await;
    open.exec("BEGIN; INSERT INTO late.comer (id, mood, body) VALUES (1001, 'sad', 'before it was published')").await;
    daemon.terminate();
    include(&daemon, OLD, NEW);
    daemon.start_again();
    wait_for_step(&target, "ready").await;
    let published = "SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'late'";
    assert_eq!(source.scalar(published).await, "2");
    open.exec("INSERT INTO late.comer (id, mood, body) VALUES (1002, 'ok', 'after it was published')").await;
    source.exec("INSERT INTO late.comer (id, mood, body) VALUES (1003, 'ok', 'meanwhile')").await;
    burst(&source, 1).await;
    arrives(&target, "SELECT count(*) FROM other WHERE id = 1000010").await;
    assert_eq!(target.scalar("SELECT count(*) FROM late.comer").await, "0");
    open.exec("UPDATE late.comer SET body = 'changed' WHERE id = 1002; COMMIT").await;
    settle(&source, &mut daemon).await;
    let late = ["late.comer", "late.leaf"];
    assert_equal(&source, &target, &late).await;
    assert_eq!(target.scalar("SELECT count(*) FROM late.comer WHERE id > 1000").await, "3");
    assert_eq!(shape(&source).await, shape(&target).await);
    source.exec("DELETE FROM late.comer WHERE id < 10; UPDATE late.root SET id = id + 100").await;
    burst(&source, 2).await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &late).await;
    assert_equal(&source, &target, &TABLES).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    // Another start adds nothing.
    daemon.terminate();
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    burst(&source, 3).await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
}

/// Killed while it joins, it joins all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_joins_over_a_crash() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("joins_again", &pair));
    daemon.wait_for_phase("streaming");
    source.exec(LATE).await;
    let open = pair.source.connect().await;
    open.exec("BEGIN; INSERT INTO late.comer (id, mood) VALUES (1001, 'sad')").await;
    daemon.kill();
    include(&daemon, OLD, NEW);
    daemon.start_again();
    wait_for_step(&target, "ready").await;
    daemon.kill();
    source.exec("INSERT INTO late.comer (id, mood) VALUES (1002, 'sad')").await;
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    open.exec("COMMIT").await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &["late.comer", "late.leaf"]).await;
    assert_eq!(shape(&source).await, shape(&target).await);
}

/// A leaf of a partitioned table that is there, whose indexes are made by attaching it.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_partition_joins_its_table() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("leaf", &pair));
    daemon.wait_for_phase("streaming");
    source
        .exec("CREATE TABLE piece_3 PARTITION OF piece FOR VALUES IN (3); INSERT INTO piece VALUES (1, 3, 'new')")
        .await;
    daemon.terminate();
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    settle(&source, &mut daemon).await;
    source
        .exec("UPDATE piece SET place = 3 WHERE id BETWEEN 10 AND 40; UPDATE piece SET body = 'x' WHERE place = 3")
        .await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &["piece", "piece_1", "piece_2", "piece_3"]).await;
    let keys = "SELECT count(*) FROM pg_index WHERE indrelid = 'piece_3'::regclass AND indisprimary AND indisvalid";
    assert_eq!(target.scalar(keys).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_leaves_and_comes_back() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    source.exec(LATE).await;
    let mut config = TestConfig::new("leaves", &pair);
    config.include.push("late.*".to_owned());
    let mut daemon = Daemon::start(&config);
    daemon.wait_for_phase("streaming");
    settle(&source, &mut daemon).await;
    let shape_before = shape(&target).await;
    daemon.terminate();
    source.exec("INSERT INTO late.comer (id, mood) VALUES (2001, 'sad')").await;
    include(&daemon, NEW, OLD);
    daemon.start_again();
    daemon.wait_for_phase("streaming");
    source.exec("INSERT INTO late.comer (id, mood) VALUES (2002, 'sad')").await;
    burst(&source, 1).await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
    assert_eq!(source.scalar("SELECT count(*) FROM pg_publication_tables WHERE schemaname = 'late'").await, "0");
    assert_eq!(target.scalar("SELECT count(*) FROM late.comer").await, "50", "it stays as it was");
    let kept = "SELECT (SELECT count(*) FROM changeover.member WHERE table_schema = 'late')
                     + (SELECT count(*) FROM changeover.unit WHERE table_schema = 'late')";
    assert_eq!(target.scalar(kept).await, "0");
    assert!(daemon.log().contains("left the migration: its table on the target stays as it is"));
    assert_eq!(daemon.status().unwrap()["tables"].as_array().unwrap().len(), TABLES.len());

    // The table on the target is not ours any more: it is not written over, and what to do is said.
    daemon.expect_error("halted");
    daemon.terminate();
    include(&daemon, OLD, NEW);
    daemon.start_again();
    let status = daemon.wait_for("a refusal", |status| status["halted"][0]["part"] == "resync");
    assert!(status["halted"][0]["error"].as_str().unwrap().contains("there already"), "{status}");
    target.exec("DROP TABLE late.comer; DROP TABLE late.root").await;
    daemon.json(&["resume"]);
    settle(&source, &mut daemon).await;
    source.exec("UPDATE late.comer SET body = 'back' WHERE id = 2001").await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &["late.comer", "late.leaf"]).await;
    assert_eq!(shape(&target).await, shape_before, "indexes and keys are built again");
}
