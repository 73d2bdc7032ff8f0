//! Copies that were interrupted inside a table, and snapshots that end in the middle of one.

use std::sync::Arc;
use std::time::Duration;

use changeover::model::{TableName, Xid};
use changeover::schema::{self, Catalog, CopyOptions};
use changeover::snapshot::{self, Progress};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{SLOW, catalog_of, copy, copying, in_order};
use crate::schema::prepared;
use crate::support::{Db, Pair};

/// A table of some 60 parts, whose copy fails at the part that holds row 3000.
const INTERRUPTED: &str = "CREATE TABLE t (id int PRIMARY KEY, code text, pad text);
     INSERT INTO t SELECT n, 'c' || n, repeat('x', 500) FROM generate_series(1, 6000) n";

async fn interrupted(options: &CopyOptions, target: &Db) -> (Catalog, Arc<Progress>) {
    let catalog = catalog_of(options).await;
    schema::copy_pre_data(options, &catalog).await.unwrap();
    target.exec("ALTER TABLE t ADD CONSTRAINT stop CHECK (id <> 3000)").await;
    let progress = Arc::new(Progress::default());
    copy(options, &catalog, &progress).await.unwrap_err();
    target.exec("ALTER TABLE t DROP CONSTRAINT stop").await;
    (catalog, progress)
}

const PARTS: &str = "SELECT part, snapshot, finished_at FROM changeover.unit WHERE table_name = 't' AND part > 0";

#[tokio::test]
async fn a_table_is_gone_on_with_where_its_copy_was_interrupted_whatever_has_changed_since() {
    gone_on_with(prepared(INTERRUPTED).await).await;
}

#[tokio::test]
async fn a_table_that_is_read_in_one_pass_is_gone_on_with_in_another_one() {
    gone_on_with(in_order(INTERRUPTED).await).await;
}

async fn gone_on_with((pair, options): (Pair, CopyOptions)) {
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    let (catalog, progress) = interrupted(&options, &target).await;
    let before = target.query_text(PARTS).await;
    assert!(before.len() > 10, "{} parts were copied before the interruption", before.len());
    // Rows of parts that are there and of parts that are not: new, gone, changed where they are, moved to other blocks,
    // under other keys, under the keys of others, and room made for some of it.
    source
        .exec(
            "UPDATE t SET pad = repeat('y', 480) WHERE id % 10 = 1;
             DELETE FROM t WHERE id % 10 = 2;
             UPDATE t SET id = id + 100000 WHERE id % 10 = 3;
             UPDATE t SET id = id - 1, code = code || 'moved' WHERE id % 20 = 13 OR id % 20 = 3",
        )
        .await;
    source.exec("VACUUM t").await;
    source
        .exec(
            "INSERT INTO t SELECT n, 'again', 'z' FROM generate_series(2, 6000, 30) n;
             UPDATE t SET pad = repeat('w', 700) WHERE id % 10 = 4;
             BEGIN; DELETE FROM t WHERE id = 5; INSERT INTO t VALUES (5, 'back', NULL); COMMIT;
             BEGIN; UPDATE t SET id = -7 WHERE id = 7; UPDATE t SET id = 7 WHERE id = 8; UPDATE t SET id = 8 WHERE id = -7;
             COMMIT",
        )
        .await;
    let handovers = copy(&options, &catalog, &progress).await.unwrap();
    assert_eq!(source.rows("t").await, target.rows("t").await);
    let after = target.query_text(PARTS).await;
    assert!(before.iter().all(|part| after.contains(part)), "a finished part was copied again");
    assert!(after.len() > before.len());
    // One snapshot, the newest, stands for all of it.
    let (first, until) = (&handovers[0].snapshot, handovers[0].until.to_string());
    let newest = "SELECT DISTINCT until FROM changeover.unit WHERE part = (SELECT max(part) FROM changeover.unit)";
    assert_eq!(target.query_text(newest).await, [until]);
    assert!(first.sees(Xid(source.scalar("SELECT max(xmin::text::bigint) FROM t").await.parse().unwrap())));
    let rows = source.scalar("SELECT count(*) FROM t").await;
    assert_eq!(target.scalar("SELECT sum(row_count) FROM changeover.unit").await, rows);
    assert_eq!(progress.read().tables[&TableName::new("public", "t")].rows_copied.to_string(), rows);
}

#[tokio::test]
async fn no_snapshot_is_held_for_much_longer_than_allowed() {
    Box::pin(none_is_held_for_longer(prepared(INTERRUPTED).await)).await;
}

#[tokio::test]
async fn nor_is_that_of_a_pass_over_a_table() {
    Box::pin(none_is_held_for_longer(in_order(INTERRUPTED).await)).await;
}

