//! Whether a start may go on with what it finds in the directory, has to, or must not.
//!
//! Three positions decide: what each sink holds, from where to where the spool reaches, and up to where the source has
//! been told that it may forget. Nothing may be missing between a sink and what comes next.

use std::collections::{BTreeMap, VecDeque};

use tracing::{info, warn};

use crate::model::{Lsn, MigrationName, SinkName, SourceIdentity};
use crate::telemetry;

use super::directory::Directory;
use super::machine::Contents;
use super::recovery::{self, Found, Stopped};
use super::state::{Mark, State, StateFile};
use super::{Error, Options, Spool};

/// Whose stream it is, and how far everybody has come.
#[derive(Clone, Debug)]
pub struct Standing {
    pub migration: MigrationName,
    pub source: SourceIdentity,
    /// Where the slot began.
    pub consistent_point: Lsn,
    /// Raised by each daemon that starts.
    pub epoch: i64,
    /// The source has been told that it may forget everything up to here.
    pub slot: Lsn,
    /// What each sink says it holds; `None` where it cannot be asked yet.
    pub settled: Vec<(SinkName, Option<Lsn>)>,
}

/// Where the stream goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// What the source is asked to send after: everything before is in the spool or in every sink.
    pub stream: Lsn,
    /// `seq` of the batch that comes next.
    pub next_seq: u64,
    /// Where what is kept begins: every sink holds everything up to here.
    pub oldest: Lsn,
    /// How far the spool is durable, when it is. The source may forget that much.
    pub durable: Option<Lsn>,
    /// End of the last transaction that is kept.
    pub last_transaction: Option<Lsn>,
    /// Ends of transactions that are kept, each with the commit time of an early one before it.
    pub backlog: Vec<(Lsn, i64)>,
    /// From where on each sink was owed the stream; one that holds less now has lost something.
    pub owed: BTreeMap<SinkName, Lsn>,
}

impl Spool {
    /// Takes the directory and goes on with what is there, durable or not as `durable` says; refuses when that would
    /// leave something out. Blocks: reads what is there.
    pub fn resume(options: &Options, standing: &Standing, durable: bool) -> Result<(Self, Resumed), Error> {
        let directory = Directory::lock(&options.dir)?;
        directory.clear_stashes()?;
        let state = StateFile::open(&directory);
        // A damaged state is as good as none: whether that matters is told by the positions.
        let (state, damage) = match state {
            Ok(state) => (state, None),
            Err(error @ Error::Corrupt { .. }) => (None, Some(error)),
            Err(error) => return Err(error),
        };
        if let Some(state) = &state {
            standing.check(&directory, state.state())?;
        }
        if durable {
            standing.resume_durable(options, directory, state, damage)
        } else {
            standing.resume_cache(options, directory, state, damage)
        }
    }
}

impl Standing {
    fn check(&self, directory: &Directory, state: &State) -> Result<(), Error> {
        let refused = |what: String| Err(Error::Foreign { path: directory.path().to_owned(), what });
        if state.migration != self.migration.as_str() {
            return refused(format!("it belongs to migration {}, and this one is {}", state.migration, self.migration));
        }
        if state.source != self.source {
            return refused(format!(
                "it belongs to the source with system identifier {}, timeline {}; this one is {} on timeline {}",
                state.source.system_identifier,
                state.source.timeline,
                self.source.system_identifier,
                self.source.timeline
            ));
        }
        if state.consistent_point != self.consistent_point {
            return refused(format!(
                "it belongs to a migration of the same name whose slot began at {}; the slot of this one began at {}",
                state.consistent_point, self.consistent_point
            ));
        }
        if state.epoch > self.epoch {
            let path = directory.path().to_owned();
            return Err(Error::SetBack { path, written_by: state.epoch, known: self.epoch });
        }
        Ok(())
    }

