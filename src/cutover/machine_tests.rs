//! Walks every input through every reachable state, beside a world in which the worst that an input allows is true.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::machine::{Effect, Input, Machine, Next, State, Step, Why};
use crate::model::Lsn;

/// What is true outside. `may_be` counts as true for the promises: a failed step may have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
struct World {
    clients_may_be_held: bool,
    fence_may_be_up: bool,
    fence_proven: bool,
    drained: bool,
    verified: bool,
    sequences_set: bool,
    commit_may_be_recorded: bool,
    committed: bool,
    flipped: bool,
}

fn barrier() -> Lsn {
    Lsn::new(0x1000).unwrap()
}

fn inputs_for(state: State) -> Vec<Input> {
    let mut inputs = vec![Input::Tick, Input::Cancel];
    inputs.extend(match state {
        State::Gates => vec![Input::GatesOpen, Input::GateClosed, Input::Failed],
        State::HoldingClients => vec![Input::Held, Input::Failed],
        State::Fencing { .. } => vec![Input::Fenced { barrier: barrier() }, Input::Failed],
        State::Draining { .. } => vec![Input::Drained, Input::Failed],
        State::Verifying { .. } => vec![Input::Judged { equal: true }, Input::Judged { equal: false }, Input::Failed],
        State::SettingSequences { .. } => vec![Input::SequencesSet, Input::Failed],
        State::Committing { .. } => vec![Input::Committed, Input::CommitRefused, Input::CommitUnknown, Input::Failed],
        State::Resolving { .. } => vec![Input::Committed, Input::CommitRefused, Input::CommitUnknown, Input::Failed],
        State::Flipping { .. } => vec![Input::Flipped, Input::Failed],
        State::Unfencing { .. } => vec![Input::Unfenced, Input::Failed],
        State::Releasing { .. } => vec![Input::Released, Input::Failed],
        State::Done { .. } | State::Aborted { .. } | State::Refused => vec![],
    });
    inputs
}

/// What an effect may do to the world even if its answer never comes.
fn perform(world: &mut World, effect: Effect) {
    match effect {
        Effect::HoldClients => world.clients_may_be_held = true,
        Effect::RaiseFence => world.fence_may_be_up = true,
        Effect::Commit { .. } => world.commit_may_be_recorded = true,
        Effect::Flip => world.flipped = true,
        Effect::CheckGates
        | Effect::AwaitDrain { .. }
        | Effect::Judge { .. }
        | Effect::SetSequences
        | Effect::Resolve
        | Effect::LowerFence
        | Effect::ReleaseClients => {}
    }
}

/// What an answer tells about the world.
fn learn(world: &mut World, input: Input) {
    match input {
        Input::Fenced { .. } => world.fence_proven = true,
        Input::Drained => world.drained = true,
        Input::Judged { equal } => world.verified = equal,
        Input::SequencesSet => world.sequences_set = true,
        Input::Committed => world.committed = true,
        Input::CommitRefused => world.commit_may_be_recorded = false,
        Input::Flipped | Input::Released => world.clients_may_be_held = false,
        Input::Unfenced => world.fence_may_be_up = false,
        Input::GatesOpen
        | Input::GateClosed
        | Input::Held
        | Input::CommitUnknown
        | Input::Failed
        | Input::Tick
        | Input::Cancel => {}
    }
}

fn assert_promises(before: World, after: World, effect: Option<Effect>, state: State) {
    match effect {
        Some(Effect::Flip) => {
            assert!(before.committed || after.committed, "flipped without a commit point");
            assert!(after.verified && after.drained && after.fence_proven && after.sequences_set, "flipped unverified");
        }
        Some(Effect::Commit { .. }) => {
            assert!(after.verified && after.drained && after.fence_proven && after.sequences_set);
        }
        Some(Effect::LowerFence | Effect::ReleaseClients) => {
            assert!(!after.committed && !after.commit_may_be_recorded, "blue opened while green may own the writes");
        }
        Some(
            Effect::CheckGates
            | Effect::HoldClients
            | Effect::RaiseFence
            | Effect::AwaitDrain { .. }
            | Effect::Judge { .. }
            | Effect::SetSequences
            | Effect::Resolve,
        )
        | None => {}
    }
    match state {
        State::Aborted { .. } | State::Refused => {
            assert!(!after.fence_may_be_up, "blue left fenced without a commit");
            assert!(!after.clients_may_be_held, "clients left held");
            assert!(!after.committed && !after.commit_may_be_recorded && !after.flipped);
        }
        State::Done { .. } => {
            assert!(after.committed && after.fence_may_be_up && after.flipped && !after.clients_may_be_held);
        }
        State::Gates
        | State::HoldingClients
        | State::Fencing { .. }
        | State::Draining { .. }
        | State::Verifying { .. }
        | State::SettingSequences { .. }
        | State::Committing { .. }
        | State::Resolving { .. }
        | State::Flipping { .. }
        | State::Unfencing { .. }
        | State::Releasing { .. } => assert!(!after.flipped || after.committed, "flipped in {state:?}"),
    }
}

