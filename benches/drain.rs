//! How long a backlog takes to drain, against a native subscription with `synchronous_commit = off`.
//!
//! Four loads: `pgbench` transactions, single-row inserts into a `wide` table (1,000 a transaction), one `huge` transaction that
//! updates every row of a table, and `mixed` changes at random keys (10 a transaction). `BENCH_LOAD` (one of them; all),
//! `BENCH_SCALE` (pgbench scale, 50), `BENCH_TRANSACTIONS` (pgbench, 200,000), `BENCH_ROWS` (2,000,000; half of it mixed changes),
//! `BENCH_ROUNDS` (3). Every way has a slot of its own over the same backlog and a target database of its own, copied from
//! one template. For the two that plain statements can do, `wide` and `huge`: what both servers need for it at once by themselves.

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use std::collections::BTreeMap;
use std::process::Command;
use std::thread;
use std::time::Duration;

use changeover::demo::PgCluster;
use support::{Asker, Ours, WIDE_TABLE, machine, number, processor_seconds, psql, report, run, timed, until, usage};

const PATIENCE: Duration = Duration::from_secs(600);

/// What both sides begin with, and what is then done to the source.
struct Load {
    name: &'static str,
    /// Statements; none for pgbench's own.
    tables: &'static [&'static str],
    /// `$ROWS` is replaced.
    work: &'static str,
    /// Plain statements that change the target in the same way, a session each; none where none do. `$HALF` is where the files
    /// of half the rows are.
    floor: &'static [&'static str],
}

const PGBENCH: Load = Load { name: "pgbench", tables: &[], work: "", floor: &[] };

const WIDE: Load = Load {
    name: "wide",
    tables: &[WIDE_TABLE, "ALTER TABLE wide ADD PRIMARY KEY (id)"],
    work: "DO $$ BEGIN FOR n IN 1..$ROWS LOOP
        INSERT INTO wide VALUES (n, md5(n::text)::uuid, repeat(md5((n * 7)::text), 3) || 'abcd', n * 1.25,
            '2026-01-01'::timestamptz + n * interval '1 s', jsonb_build_object('name', md5(n::text), 'note', repeat(md5(n::text), 4)),
            decode(repeat(md5(n::text), 4), 'hex'), ARRAY[n % 100, n % 1000, n % 10000], n % 3 = 0, NULL, n % 1000000);
        IF n % 1000 = 0 THEN COMMIT; END IF;
    END LOOP; END $$",
    floor: &["COPY wide FROM '$HALF.1' (FORMAT binary)", "COPY wide FROM '$HALF.2' (FORMAT binary)"],
};

const HUGE: Load = Load {
    name: "huge",
    tables: &[
        "CREATE TABLE huge (id bigint PRIMARY KEY, v int NOT NULL, t text)",
        "INSERT INTO huge SELECT n, 0, md5(n::text) FROM generate_series(1, $ROWS::bigint) n",
    ],
    work: "UPDATE huge SET v = v + 1",
    // A reader sees all of a transaction or nothing of it, so it is one session.
    floor: &["UPDATE huge SET v = v + 1"],
};

const MIXED: Load = Load {
    name: "mixed",
    tables: &[
        "CREATE TABLE mixed (id bigint PRIMARY KEY, v int NOT NULL, t text, at timestamptz)",
        "INSERT INTO mixed SELECT n * 2, 0, md5(n::text), '2026-01-01' FROM generate_series(1, $ROWS::bigint / 2) n",
    ],
    work: "DO $$ DECLARE key bigint; kind float8; BEGIN FOR n IN 1..$ROWS / 2 LOOP
        key := 1 + floor(random() * $ROWS)::bigint;
        kind := random();
        IF kind < 0.34 THEN UPDATE mixed SET v = v + 1, at = clock_timestamp() WHERE id = key;
        ELSIF kind < 0.67 THEN DELETE FROM mixed WHERE id = key;
        END IF;
        IF kind >= 0.67 OR NOT FOUND THEN
            INSERT INTO mixed VALUES (key, n, md5(n::text), clock_timestamp()) ON CONFLICT (id) DO UPDATE SET v = EXCLUDED.v;
        END IF;
        IF n % 10 = 0 THEN COMMIT; END IF;
    END LOOP; END $$",
    floor: &[],
};

