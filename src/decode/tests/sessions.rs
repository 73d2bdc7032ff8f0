//! Sessions that break off and begin again.

use std::convert::Infallible;

use super::support::{
    begin, commit, decoder, feed, insert, keepalive, lsn, recorded, relation, stream_abort, stream_commit,
    stream_start, stream_stop, text,
};
use crate::decode::{Error, Interrupted};
use crate::model::{Batch, Frame, FrameBatch};

/// Three transactions, the second of them large.
fn frames() -> Vec<Frame> {
    let mut frames = vec![begin(10), relation(None, 1, &["id"]), insert(None, 5, 1, &["first"]), commit(10, 20)];
    frames.push(begin(30));
    frames.extend((0..40).map(|n| insert(None, 25, 1, &[&format!("second {n}")])));
    frames.extend([commit(30, 40), begin(50), insert(None, 45, 1, &["third"]), commit(50, 60)]);
    frames
}

/// The same with the second transaction streamed, as a source may do when it decodes the same log again.
fn frames_with_stream() -> Vec<Frame> {
    let mut frames = vec![stream_start(30, true), relation(Some(30), 1, &["id"])];
    frames.extend((0..40).map(|n| insert(Some(30), 25, 1, &[&format!("second {n}")])));
    frames.push(stream_stop());
    frames.extend([begin(10), relation(None, 1, &["id"]), insert(None, 5, 1, &["first"]), commit(10, 20)]);
    frames.extend([stream_commit(30, 30, 40), begin(50), insert(None, 45, 1, &["third"]), commit(50, 60)]);
    frames
}

#[test]
fn a_session_may_break_off_after_any_frame_and_nothing_is_lost_or_emitted_twice() {
    let whole = text(&feed(&mut decoder(1 << 20), &frames()).unwrap());
    for batch_bytes in [1, 500, 1 << 20] {
        for (first, second) in
            [(frames(), frames()), (frames(), frames_with_stream()), (frames_with_stream(), frames())]
        {
            for cut in 0..=first.len() {
                let mut decoder = decoder(batch_bytes);
                let mut batches = feed(&mut decoder, &first[..cut]).unwrap();
                decoder.begin_session(2);
                batches.extend(feed(&mut decoder, &second).unwrap());
                assert_eq!(text(&batches), whole, "cut at {cut}, batches of {batch_bytes}");
                assert!(batches.iter().enumerate().all(|(n, batch)| batch.seq == n as u64));
                assert_ordinals(&batches);
            }
        }
    }
}

fn assert_ordinals(batches: &[Batch]) {
    let mut next = 0;
    for transaction in batches.iter().flat_map(|batch| &batch.transactions) {
        assert_eq!((transaction.first_ordinal, transaction.part.begins()), (next, next == 0));
        next = if transaction.part.ends() { 0 } else { next + transaction.changes.len() as u64 };
    }
}

#[test]
fn recorded_sessions_may_break_off_anywhere_too() {
    let frames = recorded(16, "streamed");
    let whole = text(&feed(&mut decoder(1 << 20), &frames).unwrap());
    for cut in 0..=frames.len() {
        let mut decoder = decoder(1);
        let mut batches = feed(&mut decoder, &frames[..cut]).unwrap();
        decoder.begin_session(4);
        batches.extend(feed(&mut decoder, &frames).unwrap());
        assert_eq!(text(&batches), whole, "cut at {cut}");
    }
}

#[test]
fn a_sink_that_takes_no_more_stops_the_decoder_and_the_next_session_goes_on_behind_what_it_took() {
    let whole = text(&feed(&mut decoder(1 << 20), &frames()).unwrap());
    for taken in 0..10 {
        let mut decoder = decoder(500);
        let mut batches: Vec<Batch> = Vec::new();
        let all = FrameBatch { frames: frames(), size_bytes: 0 };
        let stopped = decoder.on_frames(&all, &mut |batch| {
            if batches.len() < taken {
                batches.push(batch);
                Ok(())
            } else {
                Err("closed")
            }
        });
        assert!(matches!(stopped, Ok(()) | Err(Interrupted::Emit("closed"))));
        decoder.begin_session(1);
        batches.extend(feed(&mut decoder, &frames()).unwrap());
        assert_eq!(text(&batches), whole, "after {taken} batches");
        assert!(batches.iter().enumerate().all(|(n, batch)| batch.seq == n as u64));
        assert_ordinals(&batches);
    }
}

