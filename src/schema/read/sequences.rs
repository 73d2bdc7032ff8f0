//! Sequences of the migrated tables and schemas.

use std::collections::BTreeSet;

use tokio_postgres::Row;

use crate::model::{TableFilter, TableName};
use crate::schema::Error;
use crate::schema::catalog::{Sequence, SequenceOwner, Table};
use crate::wire::Session;

/// A sequence that a column owns goes with its table. A free one goes with its schema, as soon as one table of it is
/// migrated, because nobody can tell who calls it.
pub(super) async fn read(session: &Session, filter: &TableFilter, tables: &[Table]) -> Result<Vec<Sequence>, Error> {
    let sql = "SELECT n.nspname::text, c.relname::text, d.deptype::text, tn.nspname::text, tc.relname::text,
                      a.attname::text,
                      CASE WHEN pg_catalog.has_sequence_privilege(c.oid, 'SELECT, USAGE')
                           THEN pg_catalog.pg_sequence_last_value(c.oid) END,
                      s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle
               FROM pg_catalog.pg_sequence s
               JOIN pg_catalog.pg_class c ON c.oid = s.seqrelid
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               LEFT JOIN pg_catalog.pg_depend d
                    ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
               LEFT JOIN pg_catalog.pg_class tc ON tc.oid = d.refobjid
               LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace
               LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
               WHERE c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'changeover')
                 AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e
                                 WHERE e.classid = 'pg_catalog.pg_class'::regclass AND e.objid = c.oid
                                   AND e.deptype = 'e')";
    let rows = session.query(sql, &[]).await.map_err(Error::query("read the sequences"))?;
    let schemas: BTreeSet<&str> = tables.iter().map(|table| table.name.schema.as_str()).collect();
    let mut found: Vec<Sequence> = rows.iter().map(sequence).collect();
    found.retain(|sequence| match &sequence.owner {
        SequenceOwner::None => schemas.contains(sequence.name.schema.as_str()) || filter.matches(&sequence.name),
        SequenceOwner::Column { table, .. } | SequenceOwner::Identity { table, .. } => filter.matches(table),
    });
    found.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(found)
}

fn sequence(row: &Row) -> Sequence {
    let name = |schema: usize| TableName::new(row.get::<_, String>(schema), row.get::<_, String>(schema + 1));
    let owner = match row.get::<_, Option<String>>(2).as_deref() {
        Some("i") => SequenceOwner::Identity { table: name(3), column: row.get(5) },
        Some(_) => SequenceOwner::Column { table: name(3), column: row.get(5) },
        None => SequenceOwner::None,
    };
    Sequence {
        name: name(0),
        owner,
        last_value: row.get(6),
        increment: row.get(7),
        min_value: row.get(8),
        max_value: row.get(9),
        cache_size: row.get(10),
        cycles: row.get(11),
    }
}
