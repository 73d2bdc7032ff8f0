//! Partitioned tables that the target partitions in another way, or not at all.
//!
//! Their leaves cannot be told apart on the target, and rows move between them. So the whole tree becomes one table of the
//! migration, under the name of its root: it is copied, compared and copied again as one. Only the stream (and whoever
//! publishes it) still knows the leaves, since that is what the source sends.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use super::Error;
use super::catalog::{Catalog, Leaf, Table, TableKind};
use super::read::read_catalog;
use crate::model::{MigrationName, RowFilters, TableFilter, TableName};
use crate::wire::Session;

/// The source's tables as the target keeps them.
#[derive(Clone, Debug)]
pub struct Gathered {
    pub catalog: Catalog,
    /// Trees that differ and cannot be one table.
    pub unfit: Vec<Unfit>,
}

/// A tree of the source that the target keeps otherwise, and why it cannot be brought there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfit {
    pub root: TableName,
    pub why: UnfitKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnfitKind {
    /// The configuration names leaves of it, and not the table that the target keeps them in.
    RootOutside,
    /// Some are excluded, foreign or unlogged: the target's table could not be compared with all of the source's.
    LeavesOutside { streamed: usize, all: usize },
    /// Only some rows of a leaf are wanted, and on the target nobody could say which rows are that leaf's.
    RowFilter { leaf: TableName },
}

/// What the migration has settled on already. A tree that was begun in one way stays so: its rows are recorded, divided
/// and handed over under the names that it began with.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    pub gathered: BTreeSet<TableName>,
    /// Every table of the migration.
    pub members: BTreeSet<TableName>,
}

/// Gathers the trees of `catalog` that the target keeps otherwise.
pub async fn gather(
    source: &Session,
    target: &Session,
    catalog: &Catalog,
    rows: &RowFilters,
    settled: &Settled,
) -> Result<Gathered, Error> {
    if catalog.tables.iter().all(|table| table.partition.is_none()) {
        return Ok(Gathered { catalog: catalog.clone(), unfit: Vec::new() });
    }
    let there = read_catalog(target, &TableFilter::everything()).await?;
    let (trees, unfit) = differing(catalog, &there, rows, settled);
    let oids = trees.values().flatten().filter_map(|name| catalog.table(name)).map(|table| table.oid).collect();
    let conditions = if trees.is_empty() { HashMap::new() } else { conditions(source, oids).await? };
    Ok(Gathered { catalog: with_leaves(catalog, &trees, &conditions), unfit })
}

/// What an earlier start has recorded; nothing where there is no record.
pub async fn read_settled(target: &Session, migration: &MigrationName) -> Result<Settled, Error> {
    Ok(Settled {
        gathered: recorded(target, migration, "changeover.gathered").await?,
        members: recorded(target, migration, "changeover.member").await?,
    })
}

async fn recorded(target: &Session, migration: &MigrationName, table: &str) -> Result<BTreeSet<TableName>, Error> {
    let failed = || Error::query("read which tables are gathered");
    let there = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    if !target.query_one(there, &[&table]).await.map_err(failed())?.get::<_, bool>(0) {
        return Ok(BTreeSet::new());
    }
    let sql = format!("SELECT table_schema, table_name FROM {table} WHERE migration = $1");
    let rows = target.query(&sql, &[&migration.as_str()]).await.map_err(failed())?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}

/// These are gathered from now on, before anything is recorded under their names.
pub async fn record_gathered(target: &Session, migration: &MigrationName, catalog: &Catalog) -> Result<(), Error> {
    let gathered = catalog.tables.iter().filter(|table| table.is_gathered());
    let (schemas, names): (Vec<&str>, Vec<&str>) =
        gathered.map(|table| (table.name.schema.as_str(), table.name.name.as_str())).unzip();
    let sql = "INSERT INTO changeover.gathered (migration, table_schema, table_name)
               SELECT $1, * FROM ROWS FROM (pg_catalog.unnest($2::text[]), pg_catalog.unnest($3::text[])) AS w
               ON CONFLICT DO NOTHING";
    let recorded = target.execute(sql, &[&migration.as_str(), &schemas, &names]).await;
    recorded.map(drop).map_err(Error::query("record which tables are gathered"))
}

/// Leaves by the table that they become.
type Trees = BTreeMap<TableName, Vec<TableName>>;

