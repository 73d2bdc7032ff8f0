//! What rows do not need and readers do: foreign keys, triggers, rules, policies, publications, refreshed views.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::pre_data::read_section;
use super::side_by_side::run_groups;
use super::table_plan::is_index_entry;
use super::worker::{Step, Worker, left_of};
use super::{CopyOptions, Steps};
use crate::model::{TableName, quote_identifier};
use crate::schema::dump::{Entry, Section};
use crate::schema::{Catalog, Error, Table, TableKind};
use crate::wire;

/// Foreign keys, extended statistics and `ANALYZE` which fills them, then the rest of the post-data section in its
/// order. What is recorded as done is left alone.
///
/// The stream may be applied meanwhile: a foreign key is added `NOT VALID`, which takes a lock for a moment, and
/// validated under one that lets writers pass. A key from or to a partitioned table is checked as it is added, and
/// writers of both tables wait.
///
/// Triggers made here do not fire for what is applied as long as the applier sets `session_replication_role`.
pub async fn copy_post_data(
    options: &CopyOptions,
    catalog: &Catalog,
    steps: &Steps,
    stop: CancellationToken,
) -> Result<(), Error> {
    copy(options, catalog, None, steps, stop).await
}

/// The same for tables that joined later: what stands on them, and foreign keys of others that refer to them. `ANALYZE`
/// is left to the caller.
pub async fn copy_post_data_of(
    options: &CopyOptions,
    catalog: &Catalog,
    tables: &BTreeSet<TableName>,
    steps: &Steps,
    stop: CancellationToken,
) -> Result<(), Error> {
    copy(options, catalog, Some(tables), steps, stop).await
}

async fn copy(
    options: &CopyOptions,
    catalog: &Catalog,
    only: Option<&BTreeSet<TableName>>,
    steps: &Steps,
    stop: CancellationToken,
) -> Result<(), Error> {
    let source = wire::connect(&options.source, "post-data").await.map_err(Error::Connect)?;
    let worker = Worker::open(options, &[], &stop).await?;
    let dump = read_section(options, catalog, Section::PostData, &source, &worker.session).await?;
    let mut plan = Plan::default();
    let wanted = |entry: &&Entry| {
        !is_index_entry(entry, catalog) && !is_ours(entry) && only.is_none_or(|tables| concerns(entry, tables, catalog))
    };
    for entry in dump.entries.iter().filter(wanted) {
        plan.take(entry, catalog);
    }
    if only.is_none() {
        plan.analyze(catalog);
    }
    let total = plan.len();
    let done = worker.done().await?;
    let stages = plan.stages().map(|(steps, order)| (left_of(steps, &done), order));
    let step_count: usize = stages.iter().map(|(left, _)| left.len()).sum();
    steps.expect(total, total - step_count);
    for (left, order) in stages {
        let groups = match order {
            Order::AsDumped => vec![left],
            Order::Any => left.into_iter().map(|step| vec![step]).collect(),
        };
        run_groups(options, &dump.preamble, groups, steps, &stop).await?;
    }
    info!(step_count, "post-data copied");
    Ok(())
}

/// Whether it stands on one of the tables, or is a foreign key that refers to one.
pub(super) fn concerns(entry: &Entry, tables: &BTreeSet<TableName>, catalog: &Catalog) -> bool {
    let Some(relation) = entry.relation() else { return false };
    let refers = || {
        let name = entry.added_constraint()?;
        let key = catalog.table(&relation)?.foreign_keys.iter().find(|key| key.name == name)?;
        Some(tables.contains(&key.references))
    };
    tables.contains(&relation) || (entry.kind == "FK CONSTRAINT" && refers() == Some(true))
}

#[derive(Default)]
struct Plan {
    add: Vec<Step>,
    validate: Vec<Step>,
    statistics: Vec<Step>,
    analyze: Vec<Step>,
    rest: Vec<Step>,
}

/// Whether the steps of a stage may overtake each other.
enum Order {
    AsDumped,
    Any,
}

impl Plan {
    fn len(&self) -> usize {
        self.add.len() + self.validate.len() + self.statistics.len() + self.analyze.len() + self.rest.len()
    }

    fn stages(self) -> [(Vec<Step>, Order); 5] {
        [
            (self.add, Order::AsDumped),
            (self.validate, Order::Any),
            (self.statistics, Order::AsDumped),
            (self.analyze, Order::Any),
            (self.rest, Order::AsDumped),
        ]
    }

