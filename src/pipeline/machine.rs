//! The lifecycle of a migration: which phase follows which. The phase is stored on the target before anything that
//! belongs to it is done, so that a daemon that comes back after a crash knows where it was.

use super::status::Phase;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// Publication and slot exist and the slot's first position is recorded.
    SlotReady {
        copies_rows: bool,
    },
    /// Every table's rows are on the target.
    RowsCopied,
    IndexesBuilt,
    /// The target has passed the newest snapshot, and foreign keys, triggers and the rest are there.
    CaughtUp,
    CutoverBegan,
    /// Undone before its commit point.
    CutoverUndone,
    CutoverCommitted,
}

/// The step that does not follow from the present phase: our own mistake, or a request that came at the wrong time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} does not follow from {}", phase.as_str())]
pub(super) struct OutOfOrder {
    phase: Phase,
    input: Input,
}

impl Phase {
    pub(super) fn on(self, input: Input) -> Result<Self, OutOfOrder> {
        match (self, input) {
            (Self::Preparing, Input::SlotReady { copies_rows: true }) => Ok(Self::Copying),
            (Self::Preparing, Input::SlotReady { copies_rows: false }) => Ok(Self::CatchingUp),
            (Self::Copying, Input::RowsCopied) => Ok(Self::Indexing),
            (Self::Indexing, Input::IndexesBuilt) => Ok(Self::CatchingUp),
            (Self::CatchingUp, Input::CaughtUp) => Ok(Self::Streaming),
            (Self::Streaming, Input::CutoverBegan) => Ok(Self::CuttingOver),
            (Self::CuttingOver, Input::CutoverUndone) => Ok(Self::Streaming),
            (Self::CuttingOver, Input::CutoverCommitted) => Ok(Self::CutOver),
            // A daemon that crashed past the commit point finds the journal's record and goes on from there.
            (Self::Streaming, Input::CutoverCommitted) => Ok(Self::CutOver),
            (phase, input) => Err(OutOfOrder { phase, input }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const INPUTS: [Input; 8] = [
        Input::SlotReady { copies_rows: true },
        Input::SlotReady { copies_rows: false },
        Input::RowsCopied,
        Input::IndexesBuilt,
        Input::CaughtUp,
        Input::CutoverBegan,
        Input::CutoverUndone,
        Input::CutoverCommitted,
    ];

    #[test]
    fn every_phase_is_reached_and_green_owns_only_after_streaming() {
        let mut seen = BTreeSet::new();
        let mut open = vec![(Phase::Preparing, false)];
        while let Some((phase, streamed)) = open.pop() {
            if !seen.insert((phase.as_str(), streamed)) {
                continue;
            }
            assert!(phase != Phase::CutOver || streamed, "cut over without having streamed");
            for input in INPUTS {
                if let Ok(next) = phase.on(input) {
                    open.push((next, streamed || next == Phase::Streaming));
                }
            }
        }
        let reached: BTreeSet<&str> = seen.into_iter().map(|(phase, _)| phase).collect();
        assert_eq!(reached.len(), 7, "{reached:?}");
    }

    #[test]
    fn nothing_leads_away_from_cut_over() {
        assert!(INPUTS.into_iter().all(|input| Phase::CutOver.on(input).is_err()));
    }

    #[test]
    fn the_stored_word_reads_back() {
        for input in INPUTS {
            if let Ok(next) = Phase::Preparing.on(input) {
                assert_eq!(Phase::parse(next.as_str()), Some(next));
            }
        }
    }
}
