//! A group again, row by row in the order of the source: what a set could not do, or which row it is that fails. Such a
//! row ends the pass, or is set aside where that is asked for.

use std::collections::{BTreeMap, HashSet};

use crate::model::{Change, ChangeKind, TableName};
use crate::wire::ServerError;

use super::error::Error;
use super::fold::Layers;
use super::group::{self, Extent, Group};
use super::letters;
use super::queue::Member;
use super::session::{Outcome, Script, Target};
use super::table::Table;
use super::transaction::{Step, WRONG_COUNT, close, open, refused};

/// Changes sent at once. The answer to a failure says which of them it was, and the server's answers to this many
/// statements fit into a socket's buffer.
const CHANGES_AT_ONCE: usize = 400;

/// Bytes sent at once.
const BYTES_AT_ONCE: usize = 1 << 20;

/// Where a pass can go back to when rows are set aside.
const MARK: &str = "SAVEPOINT rows";
const GO_BACK: &str = "ROLLBACK TO SAVEPOINT rows";
const UNMARK: &str = "RELEASE SAVEPOINT rows";

/// Change `ordinal` of a member.
#[derive(Clone, Copy, Debug)]
struct Row {
    member: usize,
    ordinal: u64,
}

/// Changes set aside, by table of the source.
pub(super) type SetAside = BTreeMap<TableName, u64>;

/// After the pipeline of [`super::transaction::write`] has failed: undoes it, and applies the same changes one by one.
/// With `dead_letters`, what the target refuses is set aside and counted in the answer.
pub(super) async fn apply(target: &mut Target, group: &Group, dead_letters: bool) -> Result<SetAside, Error> {
    let mut script = Script::new();
    match group.extent {
        Extent::Whole | Extent::Piece { first: true, .. } => {
            target.fixed(&mut script, "ROLLBACK", Step::Frame);
            open(target, &mut script, group);
        }
        Extent::Piece { first: false, .. } => target.fixed(&mut script, "ROLLBACK TO SAVEPOINT piece", Step::Frame),
    }
    frame(target, script).await?;
    let mut pass = Pass { target, group, dead_letters, set_aside: SetAside::new() };
    pass.rows().await?;
    let Pass { target, set_aside, .. } = pass;
    let mut script = Script::new();
    close(target, &mut script, group);
    frame(target, script).await?;
    Ok(set_aside)
}

async fn frame(target: &mut Target, script: Script<Step>) -> Result<(), Error> {
    match target.perform(script).await? {
        Outcome::Done => Ok(()),
        Outcome::Failed { label, error } => Err(refused(target, label, error)),
    }
}

struct Pass<'a> {
    target: &'a mut Target,
    group: &'a Group,
    dead_letters: bool,
    set_aside: SetAside,
}

impl Pass<'_> {
    async fn rows(&mut self) -> Result<(), Error> {
        let group = self.group;
        let (mut script, mut rows) = (Script::new(), Vec::new());
        for (at, member) in group.members.iter().enumerate() {
            for (ordinal, _) in group::changes(member) {
                let row = Row { member: at, ordinal };
                if rows.is_empty() {
                    self.mark(&mut script, MARK);
                }
                self.write(&mut script, row)?;
                rows.push(row);
                if rows.len() >= CHANGES_AT_ONCE || script.size_bytes() >= BYTES_AT_ONCE {
                    self.perform(std::mem::replace(&mut script, Script::new()), &rows).await?;
                    rows.clear();
                }
            }
        }
        self.perform(script, &rows).await
    }

    /// Only where rows may be set aside: then there is a way back to before them.
    fn mark(&mut self, script: &mut Script<Option<Row>>, sql: &'static str) {
        if self.dead_letters {
            self.target.fixed(script, sql, None);
        }
    }

    /// The statements of one change.
    fn write(&mut self, script: &mut Script<Option<Row>>, row: Row) -> Result<(), Error> {
        let member = &self.group.members[row.member];
        let mut layers = Layers::default();
        let change = change_of(member, row.ordinal);
        group::add_change(&mut layers, &member.arrived, member.transaction(), change, &HashSet::new())?;
        for layer in layers.list() {
            self.target.layer(script, layer, Some(row))?;
        }
        Ok(())
    }

    async fn perform(&mut self, mut script: Script<Option<Row>>, rows: &[Row]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        self.mark(&mut script, UNMARK);
        let Outcome::Failed { label, error } = self.target.perform(script).await? else { return Ok(()) };
        let failed = label.ok_or_else(|| set_aside_failed(error.clone()))?;
        self.may_set_aside(failed, error)?;
        self.undo().await?;
        for row in rows {
            self.one(*row).await?;
        }
        Ok(())
    }

    /// One change that may fail by itself.
    async fn one(&mut self, row: Row) -> Result<(), Error> {
        let mut script = Script::new();
        self.mark(&mut script, MARK);
        self.write(&mut script, row)?;
        self.mark(&mut script, UNMARK);
        let Outcome::Failed { error, .. } = self.target.perform(script).await? else { return Ok(()) };
        let error = self.may_set_aside(row, error)?;
        self.undo().await?;
        let member = &self.group.members[row.member];
        let change = change_of(member, row.ordinal);
        let table = table_of(member, change);
        let mut script = Script::new();
        self.target.set_aside(&mut script, member.transaction(), (row.ordinal, change), table, &error, Some(row));
        match self.target.perform(script).await? {
            Outcome::Done => *self.set_aside.entry(table.member.clone()).or_default() += 1,
            Outcome::Failed { error, .. } => return Err(set_aside_failed(error)),
        }
        Ok(())
    }

    /// Hands the error back where the row can be set aside.
    fn may_set_aside(&self, row: Row, error: ServerError) -> Result<ServerError, Error> {
        let member = &self.group.members[row.member];
        let has_row = letters::has_row(change_of(member, row.ordinal));
        if self.dead_letters && has_row && letters::is_about_the_row(&error) {
            Ok(error)
        } else {
            Err(row_error(member, row.ordinal, error))
        }
    }

    async fn undo(&mut self) -> Result<(), Error> {
        let mut script = Script::new();
        self.mark(&mut script, GO_BACK);
        self.mark(&mut script, UNMARK);
        match self.target.perform(script).await? {
            Outcome::Done => Ok(()),
            Outcome::Failed { error, .. } => Err(set_aside_failed(error)),
        }
    }
}

fn set_aside_failed(source: ServerError) -> Error {
    Error::Refused { what: "set aside a row that the target refused", source }
}

fn change_of(member: &Member, ordinal: u64) -> &Change {
    let at = ordinal - member.transaction().first_ordinal;
    &member.transaction().changes[usize::try_from(at).expect("an ordinal of this part")]
}

fn table_of<'a>(member: &'a Member, change: &'a Change) -> &'a Table {
    group::tables_of(&member.arrived, change).next().expect("the statement was made from a change of a table")
}

fn row_error(member: &Member, ordinal: u64, source: ServerError) -> Error {
    let transaction = member.transaction();
    let change = change_of(member, ordinal);
    let table = table_of(member, change);
    if let (ChangeKind::Truncate { .. }, Some(_)) = (&change.kind, &table.leaf) {
        let (leaf, root) = (table.relation.name.clone(), table.member.clone());
        return Error::LeafTruncated { leaf, root, source: Some(source) };
    }
    let (name, xid, position) = (table.member.clone(), transaction.xid, transaction.end);
    if source.sqlstate() == WRONG_COUNT {
        Error::RowMissing { table: name, key: table.key_names(), xid, position, ordinal }
    } else {
        Error::Row { table: name, xid, position, ordinal, source }
    }
}