fn differing(source: &Catalog, target: &Catalog, rows: &RowFilters, settled: &Settled) -> (Trees, Vec<Unfit>) {
    let mut below = BTreeMap::<TableName, Vec<&Table>>::new();
    for table in source.tables.iter().filter(|table| table.partition.is_some()) {
        if let Some(top) = top_on(table, source, target) {
            below.entry(top).or_default().push(table);
        }
    }
    let (mut trees, mut unfit) = (Trees::new(), Vec::new());
    for (root, below) in below {
        let begun_as_itself =
            below.iter().any(|table| table.kind == TableKind::Ordinary && settled.members.contains(&table.name));
        let stays = !settled.gathered.contains(&root) && begun_as_itself;
        if stays || (!settled.gathered.contains(&root) && is_same(&root, &below, source, target)) {
            continue;
        }
        let leaves: Vec<TableName> =
            below.iter().filter(|table| table.kind == TableKind::Ordinary).map(|table| table.name.clone()).collect();
        if leaves.is_empty() {
            continue;
        }
        match why_unfit(source.table(&root), &leaves, rows) {
            Some(why) => unfit.push(Unfit { root, why }),
            None => drop(trees.insert(root, leaves)),
        }
    }
    (trees, unfit)
}

/// The names of the tables above a partition, the nearest first.
fn above<'a>(table: &'a Table, catalog: &'a Catalog) -> impl Iterator<Item = &'a TableName> {
    let above = std::iter::successors(table.partition.as_ref(), |partition| {
        catalog.table(&partition.parent).and_then(|parent| parent.partition.as_ref())
    });
    // As many levels as there are tables, at most.
    above.take(catalog.tables.len()).map(|partition| &partition.parent)
}

/// The highest of the tables above a partition that the target has too.
fn top_on(table: &Table, source: &Catalog, target: &Catalog) -> Option<TableName> {
    above(table, source).filter(|name| target.table(name).is_some()).last().cloned()
}

/// Whether each partition of the source is on the target, under the same parent, with the same bounds and by the same
/// key: then what a leaf takes there is what it takes here.
fn is_same(root: &TableName, below: &[&Table], source: &Catalog, target: &Catalog) -> bool {
    let alike = |table: &Table| {
        let there = target.table(&table.name);
        there.is_some_and(|there| {
            there.kind == table.kind && there.partition_key == table.partition_key && there.partition == table.partition
        })
    };
    let root_here = source.table(root);
    let root_alike = root_here.is_none_or(|here| {
        target.table(root).is_some_and(|there| there.kind == here.kind && there.partition_key == here.partition_key)
    });
    let leaf_count = below.iter().filter(|table| table.kind == TableKind::Ordinary).count();
    let is_complete = root_here.is_some_and(|root| root.leaf_count == leaf_count);
    root_alike
        && below.iter().all(|table| alike(table))
        && (!is_complete || below.iter().all(|table| takes_the_same_rest(table, source, target)))
}

/// A default partition takes what no sibling takes, so a sibling that only the target has takes rows from it.
fn takes_the_same_rest(table: &Table, source: &Catalog, target: &Catalog) -> bool {
    let Some(partition) = table.partition.as_ref().filter(|partition| partition.bounds == "DEFAULT") else {
        return true;
    };
    let is_sibling = |other: &&Table| other.partition.as_ref().is_some_and(|other| other.parent == partition.parent);
    target.tables.iter().filter(is_sibling).all(|sibling| source.table(&sibling.name).is_some())
}

fn why_unfit(root: Option<&Table>, leaves: &[TableName], rows: &RowFilters) -> Option<UnfitKind> {
    let Some(root) = root else { return Some(UnfitKind::RootOutside) };
    if root.leaf_count != leaves.len() {
        return Some(UnfitKind::LeavesOutside { streamed: leaves.len(), all: root.leaf_count });
    }
    let filtered = leaves.iter().find(|leaf| rows.of(leaf).is_some());
    filtered.map(|leaf| UnfitKind::RowFilter { leaf: leaf.clone() })
}

/// What the rows of each leaf fulfil. Hash partitions name the source's table by its OID, which means nothing on the
/// target.
async fn conditions(source: &Session, oids: Vec<u32>) -> Result<HashMap<u32, String>, Error> {
    const BY_OID: &str = "satisfies_hash_partition(";
    let sql = "SELECT oid, pg_catalog.pg_get_partition_constraintdef(oid) FROM pg_catalog.unnest($1::oid[]) AS t (oid)";
    let rows = source.query(sql, &[&oids]).await.map_err(Error::query("read what the partitions hold"))?;
    let condition = |row: &tokio_postgres::Row| {
        let condition = row.get::<_, Option<String>>(1).filter(|condition| !condition.contains(BY_OID));
        condition.map(|condition| (row.get(0), condition))
    };
    Ok(rows.iter().filter_map(condition).collect())
}

