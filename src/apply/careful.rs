//! A group again, row by row in the order of the source: what a set could not do, or which row it is that fails.

use std::collections::HashSet;

use crate::wire::ServerError;

use super::error::Error;
use super::fold::Layers;
use super::group::{self, Extent, Group};
use super::queue::Member;
use super::session::{Outcome, Script, Target};
use super::transaction::{Step, WRONG_COUNT, close, open, refused};

/// Statements sent at once. The answer to a failure says which of them it was, and the server's answers to this many
/// fit into a socket's buffer.
const STATEMENTS_AT_ONCE: usize = 500;

/// Bytes sent at once.
const BYTES_AT_ONCE: usize = 1 << 20;

/// What a statement of a careful pass is for: change `ordinal` of a member.
#[derive(Clone, Copy, Debug)]
struct Row {
    member: usize,
    ordinal: u64,
}

/// After the pipeline of [`super::transaction::send`] has failed: undoes it, and applies the same changes one by one.
pub(super) async fn apply(target: &mut Target, group: &Group) -> Result<(), Error> {
    let mut script = Script::new();
    match group.extent {
        Extent::Whole | Extent::Piece { first: true, .. } => {
            target.fixed(&mut script, "ROLLBACK", Step::Frame);
            open(target, &mut script, group);
        }
        Extent::Piece { first: false, .. } => target.fixed(&mut script, "ROLLBACK TO SAVEPOINT piece", Step::Frame),
    }
    frame(target, script).await?;
    rows(target, group).await?;
    let mut script = Script::new();
    close(target, &mut script, group);
    frame(target, script).await
}

async fn frame(target: &mut Target, script: Script<Step>) -> Result<(), Error> {
    match target.perform(script).await? {
        Outcome::Done => Ok(()),
        Outcome::Failed { label, error } => Err(refused(target, label, error)),
    }
}

async fn rows(target: &mut Target, group: &Group) -> Result<(), Error> {
    let ordered = HashSet::new();
    let mut script = Script::new();
    let mut count = 0;
    for (at, member) in group.members.iter().enumerate() {
        for (ordinal, change) in group::changes(member) {
            let mut layers = Layers::default();
            group::add_change(&mut layers, &member.arrived, member.transaction(), change, &ordered)?;
            for layer in layers.list() {
                target.layer(&mut script, layer, Row { member: at, ordinal })?;
                count += 1;
            }
            if count >= STATEMENTS_AT_ONCE || script.size_bytes() >= BYTES_AT_ONCE {
                perform(target, group, std::mem::replace(&mut script, Script::new())).await?;
                count = 0;
            }
        }
    }
    perform(target, group, script).await
}

async fn perform(target: &mut Target, group: &Group, script: Script<Row>) -> Result<(), Error> {
    if script.is_empty() {
        return Ok(());
    }
    match target.perform(script).await? {
        Outcome::Done => Ok(()),
        Outcome::Failed { label, error } => Err(row_error(&group.members[label.member], label.ordinal, error)),
    }
}

fn row_error(member: &Member, ordinal: u64, source: ServerError) -> Error {
    let transaction = member.transaction();
    let found = group::changes(member).find(|(at, _)| *at == ordinal);
    let table = found.and_then(|(_, change)| group::tables_of(&member.arrived, change).next());
    let table = table.expect("the statement was made from a change of a table");
    let (name, xid, position) = (table.relation.name.clone(), transaction.xid, transaction.end);
    if source.sqlstate() == WRONG_COUNT {
        Error::RowMissing { table: name, key: table.key_names(), xid, position, ordinal }
    } else {
        Error::Row { table: name, xid, position, ordinal, source }
    }
}
