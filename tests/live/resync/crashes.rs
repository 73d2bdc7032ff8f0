//! `kill -9` at every step of it, and at random moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;

use super::world::{
    AGAIN, TABLES, arrives, assert_equal, begin_resync, burst, load, refill, settle, sides, step, wait_for_step,
};
use crate::support::{Daemon, Db, Pair, TestConfig, source_and_target};

struct World {
    pair: Pair,
    source: Db,
    target: Db,
    daemon: Daemon,
    bursts: u64,
}

impl World {
    async fn new(name: &str) -> Self {
        Self::with(name, "").await
    }

    /// `more`: of the configuration.
    async fn with(name: &str, more: &str) -> Self {
        let pair = source_and_target().await;
        let (source, target) = sides(&pair).await;
        let mut daemon = Daemon::start(&TestConfig::new(name, &pair).with(more));
        daemon.wait_for_phase("streaming");
        Self { pair, source, target, daemon, bursts: 0 }
    }

    async fn burst(&mut self) {
        for _ in 0..3 {
            self.bursts += 1;
            burst(&self.source, self.bursts).await;
        }
        refill(&self.source, self.bursts).await;
    }

    /// Kills the daemon at `moment`, with changes before, during and after, lets go of what held it there, and waits for
    /// the end. The others must not have waited.
    async fn killed_at(&mut self, moment: &str, holding: Vec<Db>) {
        wait_for_step(&self.target, moment).await;
        self.burst().await;
        let marker = self.bursts;
        self.source.exec(&format!("INSERT INTO other VALUES (-{marker}, 'others stream')")).await;
        arrives(&self.target, &format!("SELECT count(*) FROM other WHERE id = -{marker}")).await;
        assert_eq!(step(&self.target).await, moment);
        self.daemon.kill();
        self.burst().await;
        for session in holding {
            session.exec("COMMIT").await;
        }
        self.daemon.start_again();
        self.daemon.wait_for_phase("streaming");
        self.burst().await;
        settle(&self.source, &mut self.daemon).await;
        assert_equal(&self.source, &self.target, &TABLES).await;
        assert_eq!(self.target.scalar("SELECT count(*) FROM changeover.position").await, "1");
    }

    async fn on_target(&self, sql: &str) -> Db {
        let session = self.pair.target.connect().await;
        session.exec("BEGIN").await;
        session.exec(sql).await;
        session
    }

    /// A transaction on the source that is open: the copy waits for it.
    async fn open_on_source(&self) -> Db {
        let session = self.pair.source.connect().await;
        session.exec("BEGIN; INSERT INTO audit (what) VALUES ('open')").await;
        session
    }
}

/// `bag` is truncated on the target, `purchase` emptied by DELETE, since others refer to it.
const BOTH: [&str; 2] = ["public.bag", "public.purchase"];
const READS_BAG: &str = "LOCK TABLE bag IN ACCESS SHARE MODE";
const HOLDS_LANE: &str = "SELECT FROM changeover.position WHERE lane = 1 FOR UPDATE";

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_table_is_emptied() {
    let mut world = World::new("at_set_apart").await;
    world.burst().await;
    settle(&world.source, &mut world.daemon).await;
    let reader = world.on_target(READS_BAG).await;
    begin_resync(&world.daemon, &["public.bag"]);
    world.killed_at("set_apart", vec![reader]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_before_the_copy() {
    let mut world = World::new("at_ready").await;
    world.burst().await;
    let open = world.open_on_source().await;
    begin_resync(&world.daemon, &BOTH);
    world.killed_at("ready", vec![open]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_copy() {
    let mut world = World::new("in_copy").await;
    world.burst().await;
    let open = world.open_on_source().await;
    begin_resync(&world.daemon, &BOTH);
    wait_for_step(&world.target, "ready").await;
    let reader = world.on_target(READS_BAG).await;
    open.exec("COMMIT").await;
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'changeover copy' AND wait_event_type = 'Lock'";
    arrives(&world.target, waits).await;
    // The other table is there already, with its record.
    arrives(&world.target, "SELECT count(*) FROM changeover.unit WHERE table_name = 'purchase'").await;
    world.killed_at("ready", vec![reader]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_copy_and_merge() {
    let mut world = World::new("at_copied").await;
    world.burst().await;
    let open = world.open_on_source().await;
    begin_resync(&world.daemon, &BOTH);
    wait_for_step(&world.target, "ready").await;
    let lane = world.on_target(HOLDS_LANE).await;
    open.exec("COMMIT").await;
    world.killed_at("copied", vec![lane]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_after_the_merge() {
    let mut world = World::new("at_merged").await;
    world.burst().await;
    let open = world.open_on_source().await;
    begin_resync(&world.daemon, &BOTH);
    wait_for_step(&world.target, "ready").await;
    let lane = world.on_target(HOLDS_LANE).await;
    open.exec("COMMIT").await;
    wait_for_step(&world.target, "copied").await;
    let no_analyze = world.on_target("LOCK TABLE bag IN SHARE UPDATE EXCLUSIVE MODE").await;
    lane.exec("COMMIT").await;
    world.killed_at("merged", vec![no_analyze]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_at_random_moments_under_load_lose_nothing_and_repeat_nothing() {
    killed_at_random(World::new("random").await).await;
}

/// Blue keeps nothing that the spool holds, so that what the tables' own stream lacks is read from there.
#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_while_blue_may_forget_its_log() {
    killed_at_random(World::with("forgotten", "[spool]\nrelease_source_wal = true").await).await;
}

async fn killed_at_random(mut world: World) {
    let seed =
        std::env::var("CHANGEOVER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("CHANGEOVER_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    clients.spawn(load(world.pair.source.url().to_owned(), 1_000_000, Arc::clone(&stop)));
    let mut killed_in = Vec::new();
    for round in 0..12 {
        if world.daemon.status().is_some_and(|status| status["resync"].is_null()) {
            // It may be refused, when the one before is about to end.
            drop(world.daemon.command(&[&["resync", "--no-wait"], &AGAIN[..]].concat()));
        }
        tokio::time::sleep(Duration::from_millis(rng.u64(0..900))).await;
        killed_in.push(step(&world.target).await);
        world.daemon.kill();
        world.daemon.start_again();
        world.daemon.wait_for(&format!("streaming again ({round})"), |status| status["phase"] == "streaming");
    }
    println!("killed in {killed_in:?}");
    assert!(killed_in.iter().any(|step| !step.is_empty()), "never hit one: {killed_in:?}");
    stop.store(true, Ordering::Relaxed);
    clients.join_next().await.unwrap().unwrap();
    settle(&world.source, &mut world.daemon).await;
    assert_equal(&world.source, &world.target, &TABLES).await;
    assert_eq!(world.daemon.json(&["verify"])["verdict"], "equal");
}
