//! Walks the machine against a broker that fails wherever it can, and holds every step to the promises.
//!
//! The broker here is the promise's other side: it keeps what was committed, it may lose the answer to a commit after
//! obeying it or before, and it forgets what was not committed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::*;

use super::machine::{Effect, Failure, Input, Machine, Signature};
use super::mark::{Mark, Rest};
use super::options::WindowLimits;
use super::testing::{batch, change, insert, lsn, transaction};
use super::window::Settlement;

fn limits() -> WindowLimits {
    WindowLimits {
        transactions_max: 3,
        bytes_max: 1 << 20,
        age_max: Duration::from_millis(100),
        transaction_bytes_max: 3_000,
    }
}

/// A change by its transaction and ordinal.
type Published = (Lsn, u64);
/// A position record.
type Stored = (Signature, Option<Mark>);

#[derive(Default)]
struct Broker {
    committed: Vec<Published>,
    position: Option<Stored>,
    open: Option<(Vec<Published>, Option<Stored>)>,
    settled: Option<Lsn>,
    /// How often it committed inside a source transaction, and how often without an answer.
    divided_count: u32,
    unanswered_count: u32,
}

impl Broker {
    /// Performs one effect; `fail` says how it goes wrong. Returns what the machine is told.
    fn perform(&mut self, effect: &Effect, fail: Option<(Failure, bool)>) -> Option<Input> {
        if let (Effect::Commit, Some((Failure::Lost | Failure::Fenced, true))) = (effect, fail) {
            // It obeys, but the answer is lost.
            self.commit();
            self.unanswered_count += 1;
        }
        let may_fail = !matches!(effect, Effect::Settle(_) | Effect::Finish | Effect::Yield);
        if let Some((failure, _)) = fail.filter(|_| may_fail) {
            return Some(Input::Failed(failure));
        }
        match effect {
            Effect::Revive { expected } => {
                // Initialising transactions ends what an older producer left open.
                self.open = None;
                let found = self.position.as_ref().map(|(signature, _)| signature.clone());
                assert!(expected.as_ref().is_none_or(|expected| expected.contains(&found)), "it is still ours");
                Some(Input::Ready(self.position.clone()))
            }
            Effect::Open { .. } => {
                assert!(self.open.is_none(), "two transactions at once");
                self.open = Some((Vec::new(), None));
                None
            }
            Effect::Produce(piece) => {
                for transaction in &piece.batch.transactions {
                    let Rest::From(from) = Mark::rest(piece.done, transaction) else { continue };
                    let changes =
                        transaction.first_ordinal..transaction.first_ordinal + transaction.changes.len() as u64;
                    let rest = changes.filter(|ordinal| *ordinal >= from).map(|ordinal| (transaction.commit, ordinal));
                    self.open.as_mut().expect("records need a transaction").0.extend(rest);
                }
                None
            }
            Effect::Seal { signature, mark, .. } => {
                self.open.as_mut().expect("a position needs a transaction").1 = Some((signature.clone(), *mark));
                None
            }
            Effect::Flush => Some(Input::Flushed),
            Effect::Commit => {
                self.commit();
                Some(Input::Committed)
            }
            Effect::Abort => {
                self.open = None;
                Some(Input::Aborted)
            }
            Effect::Settle(settlement) => {
                self.settle(*settlement);
                None
            }
            Effect::Finish | Effect::Yield => None,
        }
    }

    fn commit(&mut self) {
        let (changes, position) = self.open.take().expect("something to commit");
        self.committed.extend(changes);
        let position = position.expect("every Kafka transaction holds a position");
        self.divided_count += u32::from(position.1.is_some_and(|mark| mark.inside.is_some()));
        self.position = Some(position);
    }

    fn settle(&mut self, settlement: Settlement) {
        let held = self.position.as_ref().and_then(|(_, mark)| *mark).map(|mark| mark.position.commit_end);
        assert!(settlement.through <= held, "{settlement:?} is settled, but only {held:?} is in Kafka");
        assert!(settlement.through >= self.settled, "what is settled goes back");
        self.settled = settlement.through;
    }
}

/// The whole stream: small transactions, keepalives, and large ones in parts.
fn stream() -> Vec<Arc<Batch>> {
    let mut batches = Vec::new();
    let mut push = |through, transactions| batches.push(batch(batches.len() as u64 + 7, through, transactions));
    for round in 0..6_u64 {
        let base = 1_000 * (round + 1);
        let whole = |end: u64| transaction(base + end, Part::Whole, 0, vec![insert(1), insert(2)]);
        push(base + 20, vec![whole(10), whole(20)]);
        push(base + 25, vec![]);
        push(base + 30, vec![whole(30)]);
        let part = |part, first, count| transaction(base + 90, part, first, vec![insert(3); count]);
        push(base + 40, vec![whole(40), part(Part::First, 0, 20)]);
        push(base + 40, vec![part(Part::Middle, 20, 20)]);
        push(base + 40, vec![part(Part::Middle, 40, 20)]);
        push(base + 100, vec![part(Part::Last, 60, 5), whole(100)]);
    }
    batches
}

