//! Whether the copy may go on: what the source bears, what the operator asked for. Pure.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use super::bucket::Bucket;
use super::options::LoadLimits;
use crate::model::Lsn;

/// What the source said when it was asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// The end of its log; `None` when nobody asked about standbys.
    pub(super) wal_end: Option<Lsn>,
    pub(super) standbys: Vec<Standby>,
    pub(super) active_sessions: Option<u64>,
    /// What the user's query said, or why it said nothing.
    pub(super) hold_query: Option<Result<bool, String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standby {
    pub(super) name: String,
    pub(super) replayed: Lsn,
    pub(super) lag_bytes: u64,
    /// `replay_lag` as the server measured it last. It does not grow while a standby stands still.
    pub(super) delay: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Input {
    Sampled(Sample),
    /// The source could not be asked. Whether it is under load is not known, so it is spared.
    NotSampled(String),
    /// Nobody asks any more: no copy is under way.
    Unwatched,
    Pause,
    Resume,
    /// Bytes a second for all workers together; `None` is no limit.
    Rate(Option<u64>),
}

/// Why the copy stands still.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Reason {
    StandbyLag { standby: String, bytes: u64, bytes_max: u64 },
    StandbyDelay { standby: String, delay_max: Duration },
    ActiveSessions { count: u64, count_max: u64 },
    QuerySaysSo,
    QueryFailed(String),
    NotAsked(String),
}

/// What the source bears, by the last answer.
#[derive(Clone, Debug, PartialEq)]
enum Load {
    Light,
    /// Entered with the first answer over a limit, left with the first under all of them.
    Heavy {
        since: Instant,
        reasons: Vec<Reason>,
    },
}

/// What an input changed for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Same,
    Held,
    Released,
    /// The operator asked for something else.
    Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Go,
    /// Wait for a [`Turn`], and ask again after this time at the latest.
    Held(Duration),
    /// The rate: ask again after this time, or at a [`Turn`].
    TooFast(Duration),
}

/// How the copy is spared now, for `status`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ThrottleRead {
    pub paused: bool,
    /// Why load holds the copy; empty when it does not.
    pub reasons: Vec<String>,
    /// Since when, as [`crate::telemetry::clock`] tells time; `None` when load does not hold it.
    pub held_since_us: Option<i64>,
    /// How long load has held the copy altogether.
    pub held_total: Duration,
    pub rate_max: Option<u64>,
}

#[derive(Debug)]
pub(super) struct Machine {
    limits: LoadLimits,
    hold_max: Duration,
    paused: bool,
    load: Load,
    /// Of holds that are over.
    held_total: Duration,
    bucket: Option<Bucket>,
    /// Where the source's log ended at earlier samples, oldest first: a standby that stands still is told by it. Kept
    /// for as long as `standby_delay`, and one older.
    trail: VecDeque<(Instant, Lsn)>,
}

impl Machine {
    pub(super) fn new(limits: LoadLimits, hold_max: Duration, rate_max: Option<u64>, now: Instant) -> Self {
        let bucket = rate_max.map(|rate| Bucket::new(rate, now));
        Self {
            limits,
            hold_max,
            paused: false,
            load: Load::Light,
            held_total: Duration::ZERO,
            bucket,
            trail: VecDeque::new(),
        }
    }

    pub(super) fn on(&mut self, input: Input, now: Instant) -> Turn {
        match input {
            Input::Sampled(sample) => {
                self.remember(&sample, now);
                let reasons = self.reasons(&sample, now);
                self.judge(reasons, now)
            }
            Input::NotSampled(why) => self.judge(vec![Reason::NotAsked(why)], now),
            Input::Unwatched => {
                self.trail.clear();
                self.judge(Vec::new(), now)
            }
            Input::Pause => told(!std::mem::replace(&mut self.paused, true)),
            Input::Resume => told(std::mem::replace(&mut self.paused, false)),
            Input::Rate(rate) => {
                let changed = rate != self.rate();
                self.bucket = rate.map(|rate| Bucket::new(rate, now));
                told(changed)
            }
        }
    }

