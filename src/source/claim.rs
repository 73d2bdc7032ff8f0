//! Whose the slot and the publication of a migration's name are.
//!
//! A slot's name is shared by all databases of a server, and nothing in a slot says which target it is read for. So the
//! publication we make carries a comment that names the target.

use super::Error;
use super::slot_state::slot_state;
use crate::model::{TargetIdentity, quote_identifier, quote_literal};
use crate::wire::Session;

/// What makes a comment one of ours.
const PREFIX: &str = "changeover: for ";

fn made_for(target: &TargetIdentity) -> String {
    let TargetIdentity { system_identifier, database } = target;
    format!(
        "{PREFIX}the database {} of the server with system identifier {system_identifier}",
        quote_identifier(database)
    )
}

/// Writes into the comment of the publication, which is ours, for which target it is.
pub async fn sign_publication(session: &Session, publication: &str, target: &TargetIdentity) -> Result<(), Error> {
    let (name, comment) = (quote_identifier(publication), quote_literal(&made_for(target)));
    let sql = format!("COMMENT ON PUBLICATION {name} IS {comment}");
    session.batch_execute(&sql).await.map_err(Error::query("note for which target the publication is"))
}

/// Who reads the slot, for whoever finds no migration that it belongs to, as a sentence. `None` while nobody does.
pub async fn read_by_another(session: &Session, slot: &str) -> Result<Option<String>, Error> {
    let reader = slot_state(session, slot).await?.and_then(|state| state.active_pid);
    Ok(reader.map(|pid| {
        format!("process {pid} of the source reads the slot {slot}, for a migration of which this target knows nothing")
    }))
}

/// Why slot and publication are another migration's, as a sentence. `None` where nothing says so.
pub async fn claimed_by_another(
    session: &Session,
    slot: &str,
    publication: &str,
    target: &TargetIdentity,
) -> Result<Option<String>, Error> {
    match slot_elsewhere(session, slot).await? {
        Some(whose) => Ok(Some(whose)),
        None => published_for_another(session, publication, target).await,
    }
}

/// Which other database the slot belongs to. `None` when there is no such slot, or it is of this one.
async fn slot_elsewhere(session: &Session, slot: &str) -> Result<Option<String>, Error> {
    let sql = "SELECT coalesce(database, '')::text FROM pg_catalog.pg_replication_slots
               WHERE slot_name = $1 AND database IS DISTINCT FROM pg_catalog.current_database()";
    let row = session.query_opt(sql, &[&slot]).await.map_err(Error::query("see whose the slot is"))?;
    Ok(row.map(|row| match row.get(0) {
        "" => format!("the slot {slot} on the source is a physical one"),
        database => format!("the slot {slot} on the source belongs to its database {}", quote_identifier(database)),
    }))
}

/// For which other target the publication was made, as a sentence. `None` when there is no such publication, when it is
/// for this target, and when nothing is said: versions of ours from before such comments said nothing.
pub async fn published_for_another(
    session: &Session,
    publication: &str,
    target: &TargetIdentity,
) -> Result<Option<String>, Error> {
    let sql = "SELECT d.description FROM pg_catalog.pg_publication p JOIN pg_catalog.pg_description d
               ON d.classoid = 'pg_catalog.pg_publication'::pg_catalog.regclass AND d.objoid = p.oid
               WHERE p.pubname = $1 AND pg_catalog.starts_with(d.description, $2) AND d.description <> $3";
    let row = session.query_opt(sql, &[&publication, &PREFIX, &made_for(target)]).await;
    let row = row.map_err(Error::query("see for which target the publication is"))?;
    Ok(row.map(|row| {
        let found: &str = row.get(0);
        let found = found.strip_prefix(PREFIX).unwrap_or(found);
        format!("the publication {publication} on the source, and the slot beside it, are for {found}")
    }))
}
