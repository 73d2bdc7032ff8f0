//! The replication origin our writes carry, so that a stream from the target back to the source can leave them out
//! (PITFALLS 30). The position is in our own row and not in the origin, which needs more rights than some roles have.

use tokio_postgres::error::SqlState;

use crate::model::MigrationName;
use crate::wire::Session;

use super::error::Error;
use super::lanes::Lane;

/// One session has an origin for itself, so each lane has its own, and so has each session of a lane beside its first
/// (`number` 0). A dot is in no migration's name.
pub(super) fn origin_of(migration: &MigrationName, lane: Lane, number: usize) -> String {
    let lane = match lane {
        Lane::Main => "",
        Lane::Apart => ".apart",
    };
    let number = if number == 0 { String::new() } else { format!(".{number}") };
    format!("{}{lane}{number}", migration.object_name())
}

pub(super) fn origin_ahead(migration: &MigrationName) -> String {
    format!("{}.ahead", migration.object_name())
}

/// Removes the migration's origins, as far as they are there. Nobody may be using them. Returns those that this user may not
/// remove.
pub async fn drop_origins(session: &Session, migration: &MigrationName) -> Result<Vec<String>, Error> {
    let failed = |source| Error::Query { what: "drop the replication origins", source };
    // Asked for first: who may not call the function may not name it in a query that finds none either.
    let sql = "SELECT roname FROM pg_catalog.pg_replication_origin WHERE roname = $1 OR pg_catalog.starts_with(roname, $1 || '.')";
    let rows = session.query(sql, &[&origin_of(migration, Lane::Main, 0)]).await.map_err(failed)?;
    let mut left = Vec::new();
    for row in &rows {
        let name: String = row.try_get(0).map_err(failed)?;
        match session.execute("SELECT pg_catalog.pg_replication_origin_drop($1)", &[&name]).await {
            Ok(_) => {}
            Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => left.push(name),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(left)
}
