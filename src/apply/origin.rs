//! The replication origin our writes carry, so that a stream from the target back to the source can leave them out
//! (PITFALLS 30). The position is in our own row and not in the origin, which needs more rights than some roles have.

use crate::model::MigrationName;
use crate::wire::Session;

use super::error::Error;

/// Removes the migration's origin, if there is one. Nobody may be using it.
pub async fn drop_origin(session: &Session, migration: &MigrationName) -> Result<(), Error> {
    let sql =
        "SELECT pg_catalog.pg_replication_origin_drop(roname) FROM pg_catalog.pg_replication_origin WHERE roname = $1";
    let dropped = session.execute(sql, &[&migration.object_name()]).await;
    dropped.map_err(|source| Error::Query { what: "drop the replication origin", source })?;
    Ok(())
}
