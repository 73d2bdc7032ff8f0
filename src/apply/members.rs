//! The tables of a migration, and what is under way with one that is copied again: `changeover.member`.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use crate::model::{Lsn, MigrationName, TableName, quote_literal};
use crate::wire::Session;

use super::error::Error;
use super::lanes::Lane;
use super::position::lsn_of;

/// A table of the migration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name on the source.
    pub table: TableName,
    pub lane: Lane,
    /// How far its copy has come; `None` when none is under way.
    pub step: Option<MemberStep>,
    /// It joined after the migration had begun.
    pub added: bool,
    /// Its lane takes only transactions that end later.
    pub after: Option<Lsn>,
}

/// A table that is copied again (or, having joined, for the first time) goes through these in order; each is stored
/// before what belongs to the next is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberStep {
    /// The main lane has left it, at a recorded position. Left when it is empty, and published.
    SetApart,
    /// Ready to be copied. Left when all its rows are there.
    Ready,
    /// Its own lane applies what has been committed since. Left when that has come as far as the main lane.
    Copied,
    /// The main lane has taken it back. Left when that has passed the place where the other one stopped.
    Merged,
}

impl MemberStep {
    const ALL: [Self; 4] = [Self::SetApart, Self::Ready, Self::Copied, Self::Merged];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SetApart => "set_apart",
            Self::Ready => "ready",
            Self::Copied => "copied",
            Self::Merged => "merged",
        }
    }
}

/// Every table of the migration, by name.
pub async fn read_members(session: &Session, migration: &MigrationName) -> Result<Vec<Member>, Error> {
    let sql = "SELECT table_schema, table_name, lane, step, added, after::text FROM changeover.member \
               WHERE migration = $1 ORDER BY table_schema, table_name";
    let rows = session.query(sql, &[&migration.as_str()]).await;
    let rows = rows.map_err(|source| Error::Query { what: "read the tables of the migration", source })?;
    rows.iter().map(|row| member(row, migration)).collect()
}

fn member(row: &Row, migration: &MigrationName) -> Result<Member, Error> {
    let wrong = |what| Error::MalformedState { migration: migration.to_string(), what };
    let step: Option<String> = row.get(3);
    let step = step.map(|word| MemberStep::ALL.into_iter().find(|step| step.as_str() == word).ok_or(wrong("a step")));
    Ok(Member {
        table: TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
        lane: Lane::of(row.get(2)).ok_or(wrong("a lane"))?,
        step: step.transpose()?,
        added: row.get(4),
        after: row.get::<_, Option<&str>>(5).and_then(lsn_of),
    })
}

/// These are the tables of the migration from now on.
pub async fn record_members(
    session: &Session,
    migration: &MigrationName,
    tables: impl Iterator<Item = &TableName>,
) -> Result<(), Error> {
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        tables.map(|table| (table.schema.as_str(), table.name.as_str())).unzip();
    let sql = "WITH wanted AS (SELECT * FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS w (table_schema, table_name)), \
               gone AS (DELETE FROM changeover.member AS m WHERE migration = $1 \
                        AND NOT EXISTS (SELECT FROM wanted AS w WHERE w.table_schema = m.table_schema AND w.table_name = m.table_name)) \
               INSERT INTO changeover.member (migration, table_schema, table_name) SELECT $1, w.* FROM wanted AS w \
               ON CONFLICT (migration, table_schema, table_name) DO NOTHING";
    let recorded = session.execute(sql, &[&migration.as_str(), &schemas, &names]).await;
    recorded.map(drop).map_err(|source| Error::Query { what: "record the tables of the migration", source })
}

