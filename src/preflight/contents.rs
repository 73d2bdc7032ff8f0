//! What the target holds, and whether that is what the copy expects.

use std::collections::{BTreeMap, BTreeSet};

use super::Error;
use super::finding::{Finding, listed, statements};
use super::partitions;
use super::sides::Sides;
use crate::model::{TableName, quote_identifier};
use crate::schema::{self, Described};

/// Relations, routines and types that somebody made; what an extension brought belongs to the extension.
const USER_OBJECTS: &str = "
    SELECT format('%s %s.%s', kind, n.nspname, object)
    FROM (SELECT CASE relkind WHEN 'S' THEN 'sequence' WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialised view'
                              WHEN 'f' THEN 'foreign table' ELSE 'table' END AS kind,
                 relname AS object, relnamespace AS namespace, 'pg_class'::regclass AS class, oid
          FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
          UNION ALL SELECT 'routine', proname, pronamespace, 'pg_proc'::regclass, oid FROM pg_proc
          UNION ALL SELECT 'type', typname, typnamespace, 'pg_type'::regclass, oid FROM pg_type
                    WHERE typtype IN ('e', 'd', 'r')
    ) o JOIN pg_namespace n ON n.oid = o.namespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'changeover') AND n.nspname !~ '^pg_(toast|temp)'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype = 'e')
    ORDER BY kind <> 'table', 1";

pub(super) fn started(sides: &Sides<'_>) -> Finding {
    let check = "target.started";
    match &sides.started {
        None => Finding::pass(check, "the migration has not been started yet"),
        Some(migration) => Finding::pass(check, format!("the migration is under way: {}", migration.phase)),
    }
}

/// Mode full makes the schema itself, so that nothing of it may be there.
pub(super) async fn empty_database(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.empty";
    if sides.started.is_some() {
        return Ok(Finding::pass(check, "what is there is ours: the migration is under way"));
    }
    let objects = sides.target.list(USER_OBJECTS).await?;
    if objects.is_empty() {
        return Ok(Finding::pass(check, "the database is empty"));
    }
    let name = quote_identifier(&sides.target.catalog.database.name);
    let message = format!("the target is not empty: {}", listed(&objects));
    let remedy = format!(
        "DROP DATABASE {name}; CREATE DATABASE {name}; if nobody needs what is there, or name another database in \
         target.url; with snapshot.mode = \"data\" tables that you prepared are filled"
    );
    Ok(Finding::fail(check, message, remedy))
}

/// Mode data fills tables that are there; rows in them would be mixed with the source's.
pub(super) async fn empty_tables(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.empty";
    if sides.started.is_some() {
        return Ok(Finding::pass(check, "what is there is ours: the migration is under way"));
    }
    let mut filled: Vec<&TableName> = Vec::new();
    for table in sides.target.catalog.row_tables() {
        let sql = format!("SELECT EXISTS (SELECT FROM {})", table.name.quoted());
        if sides.target.ask(&sql).await? {
            filled.push(&table.name);
        }
    }
    if filled.is_empty() {
        return Ok(Finding::pass(check, "the tables are empty"));
    }
    let quoted: Vec<String> = filled.iter().map(|table| table.quoted()).collect();
    let remedy = format!("TRUNCATE {}; if nobody needs the rows", quoted.join(", "));
    Ok(Finding::fail(check, format!("these tables hold rows: {}", listed(&filled)), remedy))
}

/// A finding for each difference, or one that there is none. Rows that nothing follows need no key to be found by.
pub(super) async fn schema(sides: &Sides<'_>, streams: bool) -> Result<Vec<Finding>, Error> {
    let gathered = partitions::gathered(sides).await?;
    let (source, target) = (&sides.source, &sides.target);
    let (here, there) = tokio::try_join!(
        schema::read_design(&source.session, &gathered.catalog),
        schema::read_design(&target.session, &target.catalog),
    )?;
    let source = Described { catalog: &gathered.catalog, design: &here };
    let target = Described { catalog: &target.catalog, design: &there };
    let mut differences = schema::compare(source, target, true);
    // Whether the rows of a gathered table are found is asked of its partitions.
    let is_gathered = |table: &TableName| gathered.catalog.table(table).is_some_and(schema::Table::is_gathered);
    differences.retain(|difference| {
        !(matches!(difference.kind, schema::DifferenceKind::MissingKey { .. }) && is_gathered(&difference.table))
    });
    let mut findings = partitions::findings(sides, &gathered, streams).await?;
    if differences.is_empty() {
        findings.push(Finding::pass("target.schema", "every table fits, column by column"));
    }
    let finding = |difference: &schema::Difference| {
        let missed = streams || !matches!(difference.kind, schema::DifferenceKind::MissingKey { .. });
        let make = if difference.breaks() && missed { Finding::fail } else { Finding::warn };
        make("target.schema", difference.to_string(), difference.remedy.clone())
    };
    findings.extend(differences.iter().map(finding));
    Ok(findings)
}

