//! When the applier may go on, and to where it may go: the hold and advance of verification and cutover. Pure.
//!
//! ```text
//!  Flowing ─hold─► Holding ─quiet─► Held ─advance─► Looking ─all known─► Advancing ─quiet─► Held
//!     ▲               │               │                │                     │
//!     └───────────────┴────release────┴────────────────┴─────────────────────┘
//! ```

use crate::model::{Aligned, Lsn, Misaligned, SnapshotSet, Xid};

/// What is asked for, what is seen, what has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    Hold,
    /// `passed`: a transaction that the snapshot does not see has been applied already.
    Advance {
        snapshot: SnapshotSet,
        until: Lsn,
        passed: bool,
    },
    Release,
    /// Nothing is executing, nothing waits to be executed, no source transaction is open. `applied`: the end of the
    /// last one.
    Quiet {
        applied: Option<Lsn>,
    },
    /// The next transaction that is held back, in order. Each is shown once.
    Transaction {
        xid: Xid,
        end: Lsn,
    },
    /// Everything up to here has been shown.
    Through(Lsn),
    /// No more can be held back.
    Full,
}

/// What the driver has to do. An answer goes to whoever asked last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    AnswerHold {
        applied: Option<Lsn>,
    },
    AnswerAdvance(Result<Aligned, Misaligned>),
    /// Show what is held back, from the oldest on, and then what arrives.
    ShowHeldBack,
    /// The command makes no sense now: drop its reply and say so.
    Refuse,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// Applies what comes. Entered at the start and by a release.
    #[default]
    Flowing,
    /// Finishes what is open; left when all is quiet.
    Holding,
    /// Stands still. Left by an advance or a release.
    Held { applied: Option<Lsn> },
    /// Stands still and looks ahead, until it is known which transactions the snapshot sees.
    Looking { applied: Option<Lsn>, look: Look },
    /// Applies up to `through` and not beyond.
    Advancing { through: Lsn },
}

/// What is known of the transactions ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Look {
    snapshot: SnapshotSet,
    until: Lsn,
    /// End of the last transaction that the snapshot sees.
    visible: Option<Lsn>,
    /// There was one that it does not see.
    hidden: bool,
}

impl State {
    /// Whether a transaction (or a part of one) that ends at `end` may be applied. `begins`: nothing of it has been.
    pub(super) fn allows(&self, end: Lsn, begins: bool) -> bool {
        match self {
            Self::Flowing => true,
            Self::Holding => !begins,
            Self::Held { .. } | Self::Looking { .. } => false,
            Self::Advancing { through } => end <= *through,
        }
    }

    /// Whether everything that has arrived may be applied.
    pub(super) fn flows(&self) -> bool {
        matches!(self, Self::Flowing)
    }

    /// Whether what is open, if only a position, is to be committed now.
    pub(super) fn hurries(&self) -> bool {
        matches!(self, Self::Holding | Self::Advancing { .. })
    }

    pub(super) fn on(self, input: Input) -> (Self, Option<Effect>) {
        match (self, input) {
            (Self::Flowing | Self::Holding | Self::Advancing { .. }, Input::Hold) => (Self::Holding, None),
            // Whoever asked for the alignment has given it up.
            (Self::Held { applied } | Self::Looking { applied, .. }, Input::Hold) => {
                (Self::Held { applied }, Some(Effect::AnswerHold { applied }))
            }

            (Self::Holding, Input::Quiet { applied }) => (Self::Held { applied }, Some(Effect::AnswerHold { applied })),
            (Self::Advancing { through }, Input::Quiet { applied }) => {
                debug_assert_eq!(applied, Some(through), "everything up to the last visible transaction was allowed");
                (Self::Held { applied }, Some(Effect::AnswerAdvance(Ok(Aligned { position: through }))))
            }
            (state @ (Self::Flowing | Self::Held { .. } | Self::Looking { .. }), Input::Quiet { .. }) => (state, None),

            (Self::Held { applied }, Input::Advance { passed: true, .. }) => {
                (Self::Held { applied }, Some(Effect::AnswerAdvance(Err(Misaligned::Passed))))
            }
            (Self::Held { applied } | Self::Looking { applied, .. }, Input::Advance { snapshot, until, .. }) => {
                let look = Look { snapshot, until, visible: None, hidden: false };
                (Self::Looking { applied, look }, Some(Effect::ShowHeldBack))
            }
            (state @ (Self::Flowing | Self::Holding | Self::Advancing { .. }), Input::Advance { .. }) => {
                (state, Some(Effect::Refuse))
            }

            (Self::Looking { applied, look }, Input::Transaction { xid, end }) => look.transaction(applied, xid, end),
            (Self::Looking { applied, look }, Input::Through(through)) if look.until <= through => look.end(applied),
            (Self::Looking { applied, .. }, Input::Full) => {
                (Self::Held { applied }, Some(Effect::AnswerAdvance(Err(Misaligned::TooMuch))))
            }
            (state, Input::Transaction { .. } | Input::Through(_) | Input::Full) => (state, None),

            (_, Input::Release) => (Self::Flowing, None),
        }
    }
}

