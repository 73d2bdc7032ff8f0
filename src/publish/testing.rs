//! What this room's tests share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::model::*;

use super::{Format, Options, WindowLimits};

pub(super) fn lsn(raw: u64) -> Lsn {
    Lsn::new(raw).expect("tests use positions above zero")
}

pub(super) fn options() -> Options {
    Options {
        migration: "shop".parse().expect("a legal name"),
        identity: SourceIdentity { system_identifier: "7300000000000000001".into(), timeline: 1 },
        database: "shop".into(),
        bootstrap_servers: "localhost:9092".into(),
        topic_prefix: "shop".into(),
        format: Format::Json,
        tables: Vec::new(),
        keys: BTreeMap::new(),
        partition_count: 1,
        replication_factor: None,
        window: WindowLimits {
            transactions_max: 1000,
            bytes_max: 1 << 20,
            age_max: Duration::from_millis(100),
            transaction_bytes_max: 16 << 20,
        },
        buffer_bytes_max: 8 << 20,
        logical_messages: false,
        owner_after_fence: "green".into(),
        properties: BTreeMap::new(),
    }
}

/// A column by name, type and whether the replica identity has it.
pub(super) fn column(name: &str, type_oid: u32, in_identity: bool) -> Column {
    Column { name: name.into(), type_oid, type_modifier: -1, in_identity, type_name: None }
}

pub(super) fn relation(oid: u32, name: &str, identity: ReplicaIdentity, columns: Vec<Column>) -> Arc<Relation> {
    Arc::new(Relation { oid, name: TableName::new("public", name), identity, binary: false, columns })
}

pub(super) fn tuple(values: &[Datum<'_>]) -> Tuple {
    let mut builder = TupleBuilder::default();
    for value in values {
        builder.push(*value);
    }
    builder.finish()
}

pub(super) fn text(value: &str) -> Datum<'_> {
    Datum::Text(value.as_bytes())
}

pub(super) fn change(kind: ChangeKind) -> Change {
    Change { lsn: Lsn::new(0x1_0000), kind }
}

/// A row of the table that [`batch`] knows.
pub(super) fn insert(id: u64) -> Change {
    let id = id.to_string();
    change(ChangeKind::Insert { relation: 0, new: tuple(&[text(&id), text("note")]) })
}

/// A transaction whose commit record ends at `end`.
/// As the decoder makes it: a part before the last one ends at its commit, for all it knows.
pub(super) fn transaction(end: u64, part: Part, first_ordinal: u64, changes: Vec<Change>) -> Transaction {
    let commit = lsn(end - 1);
    Transaction {
        xid: Xid(750),
        commit,
        end: if part.ends() { lsn(end) } else { commit },
        committed_at_us: 1_700_000_000_123_456,
        origin: None,
        part,
        first_ordinal,
        changes,
    }
}

pub(super) fn batch(seq: u64, through: u64, transactions: Vec<Transaction>) -> Arc<Batch> {
    let columns = vec![column("id", 23, true), column("note", 25, false)];
    let relations = vec![relation(16_384, "t", ReplicaIdentity::Default, columns)];
    Arc::new(Batch { seq, relations, transactions, through: lsn(through), wal_end: lsn(through) })
}
