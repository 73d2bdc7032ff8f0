//! The aligned pass over what changed since: cheap, so it runs just before a cutover and as often as one likes.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::Statement;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::align::Aligner;
use super::digest::Digest;
use super::dirty::{Check, Dirty, DirtyKeys, columns_of};
use super::driver::{Options, publish};
use super::error::{Error, Side};
use super::narrow::{Pair, narrow};
use super::report::{Report, TableVerdict};
use super::shape::{self, Shape};
use super::snapshots::Control;
use super::sql::{self, From};
use super::table::Table;
use super::worker::digest_by;
use crate::model::{Lsn, TableName};
use crate::wire::Session;

/// Keys in one statement.
pub(super) const KEYS_PER_STATEMENT: usize = 5000;
/// A table that is truncated during the pass makes it begin again.
const ATTEMPTS_MAX: u32 = 5;

/// Compares the keys written since each table was last found equal. Exact for the report's position, as
/// "equal in full at `full_at`, and what changed since is equal here".
///
/// # Errors
/// [`Error::NotVerified`] when a table was never found equal, and anything that keeps the verdict from being exact.
pub async fn verify_dirty(options: &Options, aligner: &dyn Aligner, dirty: &DirtyKeys) -> Result<Report, Error> {
    let control = Box::pin(Control::open(&options.source, &options.target)).await?;
    let report = Box::pin(pass(&control, options, aligner, dirty)).await?;
    publish(&options.migration, &report);
    Ok(report)
}

pub(super) async fn pass(
    control: &Control,
    options: &Options,
    aligner: &dyn Aligner,
    dirty: &DirtyKeys,
) -> Result<Report, Error> {
    let mut held = Duration::ZERO;
    let mut moved = None;
    for _ in 0..ATTEMPTS_MAX {
        let outcome = attempt(control, options, aligner, dirty, &mut held).await;
        control.give_up_snapshots().await;
        match outcome? {
            Outcome::Judged(report) => return Ok(report),
            Outcome::Moved(table) => moved = Some(table),
        }
    }
    let table = moved.expect("an attempt that judged nothing names the table that moved");
    Err(Error::Restless { table, attempts: ATTEMPTS_MAX })
}

enum Outcome {
    Judged(Report),
    /// Truncated or rewritten during the attempt.
    Moved(TableName),
}

async fn attempt(
    control: &Control,
    options: &Options,
    aligner: &dyn Aligner,
    dirty: &DirtyKeys,
    held: &mut Duration,
) -> Result<Outcome, Error> {
    let started = Instant::now();
    let tables = dirty.tables();
    let before = shapes(control, tables).await?;
    let mut taken = Ok(Vec::new());
    let aligned = control.align(aligner, || taken = dirty.take()).await?;
    *held += aligned.held;
    let taken = taken.map_err(|table| Error::NotVerified { table })?;
    let mut digests = Vec::with_capacity(taken.len());
    for (check, _) in &taken {
        digests.push(both(control, tables, &before, check).await?);
    }
    let after = shapes(control, tables).await?;
    if let Some(table) =
        (0..tables.len()).find(|table| (0..2).any(|side| before[side][*table].files != after[side][*table].files))
    {
        return Ok(Outcome::Moved(tables[table].source.clone()));
    }
    let mut verdicts = Vec::with_capacity(taken.len());
    for ((check, verdict), digests) in taken.into_iter().zip(&digests) {
        let verdict = verdict.after(&check, digests, aligned.position);
        verdicts.push(settle(control, options, dirty, &before, &check, verdict, aligned.position).await?);
    }
    let compared = digests.iter().map(|[source, _]| source.row_count).sum();
    Ok(Outcome::Judged(Report::new(aligned.position, verdicts, compared, *held, started.elapsed())))
}

