//! The schema of tables that join a migration whose schema was copied before.

use std::collections::BTreeSet;

use tracing::{debug, info, warn};

use super::post_data::concerns;
use super::pre_data::read_section;
use super::table_plan::{analyze, steps_of};
use super::worker::{Step, Worker};
use super::{CopyOptions, roles};
use crate::model::{TableName, quote_literal};
use crate::schema::dump::{Entry, Section};
use crate::schema::{Catalog, Error, SequenceOwner, Table};
use crate::wire::{self, Session};

/// As for other steps of the schema: whoever queues behind us waits for as long as we do.
const LOCK_TIMEOUT_MS: u32 = 2_000;
/// What is there already: duplicate schema, table (view, sequence), object, function.
const THERE_ALREADY: [&str; 4] = ["42P06", "42P07", "42710", "42723"];

/// Makes `added` (of `catalog`, which holds all tables) on the target, with the types, functions and sequences they need
/// as far as those are missing, and runs `record` in the same transaction. Indexes and what else follows the rows is
/// left to [`super::copy_indexes`] and [`super::copy_post_data_of`].
pub async fn copy_added_pre_data(
    options: &CopyOptions,
    catalog: &Catalog,
    added: &BTreeSet<TableName>,
    record: &str,
) -> Result<(), Error> {
    let source = wire::connect(&options.source, "schema").await.map_err(Error::Connect)?;
    let stop = tokio_util::sync::CancellationToken::new();
    let looking = Worker::open(options, &[], &stop).await?;
    refuse_what_is_there(&looking.session, added).await?;
    roles::copy_missing(&source, &looking.session).await?;
    let before = read_section(options, catalog, Section::PreData, &source, &looking.session).await?;
    let after = read_section(options, catalog, Section::PostData, &source, &looking.session).await?;
    let worker = Worker::open(options, &before.preamble, &stop).await?;
    let made = Added { catalog, added };
    let outcome = made.run(&worker.session, options, &before.entries, &after.entries, record).await;
    if outcome.is_err() {
        // The first error is the one to tell; a connection that is gone has rolled back by itself.
        drop(worker.session.batch_execute("ROLLBACK").await);
    }
    outcome?;
    info!(tables = added.len(), "schema of added tables copied");
    Ok(())
}

/// A table that we did not make may hold rows and have another shape.
async fn refuse_what_is_there(target: &Session, added: &BTreeSet<TableName>) -> Result<(), Error> {
    let names: Vec<String> = added.iter().map(TableName::quoted).collect();
    let sql = "SELECT name FROM pg_catalog.unnest($1::text[]) AS name WHERE pg_catalog.to_regclass(name) IS NOT NULL";
    let rows = target.query(sql, &[&names]).await.map_err(Error::query("look for the added tables on the target"))?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if found.is_empty() { Ok(()) } else { Err(Error::TablesThere { tables: found.join(", ") }) }
}

struct Added<'a> {
    catalog: &'a Catalog,
    added: &'a BTreeSet<TableName>,
}

/// What an entry of the dump is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Of an added table: has to be made.
    Ours,
    /// Stands by itself, so that a table may need it: made if it is missing.
    Wanted,
    /// Of a table that is there.
    Others,
}

