//! Who applies which table. All are the main lane's, but for those that are set apart: while a table is copied again, its
//! changes wait and are then applied by a lane of their own, with a position of its own, until both can be one again.
//!
//! The tables are divided anew in a transaction that holds the row of the main lane's position. Each of its groups
//! begins by moving that row, so while we hold it nothing more is committed: the row's lock is what makes the applier
//! stand still, over any crash of ours. Afterwards the row's generation is another one, and an applier that does not
//! know of it fails before it writes, reads the division and goes on.

use std::collections::HashMap;
use std::time::Duration;

use tracing::{debug, info};

use crate::model::{Lsn, MigrationName, TableName, quote_literal};
use crate::wire::{self, Endpoint, Session, sqlstate};

use super::error::Error;
use super::members::{Member, MemberStep, among, in_one};
use super::position::{self, lsn_of};

/// The applier may be in the middle of a large transaction, and nobody may queue behind us for long.
const LOCK_TIMEOUT_MS: u32 = 1_000;
const LOCK_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    #[default]
    Main,
    /// Of the tables that are copied again.
    Apart,
}

impl Lane {
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Main => 0,
            Self::Apart => 1,
        }
    }

    pub(super) fn of(number: i32) -> Option<Self> {
        [Self::Main, Self::Apart].into_iter().find(|lane| lane.number() == number)
    }
}

/// The tables as they are divided, seen by one lane. Read when its applier starts, and valid for one generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Division {
    lane: Lane,
    /// Those that are set apart.
    apart: Vec<TableName>,
    /// What ends at or before this was applied by the other lane.
    after: HashMap<TableName, Lsn>,
}

impl Division {
    pub(super) fn new(lane: Lane, members: &[Member]) -> Self {
        let apart = members.iter().filter(|member| member.lane == Lane::Apart).map(|member| member.table.clone());
        let mine = members.iter().filter(|member| member.lane == lane);
        let after = mine.filter_map(|member| member.after.map(|after| (member.table.clone(), after)));
        Self { lane, apart: apart.collect(), after: after.collect() }
    }

    /// Whether the lane applies the table's changes.
    pub(super) fn takes(&self, table: &TableName) -> bool {
        (self.lane == Lane::Apart) == self.apart.contains(table)
    }

    /// Nothing is set apart.
    pub(super) fn is_whole(&self) -> bool {
        self.apart.is_empty()
    }

    /// What ends behind here was applied to no table by another lane.
    pub(super) fn newest_after(&self) -> Option<Lsn> {
        self.after.values().copied().max()
    }

    pub(super) fn after(&self, table: &TableName) -> Option<Lsn> {
        self.after.get(table).copied()
    }
}

/// The main lane stands still: it can commit nothing while this exists. Dropped, it goes on as before.
pub struct Standstill {
    session: Session,
    migration: MigrationName,
    /// Where the main lane stands.
    position: Lsn,
}

impl Standstill {
    /// Waits until what is being committed is committed. Cancel-safe: a dropped future sets free.
    pub async fn begin(endpoint: &Endpoint, migration: &MigrationName, epoch: i64) -> Result<Self, Error> {
        let session = wire::connect(endpoint, "divide the tables").await.map_err(Error::Connect)?;
        loop {
            match lock(&session, migration, epoch).await {
                Err(error) if error.code().is_some_and(|code| code.code() == sqlstate::LOCK_NOT_AVAILABLE) => {
                    debug!("the applier is in the middle of a transaction: waiting for its end");
                    session.batch_execute("ROLLBACK").await.map_err(query)?;
                    tokio::time::sleep(LOCK_PAUSE).await;
                }
                Err(source) => return Err(query(source)),
                Ok(None) => return Err(Error::Superseded { migration: migration.to_string(), epoch }),
                Ok(Some(position)) => return Ok(Self { session, migration: migration.clone(), position }),
            }
        }
    }

    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The main lane leaves these tables where it stands. `added`: they join the migration with it.
    pub async fn set_apart(self, tables: &[TableName], added: bool) -> Result<(), Error> {
        let (apart, step) = (Lane::Apart.number(), MemberStep::SetApart.as_str());
        let migration = &self.migration;
        let value = |table: &TableName| {
            let (schema, name) = (quote_literal(&table.schema), quote_literal(&table.name));
            format!("('{migration}', {schema}, {name}, {apart}, '{step}', {added})")
        };
        let values: Vec<String> = tables.iter().map(value).collect();
        let sql = format!(
            "INSERT INTO changeover.position (migration, lane, epoch, commit_end, committed_at) \
                 SELECT migration, {apart}, epoch, commit_end, committed_at FROM changeover.position \
                 WHERE migration = '{migration}' AND lane = 0; \
             INSERT INTO changeover.member (migration, table_schema, table_name, lane, step, added) VALUES {} \
                 ON CONFLICT (migration, table_schema, table_name) DO UPDATE \
                 SET lane = EXCLUDED.lane, step = EXCLUDED.step, added = EXCLUDED.added, after = NULL; {}",
            values.join(", "),
            self.divided()
        );
        in_one(&self.session, &sql, "set tables apart").await?;
        info!(position = %self.position, tables = tables.len(), "tables set apart");
        Ok(())
    }