impl Look {
    fn transaction(mut self, applied: Option<Lsn>, xid: Xid, end: Lsn) -> (State, Option<Effect>) {
        if self.until < end {
            return self.end(applied);
        }
        if !self.snapshot.sees(xid) {
            self.hidden = true;
        } else if self.hidden {
            return (State::Held { applied }, Some(Effect::AnswerAdvance(Err(Misaligned::OutOfOrder))));
        } else {
            self.visible = Some(end);
        }
        (State::Looking { applied, look: self }, None)
    }

    /// Nothing that the snapshot sees can follow.
    fn end(self, applied: Option<Lsn>) -> (State, Option<Effect>) {
        match (self.visible, applied) {
            (Some(through), _) => (State::Advancing { through }, None),
            (None, Some(position)) => (State::Held { applied }, Some(Effect::AnswerAdvance(Ok(Aligned { position })))),
            // Nothing was ever applied and the snapshot sees nothing of the stream: the end of what it sees is `until`.
            (None, None) => {
                let position = self.until;
                (State::Held { applied }, Some(Effect::AnswerAdvance(Ok(Aligned { position }))))
            }
        }
    }
}

/// The transactions applied last, to tell whether a snapshot taken now sees all that has been applied: a commit is
/// decoded before it is visible (PITFALLS 1), and stays invisible for as long as a synchronous standby is awaited.
///
/// What has fallen out is taken for visible. Were it not, verification would find a difference and take another
/// snapshot; it would never call equal what is not.
#[derive(Debug, Default)]
pub(super) struct Recent {
    xids: std::collections::VecDeque<Xid>,
}

impl Recent {
    /// Seconds of the fastest stream, in 256 KiB.
    const COUNT_MAX: usize = 1 << 16;

    pub(super) fn add(&mut self, xid: Xid) {
        if self.xids.len() == Self::COUNT_MAX {
            self.xids.pop_front();
        }
        self.xids.push_back(xid);
    }

