//! The tables there are, their sizes and their parents.

use std::collections::HashMap;

use super::ByTable;
use crate::model::{ReplicaIdentity, TableName};
use crate::schema::Error;
use crate::wire::Session;

/// A row of `pg_class`.
pub(super) struct Relation {
    pub(super) oid: u32,
    pub(super) name: TableName,
    pub(super) kind: String,
    pub(super) persistence: String,
    pub(super) partitioned: bool,
    /// `FOR VALUES ...` of a partition.
    pub(super) bounds: Option<String>,
    /// Of a partitioned table.
    pub(super) partition_key: Option<String>,
    pub(super) leaf_count: usize,
    pub(super) replica_identity: ReplicaIdentity,
    pub(super) owner: String,
    pub(super) row_security: bool,
    pub(super) row_estimate: Option<u64>,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) block_count: u64,
}

pub(super) async fn read(session: &Session) -> Result<Vec<Relation>, Error> {
    let sql = "SELECT c.oid, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
                      pg_catalog.pg_get_expr(c.relpartbound, c.oid), c.relreplident::text,
                      pg_catalog.pg_get_userbyid(c.relowner)::text, c.relrowsecurity, c.reltuples::float8,
                      CASE c.relkind WHEN 'p' THEN pg_catalog.pg_get_partkeydef(c.oid) END,
                      CASE c.relkind WHEN 'p' THEN (SELECT count(*) FROM pg_catalog.pg_partition_tree(c.oid) WHERE isleaf)
                                     ELSE 0 END
               FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't'
                 AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'changeover')
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                                   AND d.deptype = 'e')";
    let rows = session.query(sql, &[]).await.map_err(Error::query("read the tables"))?;
    rows.iter()
        .map(|row| {
            let (kind, identity): (String, String) = (row.get(3), row.get(6));
            let estimate: f64 = row.get(9);
            Ok(Relation {
                oid: row.get(0),
                name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
                partitioned: kind == "p",
                kind,
                persistence: row.get(4),
                bounds: row.get(5),
                partition_key: row.get(10),
                leaf_count: usize::try_from(row.get::<_, i64>(11)).unwrap_or_default(),
                replica_identity: replica_identity(identity)?,
                owner: row.get(7),
                row_security: row.get(8),
                // -1 from 14 on, and 0 with an empty file before, mean "never looked at".
                row_estimate: (estimate >= 0.0).then_some(estimate as u64),
            })
        })
        .collect()
}

fn replica_identity(letter: String) -> Result<ReplicaIdentity, Error> {
    match letter.as_str() {
        "d" => Ok(ReplicaIdentity::Default),
        "n" => Ok(ReplicaIdentity::Nothing),
        "f" => Ok(ReplicaIdentity::Full),
        "i" => Ok(ReplicaIdentity::Index),
        _ => Err(Error::UnknownCatalogValue { what: "a replica identity", found: letter }),
    }
}

/// From the file system, since `relpages` is as old as the last ANALYZE. A table dropped meanwhile has none.
pub(super) async fn sizes(session: &Session, oids: &[u32]) -> Result<HashMap<u32, Size>, Error> {
    let sql = "SELECT t.oid, coalesce(pg_catalog.pg_table_size(t.oid), 0),
                      coalesce(pg_catalog.pg_relation_size(t.oid), 0) / pg_catalog.current_setting('block_size')::int
               FROM pg_catalog.unnest($1::oid[]) AS t (oid)";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the tables' sizes"))?;
    let size = |row: &tokio_postgres::Row| Size {
        bytes: row.get::<_, i64>(1).unsigned_abs(),
        block_count: row.get::<_, i64>(2).unsigned_abs(),
    };
    Ok(rows.iter().map(|row| (row.get(0), size(row))).collect())
}

/// What each table is a partition or child of, in order.
pub(super) async fn parents(session: &Session, oids: &[u32]) -> Result<ByTable<TableName>, Error> {
    let sql = "SELECT i.inhrelid, n.nspname::text, c.relname::text
               FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE i.inhrelid = ANY ($1::oid[]) ORDER BY i.inhrelid, i.inhseqno";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the tables' parents"))?;
    let mut found = ByTable::new();
    for row in rows {
        let parent = TableName::new(row.get::<_, String>(1), row.get::<_, String>(2));
        found.entry(row.get(0)).or_default().push(parent);
    }
    Ok(found)
}
