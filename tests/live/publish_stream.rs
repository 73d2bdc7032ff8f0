//! The made-up stream of the publisher's tests, and what a reader must find of it.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use changeover::model::*;
use changeover::publish::{Format, Options, WindowLimits};
use serde_json::Value;

use crate::support::Record;

const ACCOUNT: RelationIndex = 0;
const ENTRY: RelationIndex = 1;
const ACCOUNT_COUNT: u64 = 20;
const TRANSACTION_COUNT: u64 = 1_500;
/// Each so manieth transaction is large.
const LARGE_EVERY: u64 = 100;
const LARGE_CHANGES: u64 = 900;

/// How the stream is cut into batches.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    Coarse,
    Fine,
}

pub(super) fn options(bootstrap: &str, prefix: &str) -> Options {
    Options {
        migration: "shop".parse().unwrap(),
        identity: SourceIdentity { system_identifier: "7300000000000000001".into(), timeline: 1 },
        database: "shop".into(),
        bootstrap_servers: bootstrap.into(),
        topic_prefix: prefix.into(),
        format: Format::Json,
        tables: vec![TableName::new("public", "account"), TableName::new("public", "entry")],
        keys: BTreeMap::new(),
        partition_count: 3,
        replication_factor: None,
        window: WindowLimits {
            transactions_max: 20,
            bytes_max: 64 << 10,
            age_max: Duration::from_millis(20),
            transaction_bytes_max: 40 << 10,
        },
        buffer_bytes_max: 8 << 20,
        logical_messages: false,
        owner_after_fence: "green".into(),
        properties: BTreeMap::new(),
    }
}

/// The same changes each time, cut one way or the other.
pub(super) fn whole_stream(cut: Cut) -> Vec<Arc<Batch>> {
    let mut counters = vec![0_u64; ACCOUNT_COUNT as usize];
    let mut cutter = Cutter { cut, batches: Vec::new(), waiting: Vec::new(), through: lsn(1) };
    let mut random = fastrand::Rng::with_seed(42);
    for nth in 1..=TRANSACTION_COUNT {
        let count = if nth.is_multiple_of(LARGE_EVERY) { LARGE_CHANGES } else { random.u64(1..5) };
        let changes: Vec<Change> = (0..count).map(|_| next_change(nth, &mut counters, &mut random)).collect();
        cutter.push(nth, changes);
    }
    cutter.finish()
}

/// An account counts up; an entry is written once.
fn next_change(nth: u64, counters: &mut [u64], random: &mut fastrand::Rng) -> Change {
    let id = random.u64(0..ACCOUNT_COUNT);
    let counter = &mut counters[id as usize];
    *counter += 1;
    let account = tuple(&[&id.to_string(), &counter.to_string()]);
    let kind = match (*counter, random.u32(0..4)) {
        (1, _) => ChangeKind::Insert { relation: ACCOUNT, new: account },
        (_, 0) => {
            // Does not count: entries have keys of their own.
            *counter -= 1;
            let unique = format!("{nth}.{}", random.u64(..));
            ChangeKind::Insert { relation: ENTRY, new: tuple(&[&unique, &nth.to_string()]) }
        }
        (_, _) => ChangeKind::Update { relation: ACCOUNT, old: None, new: account },
    };
    Change { lsn: Lsn::new(1_000 * nth), kind }
}

struct Cutter {
    cut: Cut,
    batches: Vec<Arc<Batch>>,
    waiting: Vec<Transaction>,
    through: Lsn,
}

impl Cutter {
    fn push(&mut self, nth: u64, changes: Vec<Change>) {
        let (batch_transactions, part_changes) = match self.cut {
            Cut::Coarse => (5, 200),
            Cut::Fine => (2, 70),
        };
        let part_count = changes.len().div_ceil(part_changes);
        for (index, part) in changes.chunks(part_changes).enumerate() {
            let kind = match (index == 0, index + 1 == part_count) {
                (true, true) => Part::Whole,
                (true, false) => Part::First,
                (false, false) => Part::Middle,
                (false, true) => Part::Last,
            };
            self.waiting.push(transaction(nth, kind, (index * part_changes) as u64, part.to_vec()));
            if kind.ends() {
                self.through = lsn(1_000 * (nth + 1));
            }
            if !kind.ends() || self.waiting.len() >= batch_transactions {
                self.close();
            }
        }
    }

    fn close(&mut self) {
        let seq = self.batches.len() as u64;
        let transactions = std::mem::take(&mut self.waiting);
        self.batches.push(batch(seq, self.through, transactions));
        // A keepalive between batches.
        if seq.is_multiple_of(7) {
            self.batches.push(batch(seq + 1, self.through, Vec::new()));
        }
    }

    fn finish(mut self) -> Vec<Arc<Batch>> {
        self.close();
        self.batches
    }
}

/// The fence, as cutover writes it into the log.
pub(super) fn fence() -> Arc<Batch> {
    let kind = ChangeKind::Message { prefix: marker_prefix().into(), content: "fence:shop/1".into() };
    let fence = transaction(1, Part::Whole, 0, vec![Change { lsn: None, kind }]);
    batch(0, fence.end, vec![fence])
}

