//! The parts of Debezium's envelope that are the same for every row of a transaction, written once.

use crate::model::{Lsn, Part, Transaction};

use super::{Options, json};

/// Pieces of JSON between which rows are put.
pub(super) struct Envelope {
    /// `{"version":…,"connector":"postgresql","name":…,`
    source_head: Vec<u8>,
    /// `"snapshot":"false","db":…,`
    source_database: Vec<u8>,
    /// Of the current transaction.
    transaction: Pieces,
}

#[derive(Default)]
struct Pieces {
    /// `"xid:commit"`.
    id: String,
    /// `<source_head>"ts_ms":…,…,"sequence":["<commit>","`
    source: Vec<u8>,
    /// `"txId":…,"lsn":`
    txid: Vec<u8>,
    /// `,"ts_ms":…,"ts_us":…,"ts_ns":…`: when it was published.
    published: Vec<u8>,
    committed_at_us: i64,
    commit: Option<Lsn>,
    partial: bool,
}

/// Where an event stands in its transaction, counted from 1.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) total_order: u64,
    pub(super) collection_order: u64,
}

impl Envelope {
    pub(super) fn new(options: &Options) -> Self {
        let mut source_head = b"{\"version\":".to_vec();
        json::string(&mut source_head, env!("CARGO_PKG_VERSION"));
        source_head.extend_from_slice(b",\"connector\":\"postgresql\",\"name\":");
        json::string(&mut source_head, &options.topic_prefix);
        source_head.push(b',');
        let mut source_database = b",\"snapshot\":\"false\",\"db\":".to_vec();
        json::string(&mut source_database, &options.database);
        source_database.push(b',');
        Self { source_head, source_database, transaction: Pieces::default() }
    }

    /// Everything from here on belongs to `transaction`, published at `now_us`.
    pub(super) fn enter(&mut self, transaction: &Transaction, now_us: i64) {
        let pieces = &mut self.transaction;
        pieces.id = format!("{}:{}", transaction.xid, transaction.commit.get());
        pieces.committed_at_us = transaction.committed_at_us;
        pieces.commit = Some(transaction.commit);
        pieces.partial = transaction.part != Part::Whole;

        pieces.source.clear();
        pieces.source.extend_from_slice(&self.source_head);
        times(&mut pieces.source, transaction.committed_at_us);
        pieces.source.extend_from_slice(&self.source_database);
        pieces.source.extend_from_slice(b"\"sequence\":\"[\\\"");
        json::unsigned(&mut pieces.source, transaction.commit.get());
        pieces.source.extend_from_slice(b"\\\",\\\"");

        pieces.txid.clear();
        pieces.txid.extend_from_slice(b",\"txId\":");
        json::unsigned(&mut pieces.txid, u64::from(transaction.xid.0));
        pieces.txid.extend_from_slice(b",\"lsn\":");

        pieces.published.clear();
        pieces.published.push(b',');
        times(&mut pieces.published, now_us);
    }

    pub(super) fn id(&self) -> &str {
        &self.transaction.id
    }

    pub(super) const fn committed_at_us(&self) -> i64 {
        self.transaction.committed_at_us
    }

    /// `"source":{…}`; `table` is its `"schema":…,"table":…`. A change without position of its own has its commit's.
    pub(super) fn write_source(&self, out: &mut Vec<u8>, table: &[u8], lsn: Option<Lsn>) {
        let lsn = lsn.or(self.transaction.commit).map_or(0, Lsn::get);
        out.extend_from_slice(b"\"source\":");
        out.extend_from_slice(&self.transaction.source);
        json::unsigned(out, lsn);
        out.extend_from_slice(b"\\\"]\",");
        out.extend_from_slice(table);
        out.extend_from_slice(&self.transaction.txid);
        json::unsigned(out, lsn);
        out.extend_from_slice(b",\"xmin\":null}");
    }

    /// `,"ts_ms":…,"ts_us":…,"ts_ns":…`: when the event was made.
    pub(super) fn write_published(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.transaction.published);
    }

    /// `"transaction":{…}`.
    pub(super) fn write_place(&self, out: &mut Vec<u8>, place: Place) {
        out.extend_from_slice(b"\"transaction\":{\"id\":");
        json::string(out, &self.transaction.id);
        out.extend_from_slice(b",\"total_order\":");
        json::unsigned(out, place.total_order);
        out.extend_from_slice(b",\"data_collection_order\":");
        json::unsigned(out, place.collection_order);
        if self.transaction.partial {
            out.extend_from_slice(b",\"partial\":true");
        }
        out.push(b'}');
    }
}

/// `"ts_ms":…,"ts_us":…,"ts_ns":…`.
fn times(out: &mut Vec<u8>, at_us: i64) {
    out.extend_from_slice(b"\"ts_ms\":");
    json::signed(out, at_us.div_euclid(1000));
    out.extend_from_slice(b",\"ts_us\":");
    json::signed(out, at_us);
    out.extend_from_slice(b",\"ts_ns\":");
    json::signed(out, at_us.saturating_mul(1000));
}
