//! Which relations of the source a dump has to leave out.

use std::collections::BTreeSet;

use tracing::warn;

use crate::model::TableName;
use crate::schema::dump::{Dump, Entry};
use crate::schema::{Catalog, Error};
use crate::wire::Session;

/// Tables that do not belong to the migration, the sequences they own, and every view over them. Everything else of the
/// database is dumped: nobody can tell which function or type a migrated table's trigger will need.
pub(super) async fn excluded(source: &Session, catalog: &Catalog) -> Result<Vec<TableName>, Error> {
    let tables = catalog.tables.iter().map(|table| &table.name);
    let chosen: BTreeSet<&TableName> = tables.chain(catalog.not_streamed.iter().map(|table| &table.name)).collect();
    let doing = || Error::query("read which relations to leave out");
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't'
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'changeover')
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                                   AND d.deptype = 'e')";
    let rows = source.query(sql, &[]).await.map_err(doing())?;
    let name = |row: &tokio_postgres::Row| TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
    let outside: Vec<u32> = rows.iter().filter(|row| !chosen.contains(&name(row))).map(|row| row.get(0)).collect();
    if outside.is_empty() {
        return Ok(Vec::new());
    }
    let rows = source.query(WITH_DEPENDENTS, &[&outside]).await.map_err(doing())?;
    for view in rows.iter().filter(|row| row.get::<_, bool>(3)) {
        warn!(view = %name(view), "left out: it reads a table that is not migrated");
    }
    Ok(rows.iter().map(name).collect())
}

/// A policy, rule or trigger of a migrated table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    kind: String,
    table: TableName,
    name: String,
}

/// Those that cannot be made without one of the relations that are left out.
pub(super) async fn parts_that_need(source: &Session, excluded: &[TableName]) -> Result<Vec<Part>, Error> {
    let names: Vec<String> = excluded.iter().map(TableName::quoted).collect();
    let rows =
        source.query(PARTS, &[&names]).await.map_err(Error::query("read what needs a table that is left out"))?;
    let part = |row: &tokio_postgres::Row| Part {
        kind: row.get(0),
        table: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        name: row.get(3),
    };
    Ok(rows.iter().map(part).collect())
}

/// Takes them out of a dump, with what is said about them, and tells.
pub(super) fn leave_out(dump: &mut Dump, parts: &[Part]) {
    let of = |entry: &Entry| parts.iter().find(|part| part.is_made_by(entry)).cloned();
    dump.entries.retain(|entry| match of(entry) {
        Some(Part { kind, table, name }) => {
            if entry.kind == kind {
                warn!(left_out = format!("{kind} {table} {name}"), "it needs a table that is not migrated");
            }
            false
        }
        None => true,
    });
}

impl Part {
    fn is_made_by(&self, entry: &Entry) -> bool {
        let stands = || entry.named_part().is_some_and(|(name, table)| name == self.name && table == self.table);
        (entry.kind == self.kind || (entry.kind == "COMMENT" && entry.says(&["on", &self.kind]))) && stands()
    }
}

/// Through `pg_depend`: on the relation itself, or on a function that takes or gives its rows.
const PARTS: &str = "
    WITH gone (oid) AS (
        SELECT pg_catalog.to_regclass(name)::oid FROM pg_catalog.unnest($1::text[]) AS name
    ), types (oid) AS (
        SELECT t.oid FROM pg_catalog.pg_type t JOIN gone g ON t.typrelid = g.oid
        UNION SELECT a.oid FROM pg_catalog.pg_type t JOIN gone g ON t.typrelid = g.oid
              JOIN pg_catalog.pg_type a ON a.oid = t.typarray
    ), needed (class, oid) AS (
        SELECT 'pg_catalog.pg_class'::pg_catalog.regclass::oid, oid FROM gone
        UNION SELECT d.classid, d.objid FROM pg_catalog.pg_depend d JOIN types t ON d.refobjid = t.oid
              WHERE d.refclassid = 'pg_catalog.pg_type'::pg_catalog.regclass
                AND d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass
    ), parts (kind, class, oid, relation, name) AS (
        SELECT 'POLICY', 'pg_catalog.pg_policy'::pg_catalog.regclass::oid, oid, polrelid, polname
        FROM pg_catalog.pg_policy
        UNION ALL SELECT 'RULE', 'pg_catalog.pg_rewrite'::pg_catalog.regclass::oid, oid, ev_class, rulename
        FROM pg_catalog.pg_rewrite WHERE rulename <> '_RETURN'
        UNION ALL SELECT 'TRIGGER', 'pg_catalog.pg_trigger'::pg_catalog.regclass::oid, oid, tgrelid, tgname
        FROM pg_catalog.pg_trigger WHERE NOT tgisinternal
    )
    SELECT DISTINCT p.kind, n.nspname::text, c.relname::text, p.name::text
    FROM parts p JOIN pg_catalog.pg_depend d ON d.classid = p.class AND d.objid = p.oid
    JOIN needed e ON e.class = d.refclassid AND e.oid = d.refobjid AND e.oid <> p.relation
    JOIN pg_catalog.pg_class c ON c.oid = p.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

/// The relations themselves, views over them, and sequences they own.
const WITH_DEPENDENTS: &str = "
    WITH RECURSIVE gone (oid, is_view) AS (
        SELECT pg_catalog.unnest($1::oid[]), false
        UNION
        SELECT r.ev_class, true
        FROM gone g
        JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = g.oid
             AND d.classid = 'pg_catalog.pg_rewrite'::regclass
        JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid
        JOIN pg_catalog.pg_class v ON v.oid = r.ev_class AND v.relkind IN ('v', 'm')
    ), owned (oid, is_view) AS (
        SELECT d.objid, false
        FROM gone g
        JOIN pg_catalog.pg_depend d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = g.oid
             AND d.refobjsubid > 0 AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype IN ('a', 'i')
        JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    )
    SELECT c.oid, n.nspname::text, c.relname::text, bool_or(a.is_view) AND NOT c.oid = ANY ($1::oid[])
    FROM (SELECT * FROM gone UNION SELECT * FROM owned) a
    JOIN pg_catalog.pg_class c ON c.oid = a.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    GROUP BY c.oid, n.nspname, c.relname ORDER BY n.nspname, c.relname";
