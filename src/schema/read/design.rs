//! What a comparison needs beyond the inventory: constraints, indexes, expressions and labels, as SQL.

use std::collections::BTreeMap;

use crate::schema::Error;
use crate::schema::catalog::{Catalog, Constraint, ConstraintKind, Design, Index, TableDesign};
use crate::wire::Session;

/// For the tables of `catalog`, which was read from the same server.
pub async fn read_design(session: &Session, catalog: &Catalog) -> Result<Design, Error> {
    let oids: Vec<u32> = catalog.tables.iter().map(|table| table.oid).collect();
    let (mut constraints, mut indexes, mut expressions, mut labels, mut keys) = tokio::try_join!(
        constraints(session, &oids),
        indexes(session, &oids),
        expressions(session, &oids),
        labels(session, &oids),
        partition_keys(session, &oids),
    )?;
    let design = |oid: &u32| TableDesign {
        constraints: constraints.remove(oid).unwrap_or_default(),
        indexes: indexes.remove(oid).unwrap_or_default(),
        expressions: expressions.remove(oid).unwrap_or_default().into_iter().collect(),
        enum_labels: labels.remove(oid).unwrap_or_default().into_iter().collect(),
        partition_key: keys.remove(oid),
    };
    let designs = oids.iter().map(design);
    let tables: BTreeMap<_, _> = catalog.tables.iter().map(|table| table.name.clone()).zip(designs).collect();
    Ok(Design { tables })
}

type ByTable<T> = super::ByTable<T>;

/// As declared: what a partition has from its root is the root's.
async fn constraints(session: &Session, oids: &[u32]) -> Result<ByTable<Constraint>, Error> {
    let sql = "SELECT conrelid, conname::text, contype::text, pg_catalog.pg_get_constraintdef(oid)
               FROM pg_catalog.pg_constraint
               WHERE conrelid = ANY ($1::oid[]) AND contype IN ('c', 'f', 'p', 'u', 'x') AND conislocal AND conparentid = 0
               ORDER BY conrelid, contype = 'f', conname";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the constraints"))?;
    let mut found = ByTable::new();
    for row in rows {
        let letter: String = row.get(2);
        let kind = match letter.as_str() {
            "c" => ConstraintKind::Check,
            "f" => ConstraintKind::ForeignKey,
            "x" => ConstraintKind::Exclusion,
            "p" | "u" => ConstraintKind::Unique,
            _ => return Err(Error::UnknownCatalogValue { what: "a constraint's kind", found: letter }),
        };
        let constraint = Constraint { name: row.get(1), kind, definition: row.get(3) };
        found.entry(row.get(0)).or_default().push(constraint);
    }
    Ok(found)
}

/// Valid ones that no constraint stands for, and that are not a partition's share of its root's.
async fn indexes(session: &Session, oids: &[u32]) -> Result<ByTable<Index>, Error> {
    let sql = "SELECT i.indrelid, c.relname::text, pg_catalog.pg_get_indexdef(i.indexrelid), i.indisunique
               FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
               WHERE i.indrelid = ANY ($1::oid[]) AND NOT c.relispartition AND (i.indisvalid OR c.relkind = 'I')
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint o
                                 WHERE o.conindid = i.indexrelid AND o.contype IN ('p', 'u', 'x'))
               ORDER BY i.indrelid, c.relname";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the indexes"))?;
    let mut found = ByTable::new();
    for row in rows {
        let index = Index { name: row.get(1), definition: row.get(2), unique: row.get(3) };
        found.entry(row.get(0)).or_default().push(index);
    }
    Ok(found)
}

/// Of generated columns, by column.
async fn expressions(session: &Session, oids: &[u32]) -> Result<ByTable<(String, String)>, Error> {
    let sql = "SELECT a.attrelid, a.attname::text, pg_catalog.pg_get_expr(d.adbin, d.adrelid)
               FROM pg_catalog.pg_attribute a
               JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
               WHERE a.attrelid = ANY ($1::oid[]) AND a.attgenerated <> '' AND NOT a.attisdropped";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read how columns are computed"))?;
    let mut found = ByTable::new();
    for row in rows {
        found.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    Ok(found)
}

/// The labels of columns of an enumeration, of an array of one or of a domain over one, by column.
async fn labels(session: &Session, oids: &[u32]) -> Result<ByTable<(String, Vec<String>)>, Error> {
    let sql = "SELECT a.attrelid, a.attname::text,
                      ARRAY(SELECT e.enumlabel::text FROM pg_catalog.pg_enum e
                            WHERE e.enumtypid IN (t.oid, t.typelem, t.typbasetype) ORDER BY e.enumsortorder)
               FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
               WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
                 AND EXISTS (SELECT FROM pg_catalog.pg_enum e WHERE e.enumtypid IN (t.oid, t.typelem, t.typbasetype))";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the labels of enumerations"))?;
    let mut found = ByTable::new();
    for row in rows {
        found.entry(row.get(0)).or_default().push((row.get(1), row.get(2)));
    }
    Ok(found)
}

/// `RANGE (at)`, of partitioned tables.
async fn partition_keys(session: &Session, oids: &[u32]) -> Result<std::collections::HashMap<u32, String>, Error> {
    let sql = "SELECT partrelid, pg_catalog.pg_get_partkeydef(partrelid) FROM pg_catalog.pg_partitioned_table
               WHERE partrelid = ANY ($1::oid[])";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the partition keys"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}