fn every_change(batches: &[Arc<Batch>]) -> Vec<Published> {
    let of = |transaction: &Transaction| {
        let ordinals = transaction.first_ordinal..transaction.first_ordinal + transaction.changes.len() as u64;
        let commit = transaction.commit;
        ordinals.map(move |ordinal| (commit, ordinal)).collect::<Vec<_>>()
    };
    batches.iter().flat_map(|batch| &batch.transactions).flat_map(of).collect()
}

/// One run of the publisher over what is left of the stream, until all is settled or it crashes.
struct Run<'a> {
    random: &'a mut fastrand::Rng,
    now: &'a mut Instant,
    /// Failures in a hundred effects.
    failing: u32,
}

impl Run<'_> {
    /// Returns whether everything is settled.
    fn go(&mut self, broker: &mut Broker, writer: &str, batches: &[Arc<Batch>], crash_after: usize) -> bool {
        let end = batches.last().expect("the stream is not empty").through;
        let mut input: VecDeque<_> = batches.iter().cloned().collect();
        let (mut machine, mut effects) = Machine::new(limits(), writer.to_owned(), *self.now);
        for _ in 0..crash_after {
            let answer = self.perform(broker, effects);
            if broker.settled == Some(end) {
                return true;
            }
            let next = answer.unwrap_or_else(|| self.next(&machine, &mut input));
            effects = machine.on(next, *self.now);
            assert!(!effects.contains(&Effect::Finish) && !effects.contains(&Effect::Yield));
        }
        false
    }

    fn perform(&mut self, broker: &mut Broker, effects: Vec<Effect>) -> Option<Input> {
        effects.iter().find_map(|effect| {
            let fails = self.random.u32(0..100) < self.failing;
            let failure = match (effect, self.random.u32(0..4)) {
                (_, 3) => Failure::Fenced,
                (Effect::Flush | Effect::Commit, 0) => Failure::Unfinished,
                (Effect::Commit, _) | (_, 0) => Failure::Lost,
                (_, _) => Failure::Spoilt,
            };
            let obeyed = self.random.bool();
            broker.perform(effect, fails.then_some((failure, obeyed)))
        })
    }

    fn next(&mut self, machine: &Machine, input: &mut VecDeque<Arc<Batch>>) -> Input {
        if machine.wants_input() && !input.is_empty() && self.random.u32(0..4) > 0 {
            return Input::Arrived(input.pop_front().expect("it is not empty"));
        }
        let due = machine.due().unwrap_or(*self.now + Duration::from_millis(1));
        *self.now = due.max(*self.now);
        if machine.due().is_some() {
            Input::Due
        } else {
            Input::Arrived(input.pop_front().expect("nothing is due, so input is wanted"))
        }
    }
}

/// Publishes the whole stream with failures and crashes, and compares what was committed.
fn walk(seed: u64) -> Broker {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut now = Instant::now();
    let batches = stream();
    let mut broker = Broker::default();
    let failing = random.u32(0..40);
    for run in 0.. {
        let crash_after = if run < 20 { random.usize(1..120) } else { usize::MAX };
        let mut steps = Run { random: &mut random, now: &mut now, failing: if run < 20 { failing } else { 0 } };
        broker.settled = None;
        // Everything settled was confirmed and does not come again; what is not comes from the transaction's start.
        let resumed = broker.position.as_ref().and_then(|(_, mark)| *mark).map(|mark| mark.position.commit_end);
        let first = batches.iter().position(|batch| {
            batch.transactions.iter().any(|transaction| Some(transaction.end_at_least()) > resumed)
                || Some(batch.through) > resumed
        });
        let Some(first) = first else { break };
        if steps.go(&mut broker, &format!("run {run}"), &batches[first..], crash_after) {
            break;
        }
    }
    assert_eq!(broker.committed, every_change(&batches), "seed {seed}");
    broker
}

#[test]
fn whatever_fails_and_wherever_it_crashes_each_change_is_committed_once_and_in_order() {
    let walks: Vec<Broker> = (0..2_000).map(walk).collect();
    assert!(walks.iter().any(|broker| broker.divided_count > 0), "some transaction was divided");
    assert!(walks.iter().any(|broker| broker.unanswered_count > 0), "some commit had no answer");
}

/// For the seed that the test above names.
#[test]
fn one_walk() {
    walk(0);
}

