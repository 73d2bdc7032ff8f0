//! Tables that the target partitions otherwise, or not at all: what that takes, and what it costs.

use super::Error;
use super::finding::{Finding, listed, statements};
use super::sides::Sides;
use crate::model::{ReplicaIdentity, TableName, quote_identifier};
use crate::schema::{self, Catalog, Gathered, Table, TableKind, UniqueKey};

const CHECK: &str = "target.partitions";

/// The source's tables as the target keeps them.
pub(super) async fn gathered(sides: &Sides<'_>) -> Result<Gathered, Error> {
    let (source, target) = (&sides.source, &sides.target);
    let settled = schema::read_settled(&target.session, &sides.config.migration).await?;
    Ok(schema::gather(&source.session, &target.session, &source.catalog, &sides.config.rows, &settled).await?)
}

/// A finding for each thing about them that somebody should know, or has to change.
pub(super) async fn findings(sides: &Sides<'_>, gathered: &Gathered, streams: bool) -> Result<Vec<Finding>, Error> {
    let mut findings: Vec<Finding> =
        gathered.unfit.iter().map(|unfit| Finding::fail(CHECK, unfit.to_string(), unfit.remedy())).collect();
    let roots: Vec<&Table> = gathered.catalog.tables.iter().filter(|table| table.is_gathered()).collect();
    if roots.is_empty() {
        return Ok(findings);
    }
    let named: Vec<String> = roots.iter().map(|root| format!("{} ({})", root.name, root.leaves.len())).collect();
    let message = format!("partitioned otherwise on the target, and one table each for us: {}", listed(&named));
    findings.push(Finding::pass(CHECK, message));
    findings.extend(without_rest(&roots, &sides.target.catalog));
    if streams {
        findings.extend(roots.iter().filter_map(|root| without_key(root, &sides.target.catalog)));
        findings.extend(untold(sides, &roots).await?);
    }
    Ok(findings)
}

/// Where no partition of the target takes a row, it is refused when it comes.
fn without_rest(roots: &[&Table], target: &Catalog) -> Option<Finding> {
    let takes_all = |table: &Table| {
        let by_hash = table.partition_key.as_ref().is_some_and(|key| key.starts_with("HASH"));
        let is_default = |below: &Table| {
            below.partition.as_ref().is_some_and(|it| it.parent == table.name && it.bounds == "DEFAULT")
        };
        table.kind == TableKind::Ordinary || by_hash || target.tables.iter().any(is_default)
    };
    let there = roots.iter().filter_map(|root| target.table(&root.name));
    let without: Vec<&TableName> = there.filter(|table| !takes_all(table)).map(|table| &table.name).collect();
    if without.is_empty() {
        return None;
    }
    let message =
        format!("a row that no partition of the target takes would stop the copy or the apply: {}", listed(&without));
    let remedy =
        "see that the partitions there take every row of the source's, or CREATE TABLE … PARTITION OF … DEFAULT;";
    Some(Finding::warn(CHECK, message, remedy))
}

/// Changes find their rows by the identity of the source's partition, among the rows of all partitions.
fn without_key(root: &Table, target: &Catalog) -> Option<Finding> {
    let there = target.table(&root.name)?;
    let tells = |key: &UniqueKey, columns: &[String]| {
        let whole = key.valid && !key.partial && !key.expression;
        whole && key.columns.len() == columns.len() && columns.iter().all(|column| key.columns.contains(column))
    };
    let fits = |leaf: &Table| {
        leaf.replica_identity == ReplicaIdentity::Full
            || leaf.identity_columns.is_empty()
            || there.unique_keys.iter().any(|key| tells(key, &leaf.identity_columns))
    };
    let without: Vec<&Table> = root.stored().filter(|leaf| !fits(leaf)).collect();
    let columns: Vec<String> = without.first()?.identity_columns.iter().map(|name| quote_identifier(name)).collect();
    let columns = columns.join(", ");
    let message = format!(
        "{} has no unique key over ({columns}) on the target, by which the changes of its partitions find their rows",
        root.name
    );
    let full = |leaf: &&Table| format!("ALTER TABLE {} REPLICA IDENTITY FULL;", leaf.name.quoted());
    let remedy = format!(
        "ALTER TABLE {} ADD UNIQUE ({columns});\n-- or, where the target's partition key forbids it, on the source:\n{}",
        root.name.quoted(),
        statements(&without, full)
    );
    Some(Finding::fail(CHECK, message, remedy))
}

/// Partitions whose rows the target could not tell from the others' if they alone were truncated.
async fn untold(sides: &Sides<'_>, roots: &[&Table]) -> Result<Option<Finding>, Error> {
    let mut untold: Vec<&TableName> = Vec::new();
    for root in roots.iter().filter(|root| sides.target.catalog.table(&root.name).is_some()) {
        for leaf in &root.leaves {
            let told = match &leaf.condition {
                None => false,
                Some(rows) => {
                    let sql = format!("SELECT FROM {} WHERE {rows} LIMIT 0", root.name.quoted());
                    let asked = sides.target.session.simple_query(&sql).await;
                    // A function or a type of the source's that the target lacks.
                    asked.is_ok() || asked.is_err_and(|error| error.as_db_error().is_none())
                }
            };
            untold.extend((!told).then_some(&leaf.table.name));
        }
    }
    if untold.is_empty() {
        return Ok(None);
    }
    let message = format!(
        "the target cannot tell the rows of these partitions from those of their neighbours, so the apply would stand \
         still at a TRUNCATE of one of them: {}",
        listed(&untold)
    );
    let remedy =
        "truncate the whole table instead, or DELETE; after such a TRUNCATE `changeover resync` of the whole table";
    Ok(Some(Finding::warn(CHECK, message, remedy)))
}
