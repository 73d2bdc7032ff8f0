//! Which relations of the source a dump has to leave out.

use std::collections::BTreeSet;

use tracing::warn;

use crate::model::TableName;
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