async fn none_is_held_for_longer((pair, options): (Pair, CopyOptions)) {
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    target.exec(&SLOW.replace("0.01", "0.001")).await;
    let options = snapshot::Options { snapshot_age_max: Some(Duration::from_millis(200)), ..copying(&options) };
    let began = Instant::now();
    let running = snapshot::run(options, &catalog, Arc::default(), CancellationToken::new());
    tokio::pin!(running);
    let oldest = "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) FROM pg_stat_activity
                  WHERE application_name LIKE 'changeover%' AND backend_xmin IS NOT NULL";
    let mut held = 0.0_f64;
    loop {
        tokio::select! {
            outcome = &mut running => break drop(outcome.unwrap()),
            age = source.scalar(oldest) => held = held.max(age.parse().unwrap()),
        }
    }
    let whole = began.elapsed().as_secs_f64();
    assert!(whole > 1.0, "the copy was over in {whole} s, which shows nothing");
    assert!(held > 0.0 && held < whole / 2.0, "a snapshot was held for {held} s of {whole} s");
    assert_eq!(source.rows("t").await, target.rows("t").await);
}

#[tokio::test]
async fn a_table_that_was_truncated_or_rewritten_meanwhile_begins_again() {
    const REFILL: &str = "TRUNCATE t; INSERT INTO t SELECT n, 'new', 'new' FROM generate_series(1, 4000) n";
    for (change, (pair, options)) in [
        (REFILL, prepared(INTERRUPTED).await),
        ("VACUUM FULL t", prepared(INTERRUPTED).await),
        ("VACUUM FULL t", in_order(INTERRUPTED).await),
    ] {
        let (source, target) = (pair.source.connect().await, pair.target.connect().await);
        let (catalog, progress) = interrupted(&options, &target).await;
        source.exec("DELETE FROM t WHERE id % 2 = 0").await;
        source.exec(change).await;
        let began = target.scalar("SELECT clock_timestamp()").await;
        copy(&options, &catalog, &progress).await.unwrap();
        assert_eq!(source.rows("t").await, target.rows("t").await, "{change}");
        let kept = format!("SELECT count(*) FROM changeover.unit WHERE finished_at < '{began}'");
        assert_eq!(target.scalar(&kept).await, "0", "{change}");
    }
}

/// The daemon died behind the last part, before the table was marked as complete.
#[tokio::test]
async fn a_table_whose_parts_are_all_there_is_only_completed() {
    only_completed(prepared(INTERRUPTED).await).await;
    only_completed(in_order(INTERRUPTED).await).await;
}

async fn only_completed((pair, options): (Pair, CopyOptions)) {
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    let (catalog, progress) = interrupted(&options, &target).await;
    source.exec("DELETE FROM t WHERE id % 2 = 0").await;
    copy(&options, &catalog, &progress).await.unwrap();
    source.exec("UPDATE t SET pad = 'late' WHERE id % 3 = 0").await;
    let before = target.query_text(PARTS).await;
    // Parts of several snapshots have to be settled again, parts of one only marked.
    target.exec("UPDATE changeover.unit SET complete = false").await;
    copy(&options, &catalog, &progress).await.unwrap();
    assert_eq!(source.rows("t").await, target.rows("t").await);
    assert_eq!(target.query_text(PARTS).await, before);
    target
        .exec(
            "UPDATE changeover.unit SET complete = false, snapshot = (SELECT snapshot FROM changeover.unit WHERE part = 0);
             UPDATE changeover.split SET base = (SELECT snapshot FROM changeover.unit WHERE part = 0)",
        )
        .await;
    source.exec("UPDATE t SET pad = 'later'").await;
    copy(&options, &catalog, &progress).await.unwrap();
    assert_eq!(target.scalar("SELECT count(*) FROM t WHERE pad = 'later'").await, "0");
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.unit WHERE complete").await, "1");
}

/// Whoever truncates a table waits for the snapshot's lock, everybody else behind him, and the next snapshot as well: it
/// must not be taken while the old one is held.
#[tokio::test]
async fn a_truncate_waits_for_one_snapshot_and_not_for_the_next_one() {
    let (pair, options) = prepared(&format!("{INTERRUPTED}; CREATE TABLE waiting (id int PRIMARY KEY)")).await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    let catalog = catalog_of(&options).await;
    schema::copy_pre_data(&options, &catalog).await.unwrap();
    target.exec(&SLOW.replace("0.01", "0.001")).await;
    // One worker: the empty table comes last, when nobody truncates it any more.
    let options =
        snapshot::Options { snapshot_age_max: Some(Duration::from_millis(200)), workers: 1, ..copying(&options) };
    let running = snapshot::run(options, &catalog, Arc::default(), CancellationToken::new());
    tokio::pin!(running);
    let mut waited = Vec::new();
    loop {
        let truncating = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let began = Instant::now();
            source.exec("TRUNCATE waiting").await;
            began.elapsed()
        };
        tokio::select! {
            outcome = &mut running => break drop(outcome.unwrap()),
            took = truncating, if waited.len() < 3 => waited.push(took),
        }
    }
    assert_eq!(waited.len(), 3, "{waited:?}");
    let longest = waited.iter().max().unwrap();
    assert!(*longest < Duration::from_secs(2), "it waited for {longest:?}, as everybody behind it");
    assert_eq!(source.rows("t").await, target.rows("t").await);
}
