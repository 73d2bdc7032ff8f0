//! The publication: which tables the slot's stream carries.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Error;
use super::blockers::open_transactions;
use super::row_filters::{ROW_FILTERS_SINCE, publication_filters, where_clause};
use crate::model::{RowFilters, TableName, quote_identifier};
use crate::wire::{Session, sqlstate};

/// How often we look whether old transactions have ended.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Creates a publication of exactly `tables`, each published as itself (leaves of a partitioned table, not its root), and
/// of those of their rows that `rows` names. One that an earlier run left with the same tables, all whole, is taken over.
pub async fn create_publication(
    session: &Session,
    publication: &str,
    tables: &[TableName],
    rows: &RowFilters,
) -> Result<(), Error> {
    let filter = tables.iter().find(|table| rows.of(table).is_some());
    if let Some(table) = filter.filter(|_| session.server_version_num() < ROW_FILTERS_SINCE) {
        return Err(Error::RowFilters { table: table.clone() });
    }
    let list: Vec<String> =
        tables.iter().map(|table| format!("ONLY {}{}", table.quoted(), where_clause(rows.of(table)))).collect();
    let of_tables = if list.is_empty() { String::new() } else { format!(" FOR TABLE {}", list.join(", ")) };
    let sql = format!("CREATE PUBLICATION {}{of_tables}", quote_identifier(publication));
    let created = session.batch_execute(&sql).await.map_err(Error::query("create the publication"));
    match created {
        Err(error) if error.sqlstate() == Some(sqlstate::DUPLICATE_OBJECT) => {
            take_over(session, publication, tables, rows).await
        }
        created => created,
    }
}

async fn take_over(session: &Session, publication: &str, tables: &[TableName], rows: &RowFilters) -> Result<(), Error> {
    let found = publication_tables(session, publication).await?.unwrap_or_default();
    let filters = publication_filters(session, publication).await?;
    let wanted: BTreeSet<&TableName> = tables.iter().collect();
    let whole = filters.is_empty() && !tables.iter().any(|table| rows.of(table).is_some());
    if whole && found.iter().collect::<BTreeSet<_>>() == wanted {
        Ok(())
    } else {
        Err(Error::PublicationExists { publication: publication.to_owned() })
    }
}

/// Drops it if it is there.
pub async fn drop_publication(session: &Session, publication: &str) -> Result<(), Error> {
    let sql = format!("DROP PUBLICATION IF EXISTS {}", quote_identifier(publication));
    session.batch_execute(&sql).await.map_err(Error::query("drop the publication"))
}

/// The tables it publishes, sorted, a partitioned table as its leaves; `None` when there is no such publication.
pub async fn publication_tables(session: &Session, publication: &str) -> Result<Option<Vec<TableName>>, Error> {
    let failed = || Error::query("read the publication");
    let sql = "SELECT 1 FROM pg_publication WHERE pubname = $1";
    if session.query_opt(sql, &[&publication]).await.map_err(failed())?.is_none() {
        return Ok(None);
    }
    let sql = "SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1 ORDER BY 1, 2";
    let rows = session.query(sql, &[&publication]).await.map_err(failed())?;
    Ok(Some(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect()))
}

/// Waits until every transaction that is running now has ended. What a transaction wrote before a table was published is
/// in no stream, and a snapshot taken before it ends does not see it either (PITFALLS 20).
pub async fn wait_out_running_transactions(session: &Session, timeout: Duration) -> Result<(), Error> {
    let deadline = Instant::now() + timeout;
    // An id of our own, since a snapshot does not list the running transactions that are newer than the last one that
    // ended (they are beyond its xmax): whatever is older than this one was running or is over.
    let limit = xid(session, "SELECT pg_current_xact_id()::text").await?;
    while xid(session, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text").await? < limit {
        if Instant::now() >= deadline {
            let mut blockers = open_transactions(session).await?;
            blockers.0.retain(|blocker| precedes(&blocker.xid, limit));
            return Err(Error::TransactionsOpen { seconds: timeout.as_secs(), blockers });
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

async fn xid(session: &Session, sql: &str) -> Result<u64, Error> {
    let row = session.query_one(sql, &[]).await.map_err(Error::query("look for open transactions"))?;
    row.get::<_, String>(0).parse().map_err(|_| Error::Malformed { what: "a transaction id is no number" })
}

/// `xid` as `pg_stat_activity` prints it: its lower 32 bits, compared in a circle (`TransactionIdPrecedes`).
fn precedes(xid: &str, limit: u64) -> bool {
    let lower_half = u32::try_from(limit & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    xid.parse::<u32>().is_ok_and(|xid| xid.wrapping_sub(lower_half).cast_signed() < 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_compared_across_their_wraparound() {
        assert!(precedes("735", 736) && !precedes("736", 736) && !precedes("737", 736));
        assert!(precedes("4294967295", (1 << 32) + 3) && !precedes("5", (1 << 32) + 3));
        assert!(!precedes("", 736));
    }
}
