//! What belongs to the database as a whole.

use crate::schema::Error;
use crate::schema::catalog::{Database, Extension};
use crate::wire::Session;

/// `server_version_num` and the database's own row.
pub(super) async fn read(session: &Session) -> Result<(u32, Database), Error> {
    let doing = || Error::query("read the database's encoding and collation");
    let row = session.query_one("SELECT pg_catalog.current_setting('server_version_num')::int", &[]).await;
    let version = row.map_err(doing())?.get::<_, i32>(0).unsigned_abs();
    let locale = match version {
        ..150_000 => "NULL::text",
        150_000..170_000 => "daticulocale::text",
        170_000.. => "datlocale::text",
    };
    let sql = format!(
        "SELECT datname::text, pg_catalog.pg_encoding_to_char(encoding)::text, datcollate::text,
                datctype::text, {locale}
         FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
    );
    let row = session.query_one(&sql, &[]).await.map_err(doing())?;
    let database =
        Database { name: row.get(0), encoding: row.get(1), collate: row.get(2), ctype: row.get(3), locale: row.get(4) };
    Ok((version, database))
}

pub(super) async fn extensions(session: &Session) -> Result<Vec<Extension>, Error> {
    let sql = "SELECT e.extname::text, e.extversion, n.nspname::text
               FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
               ORDER BY e.extname";
    let rows = session.query(sql, &[]).await.map_err(Error::query("read the extensions"))?;
    Ok(rows.iter().map(|row| Extension { name: row.get(0), version: row.get(1), schema: row.get(2) }).collect())
}

pub(super) async fn large_object_count(session: &Session) -> Result<u64, Error> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata";
    let row = session.query_one(sql, &[]).await.map_err(Error::query("count the large objects"))?;
    Ok(row.get::<_, i64>(0).unsigned_abs())
}
