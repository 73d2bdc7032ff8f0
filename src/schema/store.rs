//! The row of `changeover.migration`: which source a migration belongs to, how far it has come, and who leads it.

use tokio_postgres::Row;

use super::Error;
use crate::model::{Lsn, MigrationName, SourceIdentity, TargetIdentity};
use crate::wire::Session;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migration {
    pub name: MigrationName,
    /// The word of `pipeline::Phase`.
    pub phase: String,
    pub source: SourceIdentity,
    pub slot: String,
    /// We made it, so we remove it.
    pub slot_is_ours: bool,
    pub publication: String,
    pub publication_is_ours: bool,
    /// Where the slot begins; `None` until it exists.
    pub consistent_point: Option<Lsn>,
    /// Raised by each daemon that starts.
    pub epoch: i64,
}

/// The migration's row; `None` when there is none, or no schema `changeover`.
pub async fn read_migration(target: &Session, name: &MigrationName) -> Result<Option<Migration>, Error> {
    let doing = || Error::query(format!("read the state of the migration {name}"));
    let installed = target.query_one("SELECT pg_catalog.to_regclass('changeover.migration') IS NOT NULL", &[]).await;
    if !installed.map_err(doing())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT phase, system_identifier, timeline, slot, slot_is_ours, publication, publication_is_ours,
                      consistent_point::text, epoch
               FROM changeover.migration WHERE name = $1";
    let row = target.query_opt(sql, &[&name.as_str()]).await.map_err(doing())?;
    row.map(|row| from_row(name, &row)).transpose()
}

fn from_row(name: &MigrationName, row: &Row) -> Result<Migration, Error> {
    let wrong = |what| Error::MalformedState { migration: name.clone(), what };
    let point: Option<String> = row.get(7);
    Ok(Migration {
        name: name.clone(),
        phase: row.get(0),
        source: SourceIdentity {
            system_identifier: row.get(1),
            timeline: u32::try_from(row.get::<_, i32>(2)).map_err(|_| wrong("the timeline"))?,
        },
        slot: row.get(3),
        slot_is_ours: row.get(4),
        publication: row.get(5),
        publication_is_ours: row.get(6),
        consistent_point: point.map(|text| text.parse()).transpose().map_err(|_| wrong("the consistent point"))?,
        epoch: row.get(8),
    })
}

/// Records a new migration. Fails when there is one of that name.
pub async fn insert_migration(target: &Session, migration: &Migration) -> Result<(), Error> {
    let sql = "INSERT INTO changeover.migration
                   (name, phase, system_identifier, timeline, slot, slot_is_ours, publication, publication_is_ours,
                    consistent_point, epoch)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::pg_lsn, $10)";
    let timeline = i32::try_from(migration.source.timeline)
        .map_err(|_| Error::MalformedState { migration: migration.name.clone(), what: "the timeline" })?;
    let point = migration.consistent_point.map(|lsn| lsn.to_string());
    target
        .execute(
            sql,
            &[
                &migration.name.as_str(),
                &migration.phase,
                &migration.source.system_identifier,
                &timeline,
                &migration.slot,
                &migration.slot_is_ours,
                &migration.publication,
                &migration.publication_is_ours,
                &point,
                &migration.epoch,
            ],
        )
        .await
        .map_err(Error::query(format!("record the migration {}", migration.name)))?;
    Ok(())
}

/// Stores the phase, durably, before anything that belongs to it is done. Refused when another daemon has taken over.
pub async fn set_phase(target: &Session, name: &MigrationName, epoch: i64, phase: &str) -> Result<(), Error> {
    let sql = "UPDATE changeover.migration SET phase = $3 WHERE name = $1 AND epoch = $2";
    let count = target
        .execute(sql, &[&name.as_str(), &epoch, &phase])
        .await
        .map_err(Error::query(format!("store the phase {phase}")))?;
    only_one(count, name)
}

/// Stores where the slot begins. Refused when another daemon has taken over.
pub async fn set_consistent_point(target: &Session, name: &MigrationName, epoch: i64, point: Lsn) -> Result<(), Error> {
    let sql = "UPDATE changeover.migration SET consistent_point = $3::text::pg_lsn WHERE name = $1 AND epoch = $2";
    let count = target
        .execute(sql, &[&name.as_str(), &epoch, &point.to_string()])
        .await
        .map_err(Error::query("store where the slot begins"))?;
    only_one(count, name)
}

