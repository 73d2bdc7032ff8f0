//! Whether the target can take it, and from this user.

use super::Error;
use super::finding::{Finding, OWN_NAME};
use super::server::{self, user};
use super::sides::{Side, Sides};
use crate::model::quote_identifier;
use crate::schema;
use crate::wire;

pub(super) async fn version(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.version";
    let (source, target) = (sides.source.catalog.major(), sides.target.catalog.major());
    if target < source {
        let message = format!("PostgreSQL {target} is older than the source's {source}");
        return Ok(Finding::warn(
            check,
            message,
            "the schema may use what the target does not know: rehearse on a copy first",
        ));
    }
    server::version(check, &sides.target).await
}

pub(super) fn encoding(sides: &Sides<'_>) -> Finding {
    let check = "target.encoding";
    let (source, target) = (&sides.source.catalog.database.encoding, &sides.target.catalog.database.encoding);
    let database = quote_identifier(&sides.target.catalog.database.name);
    if source == "SQL_ASCII" {
        let message = "the source is SQL_ASCII: it may hold bytes that are no text in any encoding";
        return Finding::warn(check, message, "find them beforehand: such a row stops the copy and is named");
    }
    if source == target || target == "UTF8" {
        return Finding::pass(check, format!("{source} to {target}"));
    }
    let remedy = format!("CREATE DATABASE {database} ENCODING 'UTF8' TEMPLATE template0 …;");
    Finding::fail(check, format!("the source is {source} and the target {target}, which cannot hold all of it"), remedy)
}

/// Another collation is another order: of results, of unique indexes over text, of range bounds.
pub(super) fn collation(sides: &Sides<'_>) -> Finding {
    let check = "target.collation";
    let (source, target) = (&sides.source.catalog.database, &sides.target.catalog.database);
    let same = (&source.collate, &source.ctype, &source.locale) == (&target.collate, &target.ctype, &target.locale);
    if same {
        return Finding::pass(check, source.collate.clone());
    }
    let name = |database: &schema::Database| match &database.locale {
        Some(locale) => format!("{} ({locale})", database.collate),
        None => format!("{}/{}", database.collate, database.ctype),
    };
    let message = format!(
        "the source's is {}, the target's {}: text sorts differently, and is equal to other text",
        name(source),
        name(target)
    );
    let remedy = format!(
        "if the order matters: CREATE DATABASE {} TEMPLATE template0 LC_COLLATE '{}' LC_CTYPE '{}';",
        quote_identifier(&target.name),
        source.collate,
        source.ctype
    );
    Finding::warn(check, message, remedy)
}

/// A money value's text depends on the server's locale, and so does the number of its decimals.
pub(super) async fn money(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.money";
    let used =
        sides.source.catalog.tables.iter().flat_map(|table| &table.columns).any(|column| column.type_text == "money");
    if !used {
        return Ok(Finding::pass(check, "no column of type money"));
    }
    let (source, target) = (sides.source.setting("lc_monetary").await?, sides.target.setting("lc_monetary").await?);
    if source == target {
        return Ok(Finding::pass(check, format!("lc_monetary is {} on both", source.unwrap_or_default())));
    }
    let source = source.unwrap_or_default();
    let message =
        format!("there are money columns and lc_monetary differs: {source} and {}", target.unwrap_or_default());
    Ok(Finding::fail(
        check,
        message,
        format!("on the target: ALTER SYSTEM SET lc_monetary = '{source}'; SELECT pg_reload_conf();"),
    ))
}

/// Our state lives in a schema of its own, and the copied schema has to be made too.
pub(super) async fn create_privilege(side: &Side) -> Result<Finding, Error> {
    let check = "target.create";
    if side.ask("SELECT has_database_privilege(current_database(), 'CREATE')").await? {
        return Ok(Finding::pass(check, "this user may create schemas"));
    }
    let database = quote_identifier(&side.catalog.database.name);
    let remedy = format!("GRANT CREATE ON DATABASE {database} TO {};", user(side).await?);
    Ok(Finding::fail(check, "this user may not create schemas in the target database", remedy))
}

/// Under `replica` neither foreign keys nor ordinary triggers act on what is applied: the source has checked and fired
/// them already. Asked by doing it.
pub(super) async fn replica_role(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.replica_role";
    let side = &sides.target;
    let tried = side.session.batch_execute("BEGIN; SET LOCAL session_replication_role = 'replica'; ROLLBACK").await;
    let Err(error) = tried else { return Ok(Finding::pass(check, "session_replication_role can be set")) };
    side.session.batch_execute("ROLLBACK").await?;
    let user = user(side).await?;
    let remedy = if side.catalog.major() >= 15 {
        format!("GRANT SET ON PARAMETER session_replication_role TO {user};")
    } else {
        format!("ALTER ROLE {user} SUPERUSER; (before PostgreSQL 15 nothing less will do)")
    };
    let reason = error.as_db_error().map_or_else(|| error.to_string(), |db| db.message().to_owned());
    let message = format!("session_replication_role cannot be set: {reason}");
    if something_fires(&sides.source).await? || something_fires(side).await? {
        return Ok(Finding::fail(check, message, remedy));
    }
    let message =
        format!("{message}. No table has a trigger or a foreign key, so it goes without as long as that is so");
    Ok(Finding::warn(check, message, remedy))
}

/// Foreign keys are triggers too, on both tables.
async fn something_fires(side: &Side) -> Result<bool, Error> {
    let tables: Vec<u32> = side.catalog.tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = ANY ($1) AND tgenabled <> 'D')";
    Ok(side.session.query_one(sql, &[&tables]).await?.try_get(0)?)
}

/// Tried on a session of its own, whose end gives the lock back.
pub(super) async fn other_daemon(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "target.other_daemon";
    let session = wire::connect(&sides.config.target.endpoint, "check").await?;
    match schema::lead(&session, &sides.config.migration).await {
        Ok(()) => Ok(Finding::pass(check, "no other daemon leads this migration")),
        Err(error @ schema::Error::Led { .. }) => {
            let remedy = "changeover status asks it; stop it before another is started";
            Ok(Finding::warn(check, crate::telemetry::chain(&error), remedy))
        }
        Err(error @ schema::Error::LedElsewhere { .. }) => {
            Ok(Finding::fail(check, crate::telemetry::chain(&error), OWN_NAME))
        }
        Err(error) => Err(error.into()),
    }
}
