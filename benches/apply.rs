//! How long the target takes to apply what is already decoded and in memory: the applier and its server alone.
//!
//! `BENCH_TRANSACTIONS` (200,000), `BENCH_ROUNDS` (3), `BENCH_GROUP_KIB` (8,192).

#![allow(clippy::unwrap_used, reason = "a comparison that cannot go on has nothing better to do than stop")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use changeover::demo::PgCluster;
use changeover::model::{
    Batch, Change, ChangeKind, Column, Datum, Lsn, OldKind, OldTuple, Part, Relation, ReplicaIdentity, Settled,
    TableFilter, TableName, TablePattern, Transaction, Tuple, TupleBuilder, Xid,
};
use changeover::telemetry::{Latency, Tally};
use changeover::{apply, link, wire};
use support::{machine, number, psql, report, run};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Rows of the tables before the load, by pgbench's scale of 50.
const SCALE: u64 = 50;
const BATCH_CHANGES: usize = 1_000;

/// A load: what it does to the tables, and what makes them.
struct Load {
    name: &'static str,
    tables: &'static str,
    relations: Vec<Arc<Relation>>,
    transactions: Vec<Vec<Change>>,
}

fn main() {
    machine();
    let transactions = number("BENCH_TRANSACTIONS", 200_000) as usize;
    let (rounds, group_bytes) = (number("BENCH_ROUNDS", 3), number("BENCH_GROUP_KIB", 8 << 10) as usize * 1024);
    println!("apply: groups of {group_bytes} bytes, {rounds} rounds");
    let target = support::cluster();
    psql(&target, "postgres", include_str!("../schemas/target.sql"));
    for load in [pgbench(transactions), inserts(transactions), mixed(transactions / 2)] {
        let batches = batches(&load);
        let changes: usize = load.transactions.iter().map(Vec::len).sum();
        let (mut seconds, mut ours, mut servers) = (vec![], vec![], vec![]);
        for _ in 0..rounds {
            prepare(&target, &load);
            let (own, server) = (own_seconds(), backend_seconds(&target));
            seconds.push(drain(&target, batches.clone(), group_bytes));
            ours.push(own_seconds() - own);
            servers.push(backend_seconds(&target) - server);
        }
        println!("{}: {} transactions, {changes} changes", load.name, load.transactions.len());
        report("  drained in", "s", &seconds);
        report("  own processor time", "s", &ours);
        report("  its backends' processor time", "s", &servers);
    }
}

fn prepare(target: &PgCluster, load: &Load) {
    psql(target, "postgres", "TRUNCATE changeover.position");
    if load.name == "pgbench" {
        let pgbench = target.programs().program("pgbench");
        run(&pgbench, &["-i", "-q", "-s", &SCALE.to_string(), &target.url("postgres")]);
    }
    for statement in load.tables.split("; ").filter(|statement| !statement.is_empty()) {
        psql(target, "postgres", statement);
    }
    psql(target, "postgres", "CHECKPOINT");
}

fn drain(target: &PgCluster, batches: Vec<Arc<Batch>>, group_bytes: usize) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let pattern = TablePattern::parse("*.*").unwrap();
    let options = apply::Options {
        endpoint: wire::Endpoint::parse(&target.url("postgres")).unwrap(),
        migration: "bench".parse().unwrap(),
        lane: apply::Lane::Main,
        epoch: 1,
        start: None,
        filter: TableFilter { include: vec![pattern], exclude: Vec::new() },
        gathered: changeover::model::GatheredLeaves::default(),
        renames: BTreeMap::new(),
        handovers: Vec::new(),
        group_bytes,
        sessions: 2,
        group_delay: Duration::from_millis(20),
        dead_letters: false,
        held_bytes: 1 << 20,
    };
    let (input, receiver) = link::channel(8 << 20, 1_024);
    let (_commands, asked) = link::channel(64, 1);
    let ports = apply::Ports {
        input: receiver,
        commands: asked,
        ahead: None,
        settled: watch::channel(Settled::default()).0,
        touched: None,
        tally: Arc::new(Tally::default()),
        latency: Arc::new(Latency::default()),
        stop: CancellationToken::new(),
    };
    let feed = async move {
        for batch in batches {
            let size = batch.size_bytes();
            input.send(batch, size).await.unwrap();
        }
    };
    support::timed(|| {
        runtime.block_on(async {
            let (applied, ()) = tokio::join!(apply::run(options, ports), feed);
            applied.unwrap_or_else(|error| panic!("{}", changeover::telemetry::chain(&error)));
        });
    })
}

fn own_seconds() -> f64 {
    processor_seconds("self", [11, 12])
}

/// Of all sessions that have ended, which the postmaster is told of. Waits until ours have.
fn backend_seconds(target: &PgCluster) -> f64 {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'changeover apply%'";
    support::until("end of our sessions", Duration::from_secs(10), || psql(target, "postgres", ours) == "0");
    let postmaster = std::fs::read_to_string(target.data_dir().join("postmaster.pid")).unwrap();
    processor_seconds(postmaster.lines().next().unwrap(), [13, 14])
}

