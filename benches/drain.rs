//! How long a backlog takes to drain, against a native subscription with `synchronous_commit = off`.
//!
//! `BENCH_SCALE` (pgbench scale, 50), `BENCH_TRANSACTIONS` (200,000), `BENCH_ROUNDS` (3). Every way has a slot of its own over
//! the same backlog and a target database of its own, copied from one template.

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use std::time::Duration;

use changeover::demo::PgCluster;
use support::{Ours, machine, number, psql, psql_if_it_can, report, run, timed, until, usage};

const PATIENCE: Duration = Duration::from_secs(600);

fn main() {
    let (scale, rounds) = (number("BENCH_SCALE", 50), number("BENCH_ROUNDS", 3));
    let transactions = number("BENCH_TRANSACTIONS", 200_000);
    machine();
    println!("drain: {transactions} pgbench transactions on scale {scale}, {rounds} rounds");
    let (source, target) = (support::cluster(), support::cluster());
    let end = backlog(&source, &target, scale, transactions, rounds);
    let (mut native, mut ours, mut ratios) = (vec![], vec![], vec![]);
    let (mut decoding, mut shares, mut peaks) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        decoding.push(timed(|| decode_alone(&source, round)));
        let name = database(&target, "native", round);
        native.push(timed(|| subscribe(&source, &target, &name, round, &end)));
        unsubscribe(&target, &name);
        let name = database(&target, "ours", round);
        let mut used = (0.0, 0);
        let took = timed(|| used = changeover(&source, &target, &name, round, &end));
        ratios.push(took / native[round as usize]);
        shares.push(used.0 / took);
        peaks.push(used.1 as f64 / 1024.0);
        ours.push(took);
    }
    report("decoding alone on the server", "s", &decoding);
    report("native subscription", "s", &native);
    report("changeover", "s", &ours);
    report("ratio to native", "", &ratios);
    report("own processor time by wall time", "", &shares);
    report("peak memory", "MiB", &peaks);
}

/// Both sides equal, slots made, then the load. Answers with the end of the log.
fn backlog(source: &PgCluster, target: &PgCluster, scale: u64, transactions: u64, rounds: u64) -> String {
    let pgbench = source.programs().program("pgbench");
    run(&pgbench, &["-i", "-q", "-s", &scale.to_string(), &source.url("postgres")]);
    psql(target, "postgres", "CREATE DATABASE base");
    run(&pgbench, &["-i", "-q", "-s", &scale.to_string(), &target.url("base")]);
    for (cluster, name) in [(source, "postgres"), (target, "base")] {
        psql(cluster, name, "ALTER TABLE pgbench_history REPLICA IDENTITY FULL");
    }
    psql(source, "postgres", "CREATE PUBLICATION bench FOR ALL TABLES");
    for round in 0..rounds {
        for way in ["native", "ours"] {
            let slot = format!("{way}_{round}");
            psql(source, "postgres", &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        }
    }
    let each = (transactions / 4).to_string();
    run(&pgbench, &["-n", "-c", "4", "-j", "1", "-t", &each, &source.url("postgres")]);
    // Read before the checkpoint, whose records belong to nobody: who waited for them would wait for the next time an
    // idle position is written.
    let end = psql(source, "postgres", "SELECT pg_current_wal_lsn()");
    psql(source, "postgres", "CHECKPOINT");
    end
}

fn database(target: &PgCluster, way: &str, round: u64) -> String {
    let name = format!("{way}_{round}");
    psql(target, "postgres", &format!("CREATE DATABASE {name} TEMPLATE base"));
    psql(target, "postgres", "CHECKPOINT");
    name
}

/// The floor: what the server needs to decode the backlog, counted there.
fn decode_alone(source: &PgCluster, round: u64) {
    let sql = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('ours_{round}', NULL, NULL, \
         'proto_version', '1', 'publication_names', 'bench')"
    );
    psql(source, "postgres", &sql);
}

fn subscribe(source: &PgCluster, target: &PgCluster, name: &str, round: u64, end: &str) {
    let connection = source.url("postgres");
    let sql = format!(
        "CREATE SUBSCRIPTION bench_{round} CONNECTION '{connection}' PUBLICATION bench \
         WITH (create_slot = false, slot_name = 'native_{round}', copy_data = false, synchronous_commit = off)"
    );
    psql(target, name, &sql);
    let sql = format!("SELECT latest_end_lsn >= '{end}' FROM pg_stat_subscription WHERE subname = 'bench_{round}'");
    until("end of the native drain", PATIENCE, || psql(target, name, &sql) == "t");
}

fn unsubscribe(target: &PgCluster, name: &str) {
    let subscription = psql(
        target,
        name,
        "SELECT subname FROM pg_subscription WHERE subdbid = \
                                           (SELECT oid FROM pg_database WHERE datname = current_database())",
    );
    psql(target, name, &format!("ALTER SUBSCRIPTION {subscription} DISABLE"));
    psql(target, name, &format!("ALTER SUBSCRIPTION {subscription} SET (slot_name = NONE)"));
    psql(target, name, &format!("DROP SUBSCRIPTION {subscription}"));
}

/// Processor seconds and peak memory in KiB.
fn changeover(source: &PgCluster, target: &PgCluster, name: &str, round: u64, end: &str) -> (f64, u64) {
    let ours = Ours::with_source(
        &format!("bench_{round}"),
        &source.url("postgres"),
        &target.url(name),
        "[snapshot]\nmode = \"none\"",
        &format!("slot = \"ours_{round}\"\npublication = \"bench\"\n"),
    );
    let mut child = ours.command("run").spawn().unwrap();
    let sql = format!("SELECT commit_end >= '{end}' FROM changeover.position WHERE migration = 'bench_{round}'");
    let mut used = (0.0, 0);
    until("end of our drain", PATIENCE, || {
        used = usage(&child);
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended: {}", ours.log());
        // The table is not there at first. One process a look, as for the native subscription: looking costs time too.
        psql_if_it_can(target, name, &sql).as_deref() == Some("t")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    used
}