impl Load {
    /// The tables and their rows, the same on both sides.
    fn make(&self, cluster: &PgCluster, name: &str) {
        psql(cluster, "postgres", &format!("CREATE DATABASE {name}"));
        for statement in self.tables {
            psql(cluster, name, &sized(statement));
        }
        if self.tables.is_empty() {
            let scale = number("BENCH_SCALE", 50).to_string();
            run(&cluster.programs().program("pgbench"), &["-i", "-q", "-s", &scale, &cluster.url(name)]);
            psql(cluster, name, "ALTER TABLE pgbench_history REPLICA IDENTITY FULL");
        }
        psql(cluster, name, "CREATE TABLE marker (n int PRIMARY KEY)");
        psql(cluster, name, "VACUUM ANALYZE");
    }

    fn work(&self, source: &PgCluster) {
        if !self.tables.is_empty() {
            psql(source, self.name, &sized(self.work));
            return;
        }
        let each = (number("BENCH_TRANSACTIONS", 200_000) / 4).to_string();
        run(&source.programs().program("pgbench"), &["-n", "-c", "4", "-j", "1", "-t", &each, &source.url(self.name)]);
    }
}

fn sized(sql: &str) -> String {
    sql.replace("$ROWS", &number_of_rows().to_string())
}

fn number_of_rows() -> u64 {
    number("BENCH_ROWS", 2_000_000)
}

fn main() {
    let only = std::env::var("BENCH_LOAD").ok();
    machine();
    for load in [PGBENCH, WIDE, HUGE, MIXED].iter().filter(|load| only.as_ref().is_none_or(|only| only == load.name)) {
        let (source, target) = (support::cluster(), support::cluster());
        compare(&source, &target, load, number("BENCH_ROUNDS", 3));
    }
}

fn compare(source: &PgCluster, target: &PgCluster, load: &Load, rounds: u64) {
    let end = backlog(source, target, load, rounds);
    println!("\n{}: {rounds} rounds", load.name);
    let (mut native, mut ours, mut ratios) = (vec![], vec![], vec![]);
    let (mut decoding, mut sending, mut sending_native, mut neither) = (vec![], vec![], vec![], vec![]);
    let (mut backend, mut shares, mut peaks) = (vec![], vec![], vec![]);
    let (mut floors, mut floor_ratios) = (vec![], vec![]);
    for round in 0..rounds {
        decoding.push(timed(|| decode(source, load, round, "false")));
        let name = database(target, "native", round);
        let mut sender = 0.0;
        chill();
        native.push(timed(|| sender = subscribe(source, target, &name, round, &end)));
        sending_native.push(sender);
        unsubscribe(target, &name);
        if !load.floor.is_empty() {
            let name = database(target, "floor", round);
            chill();
            floors.push(timed(|| both_servers_alone(source, target, load, &name, round)));
            floor_ratios.push(floors[round as usize] / native[round as usize]);
            psql(target, "postgres", &format!("DROP DATABASE {name}"));
        }
        let name = database(target, "ours", round);
        let mut used = Used::default();
        chill();
        let took = timed(|| used = changeover(source, target, load, &name, round, &end));
        ratios.push(took / native[round as usize]);
        shares.push(used.own / took);
        neither.push((1.0 - used.source / took).max(0.0));
        peaks.push(used.peak_kib as f64 / 1024.0);
        sending.push(used.source);
        backend.push(used.backend);
        ours.push(took);
        assert_eq!(
            rows(target, &format!("native_{round}"), load),
            rows(target, &name, load),
            "the two have not ended equal"
        );
    }
    report("decoding alone on the server", "s", &decoding);
    report("native subscription", "s", &native);
    report("  its walsender, processor time", "s", &sending_native);
    if !floors.is_empty() {
        report("both servers alone, at once: decoding, and the same change in plain statements", "s", &floors);
        report("  ratio to native", "", &floor_ratios);
    }
    report("changeover", "s", &ours);
    report("  what the source spends on it, processor time", "s", &sending);
    report("  its backends on the target, processor time", "s", &backend);
    report("  share of the wall time in which the source does nothing for it", "", &neither);
    report("ratio to native", "", &ratios);
    report("own processor time by wall time", "", &shares);
    report("peak memory", "MiB", &peaks);
}

