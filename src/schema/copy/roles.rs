//! Roles: they belong to the whole cluster, so pg_dump leaves them out and its statements name them.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;
use tracing::{info, warn};

use super::role_sql::{Membership, Role, create_role, grant_membership};
use crate::model::{Secret, quote_identifier};
use crate::schema::Error;
use crate::wire::Session;

/// Creates the roles that the source's database refers to and the target's cluster lacks: owners and grantees, those
/// who may log in, and who is a member of whom among them. Roles that are there stay as they are.
///
/// Password hashes come along when the source's role may read them. Otherwise the roles are made without a password.
pub(super) async fn copy_missing(source: &Session, target: &Session) -> Result<(), Error> {
    let wanted = read_roles(source).await?;
    let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let present = present_on(target, &names).await?;
    let missing: Vec<&Role> = wanted.values().filter(|role| !present.contains(&role.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let passwords = read_passwords(source).await?;
    let superuser = is_superuser(target).await?;
    let mut statements = Vec::new();
    for role in &missing {
        let password = passwords.as_ref().and_then(|known| known.get(&role.name));
        statements.extend(create_role(role, password, superuser));
        tell(role, passwords.is_some(), superuser);
    }
    let created: BTreeSet<&str> = missing.iter().map(|role| role.name.as_str()).collect();
    let version = source.server_version_num().min(target.server_version_num());
    let memberships = read_memberships(source).await?;
    let known =
        present_on(target, &memberships.iter().map(|membership| membership.role.as_str()).collect::<Vec<_>>()).await?;
    let reachable = |name: &str| created.contains(name) || known.contains(name) || present.contains(name);
    statements.extend(
        memberships
            .iter()
            .filter(|membership| created.contains(&*membership.role) || created.contains(&*membership.member))
            .filter(|membership| reachable(&membership.role) && reachable(&membership.member))
            .map(|membership| grant_membership(membership, version)),
    );
    if !superuser {
        // Only a member may give objects to a role ("ALTER TABLE ... OWNER TO").
        statements.extend(created.iter().map(|name| format!("GRANT {} TO CURRENT_USER", quote_identifier(name))));
    }
    // Statements hold password hashes, which have no place in the target's log.
    let silence =
        if superuser { "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1;" } else { "" };
    let sql = format!("BEGIN; {silence} {}; COMMIT", statements.join("; "));
    let outcome = target.batch_execute(&sql).await;
    if outcome.is_err() {
        drop(target.batch_execute("ROLLBACK").await);
    }
    outcome.map_err(Error::query("create the roles that are missing"))?;
    info!(created = created.len(), "roles created");
    Ok(())
}

/// What a copy will make on the target, for `check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingRoles {
    pub names: Vec<String>,
    /// Those that log in and come without a password, because our role may not read it.
    pub without_password: Vec<String>,
    /// Those with attributes that our role on the target may not give.
    pub curtailed: Vec<String>,
    /// Whether our role on the target may make roles at all.
    pub may_create: bool,
}

/// The roles that a copy would make, and with what.
pub async fn missing_roles(source: &Session, target: &Session) -> Result<MissingRoles, Error> {
    let wanted = read_roles(source).await?;
    let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let present = present_on(target, &names).await?;
    let missing: Vec<&Role> = wanted.values().filter(|role| !present.contains(&role.name)).collect();
    let passwords_known = read_passwords(source).await?.is_some();
    let superuser = is_superuser(target).await?;
    let may = "SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user";
    let may_create = target.query_one(may, &[]).await.map_err(Error::query("read our own role"))?.get(0);
    let named = |which: &dyn Fn(&Role) -> bool| {
        missing.iter().filter(|role| which(role)).map(|role| role.name.clone()).collect::<Vec<String>>()
    };
    Ok(MissingRoles {
        names: named(&|_| true),
        without_password: named(&|role| role.can_login && !passwords_known),
        curtailed: named(&|role| !superuser && role.takes_a_superuser()),
        may_create,
    })
}

fn tell(role: &Role, passwords_known: bool, superuser: bool) {
    if role.can_login && !passwords_known {
        warn!(role = role.name, "created without its password: the source does not let us read it");
    }
    if !superuser && role.takes_a_superuser() {
        warn!(
            role = role.name,
            "created without SUPERUSER, REPLICATION and BYPASSRLS: the target does not let us grant them"
        );
    }
}

/// Whom objects of this database belong or are granted to (`pg_shdepend` leaves the bootstrap superuser out), who may
/// log in and is no superuser, and all that are members of these or the other way round.
async fn read_roles(source: &Session) -> Result<BTreeMap<String, Role>, Error> {
    let sql = "
        WITH RECURSIVE this (oid) AS (
            SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()
        ), start (oid) AS (
            SELECT d.refobjid FROM pg_catalog.pg_shdepend d, this
            WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass
              AND (d.dbid = this.oid
                   OR (d.dbid = 0 AND d.classid = 'pg_catalog.pg_database'::regclass AND d.objid = this.oid)
                   -- From 15 on: who may set which parameter.
                   OR (d.dbid = 0 AND d.classid = pg_catalog.to_regclass('pg_catalog.pg_parameter_acl')))
            UNION SELECT relowner FROM pg_catalog.pg_class WHERE oid >= 16384
            UNION SELECT proowner FROM pg_catalog.pg_proc WHERE oid >= 16384
            UNION SELECT typowner FROM pg_catalog.pg_type WHERE oid >= 16384
            UNION SELECT nspowner FROM pg_catalog.pg_namespace WHERE oid >= 16384 OR nspname = 'public'
            UNION SELECT oid FROM pg_catalog.pg_roles WHERE rolcanlogin AND NOT rolsuper
        ), wanted (oid) AS (
            SELECT oid FROM start
            UNION
            SELECT CASE WHEN m.roleid = w.oid THEN m.member ELSE m.roleid END
            FROM wanted w JOIN pg_catalog.pg_auth_members m ON w.oid IN (m.roleid, m.member)
        )
        SELECT r.rolname::text, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin,
               r.rolreplication, r.rolbypassrls, r.rolconnlimit, r.rolvaliduntil::text, pg_catalog.shobj_description(r.oid, 'pg_authid')
        FROM wanted JOIN pg_catalog.pg_roles r USING (oid) WHERE r.rolname !~ '^pg_'";
    let rows = source.query(sql, &[]).await.map_err(Error::query("read the roles"))?;
    Ok(rows.iter().map(role).map(|role| (role.name.clone(), role)).collect())
}

fn role(row: &Row) -> Role {
    Role {
        name: row.get(0),
        superuser: row.get(1),
        inherits: row.get(2),
        creates_roles: row.get(3),
        creates_databases: row.get(4),
        can_login: row.get(5),
        replication: row.get(6),
        bypasses_row_security: row.get(7),
        connection_limit: row.get(8),
        valid_until: row.get(9),
        comment: row.get(10),
    }
}

async fn read_memberships(source: &Session) -> Result<Vec<Membership>, Error> {
    let options = if source.server_version_num() >= 160_000 {
        "bool_or(a.inherit_option), bool_or(a.set_option)"
    } else {
        "true, true"
    };
    let sql = format!(
        "SELECT r.rolname::text, m.rolname::text, bool_or(a.admin_option), {options}
         FROM pg_catalog.pg_auth_members a
         JOIN pg_catalog.pg_roles r ON r.oid = a.roleid JOIN pg_catalog.pg_roles m ON m.oid = a.member
         GROUP BY r.rolname, m.rolname ORDER BY r.rolname, m.rolname"
    );
    let rows = source.query(&sql, &[]).await.map_err(Error::query("read who is a member of which role"))?;
    let membership = |row: &Row| Membership {
        role: row.get(0),
        member: row.get(1),
        admin: row.get(2),
        inherit: row.get(3),
        set: row.get(4),
    };
    Ok(rows.iter().map(membership).collect())
}

/// `None` when the source's role may not read them.
async fn read_passwords(source: &Session) -> Result<Option<BTreeMap<String, Secret>>, Error> {
    let doing = || Error::query("read the password hashes");
    let allowed = "SELECT pg_catalog.has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
    if !source.query_one(allowed, &[]).await.map_err(doing())?.get::<_, bool>(0) {
        return Ok(None);
    }
    let sql = "SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid WHERE rolpassword IS NOT NULL";
    let rows = source.query(sql, &[]).await.map_err(doing())?;
    Ok(Some(rows.iter().map(|row| (row.get(0), Secret::new(row.get::<_, String>(1)))).collect()))
}

async fn present_on(target: &Session, names: &[&str]) -> Result<BTreeSet<String>, Error> {
    let sql = "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY ($1)";
    let rows = target.query(sql, &[&names]).await.map_err(Error::query("read the target's roles"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

pub(super) async fn is_superuser(target: &Session) -> Result<bool, Error> {
    let sql = "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user";
    Ok(target.query_one(sql, &[]).await.map_err(Error::query("read our own role"))?.get(0))
}
