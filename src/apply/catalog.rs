//! Reads what the target's catalog says about a table, once a shape.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio_postgres::Row;

use crate::model::{GatheredLeaves, Relation, TableFilter, TableHandover, TableName, quote_identifier};
use crate::wire::Session;

use super::error::Error;
use super::facts::{self, ColumnFacts, ColumnSql, Facts};
use super::lanes::Division;
use super::sql::cast_to;
use super::table::{LeafOf, Table};

/// Shapes kept. Every schema change in the stream makes a new one and nothing tells that an old one is over, so the
/// cache is emptied when it is full; a shape costs one look at the catalog.
const SHAPES_MAX: usize = 10_000;

/// A relation, and the table it stands for if that is of the migration.
type Shape = (Arc<Relation>, Option<Arc<Table>>);

/// The shapes seen so far.
pub(super) struct Shapes {
    filter: TableFilter,
    renames: BTreeMap<TableName, TableName>,
    gathered: GatheredLeaves,
    handovers: HashMap<TableName, Arc<TableHandover>>,
    division: Division,
    /// By the source's OID, newest last. `None`: not a table of the migration.
    known: HashMap<u32, Vec<Shape>>,
    count: usize,
    next_id: u32,
    /// [`Table::place`] of the tables that leaves are gathered in.
    places: HashMap<TableName, u32>,
}

impl Shapes {
    pub(super) fn new(
        filter: TableFilter,
        renames: BTreeMap<TableName, TableName>,
        gathered: GatheredLeaves,
        handovers: Vec<TableHandover>,
        division: Division,
    ) -> Self {
        let handovers = handovers.into_iter().map(|handover| (handover.table.clone(), Arc::new(handover))).collect();
        let (known, places) = (HashMap::new(), HashMap::new());
        Self { filter, renames, gathered, handovers, division, known, count: 0, next_id: 0, places }
    }

    /// The tables that a batch's relations stand for. `replica`: our session has `session_replication_role = replica`.
    pub(super) async fn resolve(
        &mut self,
        session: &Session,
        relations: &[Arc<Relation>],
        replica: bool,
    ) -> Result<Vec<Option<Arc<Table>>>, Error> {
        let mut tables = Vec::with_capacity(relations.len());
        for relation in relations {
            tables.push(match self.find(relation) {
                Some(found) => found,
                None => self.learn(session, relation, replica).await?,
            });
        }
        Ok(tables)
    }

    /// Whether another lane applies the changes of one of them.
    pub(super) fn leaves_out(&self, relations: &[Arc<Relation>]) -> bool {
        let others = |name| self.filter.matches(name) && !self.division.takes(self.gathered.member(name));
        relations.iter().any(|relation| others(&relation.name))
    }

    fn find(&self, relation: &Arc<Relation>) -> Option<Option<Arc<Table>>> {
        let shapes = self.known.get(&relation.oid)?;
        let same = |known: &Arc<Relation>| Arc::ptr_eq(known, relation) || known == relation;
        shapes.iter().rev().find(|(known, _)| same(known)).map(|(_, table)| table.clone())
    }

    async fn learn(
        &mut self,
        session: &Session,
        relation: &Arc<Relation>,
        replica: bool,
    ) -> Result<Option<Arc<Table>>, Error> {
        let name = &relation.name;
        let member = self.gathered.member(name).clone();
        // Where one between root and leaves is truncated, its leaves are too.
        let table = if self.filter.matches(name) && self.division.takes(&member) && !self.gathered.is_inner(name) {
            let target = self.renames.get(&member).unwrap_or(&member).clone();
            let facts = read_facts(session, name, &target, replica).await?;
            let handover = self.handovers.get(&member).cloned();
            self.next_id += 1;
            let table = facts::table_of(self.next_id, relation, target, &facts, handover)?;
            let table = Table { after: self.division.after(&member), ..table };
            Some(Arc::new(if self.gathered.is_leaf(name) { self.leaf(table, member) } else { table }))
        } else {
            None
        };
        if self.count >= SHAPES_MAX {
            self.known.clear();
            self.count = 0;
        }
        self.known.entry(relation.oid).or_default().push((Arc::clone(relation), table.clone()));
        self.count += 1;
        Ok(table)
    }