#[test]
fn another_log_than_before_is_refused() {
    let mut first = decoder(1);
    feed(&mut first, &frames()[..10]).unwrap();
    // The transaction that was under way does not come again.
    first.begin_session(1);
    let other = [begin(35), relation(None, 1, &["id"]), insert(None, 33, 1, &["other"]), commit(35, 45)];
    assert!(matches!(feed(&mut first, &other), Err(Error::NotResent { .. })));
    // It comes, but shorter than what was emitted of it.
    let mut second = decoder(1);
    feed(&mut second, &frames()[..10]).unwrap();
    second.begin_session(1);
    let shorter = [begin(30), relation(None, 1, &["id"]), insert(None, 25, 1, &["second 0"]), commit(30, 40)];
    let error = feed(&mut second, &shorter).unwrap_err();
    assert!(matches!(error, Error::Diverged { emitted: 5, found: 1, .. }), "{error}");
}

#[test]
fn a_keepalive_moves_the_position_when_nothing_is_pending() {
    let mut decoder = decoder(1 << 20);
    let batches = feed(&mut decoder, &[keepalive(50), keepalive(60)]).unwrap();
    assert_eq!(batches.iter().map(|batch| (batch.seq, batch.through)).collect::<Vec<_>>(), [(0, lsn(60))]);
    assert!(feed(&mut decoder, &[keepalive(60), keepalive(55)]).unwrap().is_empty());
    // With a transaction in the same read there is one batch, not two.
    let batches = feed(
        &mut decoder,
        &[begin(70), relation(None, 1, &["a"]), insert(None, 65, 1, &["x"]), commit(70, 80), keepalive(90)],
    );
    let batches = batches.unwrap();
    assert_eq!((batches.len(), batches[0].through, batches[0].wal_end), (1, lsn(90), lsn(90)));
}

#[test]
fn pitfall_21_a_keepalive_moves_nothing_while_a_transaction_is_open_or_streamed_or_to_be_gone_on_with() {
    let mut open = decoder(1);
    assert!(feed(&mut open, &[begin(70), keepalive(60)]).unwrap().is_empty());
    feed(&mut open, &[relation(None, 1, &["id"]), insert(None, 65, 1, &["emitted in part"])]).unwrap();
    open.begin_session(1);
    assert!(feed(&mut open, &[keepalive(80)]).unwrap().is_empty());

    let mut streamed = decoder(1 << 20);
    assert!(
        feed(&mut streamed, &[stream_start(7, true), keepalive(60), stream_stop(), keepalive(60)]).unwrap().is_empty()
    );
    let batches = feed(&mut streamed, &[stream_abort(7, 7), keepalive(61)]).unwrap();
    assert_eq!(batches[0].through, lsn(61));
}

#[test]
fn a_keepalive_that_was_emitted_is_not_forgotten_by_the_next_session() {
    let mut decoder = decoder(1 << 20);
    feed(&mut decoder, &[keepalive(100)]).unwrap();
    decoder.begin_session(1);
    assert!(feed(&mut decoder, &[begin(50), commit(50, 60), keepalive(100)]).unwrap().is_empty());
    assert_eq!(decoder.counts().repeated_transactions, 1);
}

#[test]
#[should_panic(expected = "before the first session")]
fn frames_before_a_session_are_our_own_mistake() {
    let options = crate::decode::Options { batch_bytes: 1, part_bytes: 1, resume_after: lsn(1), next_seq: 0 };
    let mut decoder = crate::decode::Decoder::new(options, Box::new(crate::decode::MemoryStash::new(1)));
    let _never = decoder.on_frames(&FrameBatch::default(), &mut |_| Ok::<(), Infallible>(()));
}
