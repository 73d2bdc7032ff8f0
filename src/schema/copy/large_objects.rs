//! Large objects: not in the stream, and not in any table that COPY could carry by itself.

use tokio_util::sync::CancellationToken;

use super::CopyOptions;
use crate::model::quote_identifier;
use crate::schema::Error;
use crate::wire::{self, Session};

const CHUNK_BYTES: i32 = 1 << 20;

/// Copies every large object under its own OID, with its content and owner; one that is there already is replaced. Each
/// in a transaction of its own. Returns how many there were. Privileges and comments are not copied.
pub async fn copy_large_objects(options: &CopyOptions, stop: CancellationToken) -> Result<u64, Error> {
    let source = wire::connect(&options.source, "large objects").await.map_err(Error::Connect)?;
    let target = wire::connect(&options.target, "large objects").await.map_err(Error::Connect)?;
    let doing = || Error::query("read the large objects");
    source.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(doing())?;
    let sql = "SELECT oid, pg_catalog.pg_get_userbyid(lomowner)::text FROM pg_catalog.pg_largeobject_metadata";
    let rows = source.query(sql, &[]).await.map_err(doing())?;
    for row in &rows {
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let (oid, owner): (u32, String) = (row.get(0), row.get(1));
        let outcome = copy_one(&source, &target, oid, &owner).await;
        outcome.map_err(Error::query(format!("copy the large object {oid}")))?;
    }
    source.batch_execute("COMMIT").await.map_err(doing())?;
    Ok(rows.len() as u64)
}

/// An error leaves the target's transaction to the end of its session, which the caller drops.
async fn copy_one(source: &Session, target: &Session, oid: u32, owner: &str) -> Result<(), tokio_postgres::Error> {
    target.batch_execute("BEGIN").await?;
    let unlink = "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = $1";
    target.execute(unlink, &[&oid]).await?;
    target.execute("SELECT pg_catalog.lo_create($1)", &[&oid]).await?;
    let mut offset = 0_i64;
    loop {
        let row = source.query_one("SELECT pg_catalog.lo_get($1, $2, $3)", &[&oid, &offset, &CHUNK_BYTES]).await?;
        let chunk: &[u8] = row.get(0);
        if chunk.is_empty() {
            break;
        }
        target.execute("SELECT pg_catalog.lo_put($1, $2, $3)", &[&oid, &offset, &chunk]).await?;
        offset += chunk.len() as i64;
    }
    target.batch_execute(&format!("ALTER LARGE OBJECT {oid} OWNER TO {}", quote_identifier(owner))).await?;
    target.batch_execute("COMMIT").await
}