impl Added<'_> {
    async fn run(
        &self,
        target: &Session,
        options: &CopyOptions,
        before: &[Entry],
        after: &[Entry],
        record: &str,
    ) -> Result<(), Error> {
        let doing = || Error::query("make the added tables");
        let begin = format!("BEGIN; SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}");
        target.batch_execute(&begin).await.map_err(doing())?;
        let mut made = BTreeSet::new();
        for entry in before {
            match self.part(entry, &made) {
                Part::Others => {}
                Part::Ours => {
                    let step = Step::of(entry);
                    target.batch_execute(&step.sql()).await.map_err(Error::query(format!("make {}", step.title)))?;
                    made.insert(object(entry));
                }
                Part::Wanted => {
                    if make_if_missing(target, entry).await? {
                        made.insert(object(entry));
                    }
                }
            }
        }
        let records = self.records(options, after);
        target.batch_execute(&format!("{records}{record}; COMMIT")).await.map_err(doing())
    }

    fn part(&self, entry: &Entry, made: &BTreeSet<Object>) -> Part {
        let ours = |is: bool| if is { Part::Ours } else { Part::Others };
        match entry.kind.as_str() {
            "TABLE" | "TABLE ATTACH" => ours(self.holds(entry, &entry.name)),
            "DEFAULT" | "CHECK CONSTRAINT" => ours(entry.relation().is_some_and(|table| self.added.contains(&table))),
            "SEQUENCE" | "SEQUENCE OWNED BY" => self.sequence(entry),
            "ACL" | "COMMENT" | "SECURITY LABEL" => ours(self.is_about(entry, made)),
            // Of the database and of what is made later by others.
            "" | "DEFAULT ACL" | "DATABASE" | "DATABASE PROPERTIES" | "BLOB" | "BLOB METADATA" | "FOREIGN TABLE" => {
                Part::Others
            }
            _ => Part::Wanted,
        }
    }

    fn holds(&self, entry: &Entry, name: &str) -> bool {
        entry.schema.as_ref().is_some_and(|schema| self.added.contains(&TableName::new(schema, name)))
    }

    fn sequence(&self, entry: &Entry) -> Part {
        let name = TableName::new(entry.schema.clone().unwrap_or_default(), &entry.name);
        match self.catalog.sequences.iter().find(|sequence| sequence.name == name).map(|sequence| &sequence.owner) {
            Some(SequenceOwner::Column { table, .. } | SequenceOwner::Identity { table, .. }) => {
                if self.added.contains(table) { Part::Ours } else { Part::Others }
            }
            Some(SequenceOwner::None) => Part::Wanted,
            None => Part::Others,
        }
    }

    /// A comment and the like name their object as `TABLE orders`, `COLUMN orders.id`.
    fn is_about(&self, entry: &Entry, made: &BTreeSet<Object>) -> bool {
        let of_column = entry.name.strip_prefix("COLUMN ").and_then(|column| column.rsplit_once('.'));
        match of_column {
            Some((table, _)) => self.holds(entry, table),
            None => made.contains(&(entry.schema.clone(), entry.name.clone())),
        }
    }

    /// Of an earlier life of these tables, steps may be recorded as done. And what an ATTACH makes by itself, an index
    /// for each that the partitioned table has, is done.
    fn records(&self, options: &CopyOptions, after: &[Entry]) -> String {
        let mine = |entry: &&Entry| entry.relation().is_some_and(|relation| self.added.contains(&relation));
        let attached: BTreeSet<(&Option<String>, &String)> = after
            .iter()
            .filter(|entry| entry.kind == "INDEX ATTACH")
            .map(|entry| (&entry.schema, &entry.name))
            .collect();
        let mut sql = String::new();
        let migration = &options.migration;
        let mut forget: BTreeSet<String> = self
            .catalog
            .tables
            .iter()
            .filter(|table| self.added.contains(&table.name))
            .map(|it| analyze(it).title)
            .collect();
        for entry in after.iter().filter(|entry| concerns(entry, self.added, self.catalog)) {
            // A foreign key is added in two steps. Their statements are not the entry's, so the hash behind the title
            // differs.
            let titles = steps_of(entry, self.catalog).into_iter().map(|step| step.title);
            forget.extend(titles.flat_map(|title| [format!("VALIDATE {title}"), title]));
        }
        let titles: Vec<String> = forget.iter().map(|title| quote_literal(title)).collect();
        sql.push_str(&format!(
            "DELETE FROM changeover.step WHERE migration = '{migration}' \
             AND pg_catalog.regexp_replace(step, ' [0-9a-f]{{16}}$', '') IN ({});",
            titles.join(", ")
        ));
        let joins = |table: &Table| table.partition.as_ref().is_some_and(|it| !self.added.contains(&it.parent));
        let joining =
            |entry: &&Entry| entry.relation().and_then(|relation| self.catalog.table(&relation)).is_some_and(joins);
        let made_by_attach: Vec<&Entry> = after
            .iter()
            .filter(mine)
            .filter(joining)
            .filter(|entry| {
                let index = entry.added_constraint().unwrap_or_else(|| entry.name.clone());
                attached.contains(&(&entry.schema, &index))
            })
            .collect();
        let indexes: BTreeSet<String> =
            made_by_attach.iter().map(|entry| entry.added_constraint().unwrap_or_else(|| entry.name.clone())).collect();
        let attaches = after.iter().filter(|entry| entry.kind == "INDEX ATTACH" && indexes.contains(&entry.name));
        let steps = made_by_attach.iter().copied().chain(attaches).flat_map(|entry| steps_of(entry, self.catalog));
        for step in steps {
            let key = quote_literal(&step.key());
            sql.push_str(&format!(
                "INSERT INTO changeover.step (migration, step) VALUES ('{migration}', {key}) ON CONFLICT DO NOTHING;"
            ));
        }
        sql
    }
}

/// Schema, then kind and name as comments and grants refer to it.
type Object = (Option<String>, String);

fn object(entry: &Entry) -> Object {
    (entry.schema.clone(), format!("{} {}", entry.kind, entry.name))
}

/// Whether it was made. What cannot be is left to be missed by the table that needs it.
async fn make_if_missing(target: &Session, entry: &Entry) -> Result<bool, Error> {
    let mut step = Step::of(entry);
    for statement in &mut step.statements {
        *statement = statement.replacen("CREATE SCHEMA ", "CREATE SCHEMA IF NOT EXISTS ", 1);
    }
    let doing = || Error::query(format!("make {}", step.title));
    target.batch_execute("SAVEPOINT entry").await.map_err(doing())?;
    let Err(error) = target.batch_execute(&step.sql()).await else { return Ok(true) };
    target.batch_execute("ROLLBACK TO entry").await.map_err(doing())?;
    if error.code().is_some_and(|code| THERE_ALREADY.contains(&code.code())) {
        debug!(step = step.title, "there already");
    } else {
        warn!(step = step.title, %error, "left out");
    }
    Ok(false)
}
