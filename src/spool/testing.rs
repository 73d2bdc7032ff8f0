//! Batches and directories for this room's tests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::{
    Batch, Change, ChangeKind, Column, Datum, Lsn, Part, Relation, ReplicaIdentity, SinkName, SourceIdentity,
    TableName, Transaction, TupleBuilder, Xid,
};

use super::state::{Mark, State};

/// A directory of its own, removed with everything in it.
pub(super) struct TempDir(PathBuf);

impl TempDir {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("changeover-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn file_count(&self) -> usize {
        let names = std::fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".spool")).count()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

pub(super) fn state(begin: Mark) -> State {
    State {
        migration: "shop".to_owned(),
        source: SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 },
        consistent_point: Lsn::new(50).unwrap(),
        epoch: 1,
        begin,
        joined: [(SinkName::Target, Lsn::new(50).unwrap())].into(),
    }
}

pub(super) fn lsn(raw: u64) -> Lsn {
    Lsn::new(raw).unwrap()
}

/// Where batch `seq` ends.
pub(super) fn through(seq: u64) -> Lsn {
    Lsn::new((seq + 1) * 100).unwrap()
}

/// A batch of one whole transaction with one row of about `row_bytes`.
pub(super) fn batch(seq: u64, row_bytes: usize) -> Batch {
    part(seq, row_bytes, Part::Whole)
}

pub(super) fn part(seq: u64, row_bytes: usize, part: Part) -> Batch {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: 25,
        type_modifier: -1,
        in_identity: false,
        type_name: None,
    };
    let relation = Relation {
        binary: false,
        oid: 16384,
        name: TableName::new("public", "items"),
        identity: ReplicaIdentity::Full,
        columns: vec![column("a"), column("b")],
    };
    let mut tuple = TupleBuilder::default();
    tuple.push(Datum::Text(&vec![seq as u8; row_bytes])).push(Datum::Unchanged);
    let change = Change { lsn: Lsn::new(seq + 7), kind: ChangeKind::Insert { relation: 0, new: tuple.finish() } };
    let through = if part.ends() { through(seq) } else { Lsn::new(1).unwrap() };
    Batch {
        seq,
        relations: vec![Arc::new(relation)],
        transactions: vec![Transaction {
            xid: Xid(seq as u32),
            commit: through,
            end: through,
            committed_at_us: seq as i64,
            origin: None,
            part,
            first_ordinal: 0,
            changes: vec![change],
        }],
        through,
        wal_end: through,
    }
}

/// The same for a part of a transaction that has not ended: everything before it ended at `through`.
pub(super) fn part_after(seq: u64, row_bytes: usize, kind: Part, through: Lsn) -> Batch {
    assert!(!kind.ends(), "its end is where it comes through");
    let mut batch = part(seq, row_bytes, kind);
    batch.through = through;
    batch
}

/// `count` batches of whole transactions and of parts of such, the last one ending.
pub(super) fn parts_at_random(dice: &mut fastrand::Rng, count: u64, row_bytes_max: usize) -> Vec<Batch> {
    let mut inside = false;
    let mut kind = |last: bool, dice: &mut fastrand::Rng| {
        let (begins, ends) = (!inside, last || dice.u8(0..4) > 0);
        inside = !ends;
        match (begins, ends) {
            (true, true) => Part::Whole,
            (true, false) => Part::First,
            (false, false) => Part::Middle,
            (false, true) => Part::Last,
        }
    };
    let mut before = lsn(50);
    let next = |seq| {
        let kind = kind(seq + 1 == count, dice);
        let size = dice.usize(0..row_bytes_max);
        if kind.ends() {
            before = through(seq);
            part(seq, size, kind)
        } else {
            part_after(seq, size, kind, before)
        }
    };
    (0..count).map(next).collect()
}
