//! The slot and the publication: ours to be, or the user's to be adopted.

use tokio_postgres::Row;

use super::Error;
use super::finding::{Finding, OWN_NAME, listed, statements};
use super::server::user;
use super::sides::Sides;
use crate::model::{TableName, quote_identifier, quote_literal};
use crate::{schema, source};

pub(super) async fn slot(sides: &Sides<'_>) -> Result<Finding, Error> {
    let slot = &sides.config.source.slot;
    // to_jsonb: which columns there are depends on the version, and a missing one is simply not there.
    let sql = "SELECT to_jsonb(s), s.database IS NOT DISTINCT FROM current_database()
               FROM pg_replication_slots s WHERE slot_name = $1";
    let found = sides.source.session.query_opt(sql, &[&slot.name]).await?;
    match (slot.adopted, found) {
        (true, Some(row)) => adopted_slot(&slot.name, &row),
        (true, None) => Ok(Finding::fail(
            "source.slot",
            format!("the slot {} to be adopted does not exist", slot.name),
            format!(
                "SELECT pg_create_logical_replication_slot({}, 'pgoutput'); or leave source.slot out",
                quote_literal(&slot.name)
            ),
        )),
        (false, Some(_)) if sides.started.is_none() => slot_of_nobody(sides, &slot.name).await,
        (false, _) => Ok(Finding::pass("source.slot", format!("{}, of our own", slot.name))),
    }
}

/// The target knows of no migration, and yet there is a slot of its name. Nothing may be removed that another one needs.
async fn slot_of_nobody(sides: &Sides<'_>, name: &str) -> Result<Finding, Error> {
    let check = "source.slot";
    let target = schema::target_identity(&sides.target.session).await?;
    let publication = &sides.config.source.publication.name;
    if let Some(whose) = source::claimed_by_another(&sides.source.session, name, publication, &target).await? {
        return Ok(Finding::fail(check, whose, OWN_NAME));
    }
    if let Some(whose) = source::read_by_another(&sides.source.session, name).await? {
        return Ok(Finding::fail(check, whose, "stop that daemon, then: changeover abort"));
    }
    let message = format!("the slot {name} is left over from an earlier migration of this name");
    Ok(Finding::fail(check, message, "changeover abort"))
}

async fn published_for_another(sides: &Sides<'_>) -> Result<Option<String>, Error> {
    let target = schema::target_identity(&sides.target.session).await?;
    let name = &sides.config.source.publication.name;
    Ok(source::published_for_another(&sides.source.session, name, &target).await?)
}

fn adopted_slot(name: &str, row: &Row) -> Result<Finding, Error> {
    let check = "source.slot";
    let state: serde_json::Value = row.try_get(0)?;
    let here: bool = row.try_get(1)?;
    let plugin = state["plugin"].as_str().unwrap_or("none");
    let lost = state["wal_status"] == "lost" || state["invalidation_reason"].is_string();
    let quoted = quote_literal(name);
    let again = format!("SELECT pg_drop_replication_slot({quoted}); and make it again with the plug-in pgoutput");
    let fail = |what: String, remedy: String| Ok(Finding::fail(check, format!("the slot {name} {what}"), remedy));
    if plugin != "pgoutput" {
        return fail(format!("has the plug-in {plugin} and not pgoutput"), again);
    }
    if !here {
        let database = state["database"].as_str().unwrap_or("another one");
        return fail(format!("belongs to the database {database}"), "name a slot of the source's database".to_owned());
    }
    if lost {
        let remedy = format!("{again}; the target then has to be copied anew");
        return fail("is lost: the server has removed log that it needed".to_owned(), remedy);
    }
    if state["two_phase"] == true {
        return fail("decodes prepared transactions (two_phase), which is not supported".to_owned(), again);
    }
    if state["confirmed_flush_lsn"].is_null() {
        return fail("has no position: nobody has finished making it".to_owned(), again);
    }
    if let Some(pid) = state["active_pid"].as_i64() {
        let remedy = format!("stop the program that reads it, or: SELECT pg_terminate_backend({pid});");
        return fail(format!("is being read by process {pid}"), remedy);
    }
    let position = state["confirmed_flush_lsn"].as_str().unwrap_or_default();
    Ok(Finding::pass(check, format!("{name} is adopted, from {position} on")))
}

