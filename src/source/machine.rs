//! What one replication session does next: when it reports, when it gives up, how it ends. Pure: time is a parameter.
//!
//! ```text
//!  Streaming ──Stop──► Finishing ──Ended, or too late──► Over
//!      └──Ended, Closing, silent──► Over
//! ```

use std::time::Duration;

use tokio::time::Instant;

use crate::model::Lsn;

/// After the last report nothing new is reported sooner than this, however often the sinks settle: each report may
/// make the server write the slot to disk.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// How long the server may take to end the stream after we have.
const FINISH_PATIENCE: Duration = Duration::from_secs(3);
/// A server that shuts down asks again as soon as it has an answer (`WalSndDone`). The first answers are given at once;
/// after that many without progress, this far apart.
const PROMPT_ANSWER_COUNT: u32 = 5;
const ANSWER_INTERVAL: Duration = Duration::from_millis(10);
/// A server that shuts down waits for us to confirm everything, and does not say so. When the sinks have not moved for
/// this long while it asks, or nobody takes what it sends, we find out whether it still lets anybody in; if not, we
/// leave, so that it can stop. What is not confirmed comes again.
const PROBE_AFTER: Duration = Duration::from_secs(5);

/// What the session goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How often we report when nothing asks for it sooner.
    pub(super) status_interval: Duration,
    /// A server from which nothing has come for this long, though it was asked, is gone.
    pub(super) silence_max: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Machine {
    phase: Phase,
    timing: Timing,
    received: Option<Lsn>,
    confirmed: Option<Lsn>,
    /// What the last report said, and when the next is due.
    reported: Option<Lsn>,
    reported_at: Instant,
    report_due: Instant,
    heard_at: Instant,
    /// When the server was asked to say something, if it was since.
    prodded_at: Option<Instant>,
    /// How often the server has asked for a reply since we last got anywhere.
    asked_count: u32,
    /// Nobody takes what was read, so nothing is read.
    blocked: bool,
    /// When to find out whether the server is shutting down.
    probe_due: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Entered at the start.
    Streaming,
    /// We have said that we send no more. Entered on `Stop`; left when the server has ended too, or too late.
    Finishing { deadline: Instant },
    /// Nothing is sent or expected any more.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Messages have come, up to `through`; one of them was data (`has_data`) or asked for a reply.
    Received {
        through: Option<Lsn>,
        has_data: bool,
        reply_requested: bool,
    },
    /// Every sink holds everything through here.
    Confirmed(Lsn),
    /// Nothing happened until [`Machine::due`].
    Due,
    /// Nobody takes what was read; until [`Input::Listening`] the server's silence means nothing.
    Blocked,
    Listening,
    /// The server lets nobody in any more: it is shutting down.
    Closing,
    Stop,
    /// The server sends no more.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Report(Report),
    /// Say that we send no more.
    SayDone,
    /// Find out whether the server still lets anybody in, and answer with [`Input::Closing`] if not.
    Probe,
    /// The session is over.
    Leave(Why),
}

/// A Standby Status Update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// Received. Never behind `durable`.
    pub(super) received: Option<Lsn>,
    /// Durable in every sink: the server may forget it.
    pub(super) durable: Option<Lsn>,
    pub(super) reply_requested: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// We were asked to.
    Stopped,
    /// The server ended the stream.
    Ended,
    Silent,
    /// The server is shutting down and waits for sinks that are behind.
    Closing,
}

impl Machine {
    pub(super) fn new(timing: Timing, start: Lsn, confirmed: Option<Lsn>, now: Instant) -> Self {
        Self {
            phase: Phase::Streaming,
            timing,
            received: Some(start),
            confirmed,
            reported: None,
            reported_at: now,
            report_due: now,
            heard_at: now,
            prodded_at: None,
            asked_count: 0,
            blocked: false,
            probe_due: None,
        }
    }

    pub(super) fn received(&self) -> Option<Lsn> {
        self.received
    }

    /// Whether data is still wanted.
    pub(super) fn is_streaming(&self) -> bool {
        self.phase == Phase::Streaming
    }

    /// When [`Input::Due`] is to be given, if nothing else comes before.
    pub(super) fn due(&self) -> Instant {
        match self.phase {
            Phase::Streaming => {
                let probe_due = self.probe_due.unwrap_or(self.report_due);
                let due = self.report_due.min(probe_due);
                if self.blocked { due } else { due.min(self.silence_due()) }
            }
            Phase::Finishing { deadline } => deadline,
            Phase::Over => self.report_due,
        }
    }

