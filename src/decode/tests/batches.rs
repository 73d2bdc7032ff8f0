//! How transactions are cut into batches.

use std::sync::Arc;

use super::support::{begin, commit, decoder, feed, insert, lsn, relation, text};
use crate::model::{Batch, ChangeKind, Frame, Part};

fn transaction(at: u64, oid: u32, rows: usize) -> Vec<Frame> {
    let mut frames = vec![begin(at)];
    frames.extend((0..rows).map(|_| insert(None, at, oid, &["a value"])));
    frames.push(commit(at, at + 5));
    frames
}

fn descriptions(oids: std::ops::Range<u32>) -> Vec<Frame> {
    let mut frames = vec![begin(2)];
    frames.extend(oids.map(|oid| relation(None, oid, &["a"])));
    frames.push(commit(2, 3));
    frames
}

/// Exactly the relations that the changes use, each once.
fn assert_listed_exactly(batch: &Batch) {
    let mut used: Vec<u32> = Vec::new();
    for change in batch.transactions.iter().flat_map(|transaction| &transaction.changes) {
        if let ChangeKind::Insert { relation, .. } = &change.kind {
            used.push(*relation);
        }
    }
    used.sort_unstable();
    used.dedup();
    assert!(used.iter().copied().eq(0..batch.relations.len() as u32), "{used:?} of {}", batch.relations.len());
    let distinct =
        |at: usize| batch.relations[..at].iter().all(|relation| !Arc::ptr_eq(relation, &batch.relations[at]));
    assert!((0..batch.relations.len()).all(distinct));
}

#[test]
fn small_transactions_share_a_batch_and_none_is_split() {
    let mut decoder = decoder(4000);
    feed(&mut decoder, &descriptions(1..2)).unwrap();
    let frames: Vec<_> = (1..100).flat_map(|n| transaction(n * 10, 1, 3)).collect();
    let batches = feed(&mut decoder, &frames).unwrap();
    assert!(batches.len() > 5);
    for batch in &batches {
        assert!(batch.transactions.iter().all(|transaction| transaction.part == Part::Whole));
        assert_eq!(batch.through, batch.transactions.last().unwrap().end);
        assert_listed_exactly(batch);
    }
    for batch in &batches[..batches.len() - 1] {
        assert!((4000..6000).contains(&batch.size_bytes()), "{}", batch.size_bytes());
    }
}

#[test]
fn a_large_transaction_goes_out_in_parts_and_the_position_waits_for_its_end() {
    let mut decoder = decoder(4000);
    feed(&mut decoder, &descriptions(1..2)).unwrap();
    let batches = feed(&mut decoder, &transaction(100, 1, 200)).unwrap();
    let parts: Vec<_> = batches.iter().map(|batch| batch.transactions[0].part).collect();
    assert_eq!((parts[0], parts[1], *parts.last().unwrap()), (Part::First, Part::Middle, Part::Last));
    let mut ordinal = 0;
    for batch in &batches {
        assert_listed_exactly(batch);
        let [transaction] = &batch.transactions[..] else { panic!("one transaction a batch here") };
        assert_eq!(transaction.first_ordinal, ordinal);
        ordinal += transaction.changes.len() as u64;
        let ends = transaction.part == Part::Last;
        assert_eq!(batch.through, if ends { lsn(105) } else { lsn(3) });
    }
    assert_eq!(ordinal, 200);
}

#[test]
fn what_is_committed_leaves_with_the_read_it_came_in_and_what_is_open_stays() {
    let mut decoder = decoder(1 << 20);
    feed(&mut decoder, &descriptions(1..9)).unwrap();
    let mut frames = transaction(10, 1, 1);
    frames.extend(transaction(20, 2, 1));
    // Open at the end of the read, with a table the batch knows and one that only it uses.
    frames.extend([begin(30), insert(None, 25, 2, &["x"]), insert(None, 25, 3, &["y"])]);
    let first = feed(&mut decoder, &frames).unwrap();
    assert_eq!((first.len(), first[0].transactions.len(), first[0].through), (1, 2, lsn(25)));
    assert_listed_exactly(&first[0]);
    assert!(feed(&mut decoder, &[insert(None, 26, 3, &["z"])]).unwrap().is_empty());
    let rest = feed(&mut decoder, &[insert(None, 26, 4, &["v"]), insert(None, 27, 2, &["w"]), commit(30, 40)]).unwrap();
    assert_listed_exactly(&rest[0]);
    let expected = "begin\n  insert public.t2 a=x\n  insert public.t3 a=y\n  insert public.t3 a=z\n  insert public.t4 a=v\n  \
                    insert public.t2 a=w\ncommit\n";
    assert_eq!(text(&rest), expected);
}

#[test]
fn a_description_that_says_nothing_new_keeps_the_relation_that_downstream_knows() {
    let mut decoder = decoder(1 << 20);
    feed(&mut decoder, &descriptions(1..2)).unwrap();
    let first = feed(&mut decoder, &transaction(10, 1, 1)).unwrap();
    let again = [begin(20), relation(None, 1, &["a"]), insert(None, 15, 1, &["x"]), commit(20, 30)];
    let second = feed(&mut decoder, &again).unwrap();
    assert!(Arc::ptr_eq(&first[0].relations[0], &second[0].relations[0]));
}

#[test]
fn rows_are_slices_of_the_buffer_they_came_in() {
    let mut decoder = decoder(1 << 20);
    feed(&mut decoder, &descriptions(1..2)).unwrap();
    let row = insert(None, 5, 1, &["a value that would have to be copied"]);
    let batches = feed(&mut decoder, &[begin(10), row.clone(), commit(10, 20)]).unwrap();
    let crate::model::FramePayload::XLogData { message, .. } = row.payload else { panic!("it is data") };
    let ChangeKind::Insert { new, .. } = &batches[0].transactions[0].changes[0].kind else { panic!("it is an insert") };
    assert!(message.as_ptr_range().contains(&new.as_bytes().as_ptr()));
}
