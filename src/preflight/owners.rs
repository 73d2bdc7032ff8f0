//! Whether everything can be given to its owner.

use std::collections::BTreeSet;

use super::Error;
use super::finding::{Finding, listed, statements};
use super::server::user;
use super::sides::Sides;
use crate::model::quote_identifier;

const CHECK: &str = "target.owners";

/// Who owns something in which schema of the source; whether he may create there as the schema's owner, and whether
/// because that was granted to him, which is copied.
const OWNERS: &str = "
    SELECT DISTINCT n.nspname::text, r.rolname::text, pg_has_role(r.oid, n.nspowner, 'USAGE'),
           EXISTS (SELECT FROM aclexplode(n.nspacl) a WHERE a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
                   AND CASE a.grantee WHEN 0 THEN true ELSE pg_has_role(r.oid, a.grantee, 'USAGE') END)
    FROM (SELECT relnamespace AS namespace, relowner AS owner, 'pg_class'::regclass AS class, oid FROM pg_class
          WHERE oid = ANY ($1) OR relkind IN ('v', 'm')
          UNION ALL SELECT pronamespace, proowner, 'pg_proc'::regclass, oid FROM pg_proc
          UNION ALL SELECT typnamespace, typowner, 'pg_type'::regclass, oid FROM pg_type
                    WHERE typtype IN ('e', 'd', 'r')
    ) o JOIN pg_namespace n ON n.oid = o.namespace JOIN pg_roles r ON r.oid = o.owner
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'changeover') AND n.nspname !~ '^pg_(toast|temp)'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
    ORDER BY 1, 2";

/// Which schemas are on the target already, and whether the owner, or everybody where he is not there yet, may create in
/// them.
const MAY_CREATE: &str = "
    SELECT p.schema, p.owner, CASE WHEN r.oid IS NULL THEN has_schema_privilege('public', n.oid, 'CREATE')
                                   ELSE has_schema_privilege(r.oid, n.oid, 'CREATE') END
    FROM unnest($1::text[], $2::text[]) AS p (schema, owner)
    JOIN pg_namespace n ON n.nspname = p.schema LEFT JOIN pg_roles r ON r.rolname = p.owner";

struct Owner {
    schema: String,
    role: String,
    is_schemas: bool,
    is_granted: bool,
}

/// ALTER … OWNER wants two things of who is no superuser: that he may become the new owner, and that the new owner may
/// create in the schema ("ALTER TABLE" in the documentation).
pub(super) async fn owners(sides: &Sides<'_>) -> Result<Finding, Error> {
    let pass = || Ok(Finding::pass(CHECK, "this user may give everything to its owner"));
    if sides.target.ask("SELECT rolsuper FROM pg_roles WHERE rolname = current_user").await? {
        return pass();
    }
    let tables: Vec<u32> = sides.source.catalog.tables.iter().map(|table| table.oid).collect();
    let rows = sides.source.session.query(OWNERS, &[&tables]).await?;
    let owner = |row: &tokio_postgres::Row| {
        Ok(Owner {
            schema: row.try_get(0)?,
            role: row.try_get(1)?,
            is_schemas: row.try_get(2)?,
            is_granted: row.try_get(3)?,
        })
    };
    let owners: Vec<Owner> = rows.iter().map(owner).collect::<Result<_, Error>>()?;
    if let Some(finding) = strangers(sides, &owners).await? {
        return Ok(finding);
    }
    match without_schema(sides, &owners).await? {
        Some(finding) => Ok(finding),
        None => pass(),
    }
}

/// Roles that this user cannot become. From 16 on a member may lack just that.
async fn strangers(sides: &Sides<'_>, owners: &[Owner]) -> Result<Option<Finding>, Error> {
    let names: BTreeSet<&str> = owners.iter().map(|owner| owner.role.as_str()).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let privilege = if sides.target.catalog.major() >= 16 { "SET" } else { "MEMBER" };
    let sql = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) AND NOT pg_has_role(oid, $2) ORDER BY 1";
    let rows = sides.target.session.query(sql, &[&names, &privilege]).await?;
    let strangers: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if strangers.is_empty() {
        return Ok(None);
    }
    let user = user(&sides.target).await?;
    let grant = |name: &String| format!("GRANT {} TO {user};", quote_identifier(name));
    let remedy =
        format!("{}\n-- or give it to another owner on the source: ALTER … OWNER TO …;", statements(&strangers, grant));
    let message = format!("something belongs to roles that this user cannot become: {}", listed(&strangers));
    Ok(Some(Finding::fail(CHECK, message, remedy)))
}

/// Owners who may not create in their schema: on the source they need not be able to any more, and `public` belongs to
/// whoever owns the database, who may be another one on the target.
async fn without_schema(sides: &Sides<'_>, owners: &[Owner]) -> Result<Option<Finding>, Error> {
    let schemas: Vec<&str> = owners.iter().map(|owner| owner.schema.as_str()).collect();
    let roles: Vec<&str> = owners.iter().map(|owner| owner.role.as_str()).collect();
    let rows = sides.target.session.query(MAY_CREATE, &[&schemas, &roles]).await?;
    let mut lacking = Vec::new();
    for owner in owners.iter().filter(|owner| !owner.is_granted) {
        let known =
            rows.iter().find(|row| row.get::<_, &str>(0) == owner.schema && row.get::<_, &str>(1) == owner.role);
        let (may_create, side) = match known {
            Some(row) => (row.try_get(2)?, "on the target"),
            None => (owner.is_schemas, "on the source"),
        };
        if !may_create {
            lacking.push((format!("{} in {}", owner.role, owner.schema), (owner, side)));
        }
    }
    if lacking.is_empty() {
        return Ok(None);
    }
    let (names, owners): (Vec<String>, Vec<(&Owner, &str)>) = lacking.into_iter().unzip();
    let grant = |(owner, side): &(&Owner, &str)| {
        let (schema, role) = (quote_identifier(&owner.schema), quote_identifier(&owner.role));
        format!("{side}: GRANT CREATE ON SCHEMA {schema} TO {role};")
    };
    let message = format!(
        "only a superuser can give something in a schema to a role that may not create there: {}",
        listed(&names)
    );
    Ok(Some(Finding::fail(CHECK, message, statements(&owners, grant))))
}
