//! A group as one pipeline: what frames a target transaction, and what it means when that fails.

use crate::wire::ServerError;

use super::error::Error;
use super::group::{Extent, Group};
use super::queue::Member;
use super::session::{Script, Target};
use super::split::Share;

/// A division by zero: a count of rows was not what it must be, as the server has found, or we have.
pub(super) const WRONG_COUNT: &str = "22012";

/// What a statement of a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Frame,
    Position,
    /// By index into the group's layers.
    Layer(usize),
}

/// The whole group as one pipeline.
///
/// `flushes`: its commit waits for the disk; otherwise it is durable with the next one that does ("Asynchronous Commit" in
/// the documentation).
pub(super) fn write(target: &mut Target, group: &Group, flushes: bool) -> Result<Script<Step>, Error> {
    let mut script = Script::new();
    whole(target, &mut script, group, flushes)?;
    Ok(script)
}

/// The same after what had gone ahead of its turn was refused.
pub(super) fn write_again(target: &mut Target, group: &Group, flushes: bool) -> Result<Script<Step>, Error> {
    let mut script = Script::new();
    target.fixed(&mut script, "ROLLBACK", Step::Frame);
    whole(target, &mut script, group, flushes)?;
    Ok(script)
}

/// What may go ahead of the groups before: everything but the position, and nothing that commits.
pub(super) fn write_ahead(target: &mut Target, group: &Group, shares: &[Share]) -> Result<Script<Step>, Error> {
    let mut script = Script::checked_here();
    target.begin(&mut script, Step::Frame);
    rows(target, &mut script, group, shares, true)?;
    Ok(script)
}

/// The rest of it, when its turn has come. The position stands first here too: whoever is not the one to move it writes
/// no more, and commits nothing of what had gone ahead.
pub(super) fn write_rest(
    target: &mut Target,
    group: &Group,
    shares: &[Share],
    flushes: bool,
) -> Result<Script<Step>, Error> {
    let mut script = Script::new();
    position(target, &mut script, group);
    rows(target, &mut script, group, shares, false)?;
    end(target, &mut script, group, flushes);
    Ok(script)
}

fn whole(target: &mut Target, script: &mut Script<Step>, group: &Group, flushes: bool) -> Result<(), Error> {
    open(target, script, group);
    for (at, layer) in group.layers.list().iter().enumerate() {
        target.layer(script, layer, Step::Layer(at))?;
    }
    end(target, script, group, flushes);
    Ok(())
}

fn rows(
    target: &mut Target,
    script: &mut Script<Step>,
    group: &Group,
    shares: &[Share],
    ahead: bool,
) -> Result<(), Error> {
    for (at, (layer, share)) in group.layers.list().iter().zip(shares).enumerate() {
        if let Some(rows) = share.rows(ahead) {
            target.share_of(script, layer, rows, Step::Layer(at))?;
        }
    }
    Ok(())
}

fn end(target: &mut Target, script: &mut Script<Step>, group: &Group, flushes: bool) {
    if !flushes {
        target.fixed(script, "SET LOCAL synchronous_commit = off", Step::Frame);
    }
    close(target, script, group);
}

/// What stands before a group's rows: the position first, whose lock keeps another daemon out.
pub(super) fn open(target: &mut Target, script: &mut Script<Step>, group: &Group) {
    let begins = !matches!(group.extent, Extent::Piece { first: false, .. });
    if begins {
        target.begin(script, Step::Frame);
        position(target, script, group);
    }
    if group.extent != Extent::Whole {
        target.fixed(script, "SAVEPOINT piece", Step::Frame);
    }
}

/// What stands behind them.
pub(super) fn close(target: &mut Target, script: &mut Script<Step>, group: &Group) {
    if group.extent != Extent::Whole {
        target.fixed(script, "RELEASE SAVEPOINT piece", Step::Frame);
    }
    if matches!(group.extent, Extent::Piece { first: false, last: true }) {
        // The first piece did not know where the transaction ends.
        position(target, script, group);
    }
    if !matches!(group.extent, Extent::Piece { last: false, .. }) {
        target.fixed(script, "COMMIT", Step::Frame);
    }
}

/// The end of the group's last member, or what has been reached behind it.
fn position(target: &mut Target, script: &mut Script<Step>, group: &Group) {
    let last = group.members.last().map(Member::transaction);
    let through = group.through.max(last.map(|last| last.end)).expect("a group is not sent empty");
    target.position(script, through, last.map(|last| last.committed_at_us), Step::Position);
}

/// Why a statement that holds no rows failed.
pub(super) fn refused(target: &Target, step: Step, error: ServerError) -> Error {
    match step {
        Step::Position if error.sqlstate() == WRONG_COUNT => target.superseded(),
        Step::Position => Error::Refused { what: "write the position", source: error },
        Step::Frame | Step::Layer(_) => Error::Refused { what: "commit a group", source: error },
    }
}