fn with_leaves(catalog: &Catalog, trees: &Trees, conditions: &HashMap<u32, String>) -> Catalog {
    let mut gathered = catalog.clone();
    let is_below = |table: &Table| above(table, catalog).any(|name| trees.contains_key(name));
    let (below, kept): (Vec<Table>, Vec<Table>) = gathered.tables.into_iter().partition(is_below);
    gathered.tables = kept;
    for root in &mut gathered.tables {
        let Some(names) = trees.get(&root.name) else { continue };
        let leaves = names.iter().filter_map(|name| catalog.table(name)).cloned();
        root.leaves = leaves.map(|table| Leaf { condition: conditions.get(&table.oid).cloned(), table }).collect();
        let inner = below.iter().filter(|table| table.kind == TableKind::Partitioned);
        root.inner = inner
            .filter(|table| above(table, catalog).any(|name| *name == root.name))
            .map(|table| table.name.clone())
            .collect();
        let stored = || root.leaves.iter().map(|leaf| &leaf.table);
        root.size_bytes = stored().map(|table| table.size_bytes).sum();
        root.block_count = stored().map(|table| table.block_count).sum();
        root.row_estimate = stored().filter_map(|table| table.row_estimate).reduce(|sum, rows| sum + rows);
    }
    gathered
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is partitioned otherwise on the target, and ", self.root)?;
        match &self.why {
            UnfitKind::RootOutside => f.write_str("it is no table of the migration, only partitions of it are"),
            UnfitKind::LeavesOutside { streamed, all } => write!(
                f,
                "only {streamed} of its {all} partitions are streamed (the others are excluded, foreign or unlogged), so \
                 it could not be compared with all of the source's rows"
            ),
            UnfitKind::RowFilter { leaf } => {
                write!(f, "tables.rows names some rows of its partition {leaf}, whose rows nobody could tell there")
            }
        }
    }
}

