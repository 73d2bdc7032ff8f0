//! Bytes recorded from PostgreSQL 13 to 18 (`tests/live/decode/recording.rs` says what was done there).

use super::support::{VERSIONS, decoder, feed, lsn, recorded, text};
use crate::decode::{Counts, Decoder, MemoryStash, Options};
use crate::model::{Batch, Frame, ReplicaIdentity};

const CHANGES: &str = include_str!("../../../tests/fixtures/pgoutput/changes.expected");
const STREAMED: &str = include_str!("../../../tests/fixtures/pgoutput/streamed.expected");

fn decode(frames: &[Frame], read: usize, batch_bytes: usize) -> Vec<Batch> {
    let mut decoder = decoder(batch_bytes);
    frames.chunks(read).flat_map(|frames| feed(&mut decoder, frames).unwrap()).collect()
}

/// The same, however the socket cuts the stream and however small batches are.
fn check(scenario: &str, major: u32, expected: &str) {
    let frames = recorded(major, scenario);
    for (read, batch_bytes) in [(frames.len(), 1 << 20), (1, 1 << 20), (7, 1000), (1, 1)] {
        let batches = decode(&frames, read, batch_bytes);
        assert_eq!(text(&batches), expected, "PostgreSQL {major}, {read} frames a read, batches of {batch_bytes}");
        assert!(batches.iter().enumerate().all(|(n, batch)| batch.seq == n as u64));
        assert!(batches.is_sorted_by_key(|batch| batch.through));
        for batch in &batches {
            assert!(batch.through <= batch.wal_end);
            if let Some(last) = batch.transactions.iter().rfind(|transaction| transaction.part.ends()) {
                assert!(last.end <= batch.through);
            }
        }
    }
}

#[test]
fn changes_of_every_kind_are_decoded_alike_from_every_version() {
    for major in VERSIONS {
        let without_messages = |line: &&str| major > 13 || !line.contains("message");
        let expected: String = CHANGES.split_inclusive('\n').filter(without_messages).collect();
        check("changes", major, &expected);
    }
}

#[test]
fn streamed_transactions_come_out_as_if_they_had_not_been_streamed() {
    for major in VERSIONS.into_iter().filter(|major| *major >= 14) {
        check("streamed", major, STREAMED);
    }
}

#[test]
fn relations_carry_identity_types_and_modifiers() {
    for major in VERSIONS {
        let batches = decode(&recorded(major, "changes"), usize::MAX, 1 << 20);
        let relations: Vec<_> = batches.iter().flat_map(|batch| &batch.relations).collect();
        let of = |name: &str| relations.iter().find(|relation| relation.name.name == name).unwrap();
        let flags = |name: &str| of(name).columns.iter().map(|column| column.in_identity).collect::<Vec<_>>();
        assert_eq!((of("items").identity, flags("items")), (ReplicaIdentity::Default, vec![true, false, false, false]));
        assert_eq!((of("whole").identity, flags("whole")), (ReplicaIdentity::Full, vec![true, true, true]));
        assert_eq!((of("by index").identity, flags("by index")), (ReplicaIdentity::Index, vec![true, false]));
        assert_eq!((of("log").identity, flags("log")), (ReplicaIdentity::Nothing, vec![false]));
        let mood = of("items").columns[3].type_name.as_ref().unwrap();
        assert_eq!((mood.schema.as_str(), mood.name.as_str()), ("public", "mood"));
        // varchar(9): the limit plus four bytes of header.
        assert_eq!((of("whole").columns[1].type_oid, of("whole").columns[1].type_modifier), (1043, 13));
        assert_eq!(of("by index").name.schema, "s p");
        let versions: Vec<_> = relations.iter().filter(|relation| relation.name.name == "items").collect();
        assert_eq!(versions.iter().map(|relation| relation.columns.len()).collect::<Vec<_>>(), [4, 5, 5]);
    }
}

#[test]
fn times_are_microseconds_since_the_unix_epoch() {
    for major in VERSIONS {
        let batches = decode(&recorded(major, "changes"), usize::MAX, 1 << 20);
        let years_2024_to_2100 = 1_704_067_200_000_000..4_102_444_800_000_000;
        assert!(batches.iter().flat_map(|batch| &batch.transactions).all(|transaction| {
            years_2024_to_2100.contains(&transaction.committed_at_us) && transaction.commit < transaction.end
        }));
    }
}

#[test]
fn what_has_been_settled_before_is_not_emitted_again() {
    for (major, scenario) in VERSIONS.into_iter().flat_map(|major| [(major, "changes"), (major, "streamed")]) {
        let frames = recorded(major, scenario);
        let ends = |batches: &[Batch]| -> Vec<_> {
            batches.iter().flat_map(|batch| &batch.transactions).map(|transaction| transaction.end).collect()
        };
        let whole = decode(&frames, usize::MAX, 1 << 20);
        for (settled, end) in ends(&whole).into_iter().enumerate() {
            let options = Options { batch_bytes: 1 << 20, part_bytes: 1 << 20, resume_after: end, next_seq: 9 };
            let mut decoder = Decoder::new(options, Box::new(MemoryStash::new(1 << 20)));
            decoder.begin_session(2);
            let rest = feed(&mut decoder, &frames).unwrap();
            assert_eq!(ends(&rest), ends(&whole)[settled + 1..], "PostgreSQL {major} {scenario}");
            assert!(text(&whole).ends_with(&text(&rest)), "PostgreSQL {major} {scenario}");
        }
    }
}

#[test]
fn counts_tell_what_was_left_out() {
    for major in VERSIONS {
        let mut decoder = decoder(1 << 20);
        feed(&mut decoder, &recorded(major, "changes")).unwrap();
        let Counts { empty_transactions, loose_messages, transactions, .. } = decoder.counts();
        // PostgreSQL 15 and later do not send transactions of other tables at all; 13 has no messages.
        assert_eq!(empty_transactions, if major < 15 { 1 } else { 0 }, "PostgreSQL {major}");
        assert_eq!(loose_messages, if major > 13 { 2 } else { 0 }, "PostgreSQL {major}");
        assert_eq!(transactions, CHANGES.matches("commit").count() as u64);
    }
}

#[test]
fn positions_of_changes_are_those_of_their_records() {
    let batches = decode(&recorded(15, "changes"), usize::MAX, 1 << 20);
    let transactions: Vec<_> = batches.iter().flat_map(|batch| &batch.transactions).collect();
    assert!(transactions.iter().all(|transaction| transaction.changes.iter().all(|change| change.lsn > Some(lsn(1)))));
}
