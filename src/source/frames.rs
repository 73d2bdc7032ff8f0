//! CopyData messages of the walsender to frames ("Streaming Replication Protocol").

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::machine::Report;
use crate::model::{Frame, FrameBatch, FramePayload, Lsn, POSTGRES_EPOCH_US};
use crate::wire::{COPY_HEADER, COPY_TRAILER, CopyChunk};

/// The frames of what one read held, as slices of it; `None` when a message is none we know.
pub(super) fn decode(chunk: &CopyChunk) -> Option<FrameBatch> {
    let mut frames = Vec::with_capacity(usize::try_from(chunk.frame_count).unwrap_or(0));
    for payload in chunk.payloads() {
        frames.push(decode_one(payload)?);
    }
    Some(FrameBatch { frames, size_bytes: chunk.frames.len() })
}

fn decode_one(mut message: Bytes) -> Option<Frame> {
    match message.try_get_u8().ok()? {
        b'w' => {
            let wal_start = Lsn::new(message.try_get_u64().ok()?);
            let wal_end = Lsn::new(message.try_get_u64().ok()?);
            let sent_at_us = unix_us(message.try_get_i64().ok()?);
            Some(Frame { wal_end, sent_at_us, payload: FramePayload::XLogData { wal_start, message } })
        }
        b'k' => {
            let wal_end = Lsn::new(message.try_get_u64().ok()?);
            let sent_at_us = unix_us(message.try_get_i64().ok()?);
            let reply_requested = message.try_get_u8().ok()? != 0;
            Some(Frame { wal_end, sent_at_us, payload: FramePayload::Keepalive { reply_requested } })
        }
        _ => None,
    }
}

/// The frames of rows of position and message, in COPY's binary format, as slices of them; `None` when a row is none of
/// those. `wal_end`: where the source's log ended when they were asked for.
pub(super) fn decode_rows(chunk: &CopyChunk, wal_end: Lsn, read_at_us: i64) -> Option<FrameBatch> {
    let mut frames = Vec::with_capacity(usize::try_from(chunk.frame_count).unwrap_or(0));
    for mut row in chunk.payloads() {
        if row.starts_with(COPY_HEADER) {
            row.advance(COPY_HEADER.len());
        }
        if row != COPY_TRAILER[..] {
            frames.push(decode_row(row, wal_end, read_at_us)?);
        }
    }
    Some(FrameBatch { frames, size_bytes: chunk.frames.len() })
}

fn decode_row(mut row: Bytes, wal_end: Lsn, read_at_us: i64) -> Option<Frame> {
    let (column_count, lsn_bytes) = (row.try_get_i16().ok()?, row.try_get_i32().ok()?);
    if (column_count, lsn_bytes) != (2, 8) {
        return None;
    }
    let lsn = Lsn::new(row.try_get_u64().ok()?);
    let message_bytes = usize::try_from(row.try_get_i32().ok()?).ok()?;
    let is_whole = row.len() == message_bytes;
    let payload = FramePayload::XLogData { wal_start: lsn, message: row };
    is_whole.then_some(Frame { wal_end: lsn.max(Some(wal_end)), sent_at_us: read_at_us, payload })
}

pub(super) fn unix_us(postgres_us: i64) -> i64 {
    postgres_us.saturating_add(POSTGRES_EPOCH_US)
}

