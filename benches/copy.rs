//! How fast rows are copied, against `psql COPY | psql COPY`: one pipe, and two over halves of the large table.
//!
//! `BENCH_SCALE` (pgbench scale, 20), `BENCH_ROUNDS` (3). Data only: the target's tables have no indexes on either way.

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use changeover::demo::PgCluster;
use support::{Ours, joined, machine, number, pipe, psql, report, run, timed, usage};

const TABLES: [&str; 4] = ["pgbench_accounts", "pgbench_branches", "pgbench_history", "pgbench_tellers"];

fn main() {
    let (scale, rounds) = (number("BENCH_SCALE", 20), number("BENCH_ROUNDS", 3));
    machine();
    println!("copy: pgbench scale {scale}, {rounds} rounds");
    let (source, target) = (support::cluster(), support::cluster());
    let pgbench = source.programs().program("pgbench");
    run(&pgbench, &["-i", "-q", "-s", &scale.to_string(), &source.url("postgres")]);
    run(&pgbench, &["-i", "-q", "-I", "dt", &target.url("postgres")]);
    psql(&source, "postgres", "CHECKPOINT");
    let (mut one, mut two, mut ours, mut ratios) = (vec![], vec![], vec![], vec![]);
    let (mut shares, mut peaks) = (vec![], vec![]);
    for round in 0..rounds {
        one.push(fresh(&target, || one_pipe(&source, &target)));
        two.push(fresh(&target, || two_pipes(&source, &target)));
        let mut used = (0.0, 0);
        let took = fresh(&target, || used = changeover(&source, &target));
        ratios.push(took / one[round as usize].min(two[round as usize]));
        shares.push(used.0 / took);
        peaks.push(used.1 as f64 / 1024.0);
        ours.push(took);
    }
    report("one psql pipe", "s", &one);
    report("two psql pipes", "s", &two);
    report("changeover copy", "s", &ours);
    report("ratio to the faster pipe of the round", "", &ratios);
    report("own processor time by wall time", "", &shares);
    report("peak memory", "MiB", &peaks);
}

/// Every way starts with empty tables and a clean cache of dirty pages.
fn fresh(target: &PgCluster, work: impl FnOnce()) -> f64 {
    psql(target, "postgres", &format!("TRUNCATE {}", TABLES.join(", ")));
    psql(target, "postgres", "CHECKPOINT");
    timed(work)
}

fn one_pipe(source: &PgCluster, target: &PgCluster) {
    for table in TABLES {
        joined([pipe((source, "postgres"), (target, "postgres"), table, table)]);
    }
}

fn two_pipes(source: &PgCluster, target: &PgCluster) {
    let middle = psql(source, "postgres", "SELECT pg_relation_size('pgbench_accounts') / 8192 / 2");
    let half = |condition: &str| {
        let out = format!("(SELECT * FROM pgbench_accounts WHERE ctid {condition} '({middle},0)')");
        pipe((source, "postgres"), (target, "postgres"), &out, "pgbench_accounts")
    };
    joined([half("<"), half(">=")]);
    for table in &TABLES[1..] {
        joined([pipe((source, "postgres"), (target, "postgres"), table, table)]);
    }
}

/// Processor seconds and peak memory in KiB.
fn changeover(source: &PgCluster, target: &PgCluster) -> (f64, u64) {
    let more = "[snapshot]\nmode = \"data\"\nworkers = 2";
    let ours = Ours::new("bench_copy", &source.url("postgres"), &target.url("postgres"), more);
    let mut child = ours.command("copy").spawn().unwrap();
    let mut used = (0.0, 0);
    loop {
        let now = usage(&child);
        used = (now.0.max(used.0), now.1.max(used.1));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{}", ours.log());
            return used;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
