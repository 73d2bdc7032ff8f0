//! Which step of a cutover is next, and what undoes it. Pure: time comes in with each input.
//!
//! Before the commit point every failure leads back over exactly what was done: unfence, release. After it there is
//! only forward. Between them stands [`State::Resolving`]: the commit's outcome is unknown, and neither way is taken
//! until the record on green has been read.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::Lsn;

/// The steps as operators see them, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    Gates,
    Hold,
    Fence,
    Drain,
    Verify,
    Sequences,
    Commit,
    Flip,
    Unfence,
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// Nothing is touched. Entered at the start; left when all gates are open.
    Gates,
    /// Routers are asked to hold their clients. The pause begins.
    HoldingClients,
    /// Triggers are being put on blue's tables. Not abandoned half-way, since the server may still be at it: `doomed` is
    /// set instead, and what comes back is undone. Its locks are taken with a time limit, so it ends.
    Fencing {
        doomed: Option<Why>,
    },
    /// No write can reach blue. Waiting for every sink to be durable past `barrier`.
    Draining {
        barrier: Lsn,
    },
    /// Both sides stand still and are compared.
    Verifying {
        barrier: Lsn,
    },
    SettingSequences {
        barrier: Lsn,
    },
    /// The record that makes green the owner is being written.
    Committing {
        barrier: Lsn,
    },
    /// Whether it was written is not known (the connection broke). Left by reading it, or by making it impossible.
    Resolving {
        barrier: Lsn,
    },
    /// Green owns the writes. Clients are handed over, again and again until it works. The reverse stream will be
    /// started here, from `barrier`, before the first client writes.
    Flipping {
        barrier: Lsn,
    },
    /// Undoing: blue's fence is being lifted. Not left before it is.
    Unfencing {
        why: Why,
    },
    /// Undoing: the routers let their clients go on, to blue.
    Releasing {
        why: Why,
    },
    Done {
        barrier: Lsn,
    },
    Aborted {
        why: Why,
    },
    /// A gate is closed.
    Refused,
}

/// Why an attempt was undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Why {
    /// This step failed; its error is in the log and the report.
    Failed(Step),
    /// The pause had lasted its longest when this step was under way.
    Overdue(Step),
    Cancelled(Step),
    /// The sides differ at the fence's position.
    Different,
    /// Somebody else, having taken over, recorded that this attempt is off.
    Superseded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Input {
    GatesOpen,
    GateClosed,
    Held,
    Fenced {
        barrier: Lsn,
    },
    Drained,
    Judged {
        equal: bool,
    },
    SequencesSet,
    Committed,
    /// The record says that this attempt is off.
    CommitRefused,
    /// The connection broke while the record was being written.
    CommitUnknown,
    Flipped,
    Unfenced,
    Released,
    /// The step that is under way failed, and left nothing behind that its compensation does not remove.
    Failed,
    /// Nothing happened but time.
    Tick,
    /// The operator, or the daemon's end.
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Effect {
    CheckGates,
    HoldClients,
    RaiseFence,
    AwaitDrain {
        barrier: Lsn,
    },
    Judge {
        barrier: Lsn,
    },
    SetSequences,
    Commit {
        barrier: Lsn,
    },
    /// Find out whether the commit was recorded; if not, record that it never will be.
    Resolve,
    Flip,
    LowerFence,
    ReleaseClients,
}

/// What follows an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The step under way goes on.
    Stay,
    /// The step under way, if it has not ended, is dropped; this one is performed.
    Perform(Effect),
    /// The end: see [`Machine::state`].
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Machine {
    state: State,
    max_pause: Duration,
    /// When the pause becomes too long; set when it begins.
    deadline: Option<Instant>,
}

impl Machine {
    pub(super) fn new(max_pause: Duration) -> (Self, Effect) {
        (Self { state: State::Gates, max_pause, deadline: None }, Effect::CheckGates)
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// When a [`Input::Tick`] is due; `None` while time does not matter.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::HoldingClients
            | State::Fencing { doomed: None }
            | State::Draining { .. }
            | State::Verifying { .. }
            | State::SettingSequences { .. } => self.deadline,
            State::Gates
            | State::Fencing { doomed: Some(_) }
            | State::Committing { .. }
            | State::Resolving { .. }
            | State::Flipping { .. }
            | State::Unfencing { .. }
            | State::Releasing { .. }
            | State::Done { .. }
            | State::Aborted { .. }
            | State::Refused => None,
        }
    }

    /// Panics on an answer to a step that is not under way: the driver performs one at a time.
    pub(super) fn on(&mut self, input: Input, now: Instant) -> Next {
        let overdue = self.deadline.is_some_and(|deadline| now >= deadline);
        let (state, next) = step(self.state, input, overdue);
        if state == State::HoldingClients && self.deadline.is_none() {
            self.deadline = Some(now + self.max_pause);
        }
        self.state = state;
        next
    }
}