    pub(super) fn on(&mut self, input: Input, now: Instant) -> Vec<Effect> {
        match (self.phase, input) {
            (Phase::Streaming, Input::Received { through, has_data, reply_requested }) => {
                self.on_received(through, has_data, reply_requested, now)
            }
            (Phase::Streaming, Input::Confirmed(lsn)) => self.on_confirmed(lsn, now),
            (Phase::Streaming, Input::Due) => self.on_due(now),
            (Phase::Streaming, Input::Blocked) => {
                self.blocked = true;
                self.probe_due = Some(now + PROBE_AFTER);
                Vec::new()
            }
            (Phase::Streaming, Input::Listening) => {
                (self.blocked, self.probe_due) = (false, None);
                (self.heard_at, self.prodded_at) = (now, None);
                Vec::new()
            }
            (Phase::Streaming, Input::Closing) => self.leave(Why::Closing),
            (Phase::Streaming, Input::Stop) => {
                self.phase = Phase::Finishing { deadline: now + FINISH_PATIENCE };
                vec![self.report(false, now), Effect::SayDone]
            }
            (Phase::Streaming, Input::Ended) => self.leave(Why::Ended),
            (Phase::Finishing { .. }, Input::Ended) => self.leave(Why::Stopped),
            (Phase::Finishing { deadline }, Input::Due) if deadline <= now => self.leave(Why::Stopped),
            // What still comes was under way; nothing may be sent after we said that we are done.
            (
                Phase::Finishing { .. },
                Input::Due
                | Input::Received { .. }
                | Input::Confirmed(_)
                | Input::Blocked
                | Input::Listening
                | Input::Closing
                | Input::Stop,
            ) => Vec::new(),
            (
                Phase::Over,
                Input::Received { .. }
                | Input::Confirmed(_)
                | Input::Due
                | Input::Blocked
                | Input::Listening
                | Input::Closing
                | Input::Stop
                | Input::Ended,
            ) => Vec::new(),
        }
    }

    fn on_received(
        &mut self,
        through: Option<Lsn>,
        has_data: bool,
        reply_requested: bool,
        now: Instant,
    ) -> Vec<Effect> {
        self.received = self.received.max(through);
        self.heard_at = now;
        self.prodded_at = None;
        if has_data {
            self.moved();
        }
        if !reply_requested {
            return Vec::new();
        }
        self.asked_count = self.asked_count.saturating_add(1);
        if self.confirmed < self.received {
            self.probe_due.get_or_insert(now + PROBE_AFTER);
        }
        if self.asked_count <= PROMPT_ANSWER_COUNT {
            return vec![self.report(false, now)];
        }
        self.report_due = self.report_due.min(now + ANSWER_INTERVAL);
        Vec::new()
    }

    /// The stream got somewhere, so nobody waits for us in vain.
    fn moved(&mut self) {
        self.asked_count = 0;
        if !self.blocked {
            self.probe_due = None;
        }
    }

    fn on_confirmed(&mut self, lsn: Lsn, now: Instant) -> Vec<Effect> {
        if self.confirmed >= Some(lsn) {
            return Vec::new();
        }
        self.confirmed = Some(lsn);
        // A server that waits for this very position is told at once.
        if self.asked_count > 0 {
            self.moved();
            return vec![self.report(false, now)];
        }
        self.report_due = self.report_due.min((self.reported_at + REPORT_INTERVAL_MIN).max(now));
        Vec::new()
    }

    fn on_due(&mut self, now: Instant) -> Vec<Effect> {
        let silent = !self.blocked && now >= self.silence_due();
        if silent && self.prodded_at.is_some() {
            return self.leave(Why::Silent);
        }
        let mut effects = Vec::new();
        if silent || now >= self.report_due {
            if silent {
                self.prodded_at = Some(now);
            }
            effects.push(self.report(silent, now));
        }
        if self.probe_due.is_some_and(|due| due <= now) {
            self.probe_due = Some(now + PROBE_AFTER);
            effects.push(Effect::Probe);
        }
        effects
    }

    /// When the server's silence is acted on: halfway it is asked to say something, and has the other half to do so.
    fn silence_due(&self) -> Instant {
        self.prodded_at.unwrap_or(self.heard_at) + self.timing.silence_max / 2
    }

    fn report(&mut self, reply_requested: bool, now: Instant) -> Effect {
        // A stored position may be ahead of what this session has received so far.
        let received = self.received.max(self.confirmed);
        assert!(self.reported <= self.confirmed, "a confirmed position went back");
        self.reported = self.confirmed;
        self.reported_at = now;
        self.report_due = now + self.timing.status_interval;
        Effect::Report(Report { received, durable: self.confirmed, reply_requested })
    }

    fn leave(&mut self, why: Why) -> Vec<Effect> {
        self.phase = Phase::Over;
        vec![Effect::Leave(why)]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, VecDeque};