/// Fields of proc(5) `stat`, counted from behind the closing bracket. A tick is 10 ms.
fn processor_seconds(process: &str, fields: [usize; 2]) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let values: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields.iter().map(|field| values[*field].parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn batches(load: &Load) -> Vec<Arc<Batch>> {
    let lsn = |raw: u64| Lsn::new(raw).unwrap();
    let mut transactions = load.transactions.iter().zip(1_u64..).map(|(changes, number)| Transaction {
        xid: Xid(u32::try_from(number).unwrap()),
        commit: lsn(number * 100),
        end: lsn(number * 100 + 50),
        committed_at_us: 0,
        origin: None,
        part: Part::Whole,
        first_ordinal: 0,
        changes: changes.clone(),
    });
    let each = load.transactions[0].len();
    let mut batches = Vec::new();
    loop {
        let some: Vec<Transaction> = transactions.by_ref().take(BATCH_CHANGES.div_ceil(each)).collect();
        let Some(last) = some.last().map(|last| last.end) else { return batches };
        let seq = batches.len() as u64;
        let relations = load.relations.clone();
        batches.push(Arc::new(Batch { seq, relations, transactions: some, through: last, wal_end: last }));
    }
}

fn relation(oid: u32, name: &str, columns: &str, key: &str) -> Arc<Relation> {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: 25,
        type_modifier: -1,
        in_identity: name == key,
        type_name: None,
    };
    let columns = columns.split(' ').map(column).collect();
    let name = TableName::new("public", name);
    Arc::new(Relation { oid, name, identity: ReplicaIdentity::Default, binary: false, columns })
}

/// NULL is written as `\N`.
fn tuple(values: &[&str]) -> Tuple {
    let mut builder = TupleBuilder::default();
    for value in values {
        builder.push(if *value == "\\N" { Datum::Null } else { Datum::Text(value.as_bytes()) });
    }
    builder.finish()
}

fn insert(relation: u32, values: &[&str]) -> Change {
    Change { lsn: None, kind: ChangeKind::Insert { relation, new: tuple(values) } }
}

fn update(relation: u32, values: &[&str]) -> Change {
    Change { lsn: None, kind: ChangeKind::Update { relation, old: None, new: tuple(values) } }
}

fn delete(relation: u32, values: &[&str]) -> Change {
    let old = OldTuple { kind: OldKind::Key, tuple: tuple(values) };
    Change { lsn: None, kind: ChangeKind::Delete { relation, old } }
}

/// What pgbench's built-in script does.
fn pgbench(transactions: usize) -> Load {
    let filler = " ".repeat(84);
    let transaction = |number: usize| {
        let (aid, tid, bid) =
            (fastrand::u64(1..=SCALE * 100_000), fastrand::u64(1..=SCALE * 10), fastrand::u64(1..=SCALE));
        let [aid, tid, bid] = [aid, tid, bid].map(|id| id.to_string());
        let sum = number.to_string();
        vec![
            update(0, &[&aid, &bid, &sum, &filler]),
            update(1, &[&tid, &bid, &sum, "\\N"]),
            update(2, &[&bid, &sum, "\\N"]),
            insert(3, &[&tid, &bid, &aid, &sum, "2026-01-02 03:04:05.678901", "\\N"]),
        ]
    };
    Load {
        name: "pgbench",
        tables: "",
        relations: vec![
            relation(1, "pgbench_accounts", "aid bid abalance filler", "aid"),
            relation(2, "pgbench_tellers", "tid bid tbalance filler", "tid"),
            relation(3, "pgbench_branches", "bid bbalance filler", "bid"),
            relation(4, "pgbench_history", "tid bid aid delta mtime filler", ""),
        ],
        transactions: (0..transactions).map(transaction).collect(),
    }
}

/// Wide rows, a thousand to a transaction.
fn inserts(rows: usize) -> Load {
    let text = "x".repeat(100);
    let json = format!("{{\"k\": \"{}\"}}", "y".repeat(180));
    let bytea = format!("\\x{}", "ab".repeat(64));
    let row = |id: usize| {
        let uuid = format!("{:032x}", fastrand::u128(..));
        insert(
            0,
            &[
                &id.to_string(),
                &uuid,
                &text,
                "12345.678",
                "2026-01-02 03:04:05+00",
                &json,
                &bytea,
                "{1,2,3}",
                "t",
                "\\N",
            ],
        )
    };
    Load {
        name: "wide inserts",
        tables: "DROP TABLE IF EXISTS wide; CREATE TABLE wide (id bigint PRIMARY KEY, u uuid, t text, n numeric, \
                 at timestamptz, j jsonb, b bytea, a int[], f bool, z text)",
        relations: vec![relation(1, "wide", "id u t n at j b a f z", "id")],
        transactions: (0..rows / 1_000).map(|at| (at * 1_000..(at + 1) * 1_000).map(row).collect()).collect(),
    }
}

/// Inserts, updates and deletes at random keys, ten a transaction.
fn mixed(transactions: usize) -> Load {
    const ROWS: u64 = 1_000_000;
    let mut there: Vec<u64> = (1..=ROWS).collect();
    let mut next = ROWS;
    let mut change = |number: usize| {
        let at = fastrand::usize(..there.len());
        let value = number.to_string();
        match number % 3 {
            0 => {
                next += 1;
                there.push(next);
                insert(0, &[&next.to_string(), &value, "some text of a row"])
            }
            1 => update(0, &[&there[at].to_string(), &value, "some other text of a row"]),
            _ => delete(0, &[&there.swap_remove(at).to_string(), "\\N", "\\N"]),
        }
    };
    Load {
        name: "mixed",
        tables: "DROP TABLE IF EXISTS mixed; CREATE TABLE mixed (id bigint PRIMARY KEY, v bigint, t text); \
                 INSERT INTO mixed SELECT i, i, 'some text of a row' FROM generate_series(1, 1000000) i; VACUUM ANALYZE mixed",
        relations: vec![relation(1, "mixed", "id v t", "id")],
        transactions: (0..transactions).map(|at| (0..10).map(|of| change(at * 10 + of)).collect()).collect(),
    }
}
