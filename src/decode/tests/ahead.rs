//! A transaction that goes on its way before it has committed.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use super::support::{
    begin, commit, decoder, insert, keepalive, logical, lsn, recorded, relation, stream_abort, stream_commit,
    stream_start, stream_stop, text,
};
use crate::decode::{Decoder, Error, Interrupted};
use crate::model::{Ahead, AheadCommit, AheadGivenUp, AheadPart, Batch, Frame, FrameBatch};

/// What both ways were told, in order.
type Journal = Arc<Mutex<Vec<Told>>>;

#[derive(Clone, Debug)]
enum Told {
    Emitted(Batch),
    Part(Batch),
    Committed { xid: u32, end: u64, after: u64 },
    RolledBack,
}

/// Takes everything, but for the commits, when it is told to.
struct Twin {
    journal: Journal,
    commits: bool,
}

impl Ahead for Twin {
    fn take(&mut self, part: AheadPart) -> Result<(), AheadGivenUp> {
        assert!(part.after <= part.ends_behind() && part.batch.transactions.len() == 1);
        self.journal.lock().unwrap().push(Told::Part(part.batch));
        Ok(())
    }

    fn commit(&mut self, commit: AheadCommit) -> Result<(), AheadGivenUp> {
        if !self.commits {
            return Err(AheadGivenUp::because("not today"));
        }
        let AheadCommit { xid, end, after, .. } = commit;
        self.journal.lock().unwrap().push(Told::Committed { xid: xid.0, end: end.get(), after: after.get() });
        Ok(())
    }

    fn roll_back(&mut self) {
        self.journal.lock().unwrap().push(Told::RolledBack);
    }
}

/// A decoder in a session with a backlog that ends at 1000.
fn ahead(batch_bytes: usize, commits: bool) -> (Decoder, Journal) {
    let (mut decoder, journal) = (decoder(batch_bytes), Journal::default());
    decoder.lead_ahead(Box::new(Twin { journal: Arc::clone(&journal), commits }));
    decoder.apply_ahead(Some(lsn(1000)));
    (decoder, journal)
}

fn feed(decoder: &mut Decoder, journal: &Journal, frames: &[Frame]) -> Result<(), Error> {
    let frames = FrameBatch { frames: frames.to_vec(), size_bytes: 0 };
    let fed = decoder.on_frames(&frames, &mut |batch| {
        journal.lock().unwrap().push(Told::Emitted(batch));
        Ok::<(), Infallible>(())
    });
    match fed {
        Ok(()) => Ok(()),
        Err(Interrupted::Decode(error)) => Err(error),
        Err(Interrupted::Emit(never)) => match never {},
    }
}

fn emitted(journal: &Journal) -> Vec<Batch> {
    let journal = journal.lock().unwrap();
    let emitted = |told: &Told| if let Told::Emitted(batch) = told { Some(batch.clone()) } else { None };
    journal.iter().filter_map(emitted).collect()
}

/// What the target holds in the end: what was emitted, and what was committed ahead in its place.
fn held(journal: &Journal) -> String {
    let (mut held, mut open) = (String::new(), Vec::<Batch>::new());
    for told in &*journal.lock().unwrap() {
        match told {
            Told::Emitted(batch) => held += &text(std::slice::from_ref(batch)),
            Told::Part(batch) => {
                assert_eq!(batch.transactions[0].part.begins(), open.is_empty());
                open.push(batch.clone());
            }
            Told::Committed { .. } => held += &(text(&std::mem::take(&mut open)) + "commit\n"),
            Told::RolledBack => open.clear(),
        }
    }
    assert!(open.is_empty(), "given up without a word");
    held
}

/// One large transaction in two chunks with another one between them, and one behind it on the same table.
fn frames() -> Vec<Frame> {
    vec![
        begin(10),
        relation(None, 1, &["id"]),
        insert(None, 5, 1, &["first"]),
        commit(10, 20),
        stream_start(7, true),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 21, 1, &["a"]),
        stream_stop(),
        begin(30),
        insert(None, 25, 1, &["between"]),
        commit(30, 40),
        stream_start(7, false),
        insert(Some(7), 41, 1, &["b"]),
        logical(Some(7), true, "said"),
        stream_stop(),
        stream_commit(7, 50, 60),
        begin(70),
        insert(None, 65, 1, &["behind"]),
        commit(70, 80),
    ]
}