async fn settle(
    control: &Control,
    options: &Options,
    dirty: &DirtyKeys,
    shapes: &[Vec<Shape>; 2],
    check: &Check,
    mut verdict: TableVerdict,
    position: Lsn,
) -> Result<TableVerdict, Error> {
    if verdict.equal {
        dirty.confirm(check.table, position);
        return Ok(verdict);
    }
    dirty.refute(check.table);
    let from = [&shapes[0][check.table].from, &shapes[1][check.table].from];
    let pair = Pair { control, table: &dirty.tables()[check.table], from };
    let rows = verdict.rows_source.max(verdict.rows_target);
    verdict.found(narrow(&pair, rows, options.keys_max).await?);
    Ok(verdict)
}

async fn shapes(control: &Control, tables: &[Table]) -> Result<[Vec<Shape>; 2], Error> {
    let tables: Vec<&Table> = tables.iter().collect();
    let read = |side: Side| shape::read(&control.sessions[side.index()], side, &tables);
    let (source, target) = tokio::try_join!(read(Side::Source), read(Side::Target))?;
    Ok([source, target])
}

async fn both(
    control: &Control,
    tables: &[Table],
    shapes: &[Vec<Shape>; 2],
    check: &Check,
) -> Result<[Digest; 2], Error> {
    let table = &tables[check.table];
    let one = |side: Side| {
        let from = &shapes[side.index()][check.table].from;
        digest_of(control, side, table, from, &check.what)
    };
    let (source, target) = tokio::try_join!(one(Side::Source), one(Side::Target))?;
    Ok([source, target])
}

async fn digest_of(control: &Control, side: Side, table: &Table, from: &From, what: &Dirty) -> Result<Digest, Error> {
    let session = &control.exporters[side.index()];
    let keys = match what {
        Dirty::Whole => return digest_by(session, side, table, &sql::digest(table, from, None)).await,
        Dirty::Keys(keys) if keys.is_empty() => return Ok(Digest::default()),
        Dirty::Keys(keys) => keys,
    };
    let statement = prepare(session, &control.sessions[side.index()], side, table, from).await?;
    let keys: Vec<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
    let mut digest = Digest::default();
    for chunk in keys.chunks(KEYS_PER_STATEMENT) {
        digest += digest_keys(session, side, table, &statement, chunk).await?;
    }
    Ok(digest)
}

/// The statement that digests the rows of given keys. `probe` is outside any transaction: it finds out whether the
/// types of the key have an `=` that is found without a `search_path` (those of extensions have theirs elsewhere).
pub(super) async fn prepare(
    session: &Session,
    probe: &Session,
    side: Side,
    table: &Table,
    from: &From,
) -> Result<Statement, Error> {
    let failed = |source| Error::Digest { side, table: table.source.clone(), source };
    let mut by_text = false;
    if table.key.iter().any(|column| column.type_sql.contains('.')) {
        let tried = probe.prepare(&sql::digest_of_keys(table, from, false)).await;
        by_text = tried.is_err_and(|error| error.code() == Some(&SqlState::UNDEFINED_FUNCTION));
    }
    session.prepare(&sql::digest_of_keys(table, from, by_text)).await.map_err(failed)
}

/// Digest of the rows of at most [`KEYS_PER_STATEMENT`] keys.
pub(super) async fn digest_keys(
    session: &Session,
    side: Side,
    table: &Table,
    statement: &Statement,
    keys: &[&[u8]],
) -> Result<Digest, Error> {
    let failed = |source| Error::Digest { side, table: table.source.clone(), source };
    let columns = columns_of(keys.iter().copied(), table.key.len());
    let parameters: Vec<&(dyn ToSql + Sync)> = columns.iter().map(|column| column as &(dyn ToSql + Sync)).collect();
    let row = session.query_one(statement, &parameters).await.map_err(failed)?;
    let text = |column: usize| row.try_get::<_, &str>(column).map_err(failed);
    Digest::parse(text(0)?, text(1)?, text(2)?).ok_or(Error::Answer { side, what: "a digest" })
}
