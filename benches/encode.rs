//! How fast do changes become Kafka records? One core, no broker: `cargo bench --bench encode`.
//!
//! The question behind it: encoding must cost far less than the broker's acknowledgement of the same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use changeover::model::*;
use changeover::publish::{Encoder, Format, Options, WindowLimits};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const CHANGES: usize = 1_000;

/// A column by name, type and value. The first one is the key.
type Columns<'a> = Vec<(&'a str, u32, &'a str)>;

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for (name, columns) in [("narrow_row_4_columns", narrow()), ("wide_row_9_columns", wide())] {
        let batch = batch_of(&columns);
        let mut encoder = Encoder::new(&options()).expect("the topics are legal");
        let mut run = || {
            let mut length_bytes = 0;
            let transaction = &batch.transactions[0];
            let encoded = encoder.transaction(&batch, transaction, 0, 1_700_000_000_000_000, &mut |record| {
                length_bytes += record.value.map_or(0, <[u8]>::len);
                Ok(())
            });
            encoded.expect("the values are what their types print");
            length_bytes
        };
        eprintln!("{name}: {} bytes of row, {} bytes of record", batch.size_bytes() / CHANGES, run() / CHANGES);
        group.throughput(Throughput::Elements(CHANGES as u64));
        group.bench_function(name, |bencher| bencher.iter(&mut run));
    }
    group.finish();
}

fn narrow() -> Columns<'static> {
    vec![("aid", 23, "123456"), ("bid", 23, "12"), ("abalance", 23, "-4711"), ("filler", 1042, "                    ")]
}

/// The wide row of the other benchmarks.
fn wide() -> Columns<'static> {
    vec![
        ("id", 20, "1234567890"),
        ("ref", 2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        (
            "name",
            25,
            "The quick brown fox jumps over the lazy dog, and the dog says \"nothing\" to the quick brown fox at all.",
        ),
        ("price", 1700, "12345.6789"),
        ("at", 1184, "2024-02-29 12:34:56.789012+00"),
        (
            "attributes",
            3802,
            r#"{"color": "red", "sizes": [1, 2, 3, 4, 5], "nested": {"a": "some text", "b": "other text", "c": null}, "tags": ["one", "two", "three", "four"], "weight": 1.25, "active": true, "rank": 17, "code": "A-1"}"#,
        ),
        (
            "digest",
            17,
            "\\x00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
        ),
        ("scores", 1007, "{1,2,3,NULL,5,6,7,8}"),
        ("active", 16, "t"),
    ]
}

fn batch_of(columns: &Columns<'_>) -> Batch {
    let position = |raw| Lsn::new(raw).expect("above zero");
    let column = |(index, (name, type_oid, _)): (usize, &(&str, u32, &str))| Column {
        name: (*name).into(),
        type_oid: *type_oid,
        type_modifier: -1,
        in_identity: index == 0,
        type_name: None,
    };
    let relation = Relation {
        binary: false,
        oid: 16_384,
        name: TableName::new("public", "item"),
        identity: ReplicaIdentity::Default,
        columns: columns.iter().enumerate().map(column).collect(),
    };
    let mut builder = TupleBuilder::default();
    for (_, _, value) in columns {
        builder.push(Datum::Text(value.as_bytes()));
    }
    let new = builder.finish();
    let change = |at: usize| Change {
        lsn: Lsn::new(0x16_B374_0000 + 100 * at as u64),
        kind: ChangeKind::Update { relation: 0, old: None, new: new.clone() },
    };
    let transaction = Transaction {
        xid: Xid(750),
        commit: position(0x16_B400_0000),
        end: position(0x16_B400_0030),
        committed_at_us: 1_700_000_000_123_456,
        origin: None,
        part: Part::Whole,
        first_ordinal: 0,
        changes: (1..=CHANGES).map(change).collect(),
    };
    let end = transaction.end;
    Batch { seq: 1, relations: vec![Arc::new(relation)], transactions: vec![transaction], through: end, wal_end: end }
}

fn options() -> Options {
    Options {
        migration: "bench".parse().expect("a legal name"),
        identity: SourceIdentity { system_identifier: "7300000000000000001".into(), timeline: 1 },
        database: "shop".into(),
        bootstrap_servers: "not used".into(),
        topic_prefix: "shop".into(),
        format: Format::Json,
        tables: vec![TableName::new("public", "item")],
        keys: BTreeMap::new(),
        partition_count: 1,
        replication_factor: None,
        window: WindowLimits {
            transactions_max: 1_000,
            bytes_max: 1 << 20,
            age_max: Duration::from_millis(100),
            transaction_bytes_max: 16 << 20,
        },
        buffer_bytes_max: 16 << 20,
        logical_messages: false,
        owner_after_fence: "green".into(),
        properties: BTreeMap::new(),
    }
}

criterion_group!(benches, encode);
criterion_main!(benches);
