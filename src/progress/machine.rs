//! The rule: the source may forget what every sink holds durably, and nothing else (I2). A durable spool holds for all of
//! them: then it is what is durable there.

use std::collections::BTreeMap;

use super::backlog::Backlog;
use crate::model::{Batch, Lsn, SinkName};

/// Tracks the positions of all sinks of one migration. Pure; the pipeline feeds it and acts on what it answers.
#[derive(Clone, Debug)]
pub struct Tracker {
    sinks: BTreeMap<SinkName, Sink>,
    /// What a durable spool holds for every sink; `None` without one.
    kept: Option<Lsn>,
    /// End of the last transaction decoded, and of everything decoded.
    last_transaction_end: Option<Lsn>,
    decoded_through: Option<Lsn>,
    wal_end: Option<Lsn>,
    source_end: Option<Lsn>,
}

#[derive(Clone, Debug)]
struct Sink {
    settled: Lsn,
    backlog: Backlog,
}

/// How far a sink is behind the source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SinkLag {
    pub bytes: u64,
    pub seconds: f64,
}

/// A change that waits for this long is a backlog.
const BEHIND_US: i64 = 1_000_000;

/// What there is to know of a batch once the spool has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    through: Lsn,
    wal_end: Lsn,
    /// The end of its last whole transaction, and when its first one was committed.
    last: Option<(Lsn, i64)>,
}

impl Decoded {
    pub fn of(batch: &Batch) -> Self {
        let ends = batch.transactions.iter().filter(|transaction| transaction.part.ends()).map(|it| it.end);
        let last = ends.max().zip(batch.transactions.first().map(|first| first.committed_at_us));
        Self { through: batch.through, wal_end: batch.wal_end, last }
    }

    pub fn through(&self) -> Lsn {
        self.through
    }
}

impl Tracker {
    /// Starts from what each sink says it holds.
    pub fn new(resume: impl IntoIterator<Item = (SinkName, Lsn)>) -> Self {
        let sinks: BTreeMap<_, _> =
            resume.into_iter().map(|(name, settled)| (name, Sink { settled, backlog: Backlog::default() })).collect();
        assert!(!sinks.is_empty(), "a migration has at least one sink");
        Self { sinks, kept: None, last_transaction_end: None, decoded_through: None, wal_end: None, source_end: None }
    }

    /// A durable spool holds everything through here for every sink that has not settled it. `backlog`: ends of the
    /// transactions in it, each with the commit time of an early one before it; `last` is the end of the last.
    #[must_use]
    pub fn with_spool(mut self, through: Lsn, last: Option<Lsn>, backlog: &[(Lsn, i64)]) -> Self {
        self.kept = Some(through);
        self.last_transaction_end = last;
        self.decoded_through = Some(through);
        for sink in self.sinks.values_mut() {
            for (end, first_committed_at_us) in backlog.iter().filter(|(end, _)| *end > sink.settled) {
                sink.backlog.push(*end, *first_committed_at_us);
            }
        }
        self
    }

    /// What the slot may be told: what is durable in the spool, or else the smallest durable position of a sink. Never
    /// more than the spool holds, so that a start always finds there what the source has forgotten.
    pub fn confirmed(&self) -> Lsn {
        let settled = self.sinks.values().map(|sink| sink.settled).min().expect("there is at least one sink");
        self.kept.unwrap_or(settled)
    }

    /// Log that was confirmed because the spool holds it, and not the sinks.
    pub fn released_bytes(&self) -> u64 {
        let reached = self.sinks.values().map(|sink| self.reach(sink)).min().expect("there is at least one sink");
        self.kept.map_or(0, |kept| kept.bytes_since(reached))
    }

    /// The spool is durable through here. Returns the new confirmed position when it moved.
    pub fn kept(&mut self, through: Lsn) -> Option<Lsn> {
        let before = self.kept.expect("only a durable spool says what it keeps");
        assert!(through >= before, "the spool went back from {before} to {through}");
        self.kept = Some(through);
        (through > before).then_some(through)
    }

