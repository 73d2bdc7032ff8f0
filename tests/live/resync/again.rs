//! Under load, with everything that a copy may meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use super::world::{
    AGAIN, TABLES, arrives, assert_equal, begin_resync, burst, load, refused, settle, sides, wait_for_step,
};
use crate::support::{Daemon, Pair, TestConfig, source_and_target};

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_copied_again_under_load_and_everything_ends_equal() {
    copied_again_under_load(source_and_target().await, "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_from_13_to_18() {
    copied_again_under_load(Pair::of(13, 18), "").await;
}

/// What the tables' own stream has to read again is in our spool alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_while_blue_may_forget_its_log() {
    copied_again_under_load(source_and_target().await, "[spool]\nrelease_source_wal = true").await;
}

async fn copied_again_under_load(pair: Pair, more: &str) {
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("again", &pair).with(more));
    daemon.wait_for_phase("streaming");
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    clients.spawn(load(pair.source.url().to_owned(), 0, Arc::clone(&stop)));
    for _ in 0..3 {
        let begun = daemon.json(&[&["resync"], &AGAIN[..]].concat());
        assert_eq!(begun["state"], "done", "{begun}");
        assert_eq!(
            begun["tables"].as_array().unwrap().len(),
            5,
            "a partitioned table stands for its partitions: {begun}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let bursts = clients.join_next().await.unwrap().unwrap();
    assert!(bursts > 20, "only {bursts} bursts of load");
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.position").await, "1");
    assert_eq!(target.scalar("SELECT count(*) FROM changeover.member WHERE step IS NOT NULL OR lane <> 0").await, "0");
    burst(&source, 10_000_000).await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
}

/// What somebody did to the target's rows is undone, whatever it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_differs_is_equal_after_it() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("differs", &pair));
    daemon.wait_for_phase("streaming");
    target
        .exec(
            "SET session_replication_role = replica;
             UPDATE purchase SET code = 'spoilt' WHERE id = 5; DELETE FROM purchase WHERE id = 6;
             INSERT INTO purchase (id, customer, code) VALUES (-1, 1, 'surplus'); INSERT INTO bag VALUES (0, 'surplus')",
        )
        .await;
    let output = daemon.command(&["verify", "--json"]);
    assert_eq!(output.status.code(), Some(1), "the test spoilt nothing");
    let done = daemon.json(&["resync", "public.purchase", "public.bag"]);
    assert_eq!(done["state"], "done", "{done}");
    assert_equal(&source, &target, &TABLES).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
}

#[tokio::test(flavor = "multi_thread")]
async fn others_stream_on_while_a_copy_waits_and_say_what_is_left_out() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("waits", &pair));
    daemon.wait_for_phase("streaming");
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    let blocker = pair.source.connect().await;
    blocker.exec("BEGIN; LOCK TABLE purchase IN ACCESS EXCLUSIVE MODE").await;
    begin_resync(&daemon, &["public.purchase"]);
    wait_for_step(&target, "ready").await;
    // The copy waits now. Rows of others arrive, those of the table do not, and no reader sees a part of it.
    source.exec("INSERT INTO other VALUES (-1, 'meanwhile'); UPDATE customer SET version = 77 WHERE id = 3").await;
    arrives(&target, "SELECT count(*) FROM other WHERE id = -1").await;
    arrives(&target, "SELECT count(*) FROM customer WHERE version = 77").await;
    assert_eq!(target.scalar("SELECT count(*) FROM purchase").await, "0");
    let status = daemon.wait_for("the others without lag", |status| status["sinks"][0]["lag_seconds"] == 0.0);
    assert_eq!(status["phase"], "streaming");
    assert_eq!(status["resync"]["tables"][0], "public.purchase", "{status}");
    let state = |name: &str| {
        let tables = status["tables"].as_array().unwrap();
        tables.iter().find(|table| table["table"] == name).unwrap()["state"].clone()
    };
    assert_eq!((state("public.purchase"), state("public.other")), ("copying".into(), "streaming".into()));

    let verified = daemon.json(&["verify"]);
    assert_eq!((&verified["verdict"], &verified["left_out"][0]), (&"equal".into(), &"public.purchase".into()));
    assert_eq!(verified["tables"].as_array().unwrap().len(), TABLES.len() - 1);
    assert!(refused(&daemon, &["verify", "--table", "public.purchase"]).contains("public.purchase is being copied"));
    assert!(refused(&daemon, &["resync", "public.bag"]).contains("a resync is under way (public.purchase: copying)"));
    assert!(refused(&daemon, &["pause"]).contains("a resync is under way"));
    let gates = daemon.command(&["cutover", "--dry-run"]);
    let printed = String::from_utf8_lossy(&gates.stdout).into_owned();
    assert_eq!(gates.status.code(), Some(1), "{printed}");
    assert!(printed.contains("CLOSED  streaming"), "{printed}");

    blocker.exec("COMMIT").await;
    settle(&source, &mut daemon).await;
    burst(&source, 1).await;
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
    // The verdict of before does not stand: the gate asks for a new one.
    let gates = daemon.command(&["cutover", "--dry-run"]);
    assert!(String::from_utf8_lossy(&gates.stdout).contains("CLOSED  verified"));
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    let gates = daemon.command(&["cutover", "--dry-run"]);
    assert_eq!(gates.status.code(), Some(0), "{}", String::from_utf8_lossy(&gates.stdout));
}

/// The applier's hint for a row that is not there: the table is copied again, and the stream goes on without it at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_applier_that_stands_still_over_a_table_goes_on_when_that_is_copied_again() {
    let pair = source_and_target().await;
    let (source, target) = sides(&pair).await;
    let mut daemon = Daemon::start(&TestConfig::new("stands", &pair));
    daemon.wait_for_phase("streaming");
    daemon.expect_error("halted");
    target.exec("SET session_replication_role = replica; DELETE FROM purchase WHERE id = 77").await;
    source
        .exec("UPDATE purchase SET code = 'gone there' WHERE id = 77; INSERT INTO other VALUES (-7, 'behind it')")
        .await;
    let status = daemon.wait_for("the target stands still", |status| status["halted"][0]["part"] == "target");
    assert!(status["halted"][0]["hint"].as_str().unwrap().contains("changeover resync public.purchase"), "{status}");
    let done = daemon.json(&["resync", "public.purchase"]);
    assert_eq!(done["state"], "done", "{done}");
    arrives(&target, "SELECT count(*) FROM other WHERE id = -7").await;
    let status = daemon.status().unwrap();
    assert_eq!(status["halted"].as_array().unwrap().len(), 0, "{status}");
    settle(&source, &mut daemon).await;
    assert_equal(&source, &target, &TABLES).await;
}