/// A Standby Status Update: written, flushed, applied, the time, and whether a reply is wanted. "Applied" is shown in
/// `pg_stat_replication` and means the same to us as "flushed".
pub(super) fn encode(report: Report, now_unix_us: i64) -> BytesMut {
    let raw = |lsn: Option<Lsn>| lsn.map_or(0, Lsn::get);
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    message.put_u64(raw(report.received));
    message.put_u64(raw(report.durable));
    message.put_u64(raw(report.durable));
    message.put_i64(now_unix_us.saturating_sub(POSTGRES_EPOCH_US));
    message.put_u8(u8::from(report.reply_requested));
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(payloads: &[&[u8]]) -> CopyChunk {
        let mut frames = BytesMut::new();
        for payload in payloads {
            frames.put_u8(b'd');
            frames.put_u32(u32::try_from(payload.len() + 4).unwrap());
            frames.put_slice(payload);
        }
        CopyChunk { frames: frames.freeze(), frame_count: payloads.len() as u64 }
    }

    #[test]
    fn frames_are_slices_of_what_was_read() {
        let chunk = chunk(&[
            b"w\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x09BEGIN",
            b"k\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\0\x01",
        ]);
        let batch = decode(&chunk).unwrap();
        assert_eq!(batch.size_bytes, chunk.frames.len());
        let [data, keepalive] = &batch.frames[..] else { panic!("two frames") };
        assert_eq!((data.wal_end, data.sent_at_us), (Lsn::new(8), POSTGRES_EPOCH_US + 9));
        let FramePayload::XLogData { wal_start, message } = &data.payload else { panic!("data first") };
        assert_eq!((*wal_start, &message[..]), (Lsn::new(7), &b"BEGIN"[..]));
        assert!(chunk.frames.as_ptr_range().contains(&message.as_ptr()), "not copied");
        assert_eq!(keepalive.wal_end, Lsn::new(10));
        assert!(matches!(keepalive.payload, FramePayload::Keepalive { reply_requested: true }));
    }

    #[test]
    fn rows_of_a_copy_are_frames_and_what_stands_around_them_is_none() {
        let row = |lsn: u8, message: &[u8]| {
            let head = [&b"\0\x02\0\0\0\x08\0\0\0\0\0\0\0"[..], &[lsn], b"\0\0\0", &[message.len() as u8]].concat();
            [&head[..], message].concat()
        };
        let first = [&COPY_HEADER[..], &row(7, b"BEGIN")].concat();
        let end = Lsn::new(8).unwrap();
        let batch = decode_rows(&chunk(&[&first, &row(9, b""), COPY_TRAILER]), end, 5).unwrap();
        let read = batch.frames.iter().map(|frame| {
            let FramePayload::XLogData { wal_start, message } = &frame.payload else { panic!("data only") };
            assert_eq!((*wal_start, frame.sent_at_us), (frame.reached(), 5));
            (frame.reached(), frame.wal_end, message.to_vec())
        });
        assert!(read.eq([(Lsn::new(7), Lsn::new(8), b"BEGIN".to_vec()), (Lsn::new(9), Lsn::new(9), Vec::new())]));
        assert!(decode_rows(&chunk(&[&[&COPY_HEADER[..], COPY_TRAILER].concat()]), end, 5).unwrap().frames.is_empty());
        let whole = row(7, b"BEGIN");
        for cut in 0..whole.len() {
            assert!(decode_rows(&chunk(&[&whole[..cut]]), end, 5).is_none(), "{cut}");
        }
        assert!(decode_rows(&chunk(&[&[&whole[..], b"!"].concat()]), end, 5).is_none());
    }

    #[test]
    fn what_is_cut_short_or_unknown_is_no_frame() {
        for payload in [&b""[..], b"w", b"w\0\0\0\0\0\0\0\x07\0\0", b"k\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\0", b"x"] {
            assert!(decode(&chunk(&[payload])).is_none(), "{payload:?}");
        }
    }

    #[test]
    fn a_report_says_what_is_received_and_what_is_durable() {
        let report = Report { received: Lsn::new(9), durable: Lsn::new(7), reply_requested: true };
        let bytes = encode(report, POSTGRES_EPOCH_US + 5);
        assert_eq!(&bytes[..], b"r\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x05\x01");
        let nothing = encode(Report { received: None, durable: None, reply_requested: false }, 0);
        assert_eq!(nothing[1..25], [0; 24]);
    }
}
