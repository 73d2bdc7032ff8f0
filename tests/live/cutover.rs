//! Cutovers between two real servers. A native subscription stands in for the applier, so that what is seen here is
//! the cutover's own doing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use changeover::cutover::{
    Lacking, Lag, Options, Outcome, Owner, Parts, PgBouncer as PoolerRouter, PortFuture, Ports, Report, Router,
    RouterFuture, recover, run,
};
use changeover::demo::{PgBouncer, PoolerOptions, Upstream};
use changeover::model::Lsn;
use changeover::verify::{DirtyKeys, Progress, verify};
use changeover::wire::{Endpoint, Session};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{Db, Pair, source_and_target};
use crate::verify::{Still, keys, options as verify_options, table};

/// Blue and green with the same rows, green following by a native subscription.
struct Stage {
    pair: Pair,
    blue: Db,
    green: Db,
    dirty: DirtyKeys,
}

const SCHEMA: &str = "CREATE TABLE t (id bigserial PRIMARY KEY, who text, n bigint); \
    CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY HASH (id); \
    CREATE TABLE parts_0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0); \
    INSERT INTO t (who, n) SELECT 'before', g FROM generate_series(1, 1000) AS g; INSERT INTO parts VALUES (1)";

impl Stage {
    async fn set() -> Self {
        let pair = source_and_target().await;
        let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
        for db in [&blue, &green] {
            db.exec(SCHEMA).await;
            db.exec("ANALYZE").await;
        }
        green.exec(include_str!("../../schemas/target.sql")).await;
        blue.exec("CREATE PUBLICATION p FOR TABLE t, parts").await;
        let subscription = format!(
            "CREATE SUBSCRIPTION s CONNECTION '{}' PUBLICATION p WITH (copy_data = false, synchronous_commit = local)",
            conninfo(pair.source.url())
        );
        green.exec(&subscription).await;
        let dirty = keys(vec![
            table("t", &["id", "who", "n"], &[("id", "bigint")]),
            table("parts_0", &["id"], &[("id", "integer")]),
        ]);
        let progress = Arc::new(Progress::default());
        verify(&verify_options(&pair), &Still::new(0), &dirty, &progress).await.unwrap();
        Self { pair, blue, green, dirty }
    }

    fn options(&self) -> Options {
        Options {
            verify: verify_options(&self.pair),
            max_pause: Duration::from_secs(5),
            max_lag_bytes: 1 << 30,
            dry_run: false,
        }
    }

    async fn run(&self, options: &Options, ports: &Pipe, routers: &[Box<dyn Router>]) -> Report {
        let parts =
            Parts { ports, aligner: &Still::new(0), dirty: &self.dirty, routers, cancel: CancellationToken::new() };
        run(options, parts).await.unwrap()
    }

    async fn recover(&self, routers: &[Box<dyn Router>]) -> (Owner, bool) {
        let options = verify_options(&self.pair);
        let recovered = recover(&options.source, &options.target, &options.migration, routers).await.unwrap();
        (recovered.owner, recovered.finished)
    }

    async fn pipe(&self) -> Pipe {
        Pipe { blue: self.pair.source.connect().await, stuck: Stuck::default(), failing: None }
    }

    async fn blue_takes_writes(&self) -> bool {
        let writes =
            ["INSERT INTO t (who, n) VALUES ('x', 0)", "UPDATE parts SET id = id", "DELETE FROM parts_0 WHERE id = 9"];
        let mut taken = Vec::new();
        for write in writes {
            let written = self.blue.batch_execute(write).await;
            if let Err(error) = &written {
                assert_eq!(error.code().unwrap().code(), "25006", "{error:?}");
            }
            taken.push(written.is_ok());
        }
        assert!(taken.iter().all(|one| *one == taken[0]), "one owner: {taken:?}");
        taken[0]
    }