/// These are no tables of the migration any more: what is kept for them is removed. No applier runs.
pub async fn forget_members(session: &Session, migration: &MigrationName, tables: &[TableName]) -> Result<(), Error> {
    let of_tables = among(migration, tables);
    let sql = format!(
        "BEGIN; DELETE FROM changeover.member WHERE {of_tables}; DELETE FROM changeover.unit WHERE {of_tables}; \
         DELETE FROM changeover.split WHERE {of_tables}; DELETE FROM changeover.gathered WHERE {of_tables}; \
         DELETE FROM changeover.position WHERE migration = '{migration}' AND lane = {apart} AND NOT EXISTS \
             (SELECT FROM changeover.member WHERE migration = '{migration}' AND lane = {apart}); COMMIT",
        apart = Lane::Apart.number()
    );
    in_one(session, &sql, "forget tables that left the migration").await
}

/// The tables have come from one step to the next. Without effect for a daemon that does not lead any more.
pub async fn enter_step(
    session: &Session,
    migration: &MigrationName,
    epoch: i64,
    tables: &[TableName],
    step: MemberStep,
) -> Result<(), Error> {
    in_one(session, &entering(migration, epoch, tables, step), "record how far the copy of a table is").await
}

/// The statement of [`enter_step`], to be run in the transaction that does what it stands for.
pub fn entering(migration: &MigrationName, epoch: i64, tables: &[TableName], step: MemberStep) -> String {
    let before = MemberStep::ALL.into_iter().take_while(|known| *known < step).last();
    let before = before.expect("nothing is entered but by way of its first step").as_str();
    format!(
        "UPDATE changeover.member SET step = '{}' WHERE {} AND step = '{before}' AND {}",
        step.as_str(),
        among(migration, tables),
        leads(migration, epoch)
    )
}

/// Nothing is under way with these tables any more.
pub async fn finish_members(
    session: &Session,
    migration: &MigrationName,
    epoch: i64,
    tables: &[TableName],
) -> Result<(), Error> {
    let sql = format!(
        "UPDATE changeover.member SET step = NULL, after = NULL WHERE {} AND step = '{}' AND {}",
        among(migration, tables),
        MemberStep::Merged.as_str(),
        leads(migration, epoch)
    );
    in_one(session, &sql, "record that a table streams with the others").await
}

/// The condition that a row belongs to one of `tables`. A migration's name needs no quoting: `[a-z0-9_]`.
pub(super) fn among(migration: &MigrationName, tables: &[TableName]) -> String {
    let name = |table: &TableName| format!("({}, {})", quote_literal(&table.schema), quote_literal(&table.name));
    let distinct: BTreeSet<&TableName> = tables.iter().collect();
    let names: Vec<String> = distinct.into_iter().map(name).collect();
    assert!(!names.is_empty(), "a statement about no tables");
    format!("migration = '{migration}' AND (table_schema, table_name) IN ({})", names.join(", "))
}

fn leads(migration: &MigrationName, epoch: i64) -> String {
    format!("EXISTS (SELECT FROM changeover.migration WHERE name = '{migration}' AND epoch = {epoch})")
}

/// Runs statements written as one text; a failed transaction is rolled back, so that the session stays usable.
pub(super) async fn in_one(session: &Session, sql: &str, what: &'static str) -> Result<(), Error> {
    let outcome = session.batch_execute(sql).await;
    if outcome.is_err() {
        // The first error is the one to tell; a connection that is gone has rolled back by itself.
        drop(session.batch_execute("ROLLBACK").await);
    }
    outcome.map_err(|source| Error::Query { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_entered_only_from_the_one_before_and_by_who_leads() {
        let migration: MigrationName = "shop".parse().unwrap();
        let tables = [TableName::new("public", "it's")];
        for (step, before) in
            [(MemberStep::Ready, "set_apart"), (MemberStep::Copied, "ready"), (MemberStep::Merged, "copied")]
        {
            let sql = entering(&migration, 7, &tables, step);
            assert!(sql.contains(&format!("SET step = '{}'", step.as_str())), "{sql}");
            assert!(sql.contains(&format!("AND step = '{before}'")) && sql.contains("epoch = 7"), "{sql}");
            assert!(sql.contains("('public', 'it''s')"), "{sql}");
        }
    }
}