    fn take(&mut self, entry: &Entry, catalog: &Catalog) {
        match entry.kind.as_str() {
            "FK CONSTRAINT" => self.take_foreign_key(entry, catalog),
            // Those of materialised views wait for their views, and are filled by the `ANALYZE` behind the refresh.
            "STATISTICS" if entry.read_relation().is_some_and(|table| catalog.table(&table).is_some()) => {
                self.statistics.push(Step::of(entry));
            }
            // The refresh leaves it without statistics.
            "MATERIALIZED VIEW DATA" => {
                let mut step = Step::of(entry);
                let schema = entry.schema.as_deref().unwrap_or("public");
                step.statements.push(format!("ANALYZE {}.{}", quote_identifier(schema), quote_identifier(&entry.name)));
                self.rest.push(step);
            }
            _ => self.rest.push(Step::of(entry)),
        }
    }

    fn take_foreign_key(&mut self, entry: &Entry, catalog: &Catalog) {
        let mut step = Step::of(entry);
        let table = step.relation.as_ref().and_then(|relation| catalog.table(relation));
        let name = entry.added_constraint();
        let key = table.and_then(|table| table.foreign_keys.iter().find(|key| Some(&key.name) == name.as_ref()));
        if let Some(key) = key.filter(|key| catalog.table(&key.references).is_none()) {
            warn!(key = key.name, references = %key.references, "left out: it refers to a table that is not migrated");
            return;
        }
        let ordinary = |table: &Table| table.kind == TableKind::Ordinary;
        // Validation does not reach the copies of a key that partitions have on either end of it (before 18).
        let whole =
            table.is_some_and(ordinary) && key.and_then(|key| catalog.table(&key.references)).is_some_and(ordinary);
        let as_it_is = entry.says(&["not", "valid"]) || entry.says(&["not", "enforced"]);
        if let (Some(relation), Some(name), true, false) = (&step.relation, name, whole, as_it_is) {
            for statement in &mut step.statements {
                statement.push_str(" NOT VALID");
            }
            self.validate.push(Step {
                title: format!("VALIDATE {}", entry.title()),
                statements: vec![format!(
                    "ALTER TABLE {} VALIDATE CONSTRAINT {}",
                    relation.quoted(),
                    quote_identifier(&name)
                )],
                relation: step.relation.clone(),
                ..Step::default()
            });
        }
        self.add.push(step);
    }

    /// A partitioned table's takes its partitions along.
    fn analyze(&mut self, catalog: &Catalog) {
        let tables = catalog.tables.iter().filter(|table| table.partition.is_none());
        self.analyze.extend(tables.map(|table| Step {
            title: format!("ANALYZE {}", table.name),
            statements: vec![format!("ANALYZE {}", table.name.quoted())],
            relation: Some(table.name.clone()),
            ..Step::default()
        }));
    }
}

/// What we made on the source for ourselves: `changeover_<migration>`, and what is said about it.
fn is_ours(entry: &Entry) -> bool {
    let kinds = ["PUBLICATION", "EVENT TRIGGER"];
    let ours = |name: &str| name.trim_start_matches('"').starts_with("changeover_");
    let on_ours = |kind: &&str| entry.name.strip_prefix(*kind).is_some_and(|name| ours(name.trim_start()));
    match entry.kind.as_str() {
        "COMMENT" => kinds.iter().any(on_ours),
        kind => kinds.iter().any(|it| kind.starts_with(it)) && ours(&entry.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_publication_is_not_copied() {
        let entry = |kind: &str, name: &str| Entry { kind: kind.to_owned(), name: name.to_owned(), ..Entry::default() };
        assert!(is_ours(&entry("PUBLICATION", "changeover_shop")));
        assert!(is_ours(&entry("PUBLICATION TABLE", "changeover_shop orders")));
        assert!(is_ours(&entry("COMMENT", "PUBLICATION changeover_shop")));
        assert!(is_ours(&entry("COMMENT", "PUBLICATION \"changeover_Shop\"")));
        assert!(!is_ours(&entry("PUBLICATION", "theirs")));
        assert!(!is_ours(&entry("COMMENT", "PUBLICATION theirs")));
        assert!(!is_ours(&entry("COMMENT", "TABLE changeover_shop")));
        assert!(!is_ours(&entry("TRIGGER", "changeover_shop")));
    }
}
