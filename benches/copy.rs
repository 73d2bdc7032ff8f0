//! How fast a database is copied, against `psql COPY | psql COPY` (binary): one pipe, and two over halves of the large table.
//!
//! Two sets: narrow rows (pgbench), and wide ones of many types. `BENCH_SET` (`narrow`, `wide`; both), `BENCH_SCALE` (pgbench
//! scale, 100), `BENCH_ROWS` (wide rows, 2,000,000), `BENCH_ROUNDS` (3). For each set: the data alone, into tables without
//! indexes, and what both servers need for that at once by themselves; and the whole clone, with keys, indexes and ANALYZE,
//! against two pipes followed by the index builds.

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use std::thread;

use changeover::demo::PgCluster;
use support::{Ours, WIDE_TABLE, joined, machine, number, pipe, psql, report, run, timed, usage};

/// 100 bytes of text, 200 of JSON, 64 of bytea, and NULLs.
const WIDE_ROWS: &str = "INSERT INTO wide
     SELECT n, md5(n::text)::uuid, repeat(md5((n * 7)::text), 3) || 'abcd', n * 1.25, '2026-01-01'::timestamptz + n * interval '1 s',
            jsonb_build_object('name', md5((n * 3)::text), 'tags', jsonb_build_array(n % 17, n % 23, md5((n % 1000)::text)),
                               'note', repeat(md5((n * 11)::text), 3)),
            decode(repeat(md5((n * 13)::text), 4), 'hex'), ARRAY[n % 100, n % 1000, (n % 10000)::int]::int[], n % 3 = 0, NULL,
            CASE WHEN n % 5 = 0 THEN (n % 1000000)::int END
     FROM generate_series(1, $ROWS::bigint) n";

/// A database to copy.
struct Set {
    name: &'static str,
    /// The one that is worth two pipes.
    large: &'static str,
    others: &'static [&'static str],
    /// What a table needs besides its rows.
    indexes: &'static [&'static str],
}

const NARROW: Set = Set {
    name: "narrow",
    large: "pgbench_accounts",
    others: &["pgbench_branches", "pgbench_tellers"],
    indexes: &[
        "ALTER TABLE pgbench_accounts ADD PRIMARY KEY (aid)",
        "ALTER TABLE pgbench_branches ADD PRIMARY KEY (bid)",
        "ALTER TABLE pgbench_tellers ADD PRIMARY KEY (tid)",
    ],
};

const WIDE: Set = Set {
    name: "wide",
    large: "wide",
    others: &[],
    indexes: &[
        "ALTER TABLE wide ADD PRIMARY KEY (id)",
        "CREATE UNIQUE INDEX wide_u ON wide (u)",
        "CREATE INDEX wide_at ON wide (at)",
    ],
};

fn main() {
    let (rounds, only) = (number("BENCH_ROUNDS", 3), std::env::var("BENCH_SET").ok());
    machine();
    let (source, target) = (support::cluster(), support::cluster());
    for set in [NARROW, WIDE].iter().filter(|set| only.as_ref().is_none_or(|only| only == set.name)) {
        set.make(&source);
        // Both servers are one user's.
        let directory = psql(&target, "postgres", "SHOW data_directory");
        for (number, half) in halves(&source, set).iter().enumerate() {
            psql(&source, set.name, &format!("COPY {half} TO '{directory}/{}.{number}' (FORMAT binary)", set.name));
        }
        println!(
            "\n{}: {} MiB, {rounds} rounds",
            set.name,
            psql(&source, set.name, "SELECT pg_database_size(current_database()) >> 20")
        );
        compare(&source, &target, set, rounds, "data", &[one_pipe, two_pipes], Some(both_servers_alone));
        compare(&source, &target, set, rounds, "clone", &[two_pipes_and_indexes], None);
    }
}

type Way = fn(&PgCluster, &PgCluster, &Set);

/// Ours against the fastest of `ways`, in rounds; beside it `floor`.
fn compare(
    source: &PgCluster,
    target: &PgCluster,
    set: &Set,
    rounds: u64,
    what: &str,
    ways: &[Way],
    floor: Option<Way>,
) {
    let names = |index: usize| {
        if ways.len() == 1 { "two psql pipes, then the indexes" } else { ["one psql pipe", "two psql pipes"][index] }
    };
    let mut theirs = vec![Vec::new(); ways.len()];
    let (mut ours, mut ratios, mut shares, mut peaks) = (vec![], vec![], vec![], vec![]);
    let (mut floors, mut floor_ratios) = (vec![], vec![]);
    for _ in 0..rounds {
        for (way, times) in ways.iter().zip(&mut theirs) {
            fresh(target, set, true);
            times.push(timed(|| way(source, target, set)));
        }
        let best = theirs.iter().filter_map(|times| times.last().copied()).fold(f64::INFINITY, f64::min);
        if let Some(floor) = floor {
            fresh(target, set, true);
            let took = timed(|| floor(source, target, set));
            floors.push(took);
            floor_ratios.push(took / best);
        }
        let full = what == "clone";
        fresh(target, set, !full);
        let mut used = (0.0, 0);
        let took = timed(|| used = changeover(source, target, set, full));
        ratios.push(took / best);
        shares.push(used.0 / took);
        peaks.push(used.1 as f64 / 1024.0);
        ours.push(took);
        assert_eq!(count(source, set), count(target, set), "rows of {}", set.large);
    }
    for (index, times) in theirs.iter().enumerate() {
        report(&format!("{what}: {}", names(index)), "s", times);
    }
    report(&format!("{what}: changeover copy"), "s", &ours);
    report(&format!("{what}: ratio to the fastest of the round"), "", &ratios);
    if !floors.is_empty() {
        report(&format!("{what}: both servers alone, at once"), "s", &floors);
        report(&format!("{what}: its ratio to the fastest of the round"), "", &floor_ratios);
    }
    report(&format!("{what}: own processor time by wall time"), "", &shares);
    report(&format!("{what}: peak memory"), "MiB", &peaks);
}