#[test]
fn no_path_leaves_the_source_fenced_or_flips_unverified_or_forgets_the_clients() {
    let start = Instant::now();
    let max_pause = Duration::from_secs(2);
    // In time, and past the deadline.
    let times = [start, start + Duration::from_secs(10)];
    let (machine, effect) = Machine::new(max_pause);
    let mut world = World::default();
    perform(&mut world, effect);
    let mut open = vec![(machine, world)];
    let mut seen = HashSet::new();
    let mut ends = HashSet::new();
    while let Some((machine, world)) = open.pop() {
        if !seen.insert((machine.state(), world, machine.deadline())) {
            continue;
        }
        for input in inputs_for(machine.state()) {
            for now in times {
                let (mut next_machine, mut next_world) = (machine, world);
                learn(&mut next_world, input);
                let next = next_machine.on(input, now);
                let effect = match next {
                    Next::Perform(effect) => Some(effect),
                    Next::Stay | Next::End => None,
                };
                if let Some(effect) = effect {
                    perform(&mut next_world, effect);
                }
                assert_promises(world, next_world, effect, next_machine.state());
                match next {
                    Next::End => drop(ends.insert(next_machine.state())),
                    Next::Stay | Next::Perform(_) => open.push((next_machine, next_world)),
                }
            }
        }
    }
    assert!(ends.contains(&State::Done { barrier: barrier() }));
    for why in [
        Why::Different,
        Why::Superseded,
        Why::Failed(Step::Hold),
        Why::Failed(Step::Fence),
        Why::Failed(Step::Drain),
        Why::Failed(Step::Verify),
        Why::Failed(Step::Sequences),
        Why::Failed(Step::Commit),
        Why::Overdue(Step::Hold),
        Why::Overdue(Step::Fence),
        Why::Overdue(Step::Drain),
        Why::Overdue(Step::Verify),
        Why::Overdue(Step::Sequences),
        Why::Cancelled(Step::Drain),
    ] {
        assert!(ends.contains(&State::Aborted { why }), "{why:?} is never an end");
    }
}

#[test]
fn the_pause_is_counted_from_the_hold_and_ends_what_can_be_undone() {
    let start = Instant::now();
    let (mut machine, _) = Machine::new(Duration::from_secs(2));
    assert_eq!(machine.deadline(), None);
    let held_at = start + Duration::from_secs(60);
    assert_eq!(machine.on(Input::GatesOpen, held_at), Next::Perform(Effect::HoldClients));
    assert_eq!(machine.deadline(), Some(held_at + Duration::from_secs(2)));
    assert_eq!(machine.on(Input::Tick, held_at + Duration::from_secs(1)), Next::Stay);
    let late = held_at + Duration::from_secs(2);
    assert_eq!(machine.on(Input::Tick, late), Next::Perform(Effect::ReleaseClients));
    assert_eq!(machine.state(), State::Releasing { why: Why::Overdue(Step::Hold) });
}

#[test]
fn the_clock_and_the_operator_cannot_turn_back_a_commit_under_way() {
    let now = Instant::now();
    let late = now + Duration::from_secs(60);
    let (mut machine, _) = Machine::new(Duration::from_secs(2));
    for input in [
        Input::GatesOpen,
        Input::Held,
        Input::Fenced { barrier: barrier() },
        Input::Drained,
        Input::Judged { equal: true },
        Input::SequencesSet,
    ] {
        machine.on(input, now);
    }
    for input in [Input::Tick, Input::Cancel] {
        assert_eq!(machine.on(input, late), Next::Stay);
    }
    assert_eq!(machine.on(Input::CommitUnknown, late), Next::Perform(Effect::Resolve));
    assert_eq!(machine.on(Input::Cancel, late), Next::Stay);
    assert_eq!(machine.on(Input::Committed, late), Next::Perform(Effect::Flip));
    assert_eq!(machine.on(Input::Failed, late), Next::Perform(Effect::Flip));
}