    /// A batch has been decoded, and the spool has it for every sink. One of them may have settled it already.
    pub fn decoded(&mut self, decoded: Decoded) {
        let Decoded { through, wal_end, last } = decoded;
        assert!(Some(through) >= self.decoded_through, "the decoder went back to {through}");
        self.decoded_through = Some(through);
        self.heard_of(wal_end);
        if let Some((end, first_committed_at_us)) = last {
            self.last_transaction_end = Some(end);
            for sink in self.sinks.values_mut().filter(|sink| sink.settled < end) {
                sink.backlog.push(end, first_committed_at_us);
            }
        }
    }

    /// The source's log reaches this far.
    pub fn heard_of(&mut self, wal_end: Lsn) {
        self.wal_end = self.wal_end.max(Some(wal_end));
    }

    /// Asked about it beside the stream, the source said that its log ends here.
    pub fn source_ends(&mut self, at: Lsn) {
        self.source_end = self.source_end.max(Some(at));
    }

    /// A sink holds everything durably through here. Returns the new confirmed position when it moved.
    pub fn settled(&mut self, name: SinkName, through: Lsn) -> Option<Lsn> {
        let before = self.confirmed();
        let sink = self.sinks.get_mut(&name).expect("only sinks named at the start settle");
        assert!(through >= sink.settled, "{name} settled {through} after {}", sink.settled);
        sink.settled = through;
        sink.backlog.settle(through);
        let after = self.confirmed();
        (after > before).then_some(after)
    }

    /// A sink that begins where `like` stands now; nothing more is confirmed than what it holds too.
    pub fn join(&mut self, name: SinkName, like: SinkName) {
        let sink = self.sinks.get(&like).expect("a sink joins beside one that is there").clone();
        assert!(self.sinks.insert(name, sink).is_none(), "{name} is there already");
    }

    /// The sink needs nothing more. Returns the new confirmed position when it moved.
    pub fn leave(&mut self, name: SinkName) -> Option<Lsn> {
        let before = self.confirmed();
        self.sinks.remove(&name)?;
        let after = self.confirmed();
        (after > before).then_some(after)
    }

    pub fn settled_through(&self, name: SinkName) -> Option<Lsn> {
        self.sinks.get(&name).map(|sink| sink.settled)
    }

    /// Everything the source committed up to here has been decoded.
    pub fn decoded_through(&self) -> Option<Lsn> {
        self.decoded_through
    }

    pub fn wal_end(&self) -> Option<Lsn> {
        self.wal_end
    }

    /// Whether every sink holds everything through `barrier`. A sink that has settled the last transaction holds all
    /// that was decoded, though it writes its position for mere keepalives only now and then.
    pub fn drained(&self, barrier: Lsn) -> bool {
        self.sinks.values().all(|sink| self.reach(sink) >= barrier)
    }

    /// The same for one sink.
    pub fn reached(&self, name: SinkName, barrier: Lsn) -> bool {
        self.sinks.get(&name).is_some_and(|sink| self.reach(sink) >= barrier)
    }

    /// `unheard_us` is how long ago the source last said anything, when it should have.
    pub fn lag(&self, name: SinkName, now_us: i64, unheard_us: Option<i64>) -> Option<SinkLag> {
        let sink = self.sinks.get(&name)?;
        let waiting_us = sink.backlog.oldest_us().map_or(0, |oldest| now_us.saturating_sub(oldest));
        // A stream that is behind is not read to its end, and says nothing of what follows. One that is not has said all.
        let asked = self.source_end.filter(|_| waiting_us >= BEHIND_US);
        let bytes = self.wal_end.max(asked).map_or(0, |end| end.bytes_since(self.reach(sink)));
        let micros = waiting_us.max(unheard_us.unwrap_or(0)).max(0);
        Some(SinkLag { bytes, seconds: micros as f64 / 1e6 })
    }

