//! When a Kafka transaction is opened, closed, sent again or given up.
//!
//! ```text
//!            ┌──────────────── committed ────────────────┐
//!            ▼                                           │
//! Reviving ─► Idle ─ batch ─► Open ─ ripe ─► Flushing ─► Ending
//!    ▲                         ▲ │              │          │
//!    │                  resend │ └── failed ────┤          │ outcome unknown
//!    │                         │                ▼          │
//!    ├──────── lost ─────── Resting ◄─────── Aborting      │
//!    └─────────────────────────────────────────────────────┘
//! ```
//!
//! Promises, asserted by the walk below: what is settled is in Kafka; what is in Kafka is never sent again; a commit that
//! was asked for and not answered is decided by what the position topic says, never by us; a source transaction is
//! divided only where its batches are, and only when it is larger than its bound or slow to arrive.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::Batch;

use super::mark::Mark;
use super::options::WindowLimits;
use super::window::{Piece, Settlement, Window};

/// How often a position alone is stored while nothing is published. The slot holds that much more of the source's log;
/// more often would fill the position topic of an idle database.
const QUIET_INTERVAL: Duration = Duration::from_secs(10);
/// A transaction that comes in parts may take this long before it is divided: the broker ends a Kafka transaction by
/// itself after `transaction.timeout.ms`, 60 seconds.
const DIVIDE_AFTER: Duration = Duration::from_secs(20);
/// How long a stop waits for the broker. Giving up is safe: nothing unsettled was ever confirmed.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long one producer is asked for the same commit: as long as the broker keeps a transaction open by default. librdkafka
/// can lose the coordinator over a restart of the broker and never look for it again; another producer finds it, and the
/// position says what became of the transaction.
const COMMIT_PATIENCE: Duration = Duration::from_secs(60);
/// First pause before trying again; it doubles up to the longest.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// How long a fenced publisher waits before it looks whose the migration is: the one that fenced it reads the position
/// first and claims the migration then. Too short would have the older one fence back.
const FENCED_PAUSE: Duration = Duration::from_secs(3);

/// Who wrote a position record and which of its records it is. Two records are the same iff these are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Signature {
    /// Made up by each run of the publisher.
    pub(super) writer: String,
    /// Counts that run's position records. The first one claims the migration.
    pub(super) serial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// There is a producer, transactions of older ones are ended, and this is what the position topic says.
    Ready(Option<(Signature, Option<Mark>)>),
    /// The next batch. Only asked for while [`Machine::wants_input`].
    Arrived(Arc<Batch>),
    /// [`Machine::due`] has passed.
    Due,
    /// The input has ended, or the daemon stops.
    Stop,
    /// Every record of the transaction is acknowledged.
    Flushed,
    Committed,
    Aborted,
    Failed(Failure),
}

/// How an effect failed. What no retry can help never comes here: the driver returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not done yet; asking again goes on with it.
    Unfinished,
    /// This Kafka transaction can only be aborted. It was not committed.
    Spoilt,
    /// The producer cannot go on. Whether a commit that was under way went through is unknown.
    Lost,
    /// As `Lost`, and a newer producer has this one's id, or the broker ended the transaction by itself: nothing of
    /// ours is open any more.
    Fenced,
}

/// Performed in order. When one fails the rest of the list is dropped and the machine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Make a producer, let it end what older ones left open, read the position. Answer: `Ready`. `expected`: the
    /// positions under which the migration is still ours, to be checked before another daemon is fenced; absent at the
    /// start.
    Revive {
        expected: Option<Vec<Option<Signature>>>,
    },
    /// Begin a Kafka transaction. `again`: its content was produced before, so counting goes back to where it began.
    Open {
        again: bool,
    },
    /// Produce what is left of the batch. Of a batch without rest the events are counted only, which needs no
    /// transaction.
    Produce(Piece),
    /// Produce the position record.
    Seal {
        signature: Signature,
        mark: Option<Mark>,
        seq: Option<u64>,
    },
    /// Wait for the acknowledgements. Answer: `Flushed`.
    Flush,
    /// Answer: `Committed`.
    Commit,
    /// Answer: `Aborted`.
    Abort,
    Settle(Settlement),
    /// The publisher ends.
    Finish,
    /// Another daemon's position stands where ours should: it has taken over.
    Yield,
}