fn count(cluster: &PgCluster, set: &Set) -> String {
    psql(cluster, set.name, &format!("SELECT count(*) FROM {}", set.large))
}

impl Set {
    fn make(&self, source: &PgCluster) {
        psql(source, "postgres", &format!("CREATE DATABASE {}", self.name));
        if self.name == "narrow" {
            let scale = number("BENCH_SCALE", 100).to_string();
            run(&source.programs().program("pgbench"), &["-i", "-q", "-s", &scale, &source.url(self.name)]);
            psql(source, self.name, "DROP TABLE pgbench_history");
        } else {
            psql(source, self.name, WIDE_TABLE);
            psql(source, self.name, &WIDE_ROWS.replace("$ROWS", &number("BENCH_ROWS", 2_000_000).to_string()));
            for index in self.indexes {
                psql(source, self.name, index);
            }
            psql(source, self.name, "VACUUM ANALYZE");
        }
        psql(source, self.name, "CHECKPOINT");
    }

    fn tables(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.large).chain(self.others.iter().copied())
    }
}

/// Every way starts with an empty database (with tables where it does not make them) and a clean cache of dirty pages.
fn fresh(target: &PgCluster, set: &Set, tables: bool) {
    psql(target, "postgres", &format!("DROP DATABASE IF EXISTS {}", set.name));
    psql(target, "postgres", &format!("CREATE DATABASE {}", set.name));
    if tables && set.name == "narrow" {
        run(&target.programs().program("pgbench"), &["-i", "-q", "-I", "dt", &target.url(set.name)]);
        psql(target, set.name, "DROP TABLE pgbench_history");
    } else if tables {
        psql(target, set.name, WIDE_TABLE);
    }
    psql(target, "postgres", "CHECKPOINT");
}

fn one_pipe(source: &PgCluster, target: &PgCluster, set: &Set) {
    for table in set.tables() {
        joined([pipe((source, set.name), (target, set.name), table, table)]);
    }
}

fn two_pipes(source: &PgCluster, target: &PgCluster, set: &Set) {
    joined(halves(source, set).map(|half| pipe((source, set.name), (target, set.name), &half, set.large)));
    for table in set.others {
        joined([pipe((source, set.name), (target, set.name), table, table)]);
    }
}

/// The large table, by blocks.
fn halves(source: &PgCluster, set: &Set) -> [String; 2] {
    let middle = psql(source, set.name, &format!("SELECT pg_relation_size('{}') / 8192 / 2", set.large));
    ["<", ">="].map(|order| format!("(SELECT * FROM {} WHERE ctid {order} '({middle},0)')", set.large))
}

/// What whoever is between the two cannot be faster than, on processors that they share: the source throws away what it
/// reads of the large table, the target reads it from files, and nothing is sent.
fn both_servers_alone(source: &PgCluster, target: &PgCluster, set: &Set) {
    let halves = halves(source, set);
    let directory = psql(target, "postgres", "SHOW data_directory");
    thread::scope(|scope| {
        for (number, half) in halves.iter().enumerate() {
            let file = format!("{directory}/{}.{number}", set.name);
            scope.spawn(move || psql(source, set.name, &format!("COPY {half} TO '/dev/null' (FORMAT binary)")));
            let copy = format!("COPY {} FROM '{file}' (FORMAT binary)", set.large);
            scope.spawn(move || psql(target, set.name, &copy));
        }
    });
}

/// The index builds one after the other, each with the server's parallel workers. No ANALYZE, which ours does.
fn two_pipes_and_indexes(source: &PgCluster, target: &PgCluster, set: &Set) {
    two_pipes(source, target, set);
    for index in set.indexes {
        psql(target, set.name, index);
    }
}

/// Processor seconds and peak memory in KiB.
fn changeover(source: &PgCluster, target: &PgCluster, set: &Set, full: bool) -> (f64, u64) {
    let mode = if full { "full" } else { "data" };
    let more = format!("[snapshot]\nmode = {mode:?}\nworkers = 2");
    let ours = Ours::new("bench_copy", &source.url(set.name), &target.url(set.name), &more);
    let mut child = ours.command("copy").spawn().unwrap();
    let mut used = (0.0, 0);
    loop {
        let now = usage(&child);
        used = (now.0.max(used.0), now.1.max(used.1));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{}", ours.log());
            return used;
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
}