#[test]
fn each_chunk_goes_with_what_was_emitted_before_it_and_the_commit_before_its_position() {
    let (mut decoder, journal) = ahead(1 << 20, true);
    feed(&mut decoder, &journal, &frames()).unwrap();
    let told: Vec<String> = journal
        .lock()
        .unwrap()
        .iter()
        .map(|told| match told {
            Told::Emitted(batch) => format!("{} through {}", batch.transactions.len(), batch.through.get()),
            Told::Part(batch) => format!("part behind {}", batch.through.get()),
            Told::Committed { xid, end, after } => format!("{xid} ends at {end} behind {after}"),
            Told::RolledBack => "rolled back".to_owned(),
        })
        .collect();
    let expected = [
        "1 through 20",
        "1 through 40",
        "part behind 20",
        "part behind 40",
        "7 ends at 60 behind 40",
        "0 through 60",
        "1 through 80",
    ];
    assert_eq!(told, expected);
    let counts = decoder.counts();
    assert_eq!((counts.transactions, counts.changes, counts.empty_transactions), (4, 5, 0));
}

/// The whole is what it would have been at its commit, but for messages, which the target has no use for.
fn at_commits(frames: &[Frame]) -> String {
    let mut decoder = decoder(1);
    let journal = Journal::default();
    feed(&mut decoder, &journal, frames).unwrap();
    without_messages(&held(&journal))
}

fn without_messages(text: &str) -> String {
    let kept = text.lines().filter(|line| !line.trim_start().starts_with("message"));
    let kept: Vec<&str> = kept.collect();
    // A transaction of nothing else is none.
    kept.join("\n").replace("begin\ncommit\n", "")
}

#[test]
fn a_session_may_break_off_after_any_frame() {
    for whole in [frames(), recorded(16, "streamed"), recorded(14, "streamed"), recorded(18, "streamed")] {
        let end = whole.iter().filter_map(|frame| frame.wal_end).max().unwrap();
        for cut in 0..=whole.len() {
            let (mut decoder, journal) = ahead(1, true);
            decoder.apply_ahead(Some(end));
            // A part that was rolled back ends it too.
            let broken = feed(&mut decoder, &journal, &whole[..cut]).is_err();
            decoder.begin_session(4);
            decoder.apply_ahead(Some(end).filter(|_| !broken));
            if feed(&mut decoder, &journal, &whole).is_err() {
                decoder.begin_session(4);
                feed(&mut decoder, &journal, &whole).unwrap();
            }
            assert_eq!(without_messages(&held(&journal)), at_commits(&whole), "cut at {cut}");
            let emitted = emitted(&journal);
            assert!(emitted.iter().enumerate().all(|(n, batch)| batch.seq == n as u64));
        }
    }
}

#[test]
fn one_at_a_time_goes_ahead_and_the_others_are_put_away() {
    let frames = [
        stream_start(7, true),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 2, 1, &["seven"]),
        stream_stop(),
        stream_start(8, true),
        relation(Some(8), 1, &["id"]),
        insert(Some(8), 3, 1, &["eight"]),
        stream_stop(),
        stream_commit(8, 50, 60),
        stream_commit(7, 70, 80),
        stream_start(9, true),
        relation(Some(9), 1, &["id"]),
        insert(Some(9), 81, 1, &["nine"]),
        stream_stop(),
        stream_commit(9, 90, 95),
    ];
    let (mut decoder, journal) = ahead(1, true);
    feed(&mut decoder, &journal, &frames).unwrap();
    assert_eq!(text(&emitted(&journal)), "begin\n  insert public.t1 id=eight\ncommit\n");
    assert_eq!(held(&journal), at_commits(&frames) + "\n");
    let committed = |told: &Told| matches!(told, Told::Committed { .. });
    assert_eq!(journal.lock().unwrap().iter().filter(|told| committed(told)).count(), 2);
}

#[test]
fn what_is_rolled_back_as_a_whole_is_taken_back_and_the_next_goes_ahead() {
    let start = |top| [stream_start(top, true), relation(Some(top), 1, &["id"]), insert(Some(top), 2, 1, &["x"])];
    let mut frames = start(7).to_vec();
    frames.extend([insert(Some(7), 3, 1, &["y"]), stream_stop(), stream_abort(7, 7)]);
    frames.extend(start(8));
    frames.extend([stream_stop(), stream_commit(8, 50, 60)]);
    let (mut decoder, journal) = ahead(1, true);
    feed(&mut decoder, &journal, &frames).unwrap();
    assert!(journal.lock().unwrap().iter().any(|told| matches!(told, Told::RolledBack)));
    assert_eq!(held(&journal), "begin\n  insert public.t1 id=x\ncommit\n");
}

