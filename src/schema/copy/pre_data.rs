//! Everything that rows need to be there: one transaction, so that a crash leaves all of it or nothing.

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::lacks::target_lacks;
use super::worker::{Step, Worker};
use super::{CopyOptions, database, extension_rows, roles, selection, settings};
use crate::schema::dump::{Dump, Entry, Section};
use crate::schema::{Catalog, Error};
use crate::telemetry::chain;
use crate::wire::{self, Session};

const TITLE: &str = "pre-data";

/// Roles and settings that the target lacks, then everything of the source's schema that rows need. Without effect when
/// it is recorded as done.
pub async fn copy_pre_data(options: &CopyOptions, catalog: &Catalog) -> Result<(), Error> {
    // Recorded by its name alone: the statements are read from the source only when they are needed.
    let stop = CancellationToken::new();
    let target = Worker::open(options, &[], &stop).await?;
    if !is_done(&target.session, options).await? {
        make(options, catalog, &target, &stop).await?;
    }
    extension_rows::copy(options, &target.session).await
}

async fn make(
    options: &CopyOptions,
    catalog: &Catalog,
    target: &Worker,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let source = wire::connect(&options.source, "schema").await.map_err(Error::Connect)?;
    warn_about_subscriptions(&source).await?;
    roles::copy_missing(&source, &target.session).await?;
    settings::copy_missing(&source, &target.session).await?;
    database::copy_properties(&source, &target.session).await?;
    let dump = read_section(options, catalog, Section::PreData, &source, &target.session).await?;
    let entry_count = dump.entries.len();
    let worker = Worker::open(options, &dump.preamble, stop).await?;
    match run_as_one(&worker.session, options, &dump).await {
        // The COMMIT of a daemon that was killed may have arrived meanwhile.
        Err(_) if is_done(&target.session, options).await? => return Ok(()),
        outcome => outcome?,
    }
    info!(entry_count, "schema copied");
    Ok(())
}

/// Dumps a section of what belongs to the migration and takes it apart.
pub(super) async fn read_section(
    options: &CopyOptions,
    catalog: &Catalog,
    section: Section,
    source: &Session,
    target: &Session,
) -> Result<Dump, Error> {
    let excluded = selection::excluded(source, catalog).await?;
    let dumping = || options.pg_dump.section(&options.source, section, &excluded);
    let mut dump = match section {
        Section::PostData => Dump::parse(options.post_data.get_or_try_init(dumping).await?),
        Section::PreData => Dump::parse(&dumping().await?),
    }
    .map_err(Error::Dump)?;
    let lacks = target_lacks(source, target).await?;
    if section == Section::PreData {
        lacks.tell();
    }
    lacks.adapt(&mut dump);
    if section == Section::PostData && !excluded.is_empty() {
        selection::leave_out(&mut dump, &selection::parts_that_need(source, &excluded).await?);
    }
    dump.partial = !excluded.is_empty();
    Ok(dump)
}

async fn is_done(target: &Session, options: &CopyOptions) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT FROM changeover.step WHERE migration = $1 AND step = $2)";
    let row = target.query_one(sql, &[&options.migration.as_str(), &TITLE]).await;
    Ok(row.map_err(Error::query("read what is done of the schema"))?.get(0))
}

async fn warn_about_subscriptions(source: &Session) -> Result<(), Error> {
    let sql = "SELECT count(*) FROM pg_catalog.pg_subscription
               WHERE subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";
    let row = source.query_one(sql, &[]).await.map_err(Error::query("count the subscriptions"))?;
    let count: i64 = row.get(0);
    if count > 0 {
        warn!(count, "subscriptions of the source are not copied: two subscribers of one slot would lose changes");
    }
    Ok(())
}

