//! Nonsense: every prefix of every recorded message, and recorded streams with their bytes changed. Always an error or
//! a decoded stream, never a panic.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::support::{VERSIONS, data, decoder, feed, lsn, raw, recorded};
use crate::decode::message::Message;
use crate::model::{Frame, FramePayload};

fn message_of(frame: &Frame) -> &Bytes {
    match &frame.payload {
        FramePayload::XLogData { message, .. } => message,
        FramePayload::Keepalive { .. } => panic!("recordings hold no keepalives"),
    }
}

#[test]
fn every_prefix_of_every_recorded_message_is_an_error() {
    for (major, scenario) in VERSIONS.into_iter().flat_map(|major| [(major, "changes"), (major, "streamed")]) {
        let mut streamed = false;
        for frame in recorded(major, scenario) {
            let message = message_of(&frame);
            let in_stream = streamed && message[0] != b'E';
            Message::parse(message, in_stream).unwrap();
            for length in 0..message.len() {
                assert!(
                    Message::parse(&message.slice(..length), in_stream).is_err(),
                    "{} bytes of {message:?}",
                    length
                );
            }
            let longer = Bytes::from([&message[..], b"\0"].concat());
            assert!(Message::parse(&longer, in_stream).is_err(), "a byte behind {message:?}");
            streamed = (streamed || message[0] == b'S') && message[0] != b'E';
        }
    }
}

#[test]
fn errors_name_tag_and_position_and_no_values() {
    let cases: [(&'static [u8], &str); 5] = [
        (b"", "read the message at 0/99: it is empty"),
        (b"?secret", "read the message at 0/99: pgoutput has no message with tag 0x3f"),
        (b"Isecret", "read the Insert message at 0/99: no new row"),
        (b"C", "read the Commit message at 0/99: it ends too early"),
        (b"E", "take the Stream Stop message at 0/99 outside a stream"),
    ];
    for (message, expected) in cases {
        let error = feed(&mut decoder(1), &[raw(0x99, message)]).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn a_row_of_an_unknown_table_or_of_another_width_is_refused() {
    use super::support::{begin, insert, relation};
    let unknown = feed(&mut decoder(1), &[begin(10), insert(None, 5, 77, &["secret"])]).unwrap_err();
    assert_eq!(
        unknown.to_string(),
        "take the Insert message at 0/5: no Relation message described the table with oid 77"
    );
    let wide = [begin(10), relation(None, 1, &["a"]), insert(None, 5, 1, &["secret", "secret"])];
    let wide = feed(&mut decoder(1), &wide).unwrap_err();
    assert_eq!(
        wide.to_string(),
        "take the Insert message at 0/5: its row has 2 columns, public.t1 was described with 1"
    );
}

/// Changes some frames: bytes, lengths, order.
fn mutate(frames: &mut Vec<Frame>, dice: &mut fastrand::Rng) {
    for _ in 0..dice.usize(1..8) {
        let at = dice.usize(..frames.len());
        let mut message = message_of(&frames[at]).to_vec();
        match dice.u8(0..7) {
            0 if !message.is_empty() => {
                let byte = dice.usize(..message.len());
                message[byte] = dice.u8(..);
            }
            1 => message.truncate(dice.usize(..=message.len())),
            2 => message.extend(std::iter::repeat_with(|| dice.u8(..)).take(5)),
            3 if message.len() >= 4 => {
                let start = dice.usize(..=message.len() - 4);
                let odd = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX][dice.usize(..5)];
                message[start..start + 4].copy_from_slice(&odd.to_be_bytes());
            }
            4 => {
                let other = dice.usize(..frames.len());
                frames.swap(at, other);
                continue;
            }
            5 if frames.len() > 1 => {
                frames.remove(at);
                continue;
            }
            _ => {
                let copy = frames[at].clone();
                let other = dice.usize(..frames.len());
                frames.insert(other, copy);
                continue;
            }
        }
        frames[at] = data(Some(lsn(0x99)), message.into());
    }
}

fn decode_mutated(recordings: &[Vec<Frame>], seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut frames = recordings[dice.usize(..recordings.len())].clone();
    mutate(&mut frames, &mut dice);
    let mut decoder = decoder([1, 500, 1 << 20][dice.usize(..3)]);
    let read = dice.usize(1..=frames.len());
    for frames in frames.chunks(read) {
        if feed(&mut decoder, frames).is_err() {
            decoder.begin_session(dice.u32(1..5));
        }
    }
}

fn recordings() -> Vec<Vec<Frame>> {
    let all = VERSIONS.into_iter().flat_map(|major| [recorded(major, "changes"), recorded(major, "streamed")]);
    all.filter(|frames| !frames.is_empty()).collect()
}

#[test]
fn no_mutation_of_a_recorded_stream_makes_the_decoder_panic() {
    let recordings = recordings();
    let base = fastrand::u64(..);
    println!("first seed {base}");
    let start = Instant::now();
    let mut tried = 0;
    while start.elapsed() < Duration::from_secs(2) {
        decode_mutated(&recordings, base.wrapping_add(tried));
        tried += 1;
    }
    println!("{tried} mutated streams");
}

#[test]
fn one_seed_of_the_mutations() {
    decode_mutated(&recordings(), 42);
}