    /// The changes of all leaves of a root are those of one table, and are folded together where they look alike.
    fn leaf(&mut self, table: Table, root: TableName) -> Table {
        let relation = &table.relation;
        let place = *self.places.entry(root.clone()).or_insert(table.id);
        let looks_alike = |(_, known): &&Shape| {
            known.as_ref().is_some_and(|known| known.place == place && is_laid_out_alike(&known.relation, relation))
        };
        let alike = self.known.values().flatten().find(looks_alike).and_then(|(_, known)| known.as_ref());
        let leaf = LeafOf {
            condition: self.gathered.condition(&relation.name).map(str::to_owned),
            leaf_count: self.gathered.count_of(&root),
        };
        Table { id: alike.map_or(table.id, |alike| alike.id), place, member: root, leaf: Some(leaf), ..table }
    }
}

/// Whether tuples of both read alike.
fn is_laid_out_alike(one: &Relation, other: &Relation) -> bool {
    one.columns == other.columns && one.identity == other.identity && one.binary == other.binary
}

/// Triggers that fire in our session are those enabled ALWAYS, and REPLICA or the ordinary ones by its role
/// (`session_replication_role`); rules alike. Partitions have their own. Our own watch for strangers changes nothing.
const TABLE: &str = "
WITH own AS (
    SELECT $1::pg_catalog.oid AS oid UNION SELECT relid FROM pg_catalog.pg_partition_tree($1::pg_catalog.oid)
), fires AS (SELECT CASE WHEN $2 THEN '{A,R}'::text[] ELSE '{A,O}'::text[] END AS states)
SELECT class.relkind = 'p' AS partitioned,
       EXISTS (SELECT FROM pg_catalog.pg_trigger, fires
               WHERE tgrelid IN (SELECT oid FROM own) AND tgenabled::text = ANY (states)
                 AND NOT pg_catalog.starts_with(tgname::text, 'changeover_watch_')) AS triggers,
       EXISTS (SELECT FROM pg_catalog.pg_rewrite, fires
               WHERE ev_class IN (SELECT oid FROM own) AND ev_type <> '1' AND ev_enabled::text = ANY (states)) AS rules,
       (SELECT count(*) FROM pg_catalog.pg_index
        WHERE indrelid IN (SELECT oid FROM own) AND (indisunique OR indisexclusion)
          AND (indrelid = class.oid OR NOT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhrelid = indexrelid))) AS exclusive_count,
       pg_catalog.row_security_active(class.oid) AS row_security,
       (SELECT min(conname) FROM pg_catalog.pg_constraint
        WHERE contype = 'f' AND conrelid IN (SELECT oid FROM own) AND NOT $2
          AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')))::text AS acting
FROM pg_catalog.pg_class AS class WHERE class.oid = $1";

/// `base` is the type under any domains: values are cast to it, and the assignment applies the domain and the length.
/// A cast from text that is a function of its own is gone round by way of bpchar, from which the input function is
/// always used; the four built-in ones (`char`, name, regclass, xml) agree with their input functions.
const COLUMNS: &str = "
WITH RECURSIVE base AS (
    SELECT attnum, atttypid AS type FROM pg_catalog.pg_attribute
    WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
  UNION ALL
    SELECT base.attnum, domain.typbasetype FROM base JOIN pg_catalog.pg_type AS domain ON domain.oid = base.type
    WHERE domain.typtype = 'd'
)
SELECT a.attname::text AS name, a.attgenerated <> '' AS generated, a.attidentity = 'a' AS identity_always,
       n.nspname::text AS type_schema, t.typname::text AS type_name, t.oid AS type_oid,
       n.nspname <> 'pg_catalog' AND EXISTS (
           SELECT FROM pg_catalog.pg_cast
           WHERE castsource = 'pg_catalog.text'::regtype AND casttarget = t.oid AND castmethod = 'f') AS by_bpchar,
       (SELECT min(s.nspname::text) FROM pg_catalog.pg_operator AS o JOIN pg_catalog.pg_namespace AS s ON s.oid = o.oprnamespace
        WHERE o.oprname = '=' AND o.oprleft = t.oid AND o.oprright = t.oid) AS operator_schema,
       t.typname = 'varchar' OR t.typtype = 'e' OR EXISTS (
           SELECT FROM pg_catalog.pg_opclass AS c JOIN pg_catalog.pg_am AS m ON m.oid = c.opcmethod
           WHERE m.amname = 'btree' AND c.opcdefault AND c.opcintype = t.oid) AS indexable
FROM pg_catalog.pg_attribute AS a
JOIN base ON base.attnum = a.attnum
JOIN pg_catalog.pg_type AS t ON t.oid = base.type AND t.typtype <> 'd'
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
WHERE a.attrelid = $1 ORDER BY a.attnum";

const KEYS: &str = "
SELECT (SELECT pg_catalog.array_agg(a.attname::text) FROM pg_catalog.unnest(i.indkey[0:i.indnkeyatts - 1]) AS k(attnum)
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND a.attnotnull) AS columns
FROM pg_catalog.pg_index AS i
WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
  AND NOT EXISTS (SELECT FROM pg_catalog.unnest(i.indkey[0:i.indnkeyatts - 1]) AS k(attnum)
                  JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                  WHERE NOT a.attnotnull)
ORDER BY i.indisprimary DESC, i.indexrelid";

async fn read_facts(session: &Session, source: &TableName, target: &TableName, replica: bool) -> Result<Facts, Error> {
    let failed = |source| Error::Query { what: "read the target's catalog", source };
    let find = "SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
                WHERE n.nspname = $1::text AND c.relname = $2::text AND c.relkind IN ('r', 'p')";
    let found = session.query_opt(find, &[&target.schema, &target.name]).await.map_err(failed)?;
    let Some(oid) = found.map(|row| row.get::<_, u32>(0)) else {
        return Err(Error::MissingTable { table: source.clone(), target: target.clone() });
    };
    let table = session.query_one(TABLE, &[&oid, &replica]).await.map_err(failed)?;
    let columns = session.query(COLUMNS, &[&oid]).await.map_err(failed)?;
    let keys = session.query(KEYS, &[&oid]).await.map_err(failed)?;
    let rules: bool = table.get("rules");
    Ok(Facts {
        columns: columns.iter().map(column_of).collect(),
        keys: keys.iter().map(|row| row.get("columns")).collect(),
        partitioned: table.get("partitioned"),
        exclusive_count: table.get("exclusive_count"),
        acts: rules || table.get::<_, bool>("triggers"),
        refuses_copy: rules || table.get::<_, bool>("row_security"),
        acting_constraint: table.get("acting"),
    })
}

fn column_of(row: &Row) -> ColumnFacts {
    let name: String = row.get("name");
    let to_type = cast_to(row.get("type_schema"), row.get("type_name"));
    let by_bpchar: bool = row.get("by_bpchar");
    let operator_schema: Option<&str> = row.get("operator_schema");
    ColumnFacts {
        generated: row.get("generated"),
        column: Arc::new(ColumnSql {
            quoted: quote_identifier(&name),
            type_oid: row.get("type_oid"),
            cast: if by_bpchar { format!("::pg_catalog.bpchar{to_type}") } else { to_type },
            equals: format!("OPERATOR({}.=)", quote_identifier(operator_schema.unwrap_or("pg_catalog"))),
            indexable: row.get("indexable"),
            identity_always: row.get("identity_always"),
        }),
        name,
    }
}