    /// Whether a worker may begin a unit.
    pub(super) fn may_begin(&self) -> bool {
        !self.paused && self.load == Load::Light
    }

    pub(super) fn paused(&self) -> bool {
        self.paused
    }

    /// Whether `bytes` of a unit that has stood still for `held` altogether may pass.
    pub(super) fn admit(&mut self, bytes: u64, held: Duration, now: Instant) -> Admission {
        match &self.load {
            Load::Heavy { .. } if held < self.hold_max => return Admission::Held(self.hold_max - held),
            Load::Heavy { .. } | Load::Light => {}
        }
        match self.bucket.as_mut().map(|bucket| bucket.take(bytes, now)) {
            Some(Err(wait)) => Admission::TooFast(wait),
            Some(Ok(())) | None => Admission::Go,
        }
    }

    /// `held_since_us` is the driver's to fill in.
    pub(super) fn read(&self, now: Instant) -> ThrottleRead {
        let (reasons, held) = match &self.load {
            Load::Light => (Vec::new(), Duration::ZERO),
            Load::Heavy { since, reasons } => {
                (reasons.iter().map(Reason::to_string).collect(), now.saturating_duration_since(*since))
            }
        };
        ThrottleRead {
            paused: self.paused,
            reasons,
            held_since_us: None,
            held_total: self.held_total + held,
            rate_max: self.rate(),
        }
    }

    fn rate(&self) -> Option<u64> {
        self.bucket.as_ref().map(Bucket::rate)
    }

    fn judge(&mut self, reasons: Vec<Reason>, now: Instant) -> Turn {
        match (&mut self.load, reasons.is_empty()) {
            (Load::Light, true) => Turn::Same,
            (Load::Light, false) => {
                self.load = Load::Heavy { since: now, reasons };
                Turn::Held
            }
            (Load::Heavy { reasons: why, .. }, false) => {
                *why = reasons;
                Turn::Same
            }
            (Load::Heavy { since, .. }, true) => {
                self.held_total += now.saturating_duration_since(*since);
                self.load = Load::Light;
                Turn::Released
            }
        }
    }

    fn remember(&mut self, sample: &Sample, now: Instant) {
        let (Some(delay_max), Some(wal_end)) = (self.limits.standby_delay, sample.wal_end) else { return };
        // The newest that is older than the limit is the one that is compared with.
        while self.trail.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= delay_max) {
            self.trail.pop_front();
        }
        self.trail.push_back((now, wal_end));
    }

    fn reasons(&self, sample: &Sample, now: Instant) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for standby in &sample.standbys {
            reasons.extend(self.lag(standby));
            reasons.extend(self.delay(standby, now));
        }
        if let (Some(count), Some(count_max)) = (sample.active_sessions, self.limits.active_sessions) {
            reasons.extend((count > count_max).then_some(Reason::ActiveSessions { count, count_max }));
        }
        match &sample.hold_query {
            Some(Ok(true)) => reasons.push(Reason::QuerySaysSo),
            Some(Err(why)) => reasons.push(Reason::QueryFailed(why.clone())),
            Some(Ok(false)) | None => {}
        }
        reasons
    }

    fn lag(&self, standby: &Standby) -> Option<Reason> {
        let bytes_max = self.limits.standby_lag_bytes?;
        let bytes = standby.lag_bytes;
        (bytes > bytes_max).then(|| Reason::StandbyLag { standby: standby.name.clone(), bytes, bytes_max })
    }

    /// By what the server measured, or because log that ended longer ago than the limit is not replayed yet.
    fn delay(&self, standby: &Standby, now: Instant) -> Option<Reason> {
        let delay_max = self.limits.standby_delay?;
        let old = |(at, _): &&(Instant, Lsn)| now.saturating_duration_since(*at) >= delay_max;
        let stands_still = self.trail.iter().rfind(old).is_some_and(|(_, ended)| *ended > standby.replayed);
        let measured = standby.lag_bytes > 0 && standby.delay.is_some_and(|delay| delay > delay_max);
        (stands_still || measured).then(|| Reason::StandbyDelay { standby: standby.name.clone(), delay_max })
    }
}