fn step(state: State, input: Input, overdue: bool) -> (State, Next) {
    use Next::{End, Perform, Stay};
    let unfence = |why: Why| (State::Unfencing { why }, Perform(Effect::LowerFence));
    let release = |why: Why| (State::Releasing { why }, Perform(Effect::ReleaseClients));
    match (state, input) {
        (State::Gates, Input::GatesOpen) => (State::HoldingClients, Perform(Effect::HoldClients)),
        (State::Gates, Input::GateClosed) => (State::Refused, End),
        (State::Gates, Input::Failed) => (State::Aborted { why: Why::Failed(Step::Gates) }, End),
        (State::Gates, Input::Cancel) => (State::Aborted { why: Why::Cancelled(Step::Gates) }, End),

        (State::HoldingClients, Input::Held) if overdue => release(Why::Overdue(Step::Hold)),
        (State::HoldingClients, Input::Held) => (State::Fencing { doomed: None }, Perform(Effect::RaiseFence)),

        (State::Fencing { doomed: Some(why) }, Input::Fenced { .. } | Input::Failed) => unfence(why),
        (State::Fencing { doomed: None }, Input::Fenced { .. }) if overdue => unfence(Why::Overdue(Step::Fence)),
        (State::Fencing { doomed: None }, Input::Fenced { barrier }) => {
            (State::Draining { barrier }, Perform(Effect::AwaitDrain { barrier }))
        }
        (State::Fencing { doomed: None }, Input::Failed) => unfence(Why::Failed(Step::Fence)),
        (State::Fencing { doomed: None }, Input::Tick) if overdue => {
            (State::Fencing { doomed: Some(Why::Overdue(Step::Fence)) }, Stay)
        }
        (State::Fencing { doomed: None }, Input::Cancel) => {
            (State::Fencing { doomed: Some(Why::Cancelled(Step::Fence)) }, Stay)
        }

        (State::Draining { .. }, Input::Drained) if overdue => unfence(Why::Overdue(Step::Drain)),
        (State::Draining { barrier }, Input::Drained) => {
            (State::Verifying { barrier }, Perform(Effect::Judge { barrier }))
        }

        (State::Verifying { .. }, Input::Judged { equal: false }) => unfence(Why::Different),
        (State::Verifying { .. }, Input::Judged { equal: true }) if overdue => unfence(Why::Overdue(Step::Verify)),
        (State::Verifying { barrier }, Input::Judged { equal: true }) => {
            (State::SettingSequences { barrier }, Perform(Effect::SetSequences))
        }

        (State::SettingSequences { .. }, Input::SequencesSet) if overdue => unfence(Why::Overdue(Step::Sequences)),
        (State::SettingSequences { barrier }, Input::SequencesSet) => {
            (State::Committing { barrier }, Perform(Effect::Commit { barrier }))
        }

        // From here on neither the clock nor the operator may turn back: the record may already be there.
        (State::Committing { barrier } | State::Resolving { barrier }, Input::Committed) => {
            (State::Flipping { barrier }, Perform(Effect::Flip))
        }
        (State::Committing { .. }, Input::CommitRefused) => unfence(Why::Superseded),
        (State::Resolving { .. }, Input::CommitRefused) => unfence(Why::Failed(Step::Commit)),
        (State::Committing { barrier } | State::Resolving { barrier }, Input::CommitUnknown | Input::Failed) => {
            (State::Resolving { barrier }, Perform(Effect::Resolve))
        }

        (State::Flipping { barrier }, Input::Flipped) => (State::Done { barrier }, End),
        (State::Flipping { .. }, Input::Failed) => (state, Perform(Effect::Flip)),

        (State::Unfencing { why }, Input::Unfenced) => release(why),
        (State::Unfencing { .. }, Input::Failed) => (state, Perform(Effect::LowerFence)),
        (State::Releasing { why }, Input::Released) => (State::Aborted { why }, End),
        (State::Releasing { .. }, Input::Failed) => (state, Perform(Effect::ReleaseClients)),

        // What can be dropped half-way is dropped by failure, clock and operator alike.
        (State::HoldingClients, Input::Failed) => release(Why::Failed(Step::Hold)),
        (State::HoldingClients, Input::Tick) if overdue => release(Why::Overdue(Step::Hold)),
        (State::HoldingClients, Input::Cancel) => release(Why::Cancelled(Step::Hold)),
        (State::Draining { .. } | State::Verifying { .. } | State::SettingSequences { .. }, Input::Failed) => {
            unfence(Why::Failed(under_way(state)))
        }
        (State::Draining { .. } | State::Verifying { .. } | State::SettingSequences { .. }, Input::Tick) if overdue => {
            unfence(Why::Overdue(under_way(state)))
        }
        (State::Draining { .. } | State::Verifying { .. } | State::SettingSequences { .. }, Input::Cancel) => {
            unfence(Why::Cancelled(under_way(state)))
        }

        // Too early, or too late.
        (_, Input::Tick | Input::Cancel) => (state, Stay),
        (_, answer) => panic!("{answer:?} answers no step of {state:?}"),
    }
}

/// The step a state is waiting for.
pub(super) const fn under_way(state: State) -> Step {
    match state {
        State::Gates | State::Refused => Step::Gates,
        State::HoldingClients => Step::Hold,
        State::Fencing { .. } => Step::Fence,
        State::Draining { .. } => Step::Drain,
        State::Verifying { .. } => Step::Verify,
        State::SettingSequences { .. } => Step::Sequences,
        State::Committing { .. } | State::Resolving { .. } => Step::Commit,
        State::Flipping { .. } | State::Done { .. } => Step::Flip,
        State::Unfencing { .. } => Step::Unfence,
        State::Releasing { .. } | State::Aborted { .. } => Step::Release,
    }
}

impl Step {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gates => "gates",
            Self::Hold => "hold",
            Self::Fence => "fence",
            Self::Drain => "drain",
            Self::Verify => "verify",
            Self::Sequences => "sequences",
            Self::Commit => "commit",
            Self::Flip => "flip",
            Self::Unfence => "unfence",
            Self::Release => "release",
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(step) => write!(f, "the step {} failed", step.as_str()),
            Self::Overdue(step) => write!(f, "the longest pause had passed in the step {}", step.as_str()),
            Self::Cancelled(step) => write!(f, "it was called off in the step {}", step.as_str()),
            Self::Different => f.write_str("the sides differ at the fence's position"),
            Self::Superseded => f.write_str("another daemon has recorded that this attempt is off"),
        }
    }
}
