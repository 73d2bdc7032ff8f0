//! What belongs to the database itself and to the cluster's parameters: owner, privileges, comment, connection limit. No
//! dump of what is inside a database holds it.

use std::collections::BTreeSet;

use tokio_postgres::Row;
use tracing::warn;

use crate::model::{quote_identifier, quote_literal};
use crate::schema::Error;
use crate::wire::Session;

/// Of the database `postgres`, which nobody wrote (initdb.c).
const COMMENT_OF_INITDB: &str = "default administrative connection database";

/// A row of `pg_database`.
struct Properties {
    name: String,
    owner: String,
    comment: Option<String>,
    /// -1 is none.
    connection_limit: i32,
    /// Somebody has granted or revoked something here.
    has_privileges: bool,
    grants: BTreeSet<Grant>,
}

/// `None` stands for PUBLIC.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Grant {
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

/// Makes the target's database what the source's is, where nobody has decided otherwise on the target: a comment or a
/// limit that is there stays, and so does a privilege. What our role may not do is left out and said.
pub(super) async fn copy_properties(source: &Session, target: &Session) -> Result<(), Error> {
    let (wanted, found) = (read(source).await?, read(target).await?);
    for statement in statements(&wanted, &found).into_iter().chain(parameter_grants(source, target).await?) {
        if let Err(error) = target.batch_execute(&statement).await {
            if error.is_closed() {
                return Err(Error::query("set what belongs to the database")(error));
            }
            warn!(statement, %error, "left out: a property of the database");
        }
    }
    Ok(())
}

async fn read(session: &Session) -> Result<Properties, Error> {
    let doing = || Error::query("read the database's owner and privileges");
    let sql = "SELECT datname::text, pg_catalog.pg_get_userbyid(datdba)::text,
                      pg_catalog.shobj_description(oid, 'pg_database'), datconnlimit, datacl IS NOT NULL
               FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()";
    let row = session.query_one(sql, &[]).await.map_err(doing())?;
    let sql = "SELECT CASE WHEN a.grantee <> 0 THEN pg_catalog.pg_get_userbyid(a.grantee)::text END, a.privilege_type,
                      bool_or(a.is_grantable)
               FROM pg_catalog.pg_database d,
                    pg_catalog.aclexplode(coalesce(d.datacl, pg_catalog.acldefault('d', d.datdba))) a
               WHERE d.datname = pg_catalog.current_database() AND a.grantee <> d.datdba GROUP BY 1, 2";
    let grants = session.query(sql, &[]).await.map_err(doing())?;
    Ok(Properties {
        name: row.get(0),
        owner: row.get(1),
        comment: row.get(2),
        connection_limit: row.get(3),
        has_privileges: row.get(4),
        grants: grants.iter().map(grant).collect(),
    })
}

fn grant(row: &Row) -> Grant {
    Grant { grantee: row.get(0), privilege: row.get(1), grantable: row.get(2) }
}

/// Privileges are given before others are taken, so that nobody stands outside in between. The owner comes last: he may
/// do everything before.
fn statements(wanted: &Properties, found: &Properties) -> Vec<String> {
    let database = quote_identifier(&found.name);
    let mut sql = Vec::new();
    for grant in wanted.grants.difference(&found.grants) {
        let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
        sql.push(format!("GRANT {} ON DATABASE {database} TO {}{option}", grant.privilege, grant.whom()));
    }
    if !found.has_privileges {
        for grant in found.grants.difference(&wanted.grants) {
            sql.push(format!("REVOKE {} ON DATABASE {database} FROM {}", grant.privilege, grant.whom()));
        }
    }
    let standing = found.comment.as_ref().filter(|comment| *comment != COMMENT_OF_INITDB);
    if let (Some(comment), None) = (&wanted.comment, standing) {
        sql.push(format!("COMMENT ON DATABASE {database} IS {}", quote_literal(comment)));
    }
    if found.connection_limit < 0 && wanted.connection_limit >= 0 {
        sql.push(format!("ALTER DATABASE {database} CONNECTION LIMIT {}", wanted.connection_limit));
    }
    if wanted.owner != found.owner {
        sql.push(format!("ALTER DATABASE {database} OWNER TO {}", quote_identifier(&wanted.owner)));
    }
    sql
}

impl Grant {
    fn whom(&self) -> String {
        self.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), quote_identifier)
    }
}

/// `GRANT SET ON PARAMETER` (PostgreSQL 15 and later): to roles that are on the target, for parameters that it knows.
async fn parameter_grants(source: &Session, target: &Session) -> Result<Vec<String>, Error> {
    if source.server_version_num().min(target.server_version_num()) < 150_000 {
        return Ok(Vec::new());
    }
    let sql = "SELECT p.parname, a.privilege_type, pg_catalog.pg_get_userbyid(a.grantee)::text, a.is_grantable
               FROM pg_catalog.pg_parameter_acl p, pg_catalog.aclexplode(p.paracl) a
               WHERE a.grantee >= 16384 ORDER BY 1, 2, 3";
    let doing = || Error::query("read who may set which parameter");
    let (wanted, found) = tokio::try_join!(source.query(sql, &[]), target.query(sql, &[])).map_err(doing())?;
    let line = |row: &Row| (row.get::<_, String>(0), row.get::<_, String>(1), row.get::<_, String>(2));
    let there: BTreeSet<_> = found.iter().map(line).collect();
    let roles = "SELECT rolname::text FROM pg_catalog.pg_roles";
    let roles: BTreeSet<String> =
        target.query(roles, &[]).await.map_err(doing())?.iter().map(|row| row.get(0)).collect();
    let missing = wanted.iter().filter(|row| !there.contains(&line(row)) && roles.contains(&line(row).2));
    let statement = |row: &Row| {
        let (parameter, privilege, role) = line(row);
        let option = if row.get(3) { " WITH GRANT OPTION" } else { "" };
        let parameter: Vec<String> = parameter.split('.').map(quote_identifier).collect();
        format!("GRANT {privilege} ON PARAMETER {} TO {}{option}", parameter.join("."), quote_identifier(&role))
    };
    Ok(missing.map(statement).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn properties(owner: &str, grants: &[(Option<&str>, &str)], has_privileges: bool) -> Properties {
        let grant = |(grantee, privilege): &(Option<&str>, &str)| Grant {
            grantee: grantee.map(str::to_owned),
            privilege: (*privilege).to_owned(),
            grantable: grantee.is_some(),
        };
        Properties {
            name: "d".to_owned(),
            owner: owner.to_owned(),
            comment: None,
            connection_limit: -1,
            has_privileges,
            grants: grants.iter().map(grant).collect(),
        }
    }

    #[test]
    fn privileges_are_given_before_they_are_taken_and_the_owner_comes_last() {
        let wanted = properties("o", &[(Some("a"), "CONNECT")], true);
        let standard = properties("me", &[(None, "CONNECT")], false);
        assert_eq!(
            statements(&wanted, &standard),
            [
                r#"GRANT CONNECT ON DATABASE "d" TO "a" WITH GRANT OPTION"#,
                r#"REVOKE CONNECT ON DATABASE "d" FROM PUBLIC"#,
                r#"ALTER DATABASE "d" OWNER TO "o""#,
            ]
        );
        assert!(statements(&standard, &standard).is_empty());
    }

    #[test]
    fn what_somebody_decided_on_the_target_stays() {
        let wanted = Properties { comment: Some("theirs".to_owned()), ..properties("o", &[], true) };
        let found = Properties { comment: Some("ours".to_owned()), ..properties("o", &[(Some("b"), "CREATE")], true) };
        assert!(statements(&wanted, &found).is_empty());
    }
}