/// A machine that has claimed its migration and is idle.
fn idle(now: Instant) -> Machine {
    let (mut machine, _) = Machine::new(limits(), "me".into(), now);
    assert_eq!(names(&machine.on(Input::Ready(None), now)), ["settle", "open", "seal", "flush"]);
    assert_eq!(names(&machine.on(Input::Flushed, now)), ["commit"]);
    assert_eq!(names(&machine.on(Input::Committed, now)), ["settle"]);
    machine
}

fn names(effects: &[Effect]) -> Vec<&'static str> {
    let name = |effect: &Effect| match effect {
        Effect::Revive { .. } => "revive",
        Effect::Open { again: false } => "open",
        Effect::Open { again: true } => "open again",
        Effect::Produce(_) => "produce",
        Effect::Seal { .. } => "seal",
        Effect::Flush => "flush",
        Effect::Commit => "commit",
        Effect::Abort => "abort",
        Effect::Settle(_) => "settle",
        Effect::Finish => "finish",
        Effect::Yield => "yield",
    };
    effects.iter().map(name).collect()
}

fn small(seq: u64) -> Input {
    Input::Arrived(batch(seq, 100 * seq, vec![transaction(100 * seq, Part::Whole, 0, vec![insert(1)])]))
}

/// A part of the transaction that ends at 900.
fn part(seq: u64, part: Part, count: usize) -> Input {
    let through = if part.ends() { 900 } else { 50 };
    Input::Arrived(batch(seq, through, vec![transaction(900, part, (seq - 1) * count as u64, vec![insert(1); count])]))
}

#[test]
fn a_window_closes_by_count_by_age_and_for_our_own_messages_at_once() {
    let now = Instant::now();
    let mut machine = idle(now);
    assert_eq!(names(&machine.on(small(1), now)), ["open", "produce"]);
    assert_eq!(names(&machine.on(small(2), now)), ["produce"]);
    assert_eq!(names(&machine.on(small(3), now)), ["produce", "seal", "flush"]);

    let mut machine = idle(now);
    machine.on(small(1), now);
    assert_eq!(machine.due(), Some(now + limits().age_max));
    assert_eq!(names(&machine.on(Input::Due, now + limits().age_max)), ["seal", "flush"]);

    let mut machine = idle(now);
    let fence = change(ChangeKind::Message { prefix: marker_prefix().into(), content: "fence:1".into() });
    let fence = batch(1, 100, vec![transaction(100, Part::Whole, 0, vec![fence])]);
    assert_eq!(names(&machine.on(Input::Arrived(fence), now)), ["open", "produce", "seal", "flush"]);
}

#[test]
fn a_transaction_in_parts_is_kept_whole_up_to_its_bound() {
    let now = Instant::now();
    let mut machine = idle(now);
    machine.on(part(1, Part::First, 2), now);
    // Neither the window's age nor its count divides it.
    assert_eq!(names(&machine.on(Input::Due, now + limits().age_max)), Vec::<&str>::new());
    assert_eq!(names(&machine.on(part(2, Part::Last, 2), now + limits().age_max)), ["produce", "seal", "flush"]);

    let mut machine = idle(now);
    machine.on(part(1, Part::First, 15), now);
    let effects = machine.on(part(2, Part::Middle, 15), now);
    assert_eq!(names(&effects), ["produce", "seal", "flush"], "larger than its bound");
    let expected = Mark { position: Position { commit_end: lsn(50), ordinal: 30 }, inside: Some(lsn(899)) };
    assert!(matches!(&effects[1], Effect::Seal { mark: Some(mark), .. } if *mark == expected), "{effects:?}");

    let mut machine = idle(now);
    machine.on(part(1, Part::First, 2), now);
    let due = machine.due().unwrap();
    assert!(due > now + Duration::from_secs(10) && due < now + Duration::from_secs(60), "before the broker's time-out");
    assert_eq!(names(&machine.on(Input::Due, due)), ["seal", "flush"]);
}

#[test]
fn an_idle_source_moves_the_position_now_and_then() {
    let now = Instant::now();
    let mut machine = idle(now);
    assert_eq!(machine.due(), None);
    machine.on(Input::Arrived(batch(1, 500, vec![])), now);
    let due = machine.due().unwrap();
    assert!(due >= now + Duration::from_secs(5));
    machine.on(Input::Arrived(batch(2, 600, vec![])), now + Duration::from_secs(1));
    assert_eq!(machine.due(), Some(due));
    assert_eq!(names(&machine.on(Input::Due, due)), ["open", "seal", "flush"]);
    machine.on(Input::Flushed, due);
    let effects = machine.on(Input::Committed, due);
    assert!(matches!(effects[..], [Effect::Settle(Settlement { through: Some(through), .. })] if through == lsn(600)));
}

