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
const LOCK_TIMEOUT_MS: u32 = 2_000;

/// Creates a publication of exactly `tables`, each published as itself (leaves of a partitioned table, not its root), and
/// of those of their rows that `rows` names. One that an earlier run left with the same tables, all whole, is taken over.
pub async fn create_publication(
    session: &Session,
    publication: &str,
    tables: &[TableName],
    rows: &RowFilters,
) -> Result<(), Error> {
    can_filter(session, tables, rows)?;
    let of_tables = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", published(tables, rows)) };
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

/// Refuses filters that the server does not know.
fn can_filter(session: &Session, tables: &[TableName], rows: &RowFilters) -> Result<(), Error> {
    match tables.iter().find(|table| rows.of(table).is_some()) {
        Some(table) if session.server_version_num() < ROW_FILTERS_SINCE => {
            Err(Error::RowFilters { table: table.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Publishes these too, or those of their rows that `rows` names. Transactions that are open have written to them unseen:
/// wait them out, then take a snapshot.
pub async fn add_to_publication(
    session: &Session,
    publication: &str,
    tables: &[TableName],
    rows: &RowFilters,
) -> Result<(), Error> {
    can_filter(session, tables, rows)?;
    change(session, &addition(publication, tables, rows), "add tables to the publication").await
}

/// The statement that publishes `tables` too.
pub fn addition(publication: &str, tables: &[TableName], rows: &RowFilters) -> String {
    format!("ALTER PUBLICATION {} ADD TABLE {}", quote_identifier(publication), published(tables, rows))
}

fn published(tables: &[TableName], rows: &RowFilters) -> String {
    let one = |table: &TableName| format!("ONLY {}{}", table.quoted(), where_clause(rows.of(table)));
    tables.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Publishes these no more, as far as it did. They are there, and named one by one.
pub async fn remove_from_publication(session: &Session, publication: &str, tables: &[TableName]) -> Result<(), Error> {
    let sql = format!("ALTER PUBLICATION {} DROP TABLE {}", quote_identifier(publication), list_of(tables));
    change(session, &sql, "remove tables from the publication").await
}

fn list_of(tables: &[TableName]) -> String {
    tables.iter().map(|table| format!("ONLY {}", table.quoted())).collect::<Vec<_>>().join(", ")
}

/// Readers and writers of the tables are not in its way; what is (VACUUM, ALTER) may take long, so it is not waited for
/// at length.
async fn change(session: &Session, sql: &str, what: &'static str) -> Result<(), Error> {
    let transaction = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; {sql}; COMMIT");
    let changed = session.batch_execute(&transaction).await;
    if changed.is_err() {
        // The first error is the one to tell; a connection that is gone has rolled back by itself.
        drop(session.batch_execute("ROLLBACK").await);
    }
    changed.map_err(Error::query(what))
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