impl Unfit {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        let same = "or partition the target's table as the source does: the same names, parents, keys and bounds";
        match &self.why {
            UnfitKind::RootOutside => format!("let [tables] include match {} too, {same}", self.root),
            UnfitKind::LeavesOutside { .. } => {
                format!("let [tables] match all of them (ALTER TABLE … SET LOGGED streams an unlogged one), {same}")
            }
            UnfitKind::RowFilter { leaf } => format!("take {leaf} out of [tables.rows], {same}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Database, Partition};

    fn name(name: &str) -> TableName {
        TableName::new("s", name)
    }

    fn leaves_under(tables: &[(&str, &str, &str)], root: &str) -> usize {
        let below = tables.iter().filter(|(_, parent, _)| *parent == root);
        below.map(|(table, ..)| table.split_once('*').map_or(1, |(_, table)| leaves_under(tables, table))).sum()
    }

    /// `(name, parent, bounds)`; a `*` in front of a name makes it partitioned by what stands in front of the `*`.
    fn catalog(tables: &[(&str, &str, &str)]) -> Catalog {
        let table = |&(table, parent, bounds): &(&str, &str, &str)| {
            let (key, table) = table.split_once('*').map_or((None, table), |(key, table)| (Some(key), table));
            Table {
                kind: if key.is_some() { TableKind::Partitioned } else { TableKind::Ordinary },
                partition: (!parent.is_empty()).then(|| Partition { parent: name(parent), bounds: bounds.to_owned() }),
                partition_key: key.map(str::to_owned),
                leaf_count: if key.is_some() { leaves_under(tables, table) } else { 0 },
                row_estimate: Some(2),
                size_bytes: 3,
                block_count: 1,
                ..Table::sample(name(table))
            }
        };
        let mut tables: Vec<Table> = tables.iter().map(table).collect();
        tables.sort_by(|left, right| left.name.cmp(&right.name));
        let text = String::new;
        let database = Database { name: text(), encoding: text(), collate: text(), ctype: text(), locale: None };
        Catalog {
            server_version_num: 150_000,
            database,
            tables,
            not_streamed: Vec::new(),
            sequences: Vec::new(),
            extensions: Vec::new(),
            large_object_count: 0,
        }
    }

    const SOURCE: &[(&str, &str, &str)] = &[("R*p", "", ""), ("p1", "p", "1"), ("L*p2", "p", "2"), ("p2a", "p2", "a")];

    fn found(target: &[(&str, &str, &str)], settled: &Settled) -> Vec<String> {
        let (trees, unfit) = differing(&catalog(SOURCE), &catalog(target), &RowFilters::default(), settled);
        assert_eq!(unfit, []);
        trees.iter().map(|(root, leaves)| format!("{}: {}", root.name, leaves.len())).collect()
    }

    #[test]
    fn a_tree_is_gathered_unless_every_partition_takes_the_same_rows_there() {
        let found = |target| found(target, &Settled::default());
        assert!(found(SOURCE).is_empty());
        let more = [SOURCE, &[("p3", "p", "3")]].concat();
        assert!(found(&more).is_empty(), "a partition more takes nothing from the others");
        for other in [
            &[("p", "", "")][..],
            &[("H*p", "", ""), ("p1", "p", "1"), ("L*p2", "p", "2"), ("p2a", "p2", "a")],
            &[("R*p", "", ""), ("p1", "p", "other"), ("L*p2", "p", "2"), ("p2a", "p2", "a")],
            &[("R*p", "", ""), ("p1", "p", "1"), ("L*p2", "p", "2"), ("p2a", "p", "a")],
            &[("R*p", "", ""), ("p1", "p", "1"), ("p2", "p", "2")],
        ] {
            assert_eq!(found(other), ["p: 2"], "{other:?}");
        }
        assert_eq!(found(&[("L*p2", "", ""), ("p1", "", "")]), ["p2: 1"], "the highest that is there");
        assert!(found(&[("p1", "", ""), ("p2a", "", "")]).is_empty(), "tables of their own");
    }

    #[test]
    fn a_default_partition_is_another_beside_other_siblings() {
        let source = catalog(&[("R*p", "", ""), ("p1", "p", "1"), ("rest", "p", "DEFAULT")]);
        let target = catalog(&[("R*p", "", ""), ("p1", "p", "1"), ("p2", "p", "2"), ("rest", "p", "DEFAULT")]);
        let trees = |source, target| differing(source, target, &RowFilters::default(), &Settled::default()).0.len();
        assert_eq!([trees(&source, &target), trees(&source, &source)], [1, 0]);
    }

    #[test]
    fn a_tree_stays_as_it_was_begun() {
        let set = |names: &[&str]| names.iter().map(|it| name(it)).collect::<BTreeSet<_>>();
        let as_itself = Settled { gathered: set(&[]), members: set(&["p", "p1", "p2", "p2a"]) };
        assert!(found(&[("p", "", "")], &as_itself).is_empty());
        let gathered = Settled { gathered: set(&["p"]), members: set(&["p"]) };
        assert_eq!(found(SOURCE, &gathered), ["p: 2"]);
    }

    #[test]
    fn the_root_stands_for_its_leaves() {
        let trees = Trees::from([(name("p"), vec![name("p1"), name("p2a")])]);
        let gathered = with_leaves(&catalog(SOURCE), &trees, &HashMap::new());
        let rows: Vec<&str> = gathered.row_tables().map(|table| table.name.name.as_str()).collect();
        let streamed: Vec<&str> = gathered.streamed_tables().map(|table| table.name.name.as_str()).collect();
        assert_eq!((rows, streamed, gathered.tables.len()), (vec!["p"], vec!["p1", "p2a"], 1));
        let root = &gathered.tables[0];
        assert_eq!((root.size_bytes, root.row_estimate, root.block_count), (6, Some(4), 2));
        assert_eq!([gathered.gathered_from(&name("p2a")), gathered.gathered_from(&name("p2"))], [Some(root); 2]);
        let leaves = gathered.gathered_leaves();
        assert_eq!((leaves.count_of(&name("p")), leaves.is_inner(&name("p2"))), (2, true));
    }

    #[test]
    fn part_of_a_tree_cannot_be_gathered() {
        let source = catalog(&[("R*p", "", ""), ("p1", "p", "1"), ("p2", "p", "2")]);
        let target = catalog(&[("p", "", "")]);
        let mut some = source.clone();
        some.tables.retain(|table| table.name != name("p2"));
        let why = |source: &Catalog| {
            let (trees, unfit) = differing(source, &target, &RowFilters::default(), &Settled::default());
            assert!(trees.is_empty());
            unfit[0].why.clone()
        };
        assert_eq!(why(&some), UnfitKind::LeavesOutside { streamed: 1, all: 2 });
        some.tables.retain(|table| table.name != name("p"));
        assert_eq!(why(&some), UnfitKind::RootOutside);
    }
}
