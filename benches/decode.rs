//! How fast frames become batches: recorded transactions over and over, with positions that rise as a source's do.

use std::convert::Infallible;
use std::fs;
use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use changeover::decode::{Decoder, MemoryStash, Options};
use changeover::model::{Batch, Frame, FrameBatch, FramePayload, Lsn};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};

/// What one read of the socket holds, and so how much a batch of frames shares one buffer.
const READ_BYTES: usize = 256 << 10;
const BATCH_BYTES: usize = 256 << 10;
const CHANGES: u64 = 100_000;

type Messages = Vec<Vec<u8>>;

fn recorded(scenario: &str) -> Messages {
    let path = format!("{}/tests/fixtures/pgoutput/15/{scenario}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(path).expect("the fixtures are in the repository");
    let bytes = |hex: &str| {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect()
    };
    text.lines().filter_map(|line| line.split_once(' ')).map(|(_, hex)| bytes(hex)).collect()
}

/// Messages repeated until they hold [`CHANGES`] changes; descriptions only the first time, as a source sends them.
fn repeated(once: &Messages) -> (Messages, u64) {
    let (mut all, mut changes, mut at) = (Messages::new(), 0, 1_000_u64);
    while changes < CHANGES {
        for message in once {
            let mut message = message.clone();
            match message[0] {
                b'B' => message[1..9].copy_from_slice(&(at + 50).to_be_bytes()),
                b'C' => {
                    message[2..10].copy_from_slice(&(at + 50).to_be_bytes());
                    message[10..18].copy_from_slice(&(at + 90).to_be_bytes());
                    at += 100;
                }
                b'R' | b'Y' if changes > once.len() as u64 => continue,
                b'I' | b'U' | b'D' => changes += 1,
                _ => {}
            }
            all.push(message);
        }
    }
    (all, changes)
}

/// Inserts of rows with 20 columns and about a kilobyte, 10 a transaction, as `pgbench` would write them.
fn wide() -> Messages {
    let begin = recorded("pgbench").into_iter().find(|message| message[0] == b'B').expect("it was recorded");
    let commit = recorded("pgbench").into_iter().find(|message| message[0] == b'C').expect("it was recorded");
    let mut relation = b"R\0\0\x40\x01public\0wide\0d\0\x14".to_vec();
    let mut insert = b"I\0\0\x40\x01N\0\x14".to_vec();
    for column in 0..20_u8 {
        relation.extend([u8::from(column == 0), b'a' + column, 0, 0, 0, 0, 25, 0xff, 0xff, 0xff, 0xff]);
        insert.extend([b't', 0, 0, 0, 48]);
        insert.extend([b'x'; 48]);
    }
    let mut once = vec![begin, relation];
    once.extend(vec![insert; 10]);
    once.push(commit);
    once
}

/// The same changes as one streamed transaction in chunks of a thousand.
fn streamed(messages: &Messages) -> Messages {
    let xid = 7_u32.to_be_bytes();
    let with_xid = |message: &Vec<u8>| [&message[..1], &xid, &message[1..]].concat();
    let inner: Vec<_> = messages.iter().filter(|message| !matches!(message[0], b'B' | b'C')).map(with_xid).collect();
    let mut all = Messages::new();
    for (n, chunk) in inner.chunks(1000).enumerate() {
        all.push([&b"S"[..], &xid, &[u8::from(n == 0)]].concat());
        all.extend(chunk.iter().cloned());
        all.push(b"E".to_vec());
    }
    let commit = [&b"c"[..], &xid, &[0], &1000_u64.to_be_bytes(), &1100_u64.to_be_bytes(), &[0; 8]].concat();
    all.push(commit);
    all
}

/// Frames as a session makes them: slices of one buffer a read.
fn reads(messages: &Messages) -> Vec<FrameBatch> {
    let mut reads = Vec::new();
    let (mut buffer, mut ends) = (BytesMut::with_capacity(READ_BYTES), Vec::new());
    for (n, message) in messages.iter().enumerate() {
        buffer.extend_from_slice(message);
        ends.push(buffer.len());
        if buffer.len() >= READ_BYTES || n + 1 == messages.len() {
            let shared = std::mem::take(&mut buffer).freeze();
            reads.push(frames(&shared, &std::mem::take(&mut ends)));
        }
    }
    reads
}

fn frames(shared: &Bytes, ends: &[usize]) -> FrameBatch {
    let starts = std::iter::once(0).chain(ends.iter().copied());
    let frame = |(start, end): (usize, &usize)| {
        let lsn = Lsn::new(start as u64 + 1);
        let message = shared.slice(start..*end);
        Frame { wal_end: lsn, sent_at_us: 0, payload: FramePayload::XLogData { wal_start: lsn, message } }
    };
    FrameBatch { frames: starts.zip(ends).map(frame).collect(), size_bytes: shared.len() }
}

fn decode(reads: &[FrameBatch]) -> u64 {
    let options = Options {
        batch_bytes: BATCH_BYTES,
        part_bytes: BATCH_BYTES,
        resume_after: Lsn::new(1).expect("one is not zero"),
        next_seq: 0,
    };
    let mut decoder = Decoder::new(options, Box::new(MemoryStash::new(1 << 30)));
    decoder.begin_session(2);
    let mut emit = |batch: Batch| -> Result<(), Infallible> {
        drop(black_box(batch));
        Ok(())
    };
    for read in reads {
        decoder.on_frames(read, &mut emit).expect("recorded messages can be decoded");
    }
    decoder.counts().changes
}

fn bench(criterion: &mut Criterion) {
    let (pgbench, _) = repeated(&recorded("pgbench"));
    let (wide, _) = repeated(&wide());
    let cases = [
        ("pgbench transactions of 4 changes", pgbench.clone()),
        ("inserts of 1 KiB in 20 columns, 10 a transaction", wide),
        ("pgbench changes in one streamed transaction", streamed(&pgbench)),
    ];
    let mut group = criterion.benchmark_group("decode");
    group.sample_size(20);
    for (name, messages) in cases {
        let reads = reads(&messages);
        let size: usize = reads.iter().map(|read| read.size_bytes).sum();
        let changes = decode(&reads);
        group.throughput(Throughput::Elements(changes));
        let name = format!("{name} ({} bytes a change)", size as u64 / changes);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| (), |()| black_box(decode(&reads)), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