pub(super) async fn publication(sides: &Sides<'_>) -> Result<Finding, Error> {
    let publication = &sides.config.source.publication;
    // to_jsonb: `pubviaroot` came with 13, further options with later versions.
    let sql = "SELECT to_jsonb(p) FROM pg_publication p WHERE pubname = $1";
    let found = sides.source.session.query_opt(sql, &[&publication.name]).await?;
    match (publication.adopted, found) {
        (true, Some(row)) => adopted_publication(sides, &publication.name, &row).await,
        (true, None) => Ok(Finding::fail(
            "source.publication",
            format!("the publication {} to be adopted does not exist", publication.name),
            format!(
                "CREATE PUBLICATION {} FOR TABLE …; or leave source.publication out",
                quote_identifier(&publication.name)
            ),
        )),
        (false, Some(_)) if sides.started.is_none() => Ok(match published_for_another(sides).await? {
            Some(whose) => Finding::fail("source.publication", whose, OWN_NAME),
            None => Finding::fail(
                "source.publication",
                format!("the publication {} is left over from an earlier migration of this name", publication.name),
                "changeover abort",
            ),
        }),
        (false, Some(_)) => Ok(Finding::pass("source.publication", format!("{}, of our own", publication.name))),
        (false, None) => publication_rights(sides, &publication.name).await,
    }
}

/// CREATE PUBLICATION asks for CREATE on the database, FOR TABLE for ownership of each table.
async fn publication_rights(sides: &Sides<'_>, name: &str) -> Result<Finding, Error> {
    let check = "source.publication";
    let user = user(&sides.source).await?;
    if !sides.source.ask("SELECT has_database_privilege(current_database(), 'CREATE')").await? {
        let database = quote_identifier(&sides.source.catalog.database.name);
        let remedy = format!("GRANT CREATE ON DATABASE {database} TO {user};");
        return Ok(Finding::fail(check, "this user may not create a publication", remedy));
    }
    let oids: Vec<u32> = sides.source.catalog.tables.iter().map(|table| table.oid).collect();
    let sql = "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
               WHERE c.oid = ANY($1) AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1, 2";
    let rows = sides.source.session.query(sql, &[&oids]).await?;
    let foreign = names(&rows)?;
    if foreign.is_empty() {
        return Ok(Finding::pass(check, format!("{name}, of our own")));
    }
    let message = format!("only their owner may publish them: {}", listed(&foreign));
    let remedy = format!(
        "GRANT the tables' owner TO {user}; or have a superuser run CREATE PUBLICATION {} FOR TABLE … and name it in \
         source.publication",
        quote_identifier("some_name")
    );
    Ok(Finding::fail(check, message, remedy))
}