pub(super) async fn extensions(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.extensions";
    let available: BTreeSet<String> =
        sides.target.list("SELECT name::text FROM pg_available_extensions").await?.into_iter().collect();
    let missing: Vec<&str> = sides
        .source
        .catalog
        .extensions
        .iter()
        .map(|extension| extension.name.as_str())
        .filter(|name| !available.contains(*name))
        .collect();
    if !missing.is_empty() {
        let message = format!("the target's server does not have {}", listed(&missing));
        let remedy = "install the package that brings it on the target's machine (postgresql-contrib, …)";
        return Ok(Finding::fail(check, message, remedy));
    }
    let older = older_extensions(sides).await?;
    if older.is_empty() {
        return Ok(Finding::pass(check, "every extension of the source can be created on the target"));
    }
    let message = format!("the target's server has another version: {}", listed(&older));
    Ok(Finding::warn(check, message, "see that the source's objects do not need what the other version lacks"))
}

/// `CREATE EXTENSION` makes the version that is the target's standard.
async fn older_extensions(sides: &Sides<'_>) -> Result<Vec<String>, Error> {
    let sql = "SELECT name::text, default_version FROM pg_available_extensions WHERE name = ANY ($1)";
    let names: Vec<&str> = sides.source.catalog.extensions.iter().map(|extension| extension.name.as_str()).collect();
    let rows = sides.target.session.query(sql, &[&names]).await?;
    let mut older = Vec::new();
    for row in rows {
        let (name, standard): (String, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
        let source = sides.source.catalog.extensions.iter().find(|extension| extension.name == name);
        if let (Some(source), Some(standard)) = (source, standard)
            && numbers(&standard) < numbers(&source.version)
        {
            older.push(format!("{name} {standard} (the source has {})", source.version));
        }
    }
    Ok(older)
}

/// `1.10` is newer than `1.9`.
fn numbers(version: &str) -> Vec<u32> {
    version.split(|character: char| !character.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}

/// What somebody put into an extension's own tables is in no publication.
pub(super) async fn extension_rows(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.extension_rows";
    let tables = schema::extension_tables(&sides.source.session).await?;
    if tables.is_empty() {
        return Ok(Finding::pass(check, "no extension keeps rows of its user"));
    }
    let names: Vec<String> = tables.iter().map(|table| format!("{} ({})", table.name, table.extension)).collect();
    let message = format!("copied once, with the schema, and not streamed: {}", listed(&names));
    Ok(Finding::warn(check, message, "do not write to them between the copy and the cutover"))
}

/// Roles belong to the whole cluster: pg_dump names them and does not make them. The copy does.
pub(super) fn roles(missing: &schema::MissingRoles) -> Finding {
    let check = "target.roles";
    let names = &missing.names;
    if names.is_empty() {
        return Finding::pass(check, "every owner and everybody who may do something is a role of the target");
    }
    let create = |name: &String| format!("CREATE ROLE {} …;", quote_identifier(name));
    if !missing.may_create {
        let message = format!("this user may not create the roles that are missing: {}", listed(names));
        return Finding::fail(check, message, statements(names, create));
    }
    if missing.curtailed.is_empty() {
        return Finding::pass(check, format!("will be created: {}", listed(names)));
    }
    let message = format!(
        "will be created without SUPERUSER, REPLICATION and BYPASSRLS, which take a superuser: {}",
        listed(&missing.curtailed)
    );
    let alter = |name: &String| format!("as a superuser: ALTER ROLE {} …;", quote_identifier(name));
    Finding::warn(check, message, statements(&missing.curtailed, alter))
}

/// What `CREATE ROLE` says of a role, and the column that holds it.
const ATTRIBUTES: [(&str, &str); 7] = [
    ("LOGIN", "rolcanlogin"),
    ("INHERIT", "rolinherit"),
    ("SUPERUSER", "rolsuper"),
    ("CREATEDB", "rolcreatedb"),
    ("CREATEROLE", "rolcreaterole"),
    ("REPLICATION", "rolreplication"),
    ("BYPASSRLS", "rolbypassrls"),
];

/// A role that is there stays as it is: it may serve other databases of that cluster.
pub(super) async fn present_roles(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.present_roles";
    let columns = ATTRIBUTES.map(|(_, column)| column).join(", ");
    let sql = format!("SELECT rolname::text, ARRAY[{columns}] FROM pg_roles WHERE oid >= 16384 ORDER BY rolname");
    let (here, there) = tokio::try_join!(sides.source.session.query(&sql, &[]), sides.target.session.query(&sql, &[]))?;
    let mut present: BTreeMap<String, Vec<bool>> = BTreeMap::new();
    for row in &there {
        present.insert(row.try_get(0)?, row.try_get(1)?);
    }
    let mut different = Vec::new();
    for row in &here {
        let (name, wanted): (String, Vec<bool>) = (row.try_get(0)?, row.try_get(1)?);
        let Some(found) = present.get(&name) else { continue };
        let words = ATTRIBUTES.iter().zip(wanted.iter().zip(found)).filter(|(_, (wanted, found))| wanted != found);
        let words: Vec<String> = words
            .map(|((word, _), (wanted, _))| if *wanted { (*word).to_owned() } else { format!("NO{word}") })
            .collect();
        if !words.is_empty() {
            different.push((name, words.join(" ")));
        }
    }
    if different.is_empty() {
        return Ok(Finding::pass(check, "roles that are on both sides have the same attributes"));
    }
    let names: Vec<String> = different.iter().map(|(name, words)| format!("{name} ({words} on the source)")).collect();
    let alter = |(name, words): &(String, String)| format!("ALTER ROLE {} {words};", quote_identifier(name));
    let message = format!("they stay as they are, passwords included: {}", listed(&names));
    Ok(Finding::warn(check, message, statements(&different, alter)))
}

/// `pg_authid` is for superusers alone, and managed services let nobody read it.
pub(super) fn passwords(missing: &schema::MissingRoles) -> Finding {
    let check = "source.passwords";
    let names = &missing.without_password;
    if names.is_empty() {
        return Finding::pass(check, "every role that will be created keeps its password");
    }
    let message = format!("will be created without a password, which this user may not read: {}", listed(names));
    let first = "on the source, as a superuser: GRANT SELECT ON pg_catalog.pg_authid TO CURRENT_USER; or on the target \
                 after the copy:";
    let alter = |name: &String| format!("ALTER ROLE {} PASSWORD '…';", quote_identifier(name));
    Finding::warn(check, message, format!("{first}\n{}", statements(names, alter)))
}

/// None of it stops a copy; all of it is missed by somebody.
pub(super) async fn lacks(sides: &Sides<'_>) -> Result<Vec<Finding>, Error> {
    let lacks = schema::target_lacks(&sides.source.session, &sides.target.session).await?;
    let mut findings = Vec::new();
    let spaces = &lacks.tablespaces;
    findings.push(if spaces.is_empty() {
        Finding::pass("target.tablespaces", "the target has every tablespace in use")
    } else {
        let message = format!("the target lacks them; what is in them goes into the default one: {}", listed(spaces));
        let create = |name: &String| format!("CREATE TABLESPACE {} LOCATION '…';", quote_identifier(name));
        Finding::warn("target.tablespaces", message, statements(spaces, create))
    });
    if lacks.lz4 {
        let message = "columns are compressed with LZ4, which the target's server does not have: new values are \
                       compressed by its default";
        findings.push(Finding::warn("target.lz4", message, "use a server built with LZ4, if their size matters"));
    }
    let providers = &lacks.label_providers;
    if !providers.is_empty() {
        let message = format!("security labels will be left out, their provider is not loaded: {}", listed(providers));
        let remedy = "on the target: load the provider with shared_preload_libraries, then restart";
        findings.push(Finding::warn("target.labels", message, remedy));
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert!(numbers("1.9") < numbers("1.10"));
        assert!(numbers("3.4.2") < numbers("3.5"));
        assert_eq!(numbers("unpackaged"), Vec::<u32>::new());
    }
}
