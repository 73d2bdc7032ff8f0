//! Recorded messages, hand-made messages, and batches as text.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use bytes::{BufMut, Bytes, BytesMut};

use crate::decode::{Decoder, Error, Interrupted, MemoryStash, Options};
use crate::model::{
    Batch, ChangeKind, Datum, Frame, FrameBatch, FramePayload, Lsn, OldKind, OldTuple, Relation, Tuple, TupleBuilder,
};

pub(super) const VERSIONS: [u32; 6] = [13, 14, 15, 16, 17, 18];

pub(super) fn lsn(raw: u64) -> Lsn {
    Lsn::new(raw).unwrap()
}

/// The messages of `tests/fixtures/pgoutput/<major>/<scenario>.txt`; none when that version was not recorded.
pub(super) fn recorded(major: u32, scenario: &str) -> Vec<Frame> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/pgoutput/{major}/{scenario}.txt"));
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    let frame = |line: &str| {
        let (lsn, hex) = line.split_once(' ').unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        data(lsn.parse().ok(), (0..hex.len()).step_by(2).map(byte).collect())
    };
    text.lines().map(frame).collect()
}

pub(super) fn data(wal_start: Option<Lsn>, message: Bytes) -> Frame {
    Frame { wal_end: wal_start, sent_at_us: 0, payload: FramePayload::XLogData { wal_start, message } }
}

pub(super) fn keepalive(wal_end: u64) -> Frame {
    Frame { wal_end: Lsn::new(wal_end), sent_at_us: 0, payload: FramePayload::Keepalive { reply_requested: false } }
}

pub(super) fn decoder(batch_bytes: usize) -> Decoder {
    let options = Options { batch_bytes, part_bytes: batch_bytes, resume_after: lsn(1), next_seq: 0 };
    let mut decoder = Decoder::new(options, Box::new(MemoryStash::new(64 << 20)));
    decoder.begin_session(4);
    decoder
}

/// Feeds `frames` as one read of the socket.
pub(super) fn feed(decoder: &mut Decoder, frames: &[Frame]) -> Result<Vec<Batch>, Error> {
    let mut batches = Vec::new();
    let frames = FrameBatch { frames: frames.to_vec(), size_bytes: 0 };
    let fed = decoder.on_frames(&frames, &mut |batch| {
        batches.push(batch);
        Ok::<(), Infallible>(())
    });
    match fed {
        Ok(()) => Ok(batches),
        Err(Interrupted::Decode(error)) => Err(error),
        Err(Interrupted::Emit(never)) => match never {},
    }
}

/// Transactions without what differs from one recording to the next: ids, positions, times. Parts are put together.
pub(super) fn text(batches: &[Batch]) -> String {
    let mut text = String::new();
    for batch in batches {
        for transaction in &batch.transactions {
            if transaction.part.begins() {
                text.push_str("begin");
                if let Some(origin) = &transaction.origin {
                    write!(text, " from {} {:?}", origin.name, origin.lsn).unwrap();
                }
                text.push('\n');
            }
            for change in &transaction.changes {
                writeln!(text, "  {}", change_text(batch, &change.kind)).unwrap();
            }
            if transaction.part.ends() {
                text.push_str("commit\n");
            }
        }
    }
    text
}

fn change_text(batch: &Batch, change: &ChangeKind) -> String {
    match change {
        ChangeKind::Insert { relation, new } => row("insert", batch.relation(*relation), new),
        ChangeKind::Update { relation, old, new } => {
            let relation = batch.relation(*relation);
            let old = old.as_ref().map_or(String::new(), |old| format!(" {} ->", old_text(relation, old)));
            row(&format!("update{old}"), relation, new)
        }
        ChangeKind::Delete { relation, old } => {
            format!("delete {} {}", batch.relation(*relation).name, old_text(batch.relation(*relation), old))
        }
        ChangeKind::Truncate { relations, cascade, restart_identity } => {
            let names: Vec<_> = relations.iter().map(|index| batch.relation(*index).name.to_string()).collect();
            format!("truncate {} cascade={cascade} restart_identity={restart_identity}", names.join(", "))
        }
        ChangeKind::Message { prefix, content } => format!("message {prefix} {}", String::from_utf8_lossy(content)),
    }
}

fn row(what: &str, relation: &Relation, tuple: &Tuple) -> String {
    format!("{what} {} {}", relation.name, values(relation, tuple, |_| true))
}

