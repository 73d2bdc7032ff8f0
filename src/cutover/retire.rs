//! What keeps blue from taking writes when its fence goes: a migration that is complete leaves nothing of ours there, and
//! a client that nobody remembered must still not write to the side that owns nothing (I6).

use super::error::{BLUE, Error, query};
use crate::model::quote_identifier;
use crate::wire::{Endpoint, Session};

/// What was done to blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// New sessions are read-only unless they ask otherwise; this many that were open have been ended.
    ReadOnly { ended: u64 },
    /// Only the database's owner may set that.
    NotAllowed,
}

/// Makes transactions of new sessions read-only by default (`default_transaction_read_only`, "Client Connection
/// Defaults" in the documentation) and ends the sessions that are open, which have the old default. To be called while
/// the fence still stands.
pub async fn retire(blue: &Session, endpoint: &Endpoint) -> Result<Retired, Error> {
    let set = format!("ALTER DATABASE {} SET default_transaction_read_only = on", quote_identifier(endpoint.dbname()));
    match blue.batch_execute(&set).await {
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => {
            return Ok(Retired::NotAllowed);
        }
        set => set.map_err(query(BLUE, "make new sessions read-only"))?,
    }
    let end = "SELECT pg_catalog.count(*) FILTER (WHERE pg_catalog.pg_terminate_backend(pid))
               FROM pg_catalog.pg_stat_activity
               WHERE datname = pg_catalog.current_database() AND backend_type = 'client backend'
                 AND pid <> pg_catalog.pg_backend_pid()";
    let row = blue.query_one(end, &[]).await.map_err(query(BLUE, "end the sessions that are open"))?;
    Ok(Retired::ReadOnly { ended: u64::try_from(row.get::<_, i64>(0)).unwrap_or_default() })
}