fn transaction(nth: u64, part: Part, first_ordinal: u64, changes: Vec<Change>) -> Transaction {
    Transaction {
        xid: Xid(u32::try_from(nth).unwrap()),
        commit: lsn(1_000 * nth + 900),
        end: lsn(1_000 * (nth + 1)),
        committed_at_us: 1_700_000_000_000_000,
        origin: None,
        part,
        first_ordinal,
        changes,
    }
}

fn batch(seq: u64, through: Lsn, transactions: Vec<Transaction>) -> Arc<Batch> {
    let relation = |oid, name: &str, key_type| {
        let column = |name: &str, type_oid, in_identity| Column {
            name: name.into(),
            type_oid,
            type_modifier: -1,
            in_identity,
            type_name: None,
        };
        let columns = vec![column("id", key_type, true), column("n", 20, false)];
        Arc::new(Relation {
            oid,
            name: TableName::new("public", name),
            identity: ReplicaIdentity::Default,
            binary: false,
            columns,
        })
    };
    let relations = vec![relation(1, "account", 20), relation(2, "entry", 25)];
    Arc::new(Batch { seq, relations, transactions, through, wal_end: through })
}

fn lsn(raw: u64) -> Lsn {
    Lsn::new(raw).unwrap()
}

fn tuple(values: &[&str]) -> Tuple {
    let mut builder = TupleBuilder::default();
    for value in values {
        builder.push(Datum::Text(value.as_bytes()));
    }
    builder.finish()
}

/// Each row's values in the order they were read or written, by table and key.
type ByKey = BTreeMap<(String, String), Vec<u64>>;

/// Every change is there once and in order per key, and every transaction has one BEGIN and one END that counts it.
pub(super) fn assert_exactly_once(read: &[Record], batches: &[Arc<Batch>]) {
    let (found, expected) = (rows_read(read), rows_written(batches));
    for (key, values) in &expected {
        assert_eq!(found.get(key), Some(values), "what was read of {key:?} is not what was written");
    }
    assert_eq!(found.len(), expected.len(), "rows that nobody wrote");
    assert_eq!(borders_read(read), borders_written(batches));
}

fn json(bytes: Option<&Vec<u8>>) -> Value {
    serde_json::from_slice(bytes.unwrap()).unwrap()
}

fn rows_read(read: &[Record]) -> ByKey {
    let mut rows = ByKey::new();
    for record in read {
        let Some((_, table)) = record.topic.split_once(".public.") else { continue };
        let (key, value) = (json(record.key.as_ref()), json(record.value.as_ref()));
        rows.entry((table.to_owned(), plain(&key["id"]))).or_default().push(value["after"]["n"].as_u64().unwrap());
    }
    rows
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn rows_written(batches: &[Arc<Batch>]) -> ByKey {
    let mut rows = ByKey::new();
    for change in batches.iter().flat_map(|batch| &batch.transactions).flat_map(|transaction| &transaction.changes) {
        let (ChangeKind::Insert { relation, new } | ChangeKind::Update { relation, new, .. }) = &change.kind else {
            panic!("the stream has inserts and updates")
        };
        let table = if *relation == ACCOUNT { "account" } else { "entry" };
        let values: Vec<String> = new
            .iter()
            .map(|value| match value {
                Datum::Text(text) => String::from_utf8(text.to_vec()).unwrap(),
                Datum::Null | Datum::Unchanged | Datum::Binary(_) => panic!("the stream has text"),
            })
            .collect();
        rows.entry((table.to_owned(), values[0].clone())).or_default().push(values[1].parse().unwrap());
    }
    rows
}

/// `id` to what its borders say: `[null, count]`, BEGIN first.
type Borders = BTreeMap<String, Vec<Option<u64>>>;

fn borders_read(read: &[Record]) -> Borders {
    let mut borders = Borders::new();
    for record in read.iter().filter(|record| record.topic.ends_with(".transaction")) {
        let value = json(record.value.as_ref());
        borders.entry(plain(&value["id"])).or_default().push(value["event_count"].as_u64());
    }
    borders
}

fn borders_written(batches: &[Arc<Batch>]) -> Borders {
    let mut borders = Borders::new();
    for transaction in batches.iter().flat_map(|batch| &batch.transactions).filter(|one| one.part.ends()) {
        let count = transaction.first_ordinal + transaction.changes.len() as u64;
        let id = format!("{}:{}", transaction.xid, transaction.commit.get());
        borders.insert(id, vec![None, Some(count)]);
    }
    borders
}

/// `org.apache.kafka.common.utils.Utils.murmur2`.
pub(super) fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ u32::try_from(data.len()).unwrap();
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[test]
fn our_murmur2_is_javas() {
    // From UtilsTest of Kafka's clients.
    for (data, expected) in [
        ("21", -973_932_308_i32),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ] {
        assert_eq!(murmur2(data.as_bytes()) as i32, expected, "{data}");
    }
}