    fn reach(&self, sink: &Sink) -> Lsn {
        let caught_up = self.last_transaction_end.is_none_or(|end| sink.settled >= end);
        match self.decoded_through {
            Some(decoded) if caught_up => sink.settled.max(decoded),
            Some(_) | None => sink.settled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Part, Transaction, Xid};

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    /// A batch of one transaction per end, committed at its end in microseconds; `through` is where it reaches.
    fn batch(ends: &[u64], through: u64) -> Batch {
        let transaction = |end: &u64| Transaction {
            xid: Xid(1),
            commit: lsn(*end - 1),
            end: lsn(*end),
            committed_at_us: *end as i64,
            origin: None,
            part: Part::Whole,
            first_ordinal: 0,
            changes: Vec::new(),
        };
        Batch {
            seq: 0,
            relations: Vec::new(),
            transactions: ends.iter().map(transaction).collect(),
            through: lsn(through),
            wal_end: lsn(through),
        }
    }

    fn two_sinks() -> Tracker {
        Tracker::new([(SinkName::Target, lsn(100)), (SinkName::Kafka, lsn(100))])
    }

    #[test]
    fn the_slower_sink_decides_what_is_confirmed() {
        let mut tracker = two_sinks();
        tracker.decoded(Decoded::of(&batch(&[200, 300], 300)));
        assert_eq!(tracker.settled(SinkName::Target, lsn(300)), None);
        assert_eq!(tracker.confirmed(), lsn(100));
        assert_eq!(tracker.settled(SinkName::Kafka, lsn(200)), Some(lsn(200)));
        assert_eq!(tracker.settled(SinkName::Kafka, lsn(300)), Some(lsn(300)));
    }

    #[test]
    fn a_sink_that_joins_holds_back_what_is_confirmed_until_it_leaves() {
        let mut tracker = two_sinks();
        tracker.decoded(Decoded::of(&batch(&[200, 300], 300)));
        tracker.settled(SinkName::Kafka, lsn(300));
        tracker.settled(SinkName::Target, lsn(200));
        tracker.join(SinkName::Resync, SinkName::Target);
        assert_eq!(tracker.settled(SinkName::Target, lsn(300)), None);
        assert_eq!(tracker.confirmed(), lsn(200));
        assert_eq!(tracker.lag(SinkName::Resync, 1_000_200, None).unwrap().seconds, 1.0);
        assert_eq!(tracker.leave(SinkName::Resync), Some(lsn(300)));
        assert_eq!(tracker.leave(SinkName::Resync), None);
    }

    #[test]
    fn no_order_of_settling_confirms_what_one_sink_lacks() {
        // Every interleaving of three settlements a sink.
        for choice in 0..(1_u32 << 6) {
            let mut tracker = two_sinks();
            tracker.decoded(Decoded::of(&batch(&[200, 300, 400], 400)));
            let mut at = [100, 100];
            for step in 0..6 {
                let index = (choice >> step & 1) as usize;
                at[index] = (at[index] + 100).min(400);
                let name = [SinkName::Target, SinkName::Kafka][index];
                tracker.settled(name, lsn(at[index]));
                assert_eq!(tracker.confirmed(), lsn(at[0].min(at[1])));
            }
        }
    }

    #[test]
    fn with_a_durable_spool_its_end_is_confirmed_whatever_the_sinks_hold() {
        let mut tracker = two_sinks().with_spool(lsn(150), Some(lsn(150)), &[]);
        assert_eq!(tracker.confirmed(), lsn(150));
        tracker.decoded(Decoded::of(&batch(&[200, 300], 300)));
        for name in [SinkName::Target, SinkName::Kafka] {
            assert_eq!(tracker.settled(name, lsn(300)), None);
        }
        // Every sink holds it, but a start could not tell: what is not in the spool is not confirmed.
        assert_eq!(tracker.confirmed(), lsn(150));
        assert_eq!(tracker.kept(lsn(300)), Some(lsn(300)));
        assert_eq!(tracker.kept(lsn(300)), None);
    }

    #[test]
    fn what_a_spool_kept_over_a_restart_counts_as_missing_and_as_old_as_it_is() {
        let mut tracker =
            two_sinks().with_spool(lsn(900), Some(lsn(800)), &[(lsn(500), 1_000_000), (lsn(800), 3_000_000)]);
        tracker.decoded(Decoded::of(&batch(&[], 1000)));
        assert!(!tracker.drained(lsn(200)) && !tracker.reached(SinkName::Target, lsn(900)));
        assert_eq!(tracker.lag(SinkName::Target, 5_000_000, None).unwrap(), SinkLag { bytes: 900, seconds: 4.0 });
        tracker.settled(SinkName::Target, lsn(500));
        assert_eq!(tracker.lag(SinkName::Target, 5_000_000, None).unwrap().seconds, 2.0);
        tracker.settled(SinkName::Target, lsn(800));
        assert!(tracker.reached(SinkName::Target, lsn(1000)));
        assert_eq!(tracker.released_bytes(), 800);
        tracker.settled(SinkName::Kafka, lsn(800));
        assert_eq!(tracker.released_bytes(), 0);
    }

    #[test]
    fn lag_is_zero_when_idle_and_grows_when_stuck() {
        let mut tracker = two_sinks();
        let seconds = |tracker: &Tracker, now| tracker.lag(SinkName::Target, now, None).unwrap().seconds;
        assert_eq!(seconds(&tracker, 9_000_000), 0.0);
        tracker.decoded(Decoded::of(&batch(&[1_000_000, 2_000_000], 2_000_000)));
        assert_eq!(seconds(&tracker, 3_000_000), 2.0);
        assert_eq!(seconds(&tracker, 5_000_000), 4.0);
        tracker.settled(SinkName::Target, lsn(2_000_000));
        assert_eq!(seconds(&tracker, 9_000_000), 0.0);
        assert_eq!(tracker.lag(SinkName::Target, 9_000_000, Some(4_000_000)).unwrap().seconds, 4.0);
    }

    #[test]
    fn what_a_stream_that_is_behind_does_not_say_is_asked_for() {
        let mut tracker = two_sinks();
        let bytes = |tracker: &Tracker, now_us| tracker.lag(SinkName::Target, now_us, None).unwrap().bytes;
        tracker.source_ends(lsn(5_000));
        assert_eq!(bytes(&tracker, 0), 0, "nothing waits");
        tracker.decoded(Decoded::of(&batch(&[200], 200)));
        let oldest = tracker.sinks[&SinkName::Target].backlog.oldest_us().unwrap();
        let begin = tracker.settled_through(SinkName::Target).unwrap();
        assert_eq!(bytes(&tracker, oldest + BEHIND_US - 1), lsn(200).bytes_since(begin));
        assert_eq!(bytes(&tracker, oldest + BEHIND_US), lsn(5_000).bytes_since(begin));
    }

    #[test]
    fn a_keepalive_counts_as_reached_once_all_transactions_are_settled() {
        let mut tracker = two_sinks();
        tracker.decoded(Decoded::of(&batch(&[200], 200)));
        tracker.decoded(Decoded::of(&batch(&[], 900)));
        assert!(!tracker.drained(lsn(200)));
        tracker.settled(SinkName::Target, lsn(200));
        tracker.settled(SinkName::Kafka, lsn(200));
        assert!(tracker.drained(lsn(900)));
        assert_eq!(tracker.lag(SinkName::Kafka, 0, None).unwrap().bytes, 0);
        // Yet the slot is told only what is durable.
        assert_eq!(tracker.confirmed(), lsn(200));
    }

    #[test]
    fn a_long_backlog_keeps_its_oldest_time() {
        let mut tracker = two_sinks();
        for end in 1..20_000_u64 {
            tracker.decoded(Decoded::of(&batch(&[1000 + end], 1000 + end)));
        }
        assert_eq!(tracker.lag(SinkName::Target, 1001 + 7_000_000, None).unwrap().seconds, 7.0);
        tracker.settled(SinkName::Target, lsn(10_000));
        let late = tracker.lag(SinkName::Target, 10_000 + 1_000_000, None).unwrap().seconds;
        assert!((1.0..1.01).contains(&late), "{late}");
    }
}