#[test]
fn a_commit_without_answer_is_decided_by_the_position() {
    let now = Instant::now();
    for (position, expected) in [(1, vec!["settle"]), (0, vec!["open again", "produce"])] {
        let mut machine = idle(now);
        machine.on(small(1), now);
        machine.on(Input::Due, now + limits().age_max);
        machine.on(Input::Flushed, now);
        assert_eq!(names(&machine.on(Input::Failed(Failure::Lost), now)), Vec::<&str>::new());
        assert!(!machine.wants_input());
        let due = machine.due().unwrap();
        assert_eq!(names(&machine.on(Input::Due, due)), ["revive"]);
        let found = Signature { writer: "me".into(), serial: position };
        assert_eq!(names(&machine.on(Input::Ready(Some((found, None))), due)), expected);
    }
}

#[test]
fn another_daemons_position_ends_the_publisher_before_it_fences_the_other() {
    let now = Instant::now();
    let mut machine = idle(now);
    machine.on(small(1), now);
    machine.on(Input::Failed(Failure::Fenced), now);
    // The other one has to read the position before it can write its own.
    let due = machine.due().unwrap();
    assert!(due >= now + Duration::from_secs(3));
    let effects = machine.on(Input::Due, due);
    let ours = Some(Signature { writer: "me".into(), serial: 0 });
    assert_eq!(effects, [Effect::Revive { expected: Some(vec![ours]) }]);
    let other = Signature { writer: "other".into(), serial: 0 };
    assert_eq!(names(&machine.on(Input::Ready(Some((other, None))), due)), ["yield"]);
}

#[test]
fn a_spoilt_transaction_is_aborted_and_sent_again_after_a_pause_that_grows() {
    let now = Instant::now();
    let mut machine = idle(now);
    machine.on(small(1), now);
    let (mut at, mut pauses) = (now, Vec::new());
    for _ in 0..10 {
        assert_eq!(names(&machine.on(Input::Failed(Failure::Spoilt), at)), ["abort"]);
        machine.on(Input::Aborted, at);
        let due = machine.due().unwrap();
        pauses.push(due - at);
        at = due;
        assert_eq!(names(&machine.on(Input::Due, at)), ["open again", "produce"]);
    }
    assert!(pauses.is_sorted() && pauses[9] == Duration::from_secs(10), "{pauses:?}");
}

#[test]
fn a_commit_that_is_never_answered_is_decided_by_the_position_that_another_producer_reads() {
    let now = Instant::now();
    let ours = Signature { writer: "me".into(), serial: 1 };
    let claim = Signature { writer: "me".into(), serial: 0 };
    for (stands, then) in [(&ours, vec!["settle"]), (&claim, vec!["open again", "produce"])] {
        let mut machine = idle(now);
        machine.on(small(1), now);
        machine.on(Input::Due, now + limits().age_max);
        let mut at = now;
        assert_eq!(names(&machine.on(Input::Flushed, at)), ["commit"]);
        while at < now + Duration::from_secs(60) {
            assert_eq!(names(&machine.on(Input::Failed(Failure::Unfinished), at)), Vec::<&str>::new());
            at = machine.due().unwrap();
            assert_eq!(names(&machine.on(Input::Due, at)), ["commit"]);
            at += Duration::from_secs(1);
        }
        assert_eq!(names(&machine.on(Input::Failed(Failure::Unfinished), at)), Vec::<&str>::new());
        at = machine.due().unwrap();
        let expected = Effect::Revive { expected: Some(vec![Some(claim.clone()), Some(ours.clone())]) };
        assert_eq!(machine.on(Input::Due, at), [expected]);
        assert_eq!(names(&machine.on(Input::Ready(Some((stands.clone(), None))), at)), then);
    }
}

#[test]
fn a_stop_finishes_what_is_whole_and_gives_up_on_a_broker_that_is_away() {
    let now = Instant::now();
    let mut machine = idle(now);
    assert_eq!(names(&machine.on(Input::Stop, now)), ["finish"]);

    let mut machine = idle(now);
    machine.on(small(1), now);
    assert_eq!(names(&machine.on(Input::Stop, now)), ["seal", "flush"]);
    machine.on(Input::Flushed, now);
    assert_eq!(names(&machine.on(Input::Committed, now)), ["settle", "finish"]);

    let mut machine = idle(now);
    machine.on(part(1, Part::First, 2), now);
    assert_eq!(names(&machine.on(Input::Stop, now)), ["abort"], "half a transaction is taken back");
    assert_eq!(names(&machine.on(Input::Aborted, now)), ["finish"]);

    let mut machine = idle(now);
    machine.on(small(1), now);
    machine.on(Input::Stop, now);
    machine.on(Input::Failed(Failure::Unfinished), now);
    let mut at = now;
    while !names(&machine.on(Input::Due, at)).contains(&"finish") {
        machine.on(Input::Failed(Failure::Unfinished), at);
        at += Duration::from_secs(1);
        assert!(at <= now + Duration::from_secs(6), "it gives up after a few seconds");
    }
}
