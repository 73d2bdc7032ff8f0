//! What the encoder writes, held to the schemas and to Debezium's shape.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::*;

use super::testing::*;
use super::{Encoder, Error, Options, Placement};

/// A record as a reader sees it.
#[derive(Clone, Debug, PartialEq)]
struct Read {
    topic: String,
    placement: Placement,
    key: Value,
    value: Value,
    header: Option<(String, String)>,
}

fn schema(name: &str) -> Value {
    let text = match name {
        "envelope" => include_str!("../../schemas/event.envelope.schema.json"),
        "key" => include_str!("../../schemas/event.key.schema.json"),
        "transaction" => include_str!("../../schemas/event.transaction.schema.json"),
        "message" => include_str!("../../schemas/event.message.schema.json"),
        "fence" => include_str!("../../schemas/event.fence.schema.json"),
        "position" => include_str!("../../schemas/event.position.schema.json"),
        other => panic!("no schema {other}"),
    };
    serde_json::from_str(text).unwrap()
}

pub(super) fn assert_valid(name: &str, value: &Value) {
    let envelope = jsonschema::Resource::from_contents(schema("envelope")).unwrap();
    let validator = jsonschema::options()
        .with_resource("https://changeover.invalid/schemas/event.envelope.schema.json", envelope)
        .build(&schema(name))
        .unwrap();
    let problems: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(problems.is_empty(), "{value:#} is not by the schema {name}: {problems:?}");
}

impl Read {
    /// Every record is held to its schema as it is read.
    fn of(record: &super::Record<'_>) -> Self {
        let parse = |bytes: Option<&[u8]>| bytes.map_or(Value::Null, |bytes| serde_json::from_slice(bytes).unwrap());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (key, value) = (parse(record.key), parse(record.value));
        match (&value, record.topic) {
            (Value::Null, _) => assert_ne!(key, Value::Null, "a tombstone without key deletes nothing"),
            (value, _) if value["op"] == "fence" => assert_valid("fence", value),
            (value, "shop.transaction") => assert_valid("transaction", value),
            (value, "shop.message") => assert_valid("message", value),
            (value, _) => assert_valid("envelope", value),
        }
        if key != Value::Null {
            assert_valid("key", &key);
        }
        let header = record.header.map(|header| (header.name.to_owned(), text(header.value)));
        Self { topic: record.topic.to_owned(), placement: record.placement, key, value, header }
    }

    fn is_row(&self) -> bool {
        self.topic != "shop.transaction"
    }
}

fn read_from(encoder: &mut Encoder, batch: &Batch, skip: u64) -> Result<Vec<Read>, Error> {
    let mut read = Vec::new();
    for transaction in &batch.transactions {
        encoder.transaction(batch, transaction, skip, 1_700_000_001_000_000, &mut |record| {
            read.push(Read::of(&record));
            Ok(())
        })?;
    }
    Ok(read)
}

/// Row records of one transaction over `relation`.
fn rows(options: &Options, relation: Arc<Relation>, changes: Vec<ChangeKind>) -> Result<Vec<Read>, Error> {
    let changes = changes.into_iter().map(change).collect();
    let batch = Batch {
        relations: vec![relation],
        ..(*batch(1, 200, vec![transaction(200, Part::Whole, 0, changes)])).clone()
    };
    let read = read_from(&mut Encoder::new(options)?, &batch, 0)?;
    Ok(read.into_iter().filter(Read::is_row).collect())
}

fn two_columns(identity: ReplicaIdentity) -> Arc<Relation> {
    let flagged = |default: bool| match identity {
        ReplicaIdentity::Full => true,
        ReplicaIdentity::Nothing => false,
        ReplicaIdentity::Default | ReplicaIdentity::Index => default,
    };
    relation(1, "t", identity, vec![column("id", 23, flagged(true)), column("note", 25, flagged(false))])
}

fn row(id: &str, note: Datum<'_>) -> Tuple {
    tuple(&[text(id), note])
}

fn old(kind: OldKind, tuple: Tuple) -> Option<OldTuple> {
    Some(OldTuple { kind, tuple })
}

fn update(old: Option<OldTuple>, new: Tuple) -> ChangeKind {
    ChangeKind::Update { relation: 0, old, new }
}

fn delete(kind: OldKind, tuple: Tuple) -> ChangeKind {
    ChangeKind::Delete { relation: 0, old: OldTuple { kind, tuple } }
}

