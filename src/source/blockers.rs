//! Which sessions hold a transaction open.

use super::error::{Blocker, Blockers, Error};
use crate::wire::Session;

/// The oldest that fit a message.
const BLOCKER_COUNT_MAX: u32 = 10;

/// Every open transaction with an id, prepared ones too, oldest first, in any database: logical decoding waits for all
/// of them (`SnapBuildWaitSnapshot`). Without `pg_read_all_stats` only our own role's are seen.
pub(super) async fn open_transactions(session: &Session) -> Result<Blockers, Error> {
    let sql = format!(
        "SELECT pid, coalesce(usename::text, ''), application_name, coalesce(datname::text, ''),
                coalesce(extract(epoch FROM now() - xact_start), 0)::bigint AS age, backend_xid::text
         FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
         UNION ALL
         SELECT NULL, owner::text, gid, database::text, extract(epoch FROM now() - prepared)::bigint, transaction::text
         FROM pg_prepared_xacts
         ORDER BY age DESC LIMIT {BLOCKER_COUNT_MAX}"
    );
    let rows = session.query(&sql, &[]).await.map_err(Error::query("look for open transactions"))?;
    let blocker = |row: &tokio_postgres::Row| Blocker {
        pid: row.get(0),
        user: row.get(1),
        application: row.get(2),
        database: row.get(3),
        age_seconds: u64::try_from(row.get::<_, i64>(4)).unwrap_or(0),
        xid: row.get(5),
    };
    Ok(Blockers(rows.iter().map(blocker).collect()))
}