#[derive(Debug)]
enum State {
    /// No producer. Entered at the start and when one is lost; left when another one has read the position.
    /// `sealed`: `window` may have been committed.
    Reviving {
        window: Option<Window>,
        sealed: bool,
        attempt: u32,
        next_at: Instant,
    },
    /// Nothing open. `quiet`: the stream has moved on without anything to publish.
    Idle {
        quiet: Option<(Mark, u64)>,
    },
    /// A Kafka transaction holds `window` and takes more.
    Open(Window),
    /// The position is produced; waiting for acknowledgements. The transaction can still be aborted.
    Flushing {
        window: Window,
        next_at: Option<Instant>,
    },
    /// The commit was asked for. From here on only the broker knows.
    Ending {
        window: Window,
        next_at: Option<Instant>,
        asked_at: Instant,
    },
    Aborting(Window),
    /// Aborted; pausing before it is sent again.
    Resting {
        window: Window,
        next_at: Instant,
    },
    Ended,
}

#[derive(Debug)]
pub(super) struct Machine {
    limits: WindowLimits,
    writer: String,
    state: State,
    /// The position record that stands in Kafka; outer `None` until it was read for the first time.
    known: Option<Option<Signature>>,
    /// Of the next position record.
    serial: u64,
    /// Where the stream stands behind the last batch taken.
    newest: Option<Mark>,
    last_seq: Option<u64>,
    /// When the position was last stored.
    stored_at: Instant,
    /// When a stop gives up.
    stop_at: Option<Instant>,
}

type Effects = Vec<Effect>;

impl Machine {
    /// `writer` has to be one that no other run has.
    pub(super) fn new(limits: WindowLimits, writer: String, now: Instant) -> (Self, Effects) {
        let state = State::Reviving { window: None, sealed: false, attempt: 0, next_at: now };
        let machine = Self {
            limits,
            writer,
            state,
            known: None,
            serial: 0,
            newest: None,
            last_seq: None,
            stored_at: now,
            stop_at: None,
        };
        (machine, vec![Effect::Revive { expected: None }])
    }

    pub(super) fn wants_input(&self) -> bool {
        self.stop_at.is_none() && matches!(self.state, State::Idle { .. } | State::Open(_))
    }