#[test]
fn an_insert_is_debeziums_create_event() {
    let new = row("1", text("a\"b"));
    let read =
        rows(&options(), two_columns(ReplicaIdentity::Default), vec![ChangeKind::Insert { relation: 0, new }]).unwrap();
    let expected = json!({
        "before": null,
        "after": {"id": 1, "note": "a\"b"},
        "source": {
            "version": env!("CARGO_PKG_VERSION"), "connector": "postgresql", "name": "shop",
            "ts_ms": 1_700_000_000_123_i64, "ts_us": 1_700_000_000_123_456_i64, "ts_ns": 1_700_000_000_123_456_000_i64,
            "snapshot": "false", "db": "shop", "sequence": "[\"199\",\"65536\"]", "schema": "public", "table": "t",
            "txId": 750, "lsn": 65536, "xmin": null,
        },
        "op": "c",
        "ts_ms": 1_700_000_001_000_i64, "ts_us": 1_700_000_001_000_000_i64, "ts_ns": 1_700_000_001_000_000_000_i64,
        "transaction": {"id": "750:199", "total_order": 1, "data_collection_order": 1},
    });
    assert_eq!(read.len(), 1);
    assert_eq!((&read[0].topic[..], &read[0].key, &read[0].value), ("shop.public.t", &json!({"id": 1}), &expected));
}

#[test]
fn a_delete_is_an_event_and_a_tombstone() {
    let old = tuple(&[text("1"), Datum::Null]);
    let read = rows(&options(), two_columns(ReplicaIdentity::Default), vec![delete(OldKind::Key, old)]).unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!((&read[0].value["op"], &read[0].value["before"]), (&json!("d"), &json!({"id": 1, "note": null})));
    assert_eq!((&read[1].key, &read[1].value), (&json!({"id": 1}), &Value::Null));
}

#[test]
fn a_changed_key_is_a_delete_a_tombstone_and_a_create() {
    let change = update(old(OldKind::Key, tuple(&[text("1"), Datum::Null])), row("2", text("x")));
    let read = rows(&options(), two_columns(ReplicaIdentity::Default), vec![change]).unwrap();
    let seen: Vec<_> = read.iter().map(|read| (&read.key, &read.value["op"], &read.header)).collect();
    let header = |name: &str, key: &str| Some((name.to_owned(), key.to_owned()));
    assert_eq!(
        seen,
        [
            (&json!({"id": 1}), &json!("d"), &header("__debezium.newkey", "{\"id\":2}")),
            (&json!({"id": 1}), &Value::Null, &None),
            (&json!({"id": 2}), &json!("c"), &header("__debezium.oldkey", "{\"id\":1}")),
        ]
    );
    let orders: Vec<_> = [0, 2].map(|at| read[at].value["transaction"]["total_order"].clone()).to_vec();
    assert_eq!(orders, [json!(1), json!(2)]);
}

#[test]
fn an_update_whose_old_key_came_without_having_changed_is_an_update() {
    // heapam sends the old key also when one of its columns is stored out of line.
    let change = update(old(OldKind::Key, tuple(&[text("1"), Datum::Null])), tuple(&[Datum::Unchanged, text("x")]));
    let read = rows(&options(), two_columns(ReplicaIdentity::Default), vec![change]).unwrap();
    assert_eq!((read.len(), &read[0].value["op"], &read[0].key), (1, &json!("u"), &json!({"id": 1})));
}

#[test]
fn an_unchanged_toast_value_comes_from_the_old_row_or_is_debeziums_placeholder() {
    for (identity, old, expected) in [
        (ReplicaIdentity::Full, old(OldKind::Full, row("1", text("long"))), "long"),
        (ReplicaIdentity::Default, None, "__debezium_unavailable_value"),
        // The NULL beside an old key means nothing.
        (ReplicaIdentity::Default, old(OldKind::Key, row("9", Datum::Null)), "__debezium_unavailable_value"),
    ] {
        let mut options = options();
        options.keys.insert(TableName::new("public", "t"), vec!["id".into()]);
        let read = rows(&options, two_columns(identity), vec![update(old, row("1", Datum::Unchanged))]).unwrap();
        assert_eq!(read.last().unwrap().value["after"]["note"], expected, "{identity:?}");
    }
}

#[test]
fn placeholders_are_counted() {
    let mut encoder = Encoder::new(&options()).unwrap();
    let change = change(update(None, row("1", Datum::Unchanged)));
    read_from(&mut encoder, &batch(1, 200, vec![transaction(200, Part::Whole, 0, vec![change])]), 0).unwrap();
    assert_eq!(encoder.unavailable_total(), 1);
}

