//! How each kind of event is written, rows aside. `schemas/` has the schema of each; the tests hold them to it.

use std::sync::{Arc, LazyLock};

use crate::model::{Lsn, Transaction};

use super::encoder::Counts;
use super::envelope::{Envelope, Place};
use super::plan::TablePlan;
use super::{Header, json};

/// How the content of our logical message begins when it is the fence. What follows names the fence.
pub(super) const FENCE_CONTENT: &[u8] = b"fence:";
/// Tells a fence event from the table's changes without looking into the value.
pub(super) const FENCE_HEADER: Header<'static> = Header { name: "changeover.event", value: b"fence" };
/// What stands for `"schema":…,"table":…` in an event that belongs to no table, as in Debezium's messages.
const NO_TABLE: &[u8] = br#""schema":"","table":"""#;

/// `"source":{…},"op":"c","ts_ms":…,…,"transaction":{…}}`: what follows the two rows.
pub(super) fn write_tail(
    envelope: &Envelope,
    plan: &TablePlan,
    op: u8,
    lsn: Option<Lsn>,
    place: Place,
    out: &mut Vec<u8>,
) {
    envelope.write_source(out, &plan.source, lsn);
    out.extend_from_slice(&[b',', b'"', b'o', b'p', b'"', b':', b'"', op, b'"']);
    envelope.write_published(out);
    out.push(b',');
    envelope.write_place(out, place);
    out.push(b'}');
}

/// Key of both events of a transaction: `{"id":…}`.
pub(super) fn write_transaction_key(envelope: &Envelope, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(b"{\"id\":");
    json::string(out, envelope.id());
    out.push(b'}');
}

pub(super) fn write_begin(envelope: &Envelope, _: &Counts, out: &mut Vec<u8>) {
    write_border(envelope, "BEGIN", out);
    out.extend_from_slice(b",\"event_count\":null,\"data_collections\":null}");
}

pub(super) fn write_end(envelope: &Envelope, counts: &Counts, out: &mut Vec<u8>) {
    write_border(envelope, "END", out);
    out.extend_from_slice(b",\"event_count\":");
    json::unsigned(out, counts.total);
    out.extend_from_slice(b",\"data_collections\":[");
    for (nth, (collection, count)) in counts.by_collection.iter().enumerate() {
        out.extend_from_slice(if nth == 0 { b"{\"data_collection\":" } else { b",{\"data_collection\":" });
        json::string(out, collection);
        out.extend_from_slice(b",\"event_count\":");
        json::unsigned(out, *count);
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn write_border(envelope: &Envelope, status: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"status\":");
    json::string(out, status);
    out.extend_from_slice(b",\"id\":");
    json::string(out, envelope.id());
    out.extend_from_slice(b",\"ts_ms\":");
    json::signed(out, envelope.committed_at_us().div_euclid(1000));
}

/// What logical messages are counted under in END.
pub(super) fn message_collection() -> Arc<str> {
    static NAME: LazyLock<Arc<str>> = LazyLock::new(|| "message".into());
    Arc::clone(&NAME)
}

/// Another program's `pg_logical_emit_message(true, …)`, as Debezium writes it: the content in base64.
pub(super) fn write_message(
    envelope: &Envelope,
    prefix: &str,
    content: &[u8],
    lsn: Option<Lsn>,
    place: Place,
    key: &mut Vec<u8>,
    value: &mut Vec<u8>,
) {
    key.clear();
    key.extend_from_slice(b"{\"prefix\":");
    json::string(key, prefix);
    key.push(b'}');
    value.clear();
    value.extend_from_slice(b"{\"op\":\"m\"");
    envelope.write_published(value);
    value.push(b',');
    envelope.write_source(value, NO_TABLE, lsn);
    value.extend_from_slice(b",\"message\":{\"prefix\":");
    json::string(value, prefix);
    value.extend_from_slice(b",\"content\":");
    json::base64(value, content);
    value.extend_from_slice(b"},");
    envelope.write_place(value, place);
    value.push(b'}');
}

/// From this record on `owner` has the writes. Its key is one that no row has.
pub(super) fn write_fence(
    envelope: &Envelope,
    fence: &str,
    owner: &str,
    transaction: &Transaction,
    key: &mut Vec<u8>,
    value: &mut Vec<u8>,
) {
    key.clear();
    key.extend_from_slice(b"{\"changeover.fence\":");
    json::string(key, fence);
    key.push(b'}');
    value.clear();
    value.extend_from_slice(b"{\"op\":\"fence\",\"fence\":");
    json::string(value, fence);
    value.extend_from_slice(b",\"new_owner\":");
    json::string(value, owner);
    value.extend_from_slice(b",\"commit_end\":");
    json::string(value, &transaction.end.to_string());
    value.push(b',');
    envelope.write_source(value, NO_TABLE, None);
    envelope.write_published(value);
    value.push(b'}');
}