    /// Nothing of a fence, lifted or not.
    async fn assert_blue_is_clean(&self) {
        let left = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'changeover%'";
        assert_eq!(self.blue.scalar(left).await, "0");
        assert_eq!(self.blue.scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'changeover'").await, "0");
    }
}

fn conninfo(url: &str) -> String {
    let endpoint = Endpoint::parse(url).unwrap();
    format!("host={} port={} user={} dbname={}", endpoint.host(), endpoint.port(), endpoint.user(), endpoint.dbname())
}

/// Where a step stops for good, as if the daemon had been killed there.
#[derive(Clone, Default)]
struct Stuck {
    at: Option<&'static str>,
    reached: Arc<Notify>,
    go_on: Arc<Notify>,
}

impl Stuck {
    fn at(step: &'static str) -> Self {
        Self { at: Some(step), ..Self::default() }
    }

    async fn pass(&self, step: &str) {
        if self.at == Some(step) {
            self.reached.notify_one();
            self.go_on.notified().await;
        }
    }
}

struct Pipe {
    blue: Db,
    stuck: Stuck,
    failing: Option<&'static str>,
}

impl Pipe {
    fn fail(&self, step: &'static str) -> Result<(), changeover::cutover::PortError> {
        if self.failing == Some(step) { Err("planted".into()) } else { Ok(()) }
    }

    /// The steps measure themselves before the pause; what is planted must wait for the pause.
    async fn in_pause(&self) -> bool {
        self.blue.scalar("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'changeover_fence%'").await != "0"
    }
}

impl Ports for Pipe {
    fn streaming(&self) -> Result<(), String> {
        Ok(())
    }

    fn lag(&self) -> Lag {
        Lag::default()
    }

    fn drained(&self, barrier: Lsn) -> PortFuture<'_, ()> {
        Box::pin(async move {
            if self.in_pause().await {
                self.stuck.pass("drain").await;
                self.fail("drain")?;
            }
            let reached = format!("SELECT coalesce(bool_or(flush_lsn >= '{barrier}'), false) FROM pg_stat_replication");
            while self.blue.scalar(&reached).await != "t" {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(())
        })
    }

    fn lacking<'a>(&'a self, _: &'a Session, _: &'a Session) -> PortFuture<'a, Vec<Lacking>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn set_sequences<'a>(&'a self, source: &'a Session, target: &'a Session) -> PortFuture<'a, usize> {
        Box::pin(async move {
            if self.in_pause().await {
                self.stuck.pass("sequences").await;
                self.fail("sequences")?;
            }
            let row = source.query_one("SELECT last_value FROM public.t_id_seq", &[]).await?;
            let value: i64 = row.get(0);
            target.execute("SELECT setval('public.t_id_seq', $1)", &[&(value + 32)]).await?;
            Ok(1)
        })
    }
}

/// Writes down what it is asked for.
#[derive(Clone, Default)]
struct Diary {
    asked: Arc<Mutex<Vec<&'static str>>>,
    stuck: Stuck,
    failing: Arc<Mutex<Option<&'static str>>>,
}

impl Diary {
    fn routers(&self) -> Vec<Box<dyn Router>> {
        vec![Box::new(self.clone())]
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().clone()
    }

    fn ask(&self, step: &'static str) -> RouterFuture<'_> {
        Box::pin(async move {
            self.asked.lock().unwrap().push(step);
            self.stuck.pass(step).await;
            let failing = self.failing.lock().unwrap().take_if(|failing| *failing == step);
            if failing.is_some() {
                return Err(changeover::cutover::RouterError::NoAnswer(Duration::ZERO));
            }
            Ok(())
        })
    }
}

impl Router for Diary {
    fn name(&self) -> String {
        "diary".to_owned()
    }

    fn check(&self) -> RouterFuture<'_> {
        Box::pin(async { Ok(()) })
    }

    fn hold(&self) -> RouterFuture<'_> {
        self.ask("hold")
    }

    fn flip(&self) -> RouterFuture<'_> {
        self.ask("flip")
    }

    fn release(&self) -> RouterFuture<'_> {
        self.ask("release")
    }
}