#[test]
fn under_full_the_catalog_knows_the_key() {
    let moved = || vec![update(old(OldKind::Full, row("1", text("a"))), row("2", text("a")))];
    let mut with_key = options();
    with_key.keys.insert(TableName::new("public", "t"), vec!["id".into()]);
    let read = rows(&with_key, two_columns(ReplicaIdentity::Full), moved()).unwrap();
    assert_eq!(
        read.iter().map(|read| &read.key).collect::<Vec<_>>(),
        [&json!({"id": 1}), &json!({"id": 1}), &json!({"id": 2})]
    );

    let read = rows(&options(), two_columns(ReplicaIdentity::Full), moved()).unwrap();
    assert_eq!(read.len(), 1, "without key an update is an update");
    assert_eq!((&read[0].key, &read[0].value["op"], read[0].placement), (&Value::Null, &json!("u"), Placement::First));

    let gone =
        rows(&options(), two_columns(ReplicaIdentity::Full), vec![delete(OldKind::Full, row("1", text("a")))]).unwrap();
    assert_eq!(gone.len(), 1, "a tombstone needs a key");
}

#[test]
fn rows_that_are_only_ever_appended_are_spread() {
    let insert = || vec![ChangeKind::Insert { relation: 0, new: row("1", text("a")) }];
    let read = rows(&options(), two_columns(ReplicaIdentity::Nothing), insert()).unwrap();
    assert_eq!((&read[0].key, read[0].placement), (&Value::Null, Placement::ByKey));
}

#[test]
fn a_key_column_that_is_gone_stops_the_table_by_name() {
    let mut options = options();
    options.keys.insert(TableName::new("public", "t"), vec!["uuid".into()]);
    let insert = vec![ChangeKind::Insert { relation: 0, new: row("1", text("a")) }];
    let error = rows(&options, two_columns(ReplicaIdentity::Full), insert).unwrap_err();
    assert_eq!(error.to_string(), "publish public.t: its key column uuid is not in the stream");
    assert!(matches!(error.disposition(), Disposition::Halt { .. }));
}

#[test]
fn truncate_is_an_event_for_each_table() {
    let truncate = ChangeKind::Truncate { relations: vec![0, 0], cascade: true, restart_identity: false };
    let read = rows(&options(), two_columns(ReplicaIdentity::Default), vec![truncate]).unwrap();
    assert_eq!(read.len(), 2);
    assert_eq!((&read[0].value["op"], &read[0].key, read[0].placement), (&json!("t"), &Value::Null, Placement::First));
}