async fn adopted_publication(sides: &Sides<'_>, name: &str, row: &Row) -> Result<Finding, Error> {
    let check = "source.publication";
    let state: serde_json::Value = row.try_get(0)?;
    let quoted = quote_identifier(name);
    let silent: Vec<&str> =
        [("pubinsert", "insert"), ("pubupdate", "update"), ("pubdelete", "delete"), ("pubtruncate", "truncate")]
            .into_iter()
            .filter_map(|(column, word)| (state[column] != true).then_some(word))
            .collect();
    if !silent.is_empty() {
        let remedy = format!("ALTER PUBLICATION {quoted} SET (publish = 'insert, update, delete, truncate');");
        return Ok(Finding::fail(check, format!("{name} does not publish {}", silent.join(", ")), remedy));
    }
    let partitioned = sides.source.catalog.tables.iter().any(|table| table.partition.is_some());
    if partitioned && state["pubviaroot"] == true {
        let message = format!("{name} publishes partitions as their root, which hides TRUNCATE of a partition");
        let remedy = format!("ALTER PUBLICATION {quoted} SET (publish_via_partition_root = false);");
        return Ok(Finding::fail(check, message, remedy));
    }
    let published = sides
        .source
        .session
        .query("SELECT schemaname::text, tablename::text FROM pg_publication_tables WHERE pubname = $1", &[&name])
        .await?;
    let published = names(&published)?;
    let missing: Vec<&TableName> =
        sides.source.catalog.row_tables().map(|table| &table.name).filter(|table| !published.contains(table)).collect();
    if !missing.is_empty() {
        let remedy = statements(&missing, |table| format!("ALTER PUBLICATION {quoted} ADD TABLE {};", table.quoted()));
        return Ok(Finding::fail(check, format!("{name} lacks {}", listed(&missing)), remedy));
    }
    filtered(sides, name).await
}

/// Row filters and column lists came with PostgreSQL 15.
async fn filtered(sides: &Sides<'_>, name: &str) -> Result<Finding, Error> {
    let check = "source.publication";
    if sides.source.catalog.major() >= 15 {
        if let Some(finding) = other_rows(sides, name).await? {
            return Ok(finding);
        }
        let sql = "SELECT n.nspname, c.relname FROM pg_publication_rel r
                   JOIN pg_publication p ON p.oid = r.prpubid JOIN pg_class c ON c.oid = r.prrelid
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE p.pubname = $1 AND r.prattrs IS NOT NULL ORDER BY 1, 2";
        let tables = names(&sides.source.session.query(sql, &[&name]).await?)?;
        let tables: Vec<&TableName> =
            tables.iter().filter(|table| sides.source.catalog.table(table).is_some()).collect();
        if !tables.is_empty() {
            let message = format!("{name} leaves columns out of {}", listed(&tables));
            let quoted = quote_identifier(name);
            let again = |table: &&TableName| {
                let table = table.quoted();
                format!("ALTER PUBLICATION {quoted} DROP TABLE {table}; ALTER PUBLICATION {quoted} ADD TABLE {table};")
            };
            return Ok(Finding::fail(check, message, statements(&tables, again)));
        }
    }
    let what = if sides.config.rows.is_empty() { "every table whole" } else { "the rows of tables.rows" };
    Ok(Finding::pass(check, format!("{name} is adopted and holds {what}")))
}

/// The rows that are copied and compared must be those that are streamed.
async fn other_rows(sides: &Sides<'_>, name: &str) -> Result<Option<Finding>, Error> {
    let (session, rows) = (&sides.source.session, &sides.config.rows);
    let tables = sides.source.catalog.row_tables().map(|table| &table.name);
    let otherwise = source::published_otherwise(session, name, tables, rows).await?;
    if otherwise.is_empty() {
        return Ok(None);
    }
    let message = format!("{name} publishes other rows than tables.rows says of {}", listed(&otherwise));
    let quoted = quote_identifier(name);
    let again = |table: &&TableName| {
        let filter = rows.of(table).map(|filter| format!(" WHERE ({filter})")).unwrap_or_default();
        let table = table.quoted();
        format!(
            "ALTER PUBLICATION {quoted} DROP TABLE ONLY {table}; ALTER PUBLICATION {quoted} ADD TABLE ONLY {table}{filter};"
        )
    };
    let remedy = format!("{}\n-- or say the same in [tables.rows]", statements(&otherwise, again));
    Ok(Some(Finding::fail("source.publication", message, remedy)))
}

fn names(rows: &[Row]) -> Result<Vec<TableName>, Error> {
    let name = |row: &Row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
    rows.iter().map(name).collect()
}