/// Entry by entry, so that an error can name the one that failed.
async fn run_as_one(target: &Session, options: &CopyOptions, dump: &Dump) -> Result<(), Error> {
    let grants = early_grants(target, dump).await?;
    let schemas_end = dump.entries.iter().rposition(|entry| entry.kind == "SCHEMA").map_or(0, |last| last + 1);
    target.batch_execute("BEGIN").await.map_err(Error::query("begin the schema"))?;
    for (at, entry) in dump.entries.iter().enumerate() {
        if at == schemas_end {
            grant_early(target, &grants).await?;
        }
        let outcome = run_entry(target, entry, dump.partial).await;
        if let Err(error) = outcome {
            // The first error is the one to tell; a connection that is gone has rolled back by itself.
            drop(target.batch_execute("ROLLBACK").await);
            return Err(error);
        }
    }
    let sql = "INSERT INTO changeover.step (migration, step) VALUES ($1, $2)";
    let recording = target.execute(sql, &[&options.migration.as_str(), &TITLE]).await;
    recording.map_err(Error::query("record the schema"))?;
    target.batch_execute("COMMIT").await.map_err(Error::query("commit the schema"))
}

/// What is granted on schemas, for a role that is no superuser: it can give nothing in a schema to somebody who may not
/// create there, and a dump grants at its end.
async fn early_grants(target: &Session, dump: &Dump) -> Result<Vec<String>, Error> {
    if roles::is_superuser(target).await? {
        return Ok(Vec::new());
    }
    let on_schemas = dump.entries.iter().filter(|entry| entry.kind == "ACL" && entry.name.starts_with("SCHEMA "));
    let statements = on_schemas.flat_map(|entry| &entry.statements);
    Ok(statements.filter(|statement| statement.starts_with("GRANT ")).cloned().collect())
}

/// They come again in their place, where it is said what could not be granted.
async fn grant_early(target: &Session, grants: &[String]) -> Result<(), Error> {
    let doing = || Error::query("grant what is granted on schemas");
    for grant in grants {
        target.batch_execute("SAVEPOINT early").await.map_err(doing())?;
        let end = match target.batch_execute(grant).await {
            Ok(()) => "RELEASE early",
            Err(_) => "ROLLBACK TO early",
        };
        target.batch_execute(end).await.map_err(doing())?;
    }
    Ok(())
}

/// `partial` says that tables were left out of the dump: what cannot be made without them stays out too.
async fn run_entry(target: &Session, entry: &Entry, partial: bool) -> Result<(), Error> {
    let mut step = Step::of(entry);
    if entry.kind == "SCHEMA" {
        // Made beforehand by the target's administrator: as good as ours.
        for statement in &mut step.statements {
            *statement = statement.replacen("CREATE SCHEMA ", "CREATE SCHEMA IF NOT EXISTS ", 1);
        }
    }
    let doing = || Error::query(format!("make {}", step.title));
    if OF_PUBLIC.contains(&(entry.kind.as_str(), entry.name.as_str())) {
        step.optional = true;
    }
    let may_lack = partial && !HOLDS_ROWS.contains(&entry.kind.as_str());
    if !step.optional && !may_lack {
        return target.batch_execute(&step.sql()).await.map_err(doing());
    }
    target.batch_execute("SAVEPOINT entry").await.map_err(doing())?;
    match target.batch_execute(&step.sql()).await {
        Ok(()) => target.batch_execute("RELEASE entry").await.map_err(doing()),
        Err(error) if step.optional || lacks_something(&error) => {
            warn!(step = step.title, error = chain(&error), "left out");
            target.batch_execute("ROLLBACK TO entry").await.map_err(doing())
        }
        Err(error) => Err(doing()(error)),
    }
}

/// The schema `public` comes with the database, and belongs to whoever made that: up to 14 to a superuser, which only a
/// superuser can say of it.
const OF_PUBLIC: [(&str, &str); 3] = [("SCHEMA", "public"), ("COMMENT", "SCHEMA public"), ("ACL", "SCHEMA public")];

/// What no row arrives without.
const HOLDS_ROWS: [&str; 6] = ["TABLE", "TABLE ATTACH", "SCHEMA", "EXTENSION", "SEQUENCE", "DEFAULT"];

/// Undefined table, object or function.
fn lacks_something(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| ["42P01", "42704", "42883"].contains(&code.code()))
}
