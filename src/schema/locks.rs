//! Who is in the way of a lock.

use crate::model::TableName;
use crate::wire::Session;

/// Sessions that hold a lock on one of the tables, longest transaction first, in one line for a message. What the
/// session may not see is left out.
pub(crate) async fn holders(session: &Session, tables: &[TableName]) -> String {
    let names: Vec<String> = tables.iter().map(TableName::quoted).collect();
    let sql = "SELECT DISTINCT pg_catalog.format('process %s (%s of %s, %s, in its transaction since %s)', l.pid,
                      coalesce(nullif(a.application_name, ''), 'unnamed'), coalesce(a.usename, 'unknown'), l.mode,
                      coalesce(a.xact_start::text, 'unknown'))
               FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
               WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid() AND l.mode <> 'AccessShareLock'
                 AND l.relation IN (SELECT pg_catalog.to_regclass(n) FROM pg_catalog.unnest($1::text[]) AS n)
               LIMIT 5";
    let rows = session.query(sql, &[&names]).await.unwrap_or_default();
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if found.is_empty() { "a session that has gone meanwhile".to_owned() } else { found.join(", ") }
}