/// Writes by `client` until told to stop; answers with the numbers it was told are committed, and the errors it saw.
async fn write(url: String, client: usize, stop: Arc<AtomicBool>) -> (Vec<u64>, Vec<String>) {
    let db = Db::connect(&url).await;
    let (mut committed, mut errors) = (Vec::new(), Vec::new());
    for n in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sql = format!("BEGIN; INSERT INTO public.t (who, n) VALUES ('client {client}', {n}); COMMIT");
        match db.simple_query(&sql).await {
            Ok(_) => committed.push(n),
            Err(error) => {
                errors.push(error.code().map_or("none", |code| code.code()).to_owned());
                drop(db.simple_query("ROLLBACK").await);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
    (committed, errors)
}

/// A pooler whose database `shop` leads to blue, and the router that can lead it to green.
fn pooled(stage: &Stage) -> (PgBouncer, Box<dyn Router>) {
    let (blue, green) = (verify_options(&stage.pair).source, verify_options(&stage.pair).target);
    let upstream = Upstream {
        name: "shop".to_owned(),
        host: blue.host().to_string(),
        port: blue.port(),
        dbname: blue.dbname().to_owned(),
    };
    let pooler = PgBouncer::start(&PoolerOptions { databases: vec![upstream], pool_size: 8 }).unwrap();
    let to_green = format!("host={} port={} dbname={} user=postgres", green.host(), green.port(), green.dbname());
    let console = Endpoint::parse(&pooler.admin_url()).unwrap();
    let router = PoolerRouter::new(console, pooler.databases_file(), "shop".to_owned(), to_green);
    (pooler, Box::new(router))
}

#[tokio::test]
async fn clients_behind_a_pooler_see_no_error_and_lose_no_write() {
    let stage = Stage::set().await;
    let (pooler, router) = pooled(&stage);
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..6 {
        clients.spawn(write(pooler.url("shop"), client, Arc::clone(&stop)));
    }
    let pipe = stage.pipe().await;
    let report = stage.run(&stage.options(), &pipe, &[router]).await;
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    assert_eq!((report.outcome, report.owner), (Outcome::CutOver, Owner::Green));
    assert!(report.pause_ms.unwrap() < 1000.0);
    // Some more on green.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut told = Vec::new();
    while let Some(client) = clients.join_next().await {
        let (committed, errors) = client.unwrap();
        assert_eq!(errors, Vec::<String>::new());
        told.push(committed.len());
    }
    let on_green = stage.green.scalar("SELECT count(*) FROM t WHERE who LIKE 'client%'").await;
    assert_eq!(on_green, told.iter().sum::<usize>().to_string());
    let on_blue = stage.blue.scalar("SELECT count(*) FROM t WHERE who LIKE 'client%'").await;
    assert!(on_blue.parse::<usize>().unwrap() < told.iter().sum(), "the last writes went to green only");
    assert!(!stage.blue_takes_writes().await);
    assert_eq!(stage.recover(&[]).await, (Owner::Green, false));
}

#[tokio::test]
async fn a_transaction_that_does_not_end_keeps_nobody_else_waiting_for_long() {
    let stage = Stage::set().await;
    let (pooler, router) = pooled(&stage);
    let open = Db::connect(&pooler.url("shop")).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..3 {
        clients.spawn(write(pooler.url("shop"), client, Arc::clone(&stop)));
    }
    let pipe = stage.pipe().await;
    let options = Options { max_pause: Duration::from_millis(1300), ..stage.options() };
    open.exec("BEGIN; INSERT INTO public.t (who, n) VALUES ('slow', 1)").await;
    let report = stage.run(&options, &pipe, &[router]).await;
    assert_eq!((report.outcome, report.owner), (Outcome::Aborted, Owner::Blue), "{report:?}");
    assert_eq!(report.reason.as_deref(), Some("the longest pause had passed in the step hold"));
    open.exec("COMMIT").await;
    let before: u64 = stage.blue.scalar("SELECT count(*) FROM t").await.parse().unwrap();
    while stage.blue.scalar("SELECT count(*) FROM t").await.parse::<u64>().unwrap() < before + 20 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        assert_eq!(client.unwrap().1, Vec::<String>::new());
    }
    stage.assert_blue_is_clean().await;
}

#[tokio::test]
async fn a_commit_without_an_answer_is_looked_up_and_not_guessed() {
    let stage = Stage::set().await;
    let (diary, pipe) = (Diary::default(), stage.pipe().await);
    // Whoever decides takes this lock: now nobody can.
    let other = stage.pair.target.connect().await;
    other.exec("SELECT pg_advisory_lock(hashtextextended('changeover cutover shop', 0))").await;
    let release = async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        // The commit, given up by the daemon and still on the server, and the look at what became of it.
        stage.green.until(waiting, "2").await;
        other.exec("SELECT pg_advisory_unlock_all()").await;
    };
    let (options, routers) = (stage.options(), diary.routers());
    let (report, ()) = tokio::join!(stage.run(&options, &pipe, &routers), release);
    let committed = stage.green.scalar("SELECT count(*) FROM changeover.journal WHERE step = 'committed'").await == "1";
    assert_eq!(report.owner == Owner::Green, committed, "{report:?}");
    assert_eq!(diary.asked(), ["hold", if committed { "flip" } else { "release" }]);
    assert_eq!(stage.blue_takes_writes().await, !committed);
}