    use super::*;

    const TIMING: Timing = Timing { status_interval: Duration::from_secs(10), silence_max: Duration::from_secs(60) };

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    fn received(through: u64, reply_requested: bool) -> Input {
        Input::Received { through: Lsn::new(through), has_data: !reply_requested, reply_requested }
    }

    fn reports(effects: &[Effect]) -> Vec<Option<Lsn>> {
        let durable = |effect: &Effect| match effect {
            Effect::Report(report) => Some(report.durable),
            Effect::SayDone | Effect::Probe | Effect::Leave(_) => None,
        };
        effects.iter().filter_map(durable).collect()
    }

    /// Walks every input in every state that a few steps of a few lengths can reach, and asserts on each edge what
    /// must hold whatever has happened.
    #[test]
    fn on_no_path_is_more_confirmed_than_the_sinks_hold_or_a_request_left_unanswered() {
        let origin = Instant::now();
        let inputs = [
            received(100, false),
            received(200, true),
            Input::Received { through: None, has_data: false, reply_requested: true },
            Input::Confirmed(lsn(50)),
            Input::Confirmed(lsn(150)),
            Input::Due,
            Input::Blocked,
            Input::Listening,
            Input::Closing,
            Input::Stop,
            Input::Ended,
        ];
        let pauses = [0, 40, 6_000, 31_000].map(Duration::from_millis);
        let mut seen = BTreeSet::new();
        let mut reached = VecDeque::from([(Machine::new(TIMING, lsn(10), None, origin), origin, 0)]);
        while let Some((machine, now, depth)) = reached.pop_front() {
            for input in inputs {
                for pause in pauses {
                    let (mut machine, now) = (machine.clone(), now + pause);
                    check_edge(&mut machine, input, now);
                    if depth < 5 && seen.insert(format!("{:?}", Shape::of(&machine, now))) {
                        reached.push_back((machine, now, depth + 1));
                    }
                }
            }
        }
        assert!(seen.len() > 500, "{} states", seen.len());
    }

    /// A state, times taken relative to now.
    #[derive(Debug)]
    #[allow(dead_code, reason = "compared by its Debug form")]
    struct Shape(Phase2, Option<Lsn>, Option<Lsn>, Option<Lsn>, [Duration; 4], bool, u32);

    #[derive(Debug)]
    enum Phase2 {
        Streaming,
        Finishing,
        Over,
    }

    impl Shape {
        fn of(machine: &Machine, now: Instant) -> Self {
            let phase = match machine.phase {
                Phase::Streaming => Phase2::Streaming,
                Phase::Finishing { .. } => Phase2::Finishing,
                Phase::Over => Phase2::Over,
            };
            let until = |due: Instant| due.saturating_duration_since(now);
            let probe = machine.probe_due.map_or(Duration::MAX, until);
            let silence = now.saturating_duration_since(machine.heard_at).min(TIMING.silence_max);
            let Machine { received, confirmed, reported, prodded_at, blocked, asked_count, .. } = machine;
            let prodded = prodded_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
            let times = [until(machine.report_due), probe, silence, prodded];
            Self(phase, *received, *confirmed, *reported, times, *blocked, (*asked_count).min(6))
        }
    }

    fn check_edge(machine: &mut Machine, input: Input, now: Instant) {
        let before = (machine.phase, machine.confirmed, machine.received);
        let effects = machine.on(input, now);
        let mut confirmed = before.1;
        if let (Phase::Streaming, Input::Confirmed(lsn)) = (before.0, input) {
            confirmed = confirmed.max(Some(lsn));
        }
        for effect in &effects {
            match effect {
                Effect::Report(report) => {
                    assert_eq!(before.0, Phase::Streaming, "nothing is reported after the end: {input:?}");
                    assert_eq!(report.durable, confirmed, "what is reported is what the sinks hold");
                    assert!(report.received >= report.durable && report.received >= before.2);
                }
                Effect::SayDone | Effect::Probe => assert_eq!(before.0, Phase::Streaming),
                Effect::Leave(_) => assert_eq!(machine.phase, Phase::Over),
            }
        }
        if before.0 == Phase::Over {
            assert_eq!(effects, [], "an over session does nothing");
        }
        if before.0 == Phase::Streaming {
            match input {
                Input::Stop => assert_eq!(effects.last(), Some(&Effect::SayDone)),
                Input::Ended => assert_eq!(effects, [Effect::Leave(Why::Ended)]),
                Input::Received { reply_requested: true, .. } => {
                    let answered = !effects.is_empty() || machine.due() <= now + ANSWER_INTERVAL;
                    assert!(answered, "a request for a reply is answered soon");
                }
                Input::Closing => assert_eq!(effects, [Effect::Leave(Why::Closing)]),
                Input::Due => assert!(
                    effects.contains(&Effect::Leave(Why::Silent)) || machine.due() > now,
                    "what is due is done: {effects:?}"
                ),
                Input::Received { .. } | Input::Confirmed(_) | Input::Blocked | Input::Listening => {}
            }
            assert!(machine.due() <= now + TIMING.status_interval.max(FINISH_PATIENCE));
        }
    }