    fn resume_durable(
        &self,
        options: &Options,
        directory: Directory,
        state: Option<StateFile>,
        damage: Option<Error>,
    ) -> Result<(Spool, Resumed), Error> {
        let known: Vec<Option<Lsn>> = options.sinks.iter().map(|sink| self.settled_by(*sink)).collect();
        let found = state.as_ref().map(|state| recovery::scan(&directory, state.state().begin, &known)).transpose()?;
        let reach = found.as_ref().map(|found| (found.begin.through, found.contents.end.through));
        let floors = self.floors(&options.sinks, reach.map(|(begin, _)| begin));
        let why = || why_unusable(&directory, found.as_ref(), damage.as_ref());
        match judge(reach, self.slot, &floors) {
            Verdict::GoOn => {
                let (state, found) = state.zip(found).expect("only with what was found can be gone on");
                self.go_on(options, directory, state, found)
            }
            Verdict::Anew => {
                if found.is_some() || damage.is_some() {
                    warn!(why = why(), "the spool is begun anew: every sink holds what the source has forgotten");
                }
                self.begin_anew(options, directory, state.as_ref().map(StateFile::state))
            }
            Verdict::Refuse { sink, held } => Err(Error::Lost { sink, held, slot: self.slot, why: why() }),
        }
    }

    fn go_on(
        &self,
        options: &Options,
        directory: Directory,
        mut state: StateFile,
        found: Found,
    ) -> Result<(Spool, Resumed), Error> {
        if let Some(stopped) = &found.stopped {
            let (file, offset, what) = (stopped.path.display(), stopped.offset, stopped.what);
            info!(%file, offset, what, "cut the end of the spool: the source sends what was there again");
        }
        found.tidy(&directory)?;
        let mut owed = state.state().joined.clone();
        for sink in &options.sinks {
            owed.entry(*sink).or_insert(found.begin.through);
        }
        let stored = State { epoch: self.epoch, joined: owed.clone(), ..state.state().clone() };
        state.write(stored)?;
        let resumed = Resumed {
            stream: found.contents.end.through,
            next_seq: found.contents.end.seq,
            oldest: found.begin.through,
            durable: Some(found.contents.end.through),
            last_transaction: found.last_transaction,
            backlog: found.backlog,
            owed,
        };
        info!(from = %resumed.oldest, through = %resumed.stream, bytes = found.contents.size_bytes, "spool goes on");
        Ok((Spool::durable(options, directory, found.contents, state), resumed))
    }

    fn begin_anew(
        &self,
        options: &Options,
        directory: Directory,
        before: Option<&State>,
    ) -> Result<(Spool, Resumed), Error> {
        directory.clear()?;
        // A spool that is gone cannot tell what Kafka was owed: then it is everything.
        let joined =
            |sink: &SinkName| before.and_then(|it| it.joined.get(sink).copied()).unwrap_or(self.consistent_point);
        let begin = Mark { seq: 0, through: self.slot };
        let state = State {
            migration: self.migration.to_string(),
            source: self.source.clone(),
            consistent_point: self.consistent_point,
            epoch: self.epoch,
            begin,
            joined: options.sinks.iter().map(|sink| (*sink, joined(sink))).collect(),
        };
        let resumed = Resumed { durable: Some(self.slot), ..Resumed::nothing_kept(self.slot, state.joined.clone()) };
        let state = StateFile::create(&directory, state)?;
        let starts = vec![(begin.seq, 0); options.sinks.len()];
        let contents = Contents { segments: VecDeque::new(), end: begin, size_bytes: 0, starts };
        Ok((Spool::durable(options, directory, contents, state), resumed))
    }

    fn resume_cache(
        &self,
        options: &Options,
        directory: Directory,
        state: Option<StateFile>,
        damage: Option<Error>,
    ) -> Result<(Spool, Resumed), Error> {
        let state = state.as_ref().map(StateFile::state);
        let floors = self.floors(&options.sinks, state.map(|state| state.begin.through));
        if let Verdict::Refuse { sink, held } = judge(None, self.slot, &floors) {
            let path = directory.path().to_owned();
            return Err(match state {
                Some(_) => Error::StillNeeded { path, sink, held, slot: self.slot },
                None => {
                    Error::Lost { sink, held, slot: self.slot, why: why_unusable(&directory, None, damage.as_ref()) }
                }
            });
        }
        let owed_before = |sink: &SinkName| match (state, &damage) {
            (Some(state), _) => state.joined.get(sink).copied().unwrap_or(self.slot),
            (None, Some(_)) => self.consistent_point,
            (None, None) => self.slot,
        };
        let owed = options.sinks.iter().map(|sink| (*sink, owed_before(sink))).collect();
        directory.clear()?;
        Ok((Spool::cache(options, directory), Resumed::nothing_kept(self.slot, owed)))
    }