fn only_one(count: u64, name: &MigrationName) -> Result<(), Error> {
    if count == 1 { Ok(()) } else { Err(Error::Superseded { migration: name.clone() }) }
}

/// Makes every earlier daemon of this migration stop before its next commit. Returns the new epoch.
pub async fn bump_epoch(target: &Session, name: &MigrationName) -> Result<i64, Error> {
    let sql = "UPDATE changeover.migration SET epoch = epoch + 1 WHERE name = $1 RETURNING epoch";
    let row = target.query_opt(sql, &[&name.as_str()]).await.map_err(Error::query("take the migration over"))?;
    let row = row.ok_or_else(|| Error::NoMigration { migration: name.clone() })?;
    Ok(row.get(0))
}

/// Takes the lock of the one daemon that leads, which lasts as long as the session. [`Error::Led`] names who has it,
/// [`Error::LedElsewhere`] who leads a migration of this name into another database of the server.
pub async fn lead(target: &Session, name: &MigrationName) -> Result<(), Error> {
    let key = lock_key(name);
    let doing = || Error::query(format!("take the lock of the migration {name}"));
    let row = target.query_one("SELECT pg_catalog.pg_try_advisory_lock($1)", &[&key]).await.map_err(doing())?;
    if !row.get::<_, bool>(0) {
        let holders = lock_holders(target, key).await.map_err(doing())?;
        let here = holders.into_iter().find(|holder| holder.is_here);
        let holder = here.map_or_else(|| "another session".to_owned(), |holder| holder.who);
        return Err(Error::Led { migration: name.clone(), holder });
    }
    // Such a lock is one of its database; origins, and slots for the way back, are the server's.
    let holders = lock_holders(target, key).await.map_err(doing())?;
    let Some(Holder { who, database, .. }) = holders.into_iter().find(|holder| !holder.is_here) else { return Ok(()) };
    target.execute("SELECT pg_catalog.pg_advisory_unlock($1)", &[&key]).await.map_err(doing())?;
    Err(Error::LedElsewhere { migration: name.clone(), database, holder: who })
}

/// Which database of which server the session is with.
pub async fn target_identity(target: &Session) -> Result<TargetIdentity, Error> {
    let sql = "SELECT system_identifier, pg_catalog.current_database()::text FROM pg_catalog.pg_control_system()";
    let row = target.query_one(sql, &[]).await.map_err(Error::query("ask the target who it is"))?;
    // SQL has no unsigned numbers.
    let system_identifier = row.get::<_, i64>(0).cast_unsigned().to_string();
    Ok(TargetIdentity { system_identifier, database: row.get(1) })
}

/// FNV-1a over a prefixed name. The same name gives the same key in every version of ours.
fn lock_key(name: &MigrationName) -> i64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    name.object_name().bytes().fold(0xcbf2_9ce4_8422_2325, step).cast_signed()
}

struct Holder {
    who: String,
    database: String,
    is_here: bool,
}

/// Who holds the lock, in whichever database. A 64-bit key stands in `pg_locks` as two halves with `objsubid` 1
/// ("pg_locks" in the documentation).
async fn lock_holders(target: &Session, key: i64) -> Result<Vec<Holder>, tokio_postgres::Error> {
    let sql = "SELECT pg_catalog.format('process %s of %s (%s, connected since %s)', l.pid,
                      coalesce(host(a.client_addr), 'this machine'),
                      coalesce(nullif(a.application_name, ''), 'unnamed'),
                      coalesce(a.backend_start::text, 'unknown')),
                      d.datname::text, d.datname = current_database()
               FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
               LEFT JOIN pg_catalog.pg_stat_activity a USING (pid)
               WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                 AND l.classid = (($1::bigint >> 32) & 4294967295)::oid AND l.objid = ($1::bigint & 4294967295)::oid";
    let rows = target.query(sql, &[&key]).await?;
    Ok(rows.iter().map(|row| Holder { who: row.get(0), database: row.get(1), is_here: row.get(2) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_migration_never_changes() {
        assert_eq!(lock_key(&"shop".parse().unwrap()), lock_key(&"shop".parse().unwrap()));
        assert_ne!(lock_key(&"shop".parse().unwrap()), lock_key(&"shop_2".parse().unwrap()));
    }
}