    #[test]
    fn a_request_for_a_reply_is_answered_at_once() {
        let now = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(10)), now);
        let effects = machine.on(received(20, true), now);
        let report = Report { received: Some(lsn(20)), durable: Some(lsn(10)), reply_requested: false };
        assert_eq!(effects, [Effect::Report(report)]);
    }

    #[test]
    fn what_the_sinks_hold_is_reported_soon_but_not_every_time() {
        let start = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), None, start);
        assert_eq!(reports(&machine.on(Input::Due, start)), [None]);
        for step in 11..=20 {
            assert_eq!(machine.on(Input::Confirmed(lsn(step)), start), []);
        }
        assert_eq!(machine.due(), start + REPORT_INTERVAL_MIN);
        assert_eq!(reports(&machine.on(Input::Due, machine.due())), [Some(lsn(20))]);
    }

    #[test]
    fn a_server_that_stops_hears_at_once_when_the_sinks_have_caught_up() {
        let now = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(10)), now);
        for _ in 0..20 {
            machine.on(received(100, true), now);
        }
        assert_eq!(machine.due(), now + ANSWER_INTERVAL, "its asking again and again is not answered in a loop");
        assert_eq!(reports(&machine.on(Input::Confirmed(lsn(100)), now)), [Some(lsn(100))]);
    }

    /// Gives `input` and then what is due until a probe is, and returns when that was.
    fn probed_after(machine: &mut Machine, input: Input, start: Instant) -> Duration {
        let mut now = start;
        machine.on(input, now);
        while now < start + TIMING.silence_max {
            now = machine.due();
            if machine.on(Input::Due, now).contains(&Effect::Probe) {
                return now - start;
            }
            if input != Input::Blocked {
                machine.on(input, now);
            }
        }
        panic!("never probed");
    }

    #[test]
    fn a_server_that_stops_does_not_wait_for_a_dead_sink() {
        let start = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(10)), start);
        assert_eq!(probed_after(&mut machine, received(100, true), start), PROBE_AFTER);
        let later = start + PROBE_AFTER;
        assert_eq!(machine.on(Input::Closing, later), [Effect::Leave(Why::Closing)]);

        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(10)), start);
        assert_eq!(probed_after(&mut machine, Input::Blocked, start), PROBE_AFTER);
        machine.on(Input::Listening, later);
        let mut now = later;
        while now < later + TIMING.silence_max / 3 {
            now = machine.due();
            assert!(!machine.on(Input::Due, now).contains(&Effect::Probe), "who listens has no need to ask around");
        }
    }

    #[test]
    fn a_silent_server_is_asked_and_then_given_up() {
        let start = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), None, start);
        let (mut asked_at, mut now) = (None, start);
        loop {
            let effects = machine.on(Input::Due, now);
            if effects.iter().any(|effect| matches!(effect, Effect::Report(Report { reply_requested: true, .. }))) {
                assert_eq!(asked_at.replace(now - start), None, "it is asked once");
            }
            if effects == [Effect::Leave(Why::Silent)] {
                break;
            }
            now = machine.due();
        }
        assert_eq!(asked_at, Some(TIMING.silence_max / 2));
        assert_eq!(now - start, TIMING.silence_max);
    }

    #[test]
    fn silence_while_nobody_listened_means_nothing() {
        let start = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), None, start);
        machine.on(Input::Blocked, start);
        let later = start + TIMING.silence_max * 2;
        assert_eq!(machine.on(Input::Due, later).len(), 2, "a report and a probe");
        machine.on(Input::Listening, later);
        assert_eq!(machine.on(Input::Due, later), []);
    }

    #[test]
    fn stopping_says_the_last_word_and_does_not_wait_for_ever() {
        let now = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(30)), now);
        let effects = machine.on(Input::Stop, now);
        let report = Report { received: Some(lsn(30)), durable: Some(lsn(30)), reply_requested: false };
        assert_eq!(effects, [Effect::Report(report), Effect::SayDone]);
        assert_eq!(machine.on(received(40, true), now), []);
        assert_eq!(machine.on(Input::Due, machine.due()), [Effect::Leave(Why::Stopped)]);
    }
}