/// A digest of what a target holds.
fn rows(target: &PgCluster, name: &str, load: &Load) -> String {
    let table = if load.tables.is_empty() { "pgbench_accounts" } else { load.name };
    psql(target, name, &format!("SELECT count(*) || ' ' || sum(hashtext(t::text)::bigint) FROM {table} t"))
}

/// Both sides equal, slots made, then the load. Answers with the end of the log.
fn backlog(source: &PgCluster, target: &PgCluster, load: &Load, rounds: u64) -> String {
    load.make(source, load.name);
    load.make(target, "base");
    psql(source, load.name, "CREATE PUBLICATION bench FOR ALL TABLES");
    for round in 0..rounds {
        for way in ["native", "ours"] {
            let slot = format!("{way}_{round}");
            psql(source, load.name, &format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        }
    }
    load.work(source);
    let end = psql(source, "postgres", "SELECT pg_current_wal_lsn()");
    // Something has to be committed past it: a position that nothing follows is written when there is time.
    psql(source, load.name, "INSERT INTO marker VALUES (1)");
    for (number, order) in [(1, "<="), (2, ">")] {
        if load.floor.iter().any(|statement| statement.contains("$HALF")) {
            let (half, rows) = (half(target), number_of_rows() / 2);
            let copy = format!(
                "COPY (SELECT * FROM {} WHERE id {order} {rows}) TO '{half}.{number}' (FORMAT binary)",
                load.name
            );
            psql(source, load.name, &copy);
        }
    }
    psql(source, "postgres", "CHECKPOINT");
    end
}

/// Where files of half the rows are, without their number: both servers are one user's.
fn half(target: &PgCluster) -> String {
    format!("{}/half", psql(target, "postgres", "SHOW data_directory"))
}

fn database(target: &PgCluster, way: &str, round: u64) -> String {
    let name = format!("{way}_{round}");
    psql(target, "postgres", &format!("CREATE DATABASE {name} TEMPLATE base"));
    psql(target, "postgres", "CHECKPOINT");
    name
}

/// What the server needs to decode the backlog, counted there. `binary`: `true` or `false`.
fn decode(source: &PgCluster, load: &Load, round: u64, binary: &str) {
    let sql = format!(
        "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('ours_{round}', NULL, NULL, \
         'proto_version', '1', 'binary', '{binary}', 'publication_names', 'bench')"
    );
    psql(source, load.name, &sql);
}

/// What whoever is between the two cannot be faster than, on processors that they share: the source decodes, the target
/// changes the same rows of itself or of files, and nothing is sent.
fn both_servers_alone(source: &PgCluster, target: &PgCluster, load: &Load, name: &str, round: u64) {
    let half = half(target);
    thread::scope(|scope| {
        scope.spawn(|| decode(source, load, round, "true"));
        for statement in load.floor {
            scope.spawn(|| psql(target, name, &statement.replace("$HALF", &half)));
        }
    });
}

/// Answers with the walsender's processor seconds.
fn subscribe(source: &PgCluster, target: &PgCluster, name: &str, round: u64, end: &str) -> f64 {
    let connection = source.url(&psql(
        source,
        "postgres",
        &format!("SELECT database FROM pg_replication_slots WHERE slot_name = 'native_{round}'"),
    ));
    let sql = format!(
        "CREATE SUBSCRIPTION bench_{round} CONNECTION '{connection}' PUBLICATION bench \
         WITH (create_slot = false, slot_name = 'native_{round}', copy_data = false, synchronous_commit = off)"
    );
    let (blue, green) = (Asker::new(source, "postgres"), Asker::new(target, name));
    psql(target, name, &sql);
    let sql = format!("SELECT latest_end_lsn >= '{end}' FROM pg_stat_subscription WHERE subname = 'bench_{round}'");
    let (mut walsender, mut used) = (None, 0.0);
    until("end of the native drain", PATIENCE, || {
        walsender = walsender.take().or_else(|| sender_of(&blue, &format!("native_{round}")));
        used = walsender.as_deref().map_or(used, processor_seconds);
        green.ask(&sql).as_deref() == Some("t")
    });
    used
}

/// The process that sends from a slot.
fn sender_of(source: &Asker, slot: &str) -> Option<String> {
    source.ask(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"))
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

/// `BENCH_COLD=1`: nothing of the target's files is in the system's memory when a drain begins, as with a database larger
/// than that. Needs root.
fn chill() {
    if number("BENCH_COLD", 0) == 1 {
        let dropped = Command::new("sh").args(["-c", "sync; echo 3 > /proc/sys/vm/drop_caches"]).status().unwrap();
        assert!(dropped.success(), "BENCH_COLD needs root");
    }
}

/// Processor seconds, and peak memory.
#[derive(Default)]
struct Used {
    own: f64,
    /// Of the source's processes that send to us.
    source: f64,
    /// Of the target's that take from us.
    backend: f64,
    peak_kib: u64,
}

fn changeover(source: &PgCluster, target: &PgCluster, load: &Load, name: &str, round: u64, end: &str) -> Used {
    let slot = format!("ours_{round}");
    let ours = Ours::with_source(
        &format!("bench_{round}"),
        &source.url(load.name),
        &target.url(name),
        &format!("[apply]\nsessions = {}\n[snapshot]\nmode = \"none\"", number("BENCH_SESSIONS", 2)),
        &format!("slot = \"{slot}\"\npublication = \"bench\"\n"),
    );
    let (blue, green) = (Asker::new(source, "postgres"), Asker::new(target, name));
    let mut child = ours.command("run").spawn().unwrap();
    let sql = format!("SELECT commit_end >= '{end}' FROM changeover.position WHERE migration = 'bench_{round}'");
    let (mut senders, mut appliers, mut looks, mut used) = (BTreeMap::new(), BTreeMap::new(), 0_u32, Used::default());
    until("end of our drain", PATIENCE, || {
        (used.own, used.peak_kib) = usage(&child);
        assert!(child.try_wait().unwrap().is_none(), "the daemon ended: {}", ours.log());
        // Asked for at each look, they took 3 % of both processors, which a native subscription is not asked for.
        if looks.is_multiple_of(LOOKS_PER_LIST) {
            let names = "application_name IN ('changeover stream', 'changeover catch up')";
            list(&mut senders, processes_of(&blue, names));
            list(
                &mut appliers,
                processes_of(&green, &format!("datname = '{name}' AND application_name LIKE '%apply'")),
            );
        }
        looks += 1;
        (used.source, used.backend) = (spent(&mut senders), spent(&mut appliers));
        // The table is not there at first.
        green.ask(&sql).as_deref() == Some("t")
    });
    child.kill().unwrap();
    child.wait().unwrap();
    used
}

/// How many looks share one list of the servers' processes.
const LOOKS_PER_LIST: u32 = 5;

/// Those not known yet have spent nothing so far as is known.
fn list(known: &mut BTreeMap<u32, f64>, found: Vec<u32>) {
    for pid in found {
        known.entry(pid).or_default();
    }
}

/// Processor seconds of all of them. What one that has ended had spent when it was last seen is remembered.
fn spent(known: &mut BTreeMap<u32, f64>) -> f64 {
    for (pid, seconds) in known.iter_mut() {
        *seconds = seconds.max(processor_seconds(&pid.to_string()));
    }
    known.values().sum()
}

/// The processes of the sessions of which `which` holds.
fn processes_of(server: &Asker, which: &str) -> Vec<u32> {
    let sql = format!("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE {which}");
    server.ask(&sql).unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}