    /// When `Due` is due. `None`: not before another input.
    pub(super) fn due(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Reviving { next_at, .. } | State::Resting { next_at, .. } => Some(*next_at),
            State::Idle { quiet } => quiet.map(|_| self.stored_at + QUIET_INTERVAL),
            State::Open(window) => Some(window.opened_at + self.age_max(window)),
            State::Flushing { next_at, .. } | State::Ending { next_at, .. } => *next_at,
            State::Aborting(_) | State::Ended => None,
        };
        own.into_iter().chain(self.stop_at).min()
    }

    /// Takes an input, changes state, says what to do.
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Effects {
        let mut effects = Vec::new();
        let state = std::mem::replace(&mut self.state, State::Ended);
        self.state = self.step(state, input, now, &mut effects);
        if matches!(self.state, State::Ended) && !effects.contains(&Effect::Yield) {
            effects.push(Effect::Finish);
        }
        effects
    }

    fn step(&mut self, state: State, input: Input, now: Instant, effects: &mut Effects) -> State {
        match (state, input) {
            (State::Ended, _) => State::Ended,
            (state, Input::Stop) => self.stop(state, now, effects),
            (_, Input::Due) if self.stop_at.is_some_and(|at| at <= now) => State::Ended,

            (State::Reviving { window, sealed, .. }, Input::Ready(stored)) => {
                self.revived(window, sealed, stored, now, effects)
            }
            (State::Reviving { window, sealed, attempt, next_at }, Input::Due) => {
                if next_at <= now {
                    effects.push(Effect::Revive { expected: self.expected(sealed) });
                }
                State::Reviving { window, sealed, attempt, next_at }
            }
            (State::Reviving { window, sealed, attempt, .. }, Input::Failed(_)) => {
                if self.stop_at.is_some() {
                    return State::Ended;
                }
                State::Reviving { window, sealed, attempt: attempt + 1, next_at: now + backoff(attempt) }
            }

            (State::Idle { quiet }, Input::Arrived(batch)) => self.arrived_idle(quiet, batch, now, effects),
            (State::Idle { quiet }, Input::Due) => match quiet {
                Some((mark, seq)) if self.stored_at + QUIET_INTERVAL <= now => {
                    effects.push(Effect::Open { again: false });
                    self.seal(Window::of_position(Some(mark), Some(seq), now), effects)
                }
                quiet => State::Idle { quiet },
            },
            (State::Idle { .. }, Input::Failed(failure)) => self.lost(failure, None, false, now),

            (State::Open(mut window), Input::Arrived(batch)) => {
                let piece = self.take(batch);
                effects.push(Effect::Produce(piece.clone()));
                window.push(piece);
                self.close_if_ripe(window, now, effects)
            }
            (State::Open(window), Input::Due) => self.close_if_ripe(window, now, effects),
            (State::Open(window) | State::Flushing { window, .. }, Input::Failed(Failure::Spoilt)) => {
                effects.push(Effect::Abort);
                State::Aborting(window)
            }
            (State::Open(window), Input::Failed(failure)) => self.lost(failure, Some(window), false, now),

            (State::Flushing { window, .. }, Input::Flushed) => {
                effects.push(Effect::Commit);
                State::Ending { window, next_at: None, asked_at: now }
            }
            (State::Flushing { window, .. }, Input::Failed(Failure::Unfinished)) => {
                State::Flushing { window, next_at: Some(now) }
            }
            (State::Flushing { window, next_at: Some(_) }, Input::Due) => {
                effects.push(Effect::Flush);
                State::Flushing { window, next_at: None }
            }
            // The commit was not asked for, so the window is not in Kafka; reading the position will say the same.
            (State::Flushing { window, .. }, Input::Failed(failure)) => self.lost(failure, Some(window), true, now),

            (State::Ending { window, .. }, Input::Committed) => self.committed(&window, now, effects),
            // Each try waits for the broker by itself, so the pause between them need not grow.
            (State::Ending { window, asked_at, .. }, Input::Failed(Failure::Unfinished))
                if now < asked_at + COMMIT_PATIENCE =>
            {
                State::Ending { window, next_at: Some(now + BACKOFF), asked_at }
            }
            (State::Ending { window, next_at: Some(at), asked_at }, Input::Due) if at <= now => {
                effects.push(Effect::Commit);
                State::Ending { window, next_at: None, asked_at }
            }
            (State::Ending { window, .. }, Input::Failed(failure)) => self.lost(failure, Some(window), true, now),

            (State::Aborting(window), Input::Aborted) => {
                if self.stop_at.is_some() {
                    return State::Ended;
                }
                let next_at = now + backoff(window.attempt);
                State::Resting { window, next_at }
            }
            (State::Aborting(window), Input::Failed(failure)) => self.lost(failure, Some(window), false, now),
            (State::Resting { window, next_at }, Input::Due) if next_at <= now => self.resend(window, now, effects),
            (State::Resting { window, next_at }, Input::Due) => State::Resting { window, next_at },

            // A deadline that an answer overtook.
            (state @ (State::Flushing { .. } | State::Ending { .. } | State::Aborting(_)), Input::Due) => state,
            (state, input) => panic!("{} cannot take {}", state.name(), input.name()),
        }
    }

    /// The position records that say the migration is still ours: the last one known, and the one that may have been
    /// committed since.
    fn expected(&self, sealed: bool) -> Option<Vec<Option<Signature>>> {
        let known = self.known.clone()?;
        Some(if sealed { vec![known, Some(self.signature())] } else { vec![known] })
    }

    /// The position decides what became of `window`.
    fn revived(
        &mut self,
        window: Option<Window>,
        sealed: bool,
        stored: Option<(Signature, Option<Mark>)>,
        now: Instant,
        effects: &mut Effects,
    ) -> State {
        let (found, mark) = stored.map_or((None, None), |(signature, mark)| (Some(signature), mark));
        let Some(known) = self.known.clone() else {
            self.known = Some(found);
            self.newest = mark;
            let claim = Window::of_position(mark, None, now);
            effects.push(Effect::Settle(claim.settlement()));
            effects.push(Effect::Open { again: false });
            return self.seal(claim, effects);
        };
        match window {
            Some(window) if sealed && found == Some(self.signature()) => self.committed(&window, now, effects),
            Some(window) if found == known => self.resend(window, now, effects),
            None if found == known => State::Idle { quiet: None },
            Some(_) | None => {
                effects.push(Effect::Yield);
                State::Ended
            }
        }
    }

    fn arrived_idle(
        &mut self,
        quiet: Option<(Mark, u64)>,
        batch: Arc<Batch>,
        now: Instant,
        effects: &mut Effects,
    ) -> State {
        let seq = batch.seq;
        let before = self.newest;
        let piece = self.take(batch);
        if !piece.has_rest() {
            effects.push(Effect::Produce(piece));
            let moved = self.newest.filter(|mark| Some(*mark) != before).map(|mark| (mark, seq));
            return State::Idle { quiet: moved.or(quiet) };
        }
        effects.extend([Effect::Open { again: false }, Effect::Produce(piece.clone())]);
        let mut window = Window::of_position(before, Some(seq), now);
        window.push(piece);
        self.close_if_ripe(window, now, effects)
    }

    /// The door's check, and where the stream stood before the batch.
    fn take(&mut self, batch: Arc<Batch>) -> Piece {
        if let Some(last) = self.last_seq {
            assert_eq!(batch.seq, last + 1, "batches come without gaps");
        }
        self.last_seq = Some(batch.seq);
        let done = self.newest;
        self.newest = Some(Mark::advanced(done, &batch));
        Piece { batch, done }
    }

    fn close_if_ripe(&mut self, window: Window, now: Instant, effects: &mut Effects) -> State {
        let aged = window.opened_at + self.age_max(&window) <= now;
        let inside = window.ends_inside();
        let full = if inside {
            window.size_bytes >= self.limits.transaction_bytes_max
        } else {
            window.urgent
                || window.size_bytes >= self.limits.bytes_max
                || window.transaction_count >= self.limits.transactions_max
        };
        if aged || full { self.seal(window, effects) } else { State::Open(window) }
    }

    fn age_max(&self, window: &Window) -> Duration {
        if window.ends_inside() { DIVIDE_AFTER } else { self.limits.age_max }
    }

    fn seal(&self, window: Window, effects: &mut Effects) -> State {
        let (signature, mark, seq) = (self.signature(), window.end, window.seq);
        effects.extend([Effect::Seal { signature, mark, seq }, Effect::Flush]);
        State::Flushing { window, next_at: None }
    }

    fn committed(&mut self, window: &Window, now: Instant, effects: &mut Effects) -> State {
        self.known = Some(Some(self.signature()));
        self.serial += 1;
        self.stored_at = now;
        effects.push(Effect::Settle(window.settlement()));
        if self.stop_at.is_some() { State::Ended } else { State::Idle { quiet: None } }
    }

    /// A new Kafka transaction with the same content.
    fn resend(&mut self, mut window: Window, now: Instant, effects: &mut Effects) -> State {
        window.attempt += 1;
        window.opened_at = now;
        effects.push(Effect::Open { again: true });
        effects.extend(window.pieces.iter().cloned().map(Effect::Produce));
        if window.pieces.is_empty() { self.seal(window, effects) } else { self.close_if_ripe(window, now, effects) }
    }

    fn lost(&self, failure: Failure, window: Option<Window>, sealed: bool, now: Instant) -> State {
        if self.stop_at.is_some() {
            return State::Ended;
        }
        let attempt = window.as_ref().map_or(0, |window| window.attempt);
        let pause = if failure == Failure::Fenced { FENCED_PAUSE } else { backoff(attempt) };
        State::Reviving { window, sealed, attempt, next_at: now + pause }
    }

    fn stop(&mut self, state: State, now: Instant, effects: &mut Effects) -> State {
        if self.stop_at.is_some() {
            return state;
        }
        self.stop_at = Some(now + STOP_GRACE);
        match state {
            State::Idle { quiet: Some((mark, seq)) } => {
                effects.push(Effect::Open { again: false });
                self.seal(Window::of_position(Some(mark), Some(seq), now), effects)
            }
            // Half a transaction is not worth dividing for; left open it would hold back readers until it times out.
            State::Open(window) if window.ends_inside() => {
                effects.push(Effect::Abort);
                State::Aborting(window)
            }
            State::Open(window) => self.seal(window, effects),
            State::Idle { quiet: None } | State::Reviving { .. } | State::Resting { .. } | State::Ended => State::Ended,
            State::Flushing { .. } | State::Ending { .. } | State::Aborting(_) => state,
        }
    }

    /// Of the position record that is, or comes, next.
    fn signature(&self) -> Signature {
        Signature { writer: self.writer.clone(), serial: self.serial }
    }
}

fn backoff(attempt: u32) -> Duration {
    BACKOFF.saturating_mul(2_u32.saturating_pow(attempt)).min(BACKOFF_MAX)
}

impl State {
    const fn name(&self) -> &'static str {
        match self {
            Self::Reviving { .. } => "reviving",
            Self::Idle { .. } => "idle",
            Self::Open(_) => "open",
            Self::Flushing { .. } => "flushing",
            Self::Ending { .. } => "ending",
            Self::Aborting(_) => "aborting",
            Self::Resting { .. } => "resting",
            Self::Ended => "ended",
        }
    }
}

impl Input {
    const fn name(&self) -> &'static str {
        match self {
            Self::Ready(_) => "ready",
            Self::Arrived(_) => "arrived",
            Self::Due => "due",
            Self::Stop => "stop",
            Self::Flushed => "flushed",
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Failed(_) => "failed",
        }
    }
}
