//! A session that digests parts of tables under an imported snapshot.

use std::sync::{Arc, Mutex, PoisonError};

use super::digest::Digest;
use super::error::{Error, Side};
use super::machine::{Digested, Round, Unit};
use super::progress::Progress;
use super::shape::Shape;
use super::snapshots::{Aligned, open, wire_rows};
use super::sql::{self, BlockRange};
use super::table::Table;
use crate::model::quote_literal;
use crate::wire::{Endpoint, Session};

/// What a round compares, by the round's own index.
#[derive(Debug)]
pub(super) struct Subject {
    /// Index into the tables of the migration.
    pub(super) table: usize,
    pub(super) shapes: [Shape; 2],
    pub(super) ranges: [Vec<Option<BlockRange>>; 2],
}

/// Everything the workers of a round share.
pub(super) struct Shared {
    pub(super) tables: Arc<[Table]>,
    pub(super) subjects: Vec<Subject>,
    pub(super) round: Mutex<Round>,
    pub(super) aligned: Aligned,
    pub(super) progress: Arc<Progress>,
}

/// Digests parts of one side until none are left; answers with the tables it brought to an end.
pub(super) async fn work(endpoint: Endpoint, side: Side, shared: Arc<Shared>) -> Result<Vec<Digested>, Error> {
    let mut finished = Vec::new();
    let Some(mut unit) = shared.next(side) else { return Ok(finished) };
    let session = open(&endpoint, side).await?;
    loop {
        let digest = digest_unit(&session, &shared, unit).await?;
        finished.extend(shared.done(unit, digest));
        match shared.next(side) {
            Some(next) => unit = next,
            None => return Ok(finished),
        }
    }
}

impl Shared {
    fn next(&self, side: Side) -> Option<Unit> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner).next(side)
    }

    fn done(&self, unit: Unit, digest: Digest) -> Option<Digested> {
        let subject = &self.subjects[unit.table];
        let parts = subject.ranges[unit.side.index()].len();
        self.progress.blocks_done(u64::from(subject.shapes[unit.side.index()].block_count) / parts as u64);
        let digested = self.round.lock().unwrap_or_else(PoisonError::into_inner).done(unit, digest);
        if digested.is_some() {
            self.progress.table_done();
        }
        digested
    }
}

/// A transaction for each part, in one round trip: the table's lock is held no longer than a part takes.
async fn digest_unit(session: &Session, shared: &Shared, unit: Unit) -> Result<Digest, Error> {
    let subject = &shared.subjects[unit.table];
    let (table, side) = (&shared.tables[subject.table], unit.side);
    let shape = &subject.shapes[side.index()];
    let query = sql::digest(table, &shape.from, subject.ranges[side.index()][unit.part]);
    let snapshot = quote_literal(&shared.aligned.snapshots[side.index()]);
    let batch = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {snapshot}; {query}; COMMIT"
    );
    digest_by(session, side, table, &batch).await
}

/// Runs `query`, whose only rows are one digest.
pub(super) async fn digest_by(session: &Session, side: Side, table: &Table, query: &str) -> Result<Digest, Error> {
    let failed = |source| Error::Digest { side, table: table.source.clone(), source };
    let messages = session.simple_query(query).await.map_err(failed)?;
    let row = wire_rows(&messages).next();
    row.and_then(|row| Digest::read(row, 0)).ok_or(Error::Answer { side, what: "a digest" })
}