#[test]
fn a_part_that_is_rolled_back_gives_it_up_and_it_comes_at_its_commit() {
    let frames = [
        stream_start(7, true),
        relation(Some(7), 1, &["id"]),
        insert(Some(7), 2, 1, &["kept"]),
        insert(Some(9), 3, 1, &["gone"]),
        stream_stop(),
        stream_abort(7, 9),
        stream_commit(7, 50, 60),
    ];
    let (mut decoder, journal) = ahead(1, true);
    let error = feed(&mut decoder, &journal, &frames).unwrap_err();
    assert!(matches!(error, Error::AheadGivenUp { .. }), "{error}");
    assert!(decoder.takes_streams(), "others may still be streamed");
    decoder.begin_session(4);
    feed(&mut decoder, &journal, &frames).unwrap();
    assert_eq!(held(&journal), "begin\n  insert public.t1 id=kept\ncommit\n");
}

#[test]
fn what_the_other_end_gives_up_was_not_emitted() {
    let (mut decoder, journal) = ahead(1, false);
    let error = feed(&mut decoder, &journal, &frames()).unwrap_err();
    assert!(matches!(error, Error::AheadGivenUp { .. }), "{error}");
    assert_eq!(emitted(&journal).last().unwrap().through, lsn(40));
    journal.lock().unwrap().push(Told::RolledBack);
    decoder.begin_session(4);
    feed(&mut decoder, &journal, &frames()).unwrap();
    assert_eq!(without_messages(&held(&journal)), at_commits(&frames()));
}

#[test]
fn one_that_is_open_behind_the_end_of_the_backlog_is_given_up() {
    let start = [stream_start(7, true), relation(Some(7), 1, &["id"]), insert(Some(7), 2, 1, &["a"]), stream_stop()];
    let (mut decoder, journal) = ahead(1, true);
    feed(&mut decoder, &journal, &start).unwrap();
    // While it is open a keepalive says nothing.
    feed(&mut decoder, &journal, &[keepalive(999)]).unwrap();
    assert!(emitted(&journal).is_empty());
    let error = feed(&mut decoder, &journal, &[keepalive(1001)]).unwrap_err();
    assert!(matches!(error, Error::AheadGivenUp { .. }), "{error}");
    assert_eq!(held(&journal), "");
    // Without a backlog nothing is claimed.
    decoder.begin_session(4);
    feed(&mut decoder, &journal, &start).unwrap();
    feed(&mut decoder, &journal, &[keepalive(1001), stream_commit(7, 1050, 1060)]).unwrap();
    assert_eq!(text(&emitted(&journal)), "begin\n  insert public.t1 id=a\ncommit\n");
}

/// A description inside its chunks is for itself until it has committed, and then for all, unless a later one has come.
#[test]
fn its_shapes_become_general_with_its_commit() {
    let start = [
        stream_start(7, true),
        relation(Some(7), 1, &["id", "more"]),
        insert(Some(7), 2, 1, &["a", "b"]),
        stream_stop(),
    ];
    let old = [begin(10), relation(None, 1, &["id"]), insert(None, 5, 1, &["old"]), commit(10, 20)];
    let behind = |values: &[&str]| [begin(70), insert(None, 65, 1, values), commit(70, 80)];
    let check = |parts: &[&[Frame]], last: &str| {
        let (mut decoder, journal) = ahead(1, true);
        let frames = parts.concat();
        feed(&mut decoder, &journal, &frames).unwrap();
        assert_eq!(held(&journal), at_commits(&frames) + "\n");
        assert!(held(&journal).ends_with(&format!("insert public.t1 {last}\ncommit\n")), "{}", held(&journal));
    };
    check(&[&old, &start, &[stream_commit(7, 50, 60)], &behind(&["x", "y"])], "id=x more=y");
    check(&[&start, &old, &[stream_commit(7, 50, 60)], &behind(&["x"])], "id=x");
}

#[test]
fn one_without_a_change_of_ours_needs_nobody() {
    let (mut decoder, journal) = ahead(1, false);
    feed(&mut decoder, &journal, &[stream_start(7, true), stream_stop(), stream_commit(7, 50, 60)]).unwrap();
    let emitted = emitted(&journal);
    assert_eq!((emitted.len(), emitted[0].through), (1, lsn(60)));
    assert_eq!(decoder.counts().empty_transactions, 1);
}