#[tokio::test]
async fn no_write_follows_the_fence_position() {
    let stage = Stage::set().await;
    stage.blue.exec("SELECT pg_create_logical_replication_slot('witness', 'test_decoding')").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..4 {
        clients.spawn(write(stage.pair.source.url().to_owned(), client, Arc::clone(&stop)));
    }
    let pipe = stage.pipe().await;
    let report = stage.run(&stage.options(), &pipe, &[]).await;
    assert_eq!(report.outcome, Outcome::CutOver, "{report:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.store(true, Ordering::Relaxed);
    let mut told = 0;
    while let Some(client) = clients.join_next().await {
        let (committed, errors) = client.unwrap();
        told += committed.len();
        assert!(!errors.is_empty() && errors.iter().all(|code| code == "25006"), "{errors:?}");
    }
    let fence = report.fence_position.unwrap();
    let changes = "SELECT count(*) FILTER (WHERE data LIKE 'table public.t:%' AND lsn >= '{}'), \
         count(*) FILTER (WHERE data LIKE 'table public.t: INSERT%') FROM pg_logical_slot_peek_changes('witness', NULL, NULL)";
    assert_eq!(stage.blue.query_text(&changes.replace("{}", &fence)).await, [format!("0|{told}")]);
    assert_eq!(stage.green.rows("t").await, stage.blue.rows("t").await);
}

#[tokio::test]
async fn every_failure_before_the_commit_point_leaves_blue_as_it_was() {
    let stage = Stage::set().await;
    for failing in ["hold", "drain", "sequences", "different", "overdue"] {
        let diary = Diary::default();
        *diary.failing.lock().unwrap() = (failing == "hold").then_some("hold");
        let mut pipe = stage.pipe().await;
        pipe.failing = Some(failing);
        let mut options = stage.options();
        if failing == "overdue" {
            options.max_pause = Duration::from_millis(700);
            pipe.stuck = Stuck::at("drain");
        }
        if failing == "different" {
            // Written on green by somebody else, and touched on blue.
            stage.green.exec("UPDATE t SET n = -1 WHERE id = 7").await;
            crate::verify::touch(&stage.dirty, &crate::verify::relation("t", &["id"]), &["7"]);
        }
        let report = stage.run(&options, &pipe, &diary.routers()).await;
        if failing == "different" {
            // The gate sees it before anybody is held.
            assert_eq!((report.outcome, diary.asked()), (Outcome::Refused, vec![]), "{report:?}");
        } else {
            assert_eq!((report.outcome, report.owner), (Outcome::Aborted, Owner::Blue), "{failing}: {report:?}");
            assert_eq!(diary.asked(), ["hold", "release"], "{failing}");
            assert!(report.reason.is_some(), "{failing}");
        }
        assert!(stage.blue_takes_writes().await, "{failing}");
        stage.assert_blue_is_clean().await;
        assert_eq!(stage.recover(&diary.routers()).await, (Owner::Blue, false), "{failing}");
        if failing == "different" {
            stage.green.exec("UPDATE t SET n = 7 WHERE id = 7").await;
            let progress = Arc::new(Progress::default());
            verify(&verify_options(&stage.pair), &Still::new(0), &stage.dirty, &progress).await.unwrap();
        }
    }
    let pipe = stage.pipe().await;
    let report = stage.run(&stage.options(), &pipe, &[]).await;
    assert_eq!(report.outcome, Outcome::CutOver, "and then it works: {report:?}");
}

#[tokio::test]
async fn a_kill_at_any_step_comes_back_to_one_owner() {
    for step in ["hold", "drain", "sequences", "flip"] {
        let stage = Stage::set().await;
        let mut pipe = stage.pipe().await;
        pipe.stuck = Stuck::at(step);
        let diary = Diary { stuck: pipe.stuck.clone(), ..Diary::default() };
        let (routers, options) = (diary.routers(), stage.options());
        tokio::select! {
            report = stage.run(&options, &pipe, &routers) => panic!("it is stuck at {step}: {report:?}"),
            () = pipe.stuck.reached.notified() => {}
        }
        let again = Diary::default();
        let recovered = stage.recover(&again.routers()).await;
        if step == "flip" {
            assert_eq!((recovered, again.asked()), ((Owner::Green, true), vec!["flip"]));
            assert!(!stage.blue_takes_writes().await);
            assert_eq!(stage.recover(&again.routers()).await, (Owner::Green, false));
        } else {
            assert_eq!((recovered, again.asked()), ((Owner::Blue, true), vec!["release"]), "{step}");
            assert!(stage.blue_takes_writes().await, "{step}");
            stage.assert_blue_is_clean().await;
            assert_eq!(stage.recover(&again.routers()).await, (Owner::Blue, false), "{step}");
        }
    }
}

#[tokio::test]
async fn a_daemon_that_was_thought_dead_cannot_commit_any_more() {
    let stage = Stage::set().await;
    let mut pipe = stage.pipe().await;
    pipe.stuck = Stuck::at("sequences");
    let diary = Diary::default();
    let (routers, options, stuck) = (diary.routers(), stage.options(), pipe.stuck.clone());
    let successor = async {
        stuck.reached.notified().await;
        let recovered = stage.recover(&[]).await;
        stuck.go_on.notify_one();
        recovered
    };
    let (report, recovered) = tokio::join!(stage.run(&options, &pipe, &routers), successor);
    assert_eq!(recovered, (Owner::Blue, true));
    assert_eq!((report.outcome, report.owner), (Outcome::Aborted, Owner::Blue), "{report:?}");
    assert_eq!(diary.asked(), ["hold", "release"]);
    assert!(stage.blue_takes_writes().await);
}

#[tokio::test]
async fn a_router_that_fails_after_the_commit_point_is_asked_until_it_works() {
    let stage = Stage::set().await;
    let diary = Diary::default();
    *diary.failing.lock().unwrap() = Some("flip");
    let pipe = stage.pipe().await;
    let report = stage.run(&stage.options(), &pipe, &diary.routers()).await;
    assert_eq!((report.outcome, diary.asked()), (Outcome::CutOver, vec!["hold", "flip", "flip"]));
}

#[tokio::test]
async fn a_dry_run_touches_nobody_and_a_closed_gate_says_what_opens_it() {
    let stage = Stage::set().await;
    let (diary, pipe) = (Diary::default(), stage.pipe().await);
    let dry = Options { dry_run: true, ..stage.options() };
    let report = stage.run(&dry, &pipe, &diary.routers()).await;
    assert_eq!((report.outcome, diary.asked(), report.pause_ms), (Outcome::DryRun, vec![], None));
    assert!(report.gates.iter().all(|gate| gate.open) && report.forecast_ms > 0.0, "{report:?}");
    stage.assert_blue_is_clean().await;

    let long = stage.pair.source.connect().await;
    long.exec("BEGIN; SELECT 1").await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    stage.green.exec("ALTER TABLE t ADD CONSTRAINT positive CHECK (n > -5) NOT VALID").await;
    let options = Options { max_pause: Duration::from_millis(50), ..stage.options() };
    let report = stage.run(&options, &pipe, &diary.routers()).await;
    assert_eq!((report.outcome, diary.asked()), (Outcome::Refused, vec![]));
    let closed: Vec<&str> = report.gates.iter().filter(|gate| !gate.open).map(|gate| gate.name.as_str()).collect();
    assert_eq!(closed, ["no_long_transactions", "green_complete"]);
    assert!(report.gates.iter().all(|gate| gate.open == gate.remedy.is_none()));
    assert!(stage.blue_takes_writes().await);
}
