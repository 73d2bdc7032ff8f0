//! How large each table is, and which file it is in. TRUNCATE and rewriting DDL are not seen through an older snapshot
//! as they were: the table simply looks empty. They give it a new file, so a table whose file is the same after it was
//! compared as before the snapshot was taken was compared as the snapshot saw it. (Locking all tables for the whole
//! pass would be the other way, and would make the application's own TRUNCATE wait for us, and everyone behind it.)

use super::error::{Error, Side};
use super::sql::{BlockRange, From};
use super::table::Table;
use crate::wire::Session;

/// Ranges of blocks are read by themselves from this version on ("TID Range Scan"); before, each would read all.
const BLOCK_RANGES_SINCE: u32 = 140_000;

/// One table on one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) from: From,
    /// Of the table, or of all its partitions.
    pub(super) files: String,
    pub(super) block_count: u32,
}

const SHAPES: &str = "\
    SELECT c.relkind::text, \
           coalesce(pg_relation_filenode(c.oid)::text, \
                    (SELECT string_agg(coalesce(pg_relation_filenode(p.relid), 0)::text, ',' ORDER BY p.relid) \
                     FROM pg_partition_tree(c.oid) AS p), ''), \
           coalesce(pg_relation_size(c.oid) + \
                    (SELECT coalesce(sum(pg_relation_size(p.relid)), 0) FROM pg_partition_tree(c.oid) AS p \
                     WHERE p.relid <> c.oid), 0)::bigint / current_setting('block_size')::bigint \
    FROM unnest($1::text[]) WITH ORDINALITY AS n(name, number) \
    LEFT JOIN pg_class AS c ON c.oid = to_regclass(n.name) \
    ORDER BY n.number";

/// The shapes of `tables` in their order. `session` must not be inside a transaction: the present is asked for.
pub(super) async fn read(session: &Session, side: Side, tables: &[&Table]) -> Result<Vec<Shape>, Error> {
    let names: Vec<String> = tables.iter().map(|table| name_on(side, table).quoted()).collect();
    let failed = |source| Error::Query { side, what: "read the sizes of the tables", source };
    let rows = session.query(SHAPES, &[&names]).await.map_err(failed)?;
    tables
        .iter()
        .zip(rows)
        .map(|(table, row)| {
            let name = name_on(side, table);
            let kind: Option<&str> = row.try_get(0).map_err(failed)?;
            let kind = kind.ok_or_else(|| Error::Missing { side, table: name.clone() })?;
            let blocks: i64 = row.try_get(2).map_err(failed)?;
            Ok(Shape {
                from: From { table: name.clone(), partitioned: kind == "p", rows: rows_on(side, table) },
                files: row.try_get(1).map_err(failed)?,
                block_count: u32::try_from(blocks).unwrap_or(u32::MAX),
            })
        })
        .collect()
}

fn name_on(side: Side, table: &Table) -> &crate::model::TableName {
    match side {
        Side::Source => &table.source,
        Side::Target => &table.target,
    }
}

fn rows_on(side: Side, table: &Table) -> Option<String> {
    match side {
        Side::Source => table.rows.clone(),
        Side::Target => None,
    }
}

impl Shape {
    /// Half-open ranges that together are the whole table, the last one without an end.
    pub(super) fn ranges(&self, unit_blocks: u32, server_version_num: u32) -> Vec<Option<BlockRange>> {
        if self.from.partitioned || server_version_num < BLOCK_RANGES_SINCE || self.block_count <= unit_blocks {
            return vec![None];
        }
        let starts: Vec<u32> = (0..self.block_count).step_by(unit_blocks as usize).collect();
        let ends = starts.iter().skip(1).map(|start| Some(*start)).chain([None]);
        starts.iter().zip(ends).map(|(start, end)| Some(BlockRange { start: *start, end })).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TableName;

    fn shape(block_count: u32, partitioned: bool) -> Shape {
        Shape {
            from: From { table: TableName::new("a", "b"), partitioned, rows: None },
            files: String::new(),
            block_count,
        }
    }

    #[test]
    fn ranges_leave_no_gap_and_no_end() {
        let ranges: Vec<BlockRange> = shape(2500, false).ranges(1000, 150_020).into_iter().flatten().collect();
        let expected = [(0, Some(1000)), (1000, Some(2000)), (2000, None)];
        assert_eq!(ranges, expected.map(|(start, end)| BlockRange { start, end }));
    }

    #[test]
    fn what_cannot_be_read_in_ranges_is_read_whole() {
        assert_eq!(shape(2500, false).ranges(1000, 130_000), [None]);
        assert_eq!(shape(2500, true).ranges(1000, 150_000), [None]);
        assert_eq!(shape(1000, false).ranges(1000, 150_000), [None]);
        assert_eq!(shape(0, false).ranges(1000, 150_000), [None]);
    }
}