fn told(changed: bool) -> Turn {
    if changed { Turn::Told } else { Turn::Same }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StandbyLag { standby, bytes, bytes_max } => {
                write!(f, "standby {standby} is {bytes} bytes behind (max_standby_lag is {bytes_max})")
            }
            Self::StandbyDelay { standby, delay_max } => {
                write!(f, "standby {standby} is behind by more than max_standby_delay ({delay_max:?})")
            }
            Self::ActiveSessions { count, count_max } => {
                write!(f, "{count} client sessions are active (max_active_sessions is {count_max})")
            }
            Self::QuerySaysSo => f.write_str("hold_query says true"),
            Self::QueryFailed(why) => write!(f, "hold_query failed, which counts as true: {why}"),
            Self::NotAsked(why) => write!(f, "whether the source is under load is not known: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limits() -> LoadLimits {
        LoadLimits {
            standby_lag_bytes: Some(1000),
            standby_delay: Some(10 * SECOND),
            active_sessions: Some(5),
            hold_query: Some("SELECT true".to_owned()),
        }
    }

    fn machine(now: Instant) -> Machine {
        Machine::new(limits(), 30 * SECOND, None, now)
    }

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    fn standby(replayed: u64, wal_end: u64, delay: Option<Duration>) -> Sample {
        let standby = Standby { name: "s".to_owned(), replayed: lsn(replayed), lag_bytes: wal_end - replayed, delay };
        Sample { wal_end: Some(lsn(wal_end)), standbys: vec![standby], ..Sample::default() }
    }

    fn sessions(count: u64) -> Sample {
        Sample { active_sessions: Some(count), ..Sample::default() }
    }

    fn query(said: Result<bool, &str>) -> Sample {
        Sample { hold_query: Some(said.map_err(str::to_owned)), ..Sample::default() }
    }

    #[test]
    fn each_limit_holds_the_copy_and_only_when_it_is_passed() {
        for (sample, word) in [
            (standby(100, 1100, None), None),
            (standby(100, 1101, None), Some("standby s is 1001 bytes behind")),
            (standby(100, 101, Some(11 * SECOND)), Some("max_standby_delay")),
            // What it measured last, and has caught up since.
            (standby(100, 100, Some(11 * SECOND)), None),
            (sessions(5), None),
            (sessions(6), Some("6 client sessions are active")),
            (query(Ok(false)), None),
            (query(Ok(true)), Some("hold_query says true")),
            (query(Err("no such table")), Some("hold_query failed, which counts as true: no such table")),
        ] {
            let now = Instant::now();
            let mut machine = machine(now);
            let turn = machine.on(Input::Sampled(sample.clone()), now);
            let reasons = machine.read(now).reasons;
            assert_eq!(turn, if word.is_some() { Turn::Held } else { Turn::Same }, "{sample:?}");
            assert_eq!(machine.may_begin(), word.is_none(), "{sample:?}");
            assert!(word.is_none_or(|word| reasons[0].contains(word)), "{reasons:?}");
            assert_eq!(machine.admit(1, Duration::ZERO, now) == Admission::Go, word.is_none(), "{sample:?}");
        }
    }

    #[test]
    fn a_source_that_cannot_be_asked_is_spared_and_one_that_is_not_watched_is_not() {
        let now = Instant::now();
        let mut machine = machine(now);
        assert_eq!(machine.on(Input::NotSampled("too many clients".to_owned()), now), Turn::Held);
        assert!(machine.read(now).reasons[0].ends_with("not known: too many clients"));
        assert_eq!(machine.on(Input::Unwatched, now + SECOND), Turn::Released);
        assert!(machine.may_begin());
        assert_eq!(machine.read(now + 9 * SECOND).held_total, SECOND);
    }

    #[test]
    fn a_standby_that_stands_still_is_late_though_the_server_measures_nothing() {
        let start = Instant::now();
        let mut machine = machine(start);
        // The log grows by a byte a second, and the standby replays nothing from the third second on.
        for second in 0..30 {
            let now = start + SECOND * second;
            machine.on(Input::Sampled(standby(u64::from(second.min(3)) + 1, u64::from(second) + 1, None)), now);
            assert_eq!(machine.may_begin(), second < 14, "after {second} s");
        }
        assert!(machine.trail.len() <= 12, "{}", machine.trail.len());
        // It catches up.
        machine.on(Input::Sampled(standby(31, 31, None)), start + 30 * SECOND);
        assert!(machine.may_begin());
        // An idle source: nothing is late though nothing moves.
        for second in 31..60 {
            machine.on(Input::Sampled(standby(31, 31, None)), start + SECOND * second);
            assert!(machine.may_begin());
        }
    }

    #[test]
    fn a_unit_is_held_in_the_middle_for_so_long_and_no_longer() {
        let now = Instant::now();
        let mut machine = machine(now);
        machine.on(Input::Sampled(sessions(9)), now);
        assert_eq!(machine.admit(1, Duration::ZERO, now), Admission::Held(30 * SECOND));
        assert_eq!(machine.admit(1, 29 * SECOND, now), Admission::Held(SECOND));
        assert_eq!(machine.admit(1, 30 * SECOND, now), Admission::Go);
        assert!(!machine.may_begin(), "but no further unit is begun");
    }

    #[test]
    fn a_pause_lets_units_end_and_none_begin() {
        let now = Instant::now();
        let mut machine = machine(now);
        assert_eq!(machine.on(Input::Pause, now), Turn::Told);
        assert_eq!(machine.on(Input::Pause, now), Turn::Same);
        assert!(!machine.may_begin());
        assert_eq!(machine.admit(1, Duration::ZERO, now), Admission::Go);
        machine.on(Input::Unwatched, now);
        assert!(machine.paused(), "the end of a copy does not end the operator's pause");
        assert_eq!(machine.on(Input::Resume, now), Turn::Told);
        assert!(machine.may_begin());
    }

    #[test]
    fn a_rate_holds_for_all_and_can_be_taken_back() {
        let now = Instant::now();
        let mut machine = Machine::new(LoadLimits::default(), SECOND, Some(1000), now);
        assert_eq!(machine.admit(2000, Duration::ZERO, now), Admission::Go);
        assert_eq!(machine.admit(1, Duration::ZERO, now), Admission::TooFast(2 * SECOND));
        assert!(machine.may_begin(), "a rate does not keep units from beginning");
        assert_eq!(machine.on(Input::Rate(None), now), Turn::Told);
        assert_eq!(machine.admit(u64::MAX, Duration::ZERO, now), Admission::Go);
        assert_eq!(machine.on(Input::Rate(Some(1000)), now), Turn::Told);
        assert_eq!(machine.on(Input::Rate(Some(1000)), now), Turn::Same);
        assert_eq!(machine.read(now).rate_max, Some(1000));
    }

    #[test]
    fn whatever_comes_in_whatever_order_a_light_source_and_a_resume_let_the_copy_go_on() {
        let inputs = [
            Input::Sampled(sessions(9)),
            Input::Sampled(sessions(0)),
            Input::NotSampled("x".to_owned()),
            Input::Unwatched,
            Input::Pause,
            Input::Resume,
            Input::Rate(Some(1)),
            Input::Rate(None),
        ];
        for first in &inputs {
            for second in &inputs {
                for third in &inputs {
                    let now = Instant::now();
                    let mut machine = machine(now);
                    for input in [first, second, third] {
                        machine.on(input.clone(), now);
                        let read = machine.read(now);
                        assert_eq!(machine.may_begin(), read.reasons.is_empty() && !read.paused);
                    }
                    machine.on(Input::Sampled(sessions(0)), now);
                    machine.on(Input::Resume, now);
                    assert!(machine.may_begin(), "{first:?}, {second:?}, {third:?}");
                }
            }
        }
    }
}
