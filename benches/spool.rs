//! What does a spool that lets the source forget cost? Everything appended is written and made durable.
//!
//! Two questions: how many bytes a second it takes when the stream is as fast as it can, and what a thousand small
//! transactions a second cost in CPU time, beside the same stream through a spool that is a cache. The directory is below
//! `CHANGEOVER_BENCH_DIR`, or the working directory's `target`: a `tmpfs` would answer another question.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on says why and ends")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use changeover::model::{
    Batch, Change, ChangeKind, Column, Datum, Lsn, Part, Relation, ReplicaIdentity, SinkName, SourceIdentity,
    TableName, Transaction, TupleBuilder, Xid,
};
use changeover::spool::{Options, Spool, Standing};
use tokio::time::Instant;

const LARGE_BATCHES: u64 = 4_000;
const LARGE_BYTES: usize = 256 << 10;
const SMALL_PER_SECOND: u64 = 1_000;
const SMALL_SECONDS: u64 = 10;

fn main() {
    let root = std::env::var_os("CHANGEOVER_BENCH_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = root.join(format!("bench-spool-{}", std::process::id()));
    throughput(&dir);
    for durable in [false, true] {
        small_transactions(&dir, durable);
    }
}

fn throughput(dir: &Path) {
    let spool = open(dir, true);
    let began = Instant::now();
    thread::scope(|scope| {
        let syncing = scope.spawn(|| sync_until_closed(&spool, Duration::ZERO));
        for seq in 0..LARGE_BATCHES {
            spool.append(batch(seq, LARGE_BYTES)).unwrap();
        }
        spool.close();
        syncing.join().unwrap();
    });
    let bytes = LARGE_BATCHES * LARGE_BYTES as u64;
    let seconds = began.elapsed().as_secs_f64();
    println!("durable, batches of 256 KiB: {:.0} MB/s", bytes as f64 / seconds / 1e6);
    remove(dir, spool);
}

/// One batch a transaction, each read and settled at once: the sinks keep up.
fn small_transactions(dir: &Path, durable: bool) {
    let spool = open(dir, durable);
    let mut target = spool.cursor(SinkName::Target);
    let cpu = cpu_seconds();
    let began = Instant::now();
    let syncs = thread::scope(|scope| {
        let syncing = scope.spawn(|| if durable { sync_until_closed(&spool, Duration::from_millis(100)) } else { 0 });
        for seq in 0..SMALL_PER_SECOND * SMALL_SECONDS {
            let due = began + Duration::from_micros(1_000_000 / SMALL_PER_SECOND * seq);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            spool.append(batch(seq, 300)).unwrap();
            let through = target.next_blocking().unwrap().unwrap().through;
            target.release(through);
        }
        spool.close();
        syncing.join().unwrap()
    });
    let share = (cpu_seconds() - cpu) / began.elapsed().as_secs_f64();
    let name = if durable { "durable" } else { "cache" };
    println!(
        "{name}, 1000 transactions of 300 bytes a second: {:.1}% of one CPU, {syncs} syncs in 10 s",
        share * 100.0
    );
    drop(target);
    remove(dir, spool);
}

/// As the daemon does, or without a pause.
fn sync_until_closed(spool: &Spool, pause: Duration) -> u64 {
    let mut syncs = 0;
    loop {
        let closed = spool.is_closed();
        thread::sleep(pause);
        match spool.sync().unwrap() {
            Some(_) => syncs += 1,
            None if closed => return syncs,
            None => thread::yield_now(),
        }
    }
}

fn open(dir: &Path, durable: bool) -> Spool {
    let sinks = vec![SinkName::Target];
    let options = Options { dir: dir.to_owned(), memory_bytes: 64 << 20, disk_bytes: 8 << 30, sinks };
    let slot = Lsn::new(1).unwrap();
    let standing = Standing {
        migration: "bench".parse().unwrap(),
        source: SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 },
        consistent_point: slot,
        epoch: 1,
        slot,
        settled: vec![(SinkName::Target, Some(slot))],
    };
    Spool::resume(&options, &standing, durable).unwrap().0
}

fn remove(dir: &Path, spool: Spool) {
    drop(spool);
    std::fs::remove_dir_all(dir).unwrap();
}

/// Of this process so far, by the kernel's count of ticks (100 a second on Linux).
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks: f64 = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap()).sum();
    ticks / 100.0
}

fn batch(seq: u64, row_bytes: usize) -> Batch {
    let column = Column { name: "a".to_owned(), type_oid: 25, type_modifier: -1, in_identity: true, type_name: None };
    let relation = Relation {
        binary: false,
        oid: 16384,
        name: TableName::new("public", "items"),
        identity: ReplicaIdentity::Default,
        columns: vec![column],
    };
    let mut tuple = TupleBuilder::default();
    tuple.push(Datum::Text(&vec![seq as u8; row_bytes]));
    let change = Change { lsn: Lsn::new(seq + 7), kind: ChangeKind::Insert { relation: 0, new: tuple.finish() } };
    let through = Lsn::new((seq + 1) * 100).unwrap();
    let transaction = Transaction {
        xid: Xid(seq as u32),
        commit: through,
        end: through,
        committed_at_us: seq as i64,
        origin: None,
        part: Part::Whole,
        first_ordinal: 0,
        changes: vec![change],
    };
    let (relations, transactions) = (vec![Arc::new(relation)], vec![transaction]);
    Batch { seq, relations, transactions, through, wal_end: through }
}