#[test]
fn errors_name_the_column_and_never_the_value() {
    for (wrong, expected) in [
        (text("hunter2"), "publish public.t: a value of column id is not what its type prints"),
        (Datum::Binary(b"hunter2"), "publish public.t: column id came in binary form, records are made from text"),
    ] {
        let new = tuple(&[wrong, Datum::Null]);
        let error =
            rows(&options(), two_columns(ReplicaIdentity::Default), vec![ChangeKind::Insert { relation: 0, new }]);
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_transaction_is_framed_and_counted() {
    let mut options = options();
    options.logical_messages = true;
    let message = change(ChangeKind::Message { prefix: "app".into(), content: "hi".into() });
    let batch = batch(1, 200, vec![transaction(200, Part::Whole, 0, vec![insert(1), message, insert(2)])]);
    let read = read_from(&mut Encoder::new(&options).unwrap(), &batch, 0).unwrap();
    assert_eq!(
        read.iter().map(|read| &read.topic[..]).collect::<Vec<_>>(),
        ["shop.transaction", "shop.public.t", "shop.message", "shop.public.t", "shop.transaction"]
    );
    assert_eq!(read[0].value["status"], "BEGIN");
    assert_eq!(read[2].value["message"], json!({"prefix": "app", "content": "aGk="}));
    assert_eq!(
        read[4].value,
        json!({
            "status": "END", "id": "750:199", "ts_ms": 1_700_000_000_123_i64, "event_count": 3,
            "data_collections": [
                {"data_collection": "message", "event_count": 1}, {"data_collection": "public.t", "event_count": 2},
            ],
        })
    );
}

#[test]
fn what_has_no_event_is_not_framed() {
    let ours = change(ChangeKind::Message { prefix: marker_prefix().into(), content: "marker".into() });
    let foreign = change(ChangeKind::Message { prefix: "app".into(), content: "hi".into() });
    let batch = batch(1, 200, vec![transaction(200, Part::Whole, 0, vec![ours, foreign])]);
    assert_eq!(read_from(&mut Encoder::new(&options()).unwrap(), &batch, 0).unwrap(), []);
}

#[test]
fn the_fence_goes_to_every_partition_of_every_topic_and_names_the_new_owner() {
    let mut options = options();
    options.tables = vec![TableName::new("public", "t"), TableName::new("public", "idle")];
    let fence = change(ChangeKind::Message { prefix: marker_prefix().into(), content: "fence:shop/3".into() });
    let batch = batch(1, 200, vec![transaction(200, Part::Whole, 0, vec![fence])]);
    let read = read_from(&mut Encoder::new(&options).unwrap(), &batch, 0).unwrap();
    let topics: Vec<_> = read.iter().map(|read| &read.topic[..]).collect();
    assert_eq!(topics, ["shop.public.idle", "shop.public.t", "shop.transaction"]);
    for read in &read {
        assert_eq!(read.placement, Placement::Every);
        assert_eq!(read.header, Some(("changeover.event".into(), "fence".into())));
        assert_eq!(
            (&read.value["fence"], &read.value["new_owner"], &read.value["commit_end"]),
            (&json!("shop/3"), &json!("green"), &json!("0/C8"))
        );
    }
}

/// One transaction of five inserts, cut differently.
fn cut(at: &[usize]) -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let borders: Vec<usize> = [0].into_iter().chain(at.iter().copied()).chain([5]).collect();
    for (nth, border) in borders.windows(2).enumerate() {
        let part = match (border[0], border[1]) {
            (0, 5) => Part::Whole,
            (0, _) => Part::First,
            (_, 5) => Part::Last,
            (_, _) => Part::Middle,
        };
        let changes = (border[0]..border[1]).map(|id| insert(id as u64)).collect();
        let part = transaction(200, part, border[0] as u64, changes);
        batches.push(batch(nth as u64, if border[1] == 5 { 200 } else { 100 }, vec![part]));
    }
    batches
}

#[test]
fn a_transaction_in_parts_reads_as_one_and_says_that_it_may_be_divided() {
    let mut encoder = Encoder::new(&options()).unwrap();
    let read: Vec<Read> = cut(&[2, 4]).iter().flat_map(|batch| read_from(&mut encoder, batch, 0).unwrap()).collect();
    assert_eq!(read.len(), 7);
    for (order, row) in (1..).zip(&read[1..6]) {
        let place = json!({"id": "750:199", "total_order": order, "data_collection_order": order, "partial": true});
        assert_eq!(row.value["transaction"], place);
    }
    assert_eq!(read[6].value["event_count"], 5);
}

#[test]
fn resuming_inside_a_transaction_goes_on_exactly_where_it_was_however_it_is_cut() {
    let whole = |cuts: &[usize], skip| {
        let mut encoder = Encoder::new(&options()).unwrap();
        let read = cut(cuts).iter().flat_map(|batch| read_from(&mut encoder, batch, skip).unwrap()).collect::<Vec<_>>();
        read.into_iter().map(|read| (read.topic, read.key)).collect::<Vec<_>>()
    };
    let all = whole(&[3], 0);
    for skip in 1..=5 {
        for cuts in [&[][..], &[1], &[3], &[1, 2, 3, 4]] {
            // BEGIN went out with the first change.
            assert_eq!(whole(cuts, skip), all[1 + skip as usize..], "skipping {skip} of {cuts:?}");
        }
    }
}

#[test]
fn sending_again_counts_again_from_the_same_place() {
    let mut encoder = Encoder::new(&options()).unwrap();
    let batches = cut(&[2, 4]);
    read_from(&mut encoder, &batches[0], 0).unwrap();
    let bookmark = encoder.bookmark();
    let once = read_from(&mut encoder, &batches[1], 0).unwrap();
    encoder.rewind(bookmark);
    assert_eq!(read_from(&mut encoder, &batches[1], 0).unwrap(), once);
}

#[test]
fn a_shape_that_changes_is_written_by_its_own_columns() {
    let mut wider = (*two_columns(ReplicaIdentity::Default)).clone();
    wider.oid = 16_384;
    wider.columns.push(column("added", 16, false));
    let relations = vec![Arc::clone(&batch(1, 1, vec![]).relations[0]), Arc::new(wider)];
    let wide = change(ChangeKind::Insert { relation: 1, new: tuple(&[text("2"), Datum::Null, text("t")]) });
    let shaped = Batch {
        relations,
        ..(*batch(1, 200, vec![transaction(200, Part::Whole, 0, vec![insert(1), wide, insert(3)])])).clone()
    };
    let read = read_from(&mut Encoder::new(&options()).unwrap(), &shaped, 0).unwrap();
    let after: Vec<_> = read.iter().filter(|read| read.is_row()).map(|read| read.value["after"].clone()).collect();
    assert_eq!(
        after,
        [
            json!({"id": 1, "note": "note"}),
            json!({"id": 2, "note": null, "added": true}),
            json!({"id": 3, "note": "note"})
        ]
    );
}