    pub(super) fn has_hidden_from(&self, snapshot: &SnapshotSet) -> bool {
        self.xids.iter().any(|xid| !snapshot.sees(*xid))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    fn advance(snapshot: &str, until: u64) -> Input {
        Input::Advance { snapshot: snapshot.parse().unwrap(), until: lsn(until), passed: false }
    }

    /// Feeds inputs to a machine that stands still at 10; returns the state and the last effect.
    fn from_held(inputs: &[Input]) -> (State, Option<Effect>) {
        let held = State::Held { applied: Some(lsn(10)) };
        inputs.iter().fold((held, None), |(state, _), input| state.on(input.clone()))
    }

    fn transaction(xid: u32, end: u64) -> Input {
        Input::Transaction { xid: Xid(xid), end: lsn(end) }
    }

    #[test]
    fn advances_to_the_last_visible_transaction_once_nothing_visible_can_follow() {
        let shown = [advance("7:9:7", 40), transaction(8, 20), transaction(7, 30)];
        let (state, effect) = from_held(&shown);
        assert!(matches!(state, State::Looking { .. }) && effect.is_none());
        for last in [Input::Through(lsn(40)), transaction(9, 50)] {
            let (state, effect) = state.clone().on(last);
            assert_eq!((&state, effect), (&State::Advancing { through: lsn(20) }, None));
            assert!(state.allows(lsn(20), true) && !state.allows(lsn(30), true));
            let (state, effect) = state.on(Input::Quiet { applied: Some(lsn(20)) });
            assert_eq!(effect, Some(Effect::AnswerAdvance(Ok(Aligned { position: lsn(20) }))));
            assert_eq!(state, State::Held { applied: Some(lsn(20)) });
        }
    }

    #[test]
    fn stays_where_it_is_when_nothing_ahead_is_visible() {
        let (state, effect) = from_held(&[advance("7:9:7", 40), transaction(7, 20), Input::Through(lsn(45))]);
        assert_eq!(effect, Some(Effect::AnswerAdvance(Ok(Aligned { position: lsn(10) }))));
        assert_eq!(state, State::Held { applied: Some(lsn(10)) });
    }

    #[test]
    fn what_no_prefix_of_the_stream_can_give_is_refused_and_nothing_is_applied() {
        let out_of_order = [advance("7:9:7", 40), transaction(7, 20), transaction(8, 30)];
        let too_much = [advance("7:9:7", 40), transaction(8, 20), Input::Full];
        let passed = [Input::Advance { snapshot: "7:9:7".parse().unwrap(), until: lsn(40), passed: true }];
        for (inputs, why) in [
            (&out_of_order[..], Misaligned::OutOfOrder),
            (&too_much[..], Misaligned::TooMuch),
            (&passed[..], Misaligned::Passed),
        ] {
            let (state, effect) = from_held(inputs);
            assert_eq!(effect, Some(Effect::AnswerAdvance(Err(why))));
            assert_eq!(state, State::Held { applied: Some(lsn(10)) });
            assert_eq!(state.on(Input::Release), (State::Flowing, None));
        }
    }

    #[test]
    fn a_source_transaction_that_is_open_is_finished_before_the_hold() {
        let (state, _) = State::Flowing.on(Input::Hold);
        assert!(state.allows(lsn(20), false) && !state.allows(lsn(30), true));
    }

    /// Every input in every reachable state. Standing still allows nothing; each hold and each advance that is not
    /// given up is answered; a release always sets free.
    #[test]
    fn no_path_applies_while_held_and_none_hangs() {
        let inputs = [
            Input::Hold,
            Input::Release,
            advance("7:9:7", 40),
            Input::Advance { snapshot: "7:9:7".parse().unwrap(), until: lsn(40), passed: true },
            Input::Quiet { applied: Some(lsn(20)) },
            transaction(8, 20),
            transaction(7, 30),
            transaction(9, 50),
            Input::Through(lsn(40)),
            Input::Full,
        ];
        let mut seen = vec![State::default()];
        let mut todo = VecDeque::from(seen.clone());
        while let Some(state) = todo.pop_front() {
            for input in &inputs {
                let (next, effect) = state.clone().on(input.clone());
                let stands = matches!(next, State::Held { .. } | State::Looking { .. });
                assert!(!(stands && next.allows(lsn(1), false)), "{state:?} {input:?}");
                if *input == Input::Release {
                    assert_eq!((&next, effect), (&State::Flowing, None));
                }
                if matches!(effect, Some(Effect::AnswerHold { .. } | Effect::AnswerAdvance(_))) {
                    assert!(matches!(next, State::Held { .. }), "{state:?} {input:?}");
                }
                if matches!(state, State::Looking { .. }) && matches!(next, State::Held { .. }) {
                    assert!(effect.is_some(), "{state:?} {input:?}");
                }
                if !seen.contains(&next) {
                    seen.push(next.clone());
                    todo.push_back(next);
                }
            }
        }
        assert!(seen.len() >= 5, "{seen:?}");
    }

    #[test]
    fn a_transaction_that_was_applied_before_it_was_visible_is_noticed() {
        let mut recent = Recent::default();
        recent.add(Xid(7));
        recent.add(Xid(8));
        assert!(recent.has_hidden_from(&"7:9:7".parse().unwrap()));
        assert!(!recent.has_hidden_from(&"9:9:".parse().unwrap()));
    }
}