    /// Whether the other lane has come at least as far.
    pub async fn is_reached(&self) -> Result<bool, Error> {
        let other = position::read_lane_position(&self.session, &self.migration, Lane::Apart).await?;
        Ok(other >= Some(self.position))
    }

    /// The main lane takes these tables back, where the other one stands, which is applied by nobody any more and stands
    /// no earlier than the main lane. Returns that place: once the main lane has passed it, the target is one state of
    /// the source again.
    pub async fn merge(self, tables: &[TableName]) -> Result<Lsn, Error> {
        let other = position::read_lane_position(&self.session, &self.migration, Lane::Apart).await?;
        let after = other.filter(|other| *other >= self.position).ok_or_else(|| Error::MalformedState {
            migration: self.migration.to_string(),
            what: "the position of the tables that are set apart",
        })?;
        let sql = format!(
            "UPDATE changeover.member SET lane = 0, step = '{}', after = '{after}' WHERE {} AND step = '{}'; \
             DELETE FROM changeover.position WHERE migration = '{}' AND lane = {}; {}",
            MemberStep::Merged.as_str(),
            among(&self.migration, tables),
            MemberStep::Copied.as_str(),
            self.migration,
            Lane::Apart.number(),
            self.divided()
        );
        in_one(&self.session, &sql, "take tables back").await?;
        info!(position = %self.position, %after, tables = tables.len(), "tables taken back");
        Ok(after)
    }

    fn divided(&self) -> String {
        format!(
            "UPDATE changeover.position SET generation = generation + 1 WHERE migration = '{}' AND lane = 0; COMMIT",
            self.migration
        )
    }
}

/// `None` when the row is not ours.
async fn lock(session: &Session, migration: &MigrationName, epoch: i64) -> Result<Option<Lsn>, tokio_postgres::Error> {
    session.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")).await?;
    let sql = "SELECT commit_end::text FROM changeover.position \
               WHERE migration = $1 AND lane = 0 AND epoch = $2 FOR UPDATE";
    let row = session.query_opt(sql, &[&migration.as_str(), &epoch]).await?;
    Ok(row.and_then(|row| lsn_of(row.get(0))))
}

fn query(source: tokio_postgres::Error) -> Error {
    Error::Query { what: "let the applier stand still", source }
}

/// After a group was refused because of its position: whether the row is still ours, so that only the division is new.
pub(super) async fn is_divided_anew(
    endpoint: &Endpoint,
    migration: &MigrationName,
    lane: Lane,
    epoch: i64,
) -> Result<bool, Error> {
    let session = wire::connect(endpoint, "apply catalog").await.map_err(Error::Connect)?;
    let sql = "SELECT FROM changeover.position WHERE migration = $1 AND lane = $2 AND epoch = $3";
    let row = session.query_opt(sql, &[&migration.as_str(), &lane.number(), &epoch]).await;
    Ok(row.map_err(|source| Error::Query { what: "read the position", source })?.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, lane: Lane, after: Option<u64>) -> Member {
        let after = after.and_then(Lsn::new);
        Member { table: TableName::new("s", name), lane, step: None, added: false, after }
    }

    #[test]
    fn each_table_is_taken_by_one_lane() {
        let members = [
            member("plain", Lane::Main, None),
            member("apart", Lane::Apart, None),
            member("back", Lane::Main, Some(7)),
        ];
        let (main, apart) = (Division::new(Lane::Main, &members), Division::new(Lane::Apart, &members));
        for name in ["plain", "apart", "back", "unknown"] {
            let table = TableName::new("s", name);
            assert_ne!(main.takes(&table), apart.takes(&table), "{name}");
            assert_eq!(apart.takes(&table), name == "apart");
        }
        assert_eq!(main.after(&TableName::new("s", "back")), Lsn::new(7));
        assert_eq!(main.after(&TableName::new("s", "plain")), None);
    }
}
