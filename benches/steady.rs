//! How late a change is at an even load, and what idling costs, against a native subscription as it comes.
//!
//! `BENCH_RATE` (pgbench transactions a second, 1,000), `BENCH_SECONDS` (15), `BENCH_SCALE` (10), `BENCH_ROUNDS` (3). A row is
//! committed on blue beside the load, again and again, and looked for on green until it is there: the wait includes what a
//! reader's own round trip costs, in both ways alike.

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use changeover::demo::PgCluster;
use support::{Ours, machine, number, processor_seconds, psql, psql_if_it_can, report, run, timed, until};
use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, NoTls};

const PATIENCE: Duration = Duration::from_secs(120);
/// How often green is asked.
const LOOK: Duration = Duration::from_micros(200);
/// Between two rows.
const PAUSE: Duration = Duration::from_millis(10);
/// How long idling is looked at.
const IDLE: Duration = Duration::from_secs(10);

fn main() {
    let (scale, rounds) = (number("BENCH_SCALE", 10), number("BENCH_ROUNDS", 3));
    machine();
    println!("steady: {} transactions a second, {rounds} rounds", number("BENCH_RATE", 1000));
    let (source, target) = (support::cluster(), support::cluster());
    let pgbench = source.programs().program("pgbench");
    for (cluster, name) in [(&source, "postgres"), (&target, "base")] {
        if name != "postgres" {
            psql(cluster, "postgres", &format!("CREATE DATABASE {name}"));
        }
        run(&pgbench, &["-i", "-q", "-s", &scale.to_string(), &cluster.url(name)]);
        psql(
            cluster,
            name,
            "ALTER TABLE pgbench_history REPLICA IDENTITY FULL; CREATE TABLE probe (n bigint PRIMARY KEY)",
        );
    }
    psql(&source, "postgres", "CREATE PUBLICATION bench FOR ALL TABLES");
    let (mut native, mut ours): (Vec<Seen>, Vec<Seen>) = (vec![], vec![]);
    let mut idle = vec![];
    for round in 0..rounds {
        native.push(natively(&source, &target, round));
        let (seen, share) = by_us(&source, &target, round);
        ours.push(seen);
        idle.push(share * 100.0);
    }
    let each = |seen: &[Seen], pick: fn(&Seen) -> f64| seen.iter().map(pick).collect::<Vec<_>>();
    report("native, median", "ms", &each(&native, |seen| seen.p50));
    report("native, 99 %", "ms", &each(&native, |seen| seen.p99));
    report("changeover, median", "ms", &each(&ours, |seen| seen.p50));
    report("changeover, 99 %", "ms", &each(&ours, |seen| seen.p99));
    let ratios: Vec<f64> = native.iter().zip(&ours).map(|(native, ours)| ours.p50 / native.p50).collect();
    report("ratio of the medians", "", &ratios);
    report("idle, processor time by wall time", "%", &idle);
}

/// Milliseconds from commit to visible.
struct Seen {
    p50: f64,
    p99: f64,
}

fn natively(source: &PgCluster, target: &PgCluster, round: u64) -> Seen {
    let name = database(source, target, "native", round);
    let sql = format!(
        "CREATE SUBSCRIPTION steady_{round} CONNECTION '{}' PUBLICATION bench WITH (copy_data = false)",
        source.url("postgres")
    );
    psql(target, &name, &sql);
    let seen = measure(source, target, &name);
    psql(target, &name, &format!("DROP SUBSCRIPTION steady_{round}"));
    seen
}

/// And the share of a core that idling takes.
fn by_us(source: &PgCluster, target: &PgCluster, round: u64) -> (Seen, f64) {
    let name = database(source, target, "ours", round);
    let slot = format!("ours_{round}");
    psql(source, "postgres", &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    let ours = Ours::with_source(
        &format!("steady_{round}"),
        &source.url("postgres"),
        &target.url(&name),
        "[snapshot]\nmode = \"none\"",
        &format!("slot = \"{slot}\"\npublication = \"bench\"\n"),
    );
    let mut child = ours.command("run").spawn().unwrap();
    let sql = format!("SELECT phase = 'streaming' FROM changeover.migration WHERE name = 'steady_{round}'");
    until("streaming", PATIENCE, || {
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended: {}", ours.log());
        psql_if_it_can(target, &name, &sql).as_deref() == Some("t")
    });
    let seen = measure(source, target, &name);
    let pid = child.id().to_string();
    std::thread::sleep(Duration::from_secs(2));
    let before = processor_seconds(&pid);
    let took = timed(|| std::thread::sleep(IDLE));
    let share = (processor_seconds(&pid) - before) / took;
    child.kill().unwrap();
    child.wait().unwrap();
    psql(
        source,
        "postgres",
        &format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"),
    );
    until("the slot free", PATIENCE, || {
        psql_if_it_can(source, "postgres", &format!("SELECT pg_drop_replication_slot('{slot}')")).is_some()
    });
    (seen, share)
}

fn database(source: &PgCluster, target: &PgCluster, way: &str, round: u64) -> String {
    let name = format!("{way}_{round}");
    // Rows of earlier rounds are on blue only; probes begin anew.
    psql(source, "postgres", "TRUNCATE probe, pgbench_history");
    psql(target, "postgres", &format!("CREATE DATABASE {name} TEMPLATE base"));
    for cluster in [source, target] {
        psql(cluster, "postgres", "CHECKPOINT");
    }
    name
}

fn measure(source: &PgCluster, target: &PgCluster, name: &str) -> Seen {
    let (rate, seconds) = (number("BENCH_RATE", 1000), number("BENCH_SECONDS", 15));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut load = load(source, rate, seconds + 3);
    let mut waits = runtime.block_on(probe(&source.url("postgres"), &target.url(name), Duration::from_secs(seconds)));
    assert!(load.wait().unwrap().success(), "pgbench failed");
    waits.sort_by(f64::total_cmp);
    let quantile = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize];
    Seen { p50: quantile(0.5), p99: quantile(0.99) }
}

fn load(source: &PgCluster, rate: u64, seconds: u64) -> Child {
    let mut command = Command::new(source.programs().program("pgbench"));
    command.args(["-n", "-c", "4", "-j", "1", "-R", &rate.to_string(), "-T", &seconds.to_string()]);
    command.arg(source.url("postgres")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

async fn probe(blue: &str, green: &str, length: Duration) -> Vec<f64> {
    let (blue, _blue) = connect(blue).await;
    let (green, _green) = connect(green).await;
    let insert = blue.prepare("INSERT INTO probe VALUES ($1)").await.unwrap();
    let select = green.prepare("SELECT FROM probe WHERE n = $1").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let (begun, mut waits) = (Instant::now(), Vec::new());
    for n in 0_i64.. {
        if begun.elapsed() > length {
            break;
        }
        blue.execute(&insert, &[&n]).await.unwrap();
        let committed = Instant::now();
        while green.query_opt(&select, &[&n]).await.unwrap().is_none() {
            assert!(committed.elapsed() < PATIENCE, "a row never arrived");
            std::thread::sleep(LOOK);
        }
        waits.push(committed.elapsed().as_secs_f64() * 1000.0);
        sleep(PAUSE).await;
    }
    waits
}

async fn connect(url: &str) -> (Client, tokio::task::JoinSet<()>) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let mut task = tokio::task::JoinSet::new();
    task.spawn(async move { connection.await.unwrap() });
    (client, task)
}