fn old_text(relation: &Relation, old: &OldTuple) -> String {
    match old.kind {
        OldKind::Key => format!("key[{}]", values(relation, &old.tuple, |in_identity| in_identity)),
        OldKind::Full => format!("old[{}]", values(relation, &old.tuple, |_| true)),
    }
}

fn values(relation: &Relation, tuple: &Tuple, shown: impl Fn(bool) -> bool) -> String {
    let columns = relation.columns.iter().zip(tuple.iter()).filter(|(column, _)| shown(column.in_identity));
    let value = |datum: Datum<'_>| match datum {
        Datum::Null => "NULL".to_owned(),
        Datum::Unchanged => "UNCHANGED".to_owned(),
        Datum::Text(text) if text.len() > 100 => format!("{}*{}", char::from(text[0]), text.len()),
        Datum::Text(text) | Datum::Binary(text) => String::from_utf8_lossy(text).into_owned(),
    };
    columns.map(|(column, datum)| format!("{}={}", column.name, value(datum))).collect::<Vec<_>>().join(" ")
}

// Messages made by hand.

fn message(tag: u8, fill: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut message = BytesMut::new();
    message.put_u8(tag);
    fill(&mut message);
    message.freeze()
}

fn put_name(to: &mut BytesMut, name: &str) {
    to.put_slice(name.as_bytes());
    to.put_u8(0);
}

pub(super) fn begin(commit: u64) -> Frame {
    data(
        Lsn::new(commit),
        message(b'B', |to| {
            to.put_u64(commit);
            to.put_u64(0);
            to.put_u32(commit as u32);
        }),
    )
}

fn put_commit(to: &mut BytesMut, commit: u64, end: u64) {
    to.put_u8(0);
    to.put_u64(commit);
    to.put_u64(end);
    to.put_u64(0);
}

pub(super) fn commit(commit: u64, end: u64) -> Frame {
    data(Lsn::new(end), message(b'C', |to| put_commit(to, commit, end)))
}

/// A description of table `oid` with `columns` columns. `xid`: inside a stream.
pub(super) fn relation(xid: Option<u32>, oid: u32, columns: &[&str]) -> Frame {
    data(
        None,
        message(b'R', |to| {
            xid.into_iter().for_each(|xid| to.put_u32(xid));
            to.put_u32(oid);
            put_name(to, "public");
            put_name(to, &format!("t{oid}"));
            to.put_u8(b'd');
            to.put_u16(columns.len() as u16);
            for name in columns {
                to.put_u8(1);
                put_name(to, name);
                to.put_u32(25);
                to.put_i32(-1);
            }
        }),
    )
}

pub(super) fn insert(xid: Option<u32>, at: u64, oid: u32, values: &[&str]) -> Frame {
    data(
        Lsn::new(at),
        message(b'I', |to| {
            xid.into_iter().for_each(|xid| to.put_u32(xid));
            to.put_u32(oid);
            to.put_u8(b'N');
            let mut tuple = TupleBuilder::default();
            for value in values {
                tuple.push(Datum::Text(value.as_bytes()));
            }
            to.put_slice(tuple.finish().as_bytes());
        }),
    )
}

pub(super) fn logical(xid: Option<u32>, transactional: bool, content: &str) -> Frame {
    data(
        None,
        message(b'M', |to| {
            xid.into_iter().for_each(|xid| to.put_u32(xid));
            to.put_u8(u8::from(transactional));
            to.put_u64(7);
            put_name(to, "prefix");
            to.put_u32(content.len() as u32);
            to.put_slice(content.as_bytes());
        }),
    )
}

pub(super) fn stream_start(top: u32, first: bool) -> Frame {
    data(
        None,
        message(b'S', |to| {
            to.put_u32(top);
            to.put_u8(u8::from(first));
        }),
    )
}

pub(super) fn stream_stop() -> Frame {
    data(None, message(b'E', |_| {}))
}

pub(super) fn stream_commit(top: u32, commit: u64, end: u64) -> Frame {
    data(
        Lsn::new(end),
        message(b'c', |to| {
            to.put_u32(top);
            put_commit(to, commit, end);
        }),
    )
}

pub(super) fn stream_abort(top: u32, xid: u32) -> Frame {
    data(
        None,
        message(b'A', |to| {
            to.put_u32(top);
            to.put_u32(xid);
        }),
    )
}

pub(super) fn raw(at: u64, bytes: &'static [u8]) -> Frame {
    data(Lsn::new(at), Bytes::from_static(bytes))
}
