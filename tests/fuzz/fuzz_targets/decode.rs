//! Anything at all as a replication stream: decoded or refused, never a panic.
//!
//! The input is cut into messages by two-byte lengths. Good seeds are the fixtures in that form.

#![no_main]

use std::convert::Infallible;

use bytes::{Buf, Bytes};
use changeover::decode::{Decoder, MemoryStash, Options};
use changeover::model::{Frame, FrameBatch, FramePayload, Lsn};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let mut input = Bytes::copy_from_slice(input);
    let options = Options { batch_bytes: 1000, part_bytes: 1500, resume_after: Lsn::new(1).expect("one is not zero"), next_seq: 0 };
    let mut decoder = Decoder::new(options, Box::new(MemoryStash::new(1 << 20)));
    decoder.begin_session(4);
    while input.remaining() >= 2 {
        let length = usize::from(input.get_u16()).min(input.remaining());
        let message = input.split_to(length);
        let lsn = Lsn::new(input.remaining() as u64);
        let frame = Frame { wal_end: lsn, sent_at_us: 0, payload: FramePayload::XLogData { wal_start: lsn, message } };
        let read = FrameBatch { frames: vec![frame], size_bytes: length };
        if decoder.on_frames(&read, &mut |_| Ok::<(), Infallible>(())).is_err() {
            decoder.begin_session(4);
        }
    }
});
