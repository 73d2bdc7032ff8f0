//! Large objects: not in the stream, and not in any table that COPY could carry by itself.

use tokio_postgres::Row;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::CopyOptions;
use crate::model::{quote_identifier, quote_literal};
use crate::schema::Error;
use crate::wire::{self, Session};

const CHUNK_BYTES: i32 = 1 << 20;

struct LargeObject {
    oid: u32,
    owner: String,
    comment: Option<String>,
    grants: Vec<Grant>,
}

/// What the owner or somebody with a grant option granted.
struct Grant {
    /// `None` stands for PUBLIC.
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
    grantor: String,
}

/// Copies every large object under its own OID, with its content, owner, privileges and comment; one that is there
/// already is replaced. Each in a transaction of its own. Returns how many there were.
pub async fn copy_large_objects(options: &CopyOptions, stop: CancellationToken) -> Result<u64, Error> {
    let source = wire::connect(&options.source, "large objects").await.map_err(Error::Connect)?;
    let target = wire::connect(&options.target, "large objects").await.map_err(Error::Connect)?;
    let doing = || Error::query("read the large objects");
    source.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.map_err(doing())?;
    let sql = "SELECT oid, pg_catalog.pg_get_userbyid(lomowner)::text,
                      pg_catalog.obj_description(oid, 'pg_largeobject'), lomacl IS NOT NULL
               FROM pg_catalog.pg_largeobject_metadata";
    let rows = source.query(sql, &[]).await.map_err(doing())?;
    for row in &rows {
        if stop.is_cancelled() {
            return Err(Error::Stopped);
        }
        let mut object = LargeObject { oid: row.get(0), owner: row.get(1), comment: row.get(2), grants: Vec::new() };
        if row.get(3) {
            object.grants = grants(&source, object.oid).await.map_err(doing())?;
        }
        let outcome = copy_one(&source, &target, &object).await;
        outcome.map_err(Error::query(format!("copy the large object {}", object.oid)))?;
    }
    source.batch_execute("COMMIT").await.map_err(doing())?;
    Ok(rows.len() as u64)
}

/// The owner's own first: others grant what they were granted.
async fn grants(source: &Session, oid: u32) -> Result<Vec<Grant>, tokio_postgres::Error> {
    let sql = "SELECT CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END, a.privilege_type,
                      a.is_grantable, pg_catalog.pg_get_userbyid(a.grantor)::text
               FROM pg_catalog.pg_largeobject_metadata l, pg_catalog.aclexplode(l.lomacl) a
               WHERE l.oid = $1 ORDER BY a.grantor <> l.lomowner, a.is_grantable DESC";
    let grant =
        |row: &Row| Grant { grantee: row.get(0), privilege: row.get(1), grantable: row.get(2), grantor: row.get(3) };
    Ok(source.query(sql, &[&oid]).await?.iter().map(grant).collect())
}

/// An error leaves the target's transaction to the end of its session, which the caller drops.
async fn copy_one(source: &Session, target: &Session, object: &LargeObject) -> Result<(), tokio_postgres::Error> {
    let oid = object.oid;
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
    target.batch_execute(&object.ownership()).await?;
    if let Err(error) = target.batch_execute(&object.privileges()).await {
        warn!(oid, %error, "privileges of a large object left out");
        target.batch_execute("ROLLBACK TO privileges").await?;
    }
    target.batch_execute("COMMIT").await
}

impl LargeObject {
    fn ownership(&self) -> String {
        let Self { oid, owner, comment, .. } = self;
        let comment = comment.as_ref().map(|text| format!("COMMENT ON LARGE OBJECT {oid} IS {};", quote_literal(text)));
        format!(
            "{}ALTER LARGE OBJECT {oid} OWNER TO {}; SAVEPOINT privileges",
            comment.unwrap_or_default(),
            quote_identifier(owner)
        )
    }

    /// Those of default privileges go first: the target's may differ from what the source's were when it was made.
    fn privileges(&self) -> String {
        let Self { oid, owner, grants, .. } = self;
        if grants.is_empty() {
            return String::new();
        }
        let owner = quote_identifier(owner);
        let mut sql = format!("REVOKE ALL ON LARGE OBJECT {oid} FROM PUBLIC, {owner};");
        for Grant { grantee, privilege, grantable, grantor } in grants {
            let grantee = grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), quote_identifier);
            let option = if *grantable { " WITH GRANT OPTION" } else { "" };
            sql.push_str(&format!(
                "SET LOCAL ROLE {}; GRANT {privilege} ON LARGE OBJECT {oid} TO {grantee}{option}; RESET ROLE;",
                quote_identifier(grantor)
            ));
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_are_granted_in_the_name_of_who_granted_them() {
        let grant = |grantee: Option<&str>, grantor: &str, grantable| Grant {
            grantee: grantee.map(str::to_owned),
            privilege: "SELECT".to_owned(),
            grantable,
            grantor: grantor.to_owned(),
        };
        let grants = vec![grant(Some("a"), "o", true), grant(None, "a", false)];
        let object = LargeObject { oid: 7, owner: "o".to_owned(), comment: Some("it's".to_owned()), grants };
        assert_eq!(
            object.ownership(),
            "COMMENT ON LARGE OBJECT 7 IS 'it''s';ALTER LARGE OBJECT 7 OWNER TO \"o\"; SAVEPOINT privileges"
        );
        assert_eq!(
            object.privileges(),
            "REVOKE ALL ON LARGE OBJECT 7 FROM PUBLIC, \"o\";\
             SET LOCAL ROLE \"o\"; GRANT SELECT ON LARGE OBJECT 7 TO \"a\" WITH GRANT OPTION; RESET ROLE;\
             SET LOCAL ROLE \"a\"; GRANT SELECT ON LARGE OBJECT 7 TO PUBLIC; RESET ROLE;"
        );
    }
}
