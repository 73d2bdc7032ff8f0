//! Which rows a publication carries (row filters, PostgreSQL 15 and later), and what a condition is about. Everything is
//! asked of the server, since only its reading of a condition counts.

use tokio_postgres::Row;

use super::Error;
use crate::model::{RowFilters, TableName, quote_identifier};
use crate::wire::Session;

/// Row filters came with this version.
pub(super) const ROW_FILTERS_SINCE: u32 = 150_000;

/// Never committed, so it meets no other.
const PROBE: &str = "changeover_probe";
/// An ALTER that waits for its lock must not have us, and everybody, behind it.
const LOCK_TIMEOUT_MS: u32 = 2_000;

/// The condition as CREATE PUBLICATION takes it, on lines of its own, since it may end in a comment.
pub(super) fn where_clause(filter: Option<&str>) -> String {
    filter.map(|filter| format!(" WHERE (\n{filter}\n)")).unwrap_or_default()
}

/// The conditions on the rows that it publishes, as the server prints them. A table that it also publishes with its whole
/// schema has none.
pub async fn publication_filters(session: &Session, publication: &str) -> Result<RowFilters, Error> {
    if session.server_version_num() < ROW_FILTERS_SINCE {
        return Ok(RowFilters::default());
    }
    let sql = "SELECT schemaname::text, tablename::text, rowfilter FROM pg_publication_tables \
               WHERE pubname = $1 AND rowfilter IS NOT NULL";
    let rows = session.query(sql, &[&publication]).await.map_err(Error::query("read the publication's row filters"))?;
    let filter = |row: &Row| (TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)), row.get(2));
    Ok(rows.iter().map(filter).collect())
}

/// The columns that a condition is about, by the server's own reading of it: the publication is made and taken back.
/// What the server refuses is [`Error::Query`] with its words.
pub async fn row_filter_columns(session: &Session, table: &TableName, filter: &str) -> Result<Vec<String>, Error> {
    let read = Error::query("try the row filter");
    let begun = session.batch_execute(&format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")).await;
    begun.map_err(Error::query("try the row filter"))?;
    let found = columns_of_probe(session, table, filter).await;
    let taken_back = session.batch_execute("ROLLBACK").await;
    let columns = found.map_err(read)?;
    taken_back.map_err(Error::query("take back the publication that tried the row filter"))?;
    Ok(columns)
}

async fn columns_of_probe(
    session: &Session,
    table: &TableName,
    filter: &str,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let name = quote_identifier(PROBE);
    let of_table = format!("FOR TABLE ONLY {}{}", table.quoted(), where_clause(Some(filter)));
    session.batch_execute(&format!("CREATE PUBLICATION {name} {of_table}")).await?;
    // The condition's dependencies (`recordDependencyOnSingleRelExpr` in publication_add_relation).
    let sql = "SELECT DISTINCT a.attname::text FROM pg_publication p
               JOIN pg_publication_rel r ON r.prpubid = p.oid
               JOIN pg_depend d ON d.classid = 'pg_publication_rel'::regclass AND d.objid = r.oid
                               AND d.refclassid = 'pg_class'::regclass AND d.refobjid = r.prrelid
               JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = d.refobjsubid
               WHERE p.pubname = $1 AND d.refobjsubid > 0 ORDER BY 1";
    let rows = session.query(sql, &[&PROBE]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Those of `tables` of which `publication` carries other rows than `rows` says.
pub async fn published_otherwise<'a>(
    session: &Session,
    publication: &str,
    tables: impl Iterator<Item = &'a TableName>,
    rows: &RowFilters,
) -> Result<Vec<&'a TableName>, Error> {
    let published = publication_filters(session, publication).await?;
    let mut otherwise = Vec::new();
    for table in tables {
        let same = match (published.of(table), rows.of(table)) {
            (None, None) => true,
            (Some(one), Some(other)) => one == other || means_the_same(session, table, one, other).await?,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if !same {
            otherwise.push(table);
        }
    }
    Ok(otherwise)
}

/// Whether both conditions are one once the server has read them: views of both are made, compared and taken back.
async fn means_the_same(session: &Session, table: &TableName, one: &str, other: &str) -> Result<bool, Error> {
    let failed = || Error::query("compare the row filters");
    let view = |name: &str, filter: &str| {
        let of_table = format!("SELECT 1 AS one FROM ONLY {}{}", table.quoted(), where_clause(Some(filter)));
        format!("CREATE TEMPORARY VIEW {name} AS {of_table};")
    };
    let (one, other) = (view("changeover_one", one), view("changeover_other", other));
    session.batch_execute("BEGIN").await.map_err(failed())?;
    let compare = async {
        session.batch_execute(&format!("SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}; {one} {other}")).await?;
        let sql = "SELECT pg_get_viewdef('pg_temp.changeover_one'::regclass)
                        = pg_get_viewdef('pg_temp.changeover_other'::regclass)";
        session.query_one(sql, &[]).await?.try_get(0)
    };
    let compared: Result<bool, tokio_postgres::Error> = compare.await;
    session.batch_execute("ROLLBACK").await.map_err(failed())?;
    compared.map_err(failed())
}
