//! What one replication session does next: when it reports, when it gives up, how it ends. Pure: time is a parameter.
//!
//! ```text
//!  Streaming ──Stop──► Finishing ──Ended, or too late──► Over
//!      └──Ended, silent, source stopping──► Over
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
/// A server that has asked this often, for this long, without our getting anywhere, is shutting down and waits for us
/// (it asks an idle reader a few times a minute). We leave, so that it can; what is not confirmed comes again.
const ASKED_COUNT_STOPPING: u32 = 50;
const STOPPING_PATIENCE: Duration = Duration::from_secs(5);

/// What the session goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How often we report when nothing asks for it sooner.
    pub(super) status_interval: Duration,
    /// A server from which nothing has come for this long, though it was asked, is gone.
    pub(super) silence_max: Duration,
}

#[derive(Debug)]
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
    /// Whether the server was asked to say something since.
    prodded: bool,
    asked: Option<Asked>,
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

/// The server's requests for a reply since we last got anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    since: Instant,
    count: u32,
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
    /// For a while nobody listened to the server, so its silence means nothing.
    Listening,
    Stop,
    /// The server sends no more.
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Report(Report),
    /// Say that we send no more.
    SayDone,
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
    /// The server shuts down and waits for sinks that are behind.
    Stopping,
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
            prodded: false,
            asked: None,
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
            Phase::Streaming => self.report_due.min(self.silence_due()),
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
            (Phase::Streaming, Input::Listening) => {
                self.heard_at = now;
                self.prodded = false;
                Vec::new()
            }
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
                Input::Due | Input::Received { .. } | Input::Confirmed(_) | Input::Listening | Input::Stop,
            ) => Vec::new(),
            (
                Phase::Over,
                Input::Received { .. }
                | Input::Confirmed(_)
                | Input::Due
                | Input::Listening
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
        self.prodded = false;
        if has_data {
            self.asked = None;
        }
        if !reply_requested {
            return Vec::new();
        }
        let Asked { since, count } = self.asked.unwrap_or(Asked { since: now, count: 0 });
        self.asked = Some(Asked { since, count: count + 1 });
        let behind = self.confirmed < self.received;
        if behind && count >= ASKED_COUNT_STOPPING && now >= since + STOPPING_PATIENCE {
            return self.leave(Why::Stopping);
        }
        if count < PROMPT_ANSWER_COUNT {
            return vec![self.report(false, now)];
        }
        self.report_due = self.report_due.min(now + ANSWER_INTERVAL);
        Vec::new()
    }

    fn on_confirmed(&mut self, lsn: Lsn, now: Instant) -> Vec<Effect> {
        if self.confirmed >= Some(lsn) {
            return Vec::new();
        }
        self.confirmed = Some(lsn);
        // A server that waits for this very position is told at once.
        if self.asked.take().is_some() {
            return vec![self.report(false, now)];
        }
        self.report_due = self.report_due.min((self.reported_at + REPORT_INTERVAL_MIN).max(now));
        Vec::new()
    }

    fn on_due(&mut self, now: Instant) -> Vec<Effect> {
        if now >= self.heard_at + self.timing.silence_max {
            return self.leave(Why::Silent);
        }
        let prod = !self.prodded && now >= self.silence_due();
        if prod {
            self.prodded = true;
            return vec![self.report(true, now)];
        }
        if now >= self.report_due { vec![self.report(false, now)] } else { Vec::new() }
    }

    /// When the server's silence is acted on: halfway it is asked to say something.
    fn silence_due(&self) -> Instant {
        let patience = if self.prodded { self.timing.silence_max } else { self.timing.silence_max / 2 };
        self.heard_at + patience
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
            Effect::SayDone | Effect::Leave(_) => None,
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
            Input::Listening,
            Input::Stop,
            Input::Ended,
        ];
        let pauses = [0, 1, 40, 4_000, 31_000].map(Duration::from_millis);
        let mut seen = BTreeSet::new();
        let mut paths: VecDeque<Vec<(Input, Duration)>> = VecDeque::from([Vec::new()]);
        let mut edge_count = 0;
        while let Some(path) = paths.pop_front() {
            for input in inputs {
                for pause in pauses {
                    let mut machine = Machine::new(TIMING, lsn(10), None, origin);
                    let mut now = origin;
                    for (input, pause) in &path {
                        now += *pause;
                        machine.on(*input, now);
                    }
                    now += pause;
                    check_edge(&mut machine, input, now);
                    edge_count += 1;
                    let state = format!("{:?}", Shape::of(&machine, now));
                    if path.len() < 8 && seen.insert(state) {
                        let mut longer = path.clone();
                        longer.push((input, pause));
                        paths.push_back(longer);
                    }
                }
            }
        }
        assert!(edge_count > 1_000, "{edge_count}");
    }

    /// A state, times taken relative to now.
    #[derive(Debug)]
    #[allow(dead_code, reason = "compared by its Debug form")]
    struct Shape(Phase2, Option<Lsn>, Option<Lsn>, Option<Lsn>, Duration, Duration, bool, Option<u32>);

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
            let until = machine.report_due.saturating_duration_since(now);
            let silent = now.saturating_duration_since(machine.heard_at).min(TIMING.silence_max);
            let Machine { received, confirmed, reported, prodded, asked, .. } = machine;
            let asked = asked.map(|asked| asked.count.min(7));
            Self(phase, *received, *confirmed, *reported, until, silent, *prodded, asked)
        }
    }

    fn check_edge(machine: &mut Machine, input: Input, now: Instant) {
        let before = (machine.phase, machine.confirmed, machine.received);
        let effects = machine.on(input, now);
        let confirmed = match input {
            Input::Confirmed(lsn) if before.0 == Phase::Streaming => before.1.max(Some(lsn)),
            _ => before.1,
        };
        for effect in &effects {
            match effect {
                Effect::Report(report) => {
                    assert_eq!(before.0, Phase::Streaming, "nothing is reported after the end: {input:?}");
                    assert_eq!(report.durable, confirmed, "what is reported is what the sinks hold");
                    assert!(report.received >= report.durable && report.received >= before.2);
                }
                Effect::SayDone => assert_eq!(before.0, Phase::Streaming),
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
                Input::Due => assert!(
                    effects.contains(&Effect::Leave(Why::Silent)) || machine.due() > now,
                    "what is due is done: {effects:?}"
                ),
                Input::Received { .. } | Input::Confirmed(_) | Input::Listening => {}
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

    #[test]
    fn a_server_that_stops_does_not_wait_for_a_dead_sink() {
        let mut now = Instant::now();
        let mut machine = Machine::new(TIMING, lsn(10), Some(lsn(10)), now);
        let until = now + STOPPING_PATIENCE;
        let left = loop {
            let effects = machine.on(received(100, true), now);
            if let Some(Effect::Leave(why)) = effects.last() {
                break (*why, now);
            }
            now += ANSWER_INTERVAL;
            machine.on(Input::Due, now);
        };
        assert_eq!(left, (Why::Stopping, until));
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
        let later = start + TIMING.silence_max * 2;
        machine.on(Input::Listening, later);
        assert_eq!(reports(&machine.on(Input::Due, later)), [None]);
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