    fn settled_by(&self, sink: SinkName) -> Option<Lsn> {
        self.settled.iter().find(|(name, _)| *name == sink).and_then(|(_, settled)| *settled)
    }

    /// What each sink holds at least. One that cannot be asked holds what the spool let go, and without a spool what the
    /// source was told to forget.
    fn floors(&self, sinks: &[SinkName], begin: Option<Lsn>) -> Vec<(SinkName, Lsn)> {
        let least = begin.unwrap_or(self.slot);
        sinks.iter().map(|sink| (*sink, self.settled_by(*sink).unwrap_or(least))).collect()
    }
}

impl Resumed {
    /// The source sends everything that any sink lacks.
    fn nothing_kept(slot: Lsn, owed: BTreeMap<SinkName, Lsn>) -> Self {
        Self {
            stream: slot,
            next_seq: 0,
            oldest: slot,
            durable: None,
            last_transaction: None,
            backlog: Vec::new(),
            owed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The spool has what the sinks lack and the source has forgotten.
    GoOn,
    /// The source has everything that any sink lacks.
    Anew,
    /// Neither has it.
    Refuse { sink: SinkName, held: Lsn },
}

/// `reach`: from where to where the spool reaches. `slot`: the source still has what comes after. `floors`: what each
/// sink holds.
fn judge(reach: Option<(Lsn, Lsn)>, slot: Lsn, floors: &[(SinkName, Lsn)]) -> Verdict {
    let Some((sink, held)) = floors.iter().copied().min_by_key(|(_, held)| *held) else { return Verdict::Anew };
    match reach {
        Some((begin, end)) if begin <= held && slot <= end => Verdict::GoOn,
        Some(_) | None if slot <= held => Verdict::Anew,
        Some(_) | None => Verdict::Refuse { sink, held },
    }
}

fn why_unusable(directory: &Directory, found: Option<&Found>, damage: Option<&Error>) -> String {
    let dir = directory.path().display();
    match (found, damage) {
        (_, Some(damage)) => format!("the spool's state cannot be read ({})", telemetry::chain(damage)),
        (None, None) => format!("there is no durable spool in {dir}"),
        (Some(found), None) => {
            let reach =
                format!("the spool in {dir} reaches from {} to {}", found.begin.through, found.contents.end.through);
            let at = |it: &Stopped| {
                format!(", where {} at byte {} is no further batch: {}", it.path.display(), it.offset, it.what)
            };
            reach + &found.stopped.as_ref().map(at).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    /// Every order of the five positions. What may be gone on with leaves no gap, and what leaves none is not refused.
    #[test]
    fn nothing_is_left_out_and_nothing_is_refused_for_no_reason() {
        let places = 1..=6;
        for (target, kafka) in places.clone().flat_map(|a| places.clone().map(move |b| (a, b))) {
            for slot in places.clone() {
                for (begin, end) in places.clone().flat_map(|a| (a..=6).map(move |b| (a, b))) {
                    for reach in [None, Some((lsn(begin), lsn(end)))] {
                        let floors = [(SinkName::Target, lsn(target)), (SinkName::Kafka, lsn(kafka))];
                        let missing =
                            |from: u64, held: u64| (held + 1..=slot).any(|place| place <= from || place > end);
                        let spool_serves = reach.is_some()
                            && !missing(begin, target.min(kafka))
                            && begin <= target.min(kafka)
                            && slot <= end;
                        let source_serves = slot <= target.min(kafka);
                        let expected = match (spool_serves, source_serves) {
                            (true, _) => Verdict::GoOn,
                            (false, true) => Verdict::Anew,
                            (false, false) if target <= kafka => {
                                Verdict::Refuse { sink: SinkName::Target, held: lsn(target) }
                            }
                            (false, false) => Verdict::Refuse { sink: SinkName::Kafka, held: lsn(kafka) },
                        };
                        assert_eq!(judge(reach, lsn(slot), &floors), expected, "{reach:?} {slot} {floors:?}");
                    }
                }
            }
        }
    }
}
