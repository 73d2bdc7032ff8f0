//! What earlier attempts have finished: `changeover.unit` and `changeover.split`.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;

use super::Error;
use super::plan::Cut;
use crate::model::{MigrationName, SnapshotSet, TableHandover, TableName};
use crate::wire::Session;

/// Tables with at least one recorded part.
#[derive(Default)]
pub(super) struct Recorded {
    /// Every part is there: rows and bytes.
    pub(super) complete: BTreeMap<TableName, (u64, u64)>,
    /// Begun and not finished: what is in them is ours.
    pub(super) partial: BTreeMap<TableName, Partial>,
}

/// A table of which some parts are there.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) cut: Cut,
    pub(super) base: SnapshotSet,
    pub(super) filenode: u32,
    pub(super) done: BTreeSet<u32>,
    /// Parts were read under other snapshots than `base`.
    pub(super) mixed: bool,
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

pub(super) async fn read(target: &Session, migration: &MigrationName) -> Result<Recorded, Error> {
    let mut recorded = Recorded::default();
    let doing = || Error::query("read which tables are copied");
    let sql = "SELECT table_schema, table_name, sum(row_count)::bigint, sum(byte_count)::bigint
               FROM changeover.unit WHERE migration = $1
               GROUP BY table_schema, table_name HAVING bool_or(complete)";
    for row in target.query(sql, &[&migration.as_str()]).await.map_err(doing())? {
        recorded.complete.insert(name(&row), counts(&row));
    }
    let sql = "SELECT s.table_schema, s.table_name, coalesce(sum(u.row_count), 0)::bigint,
                      coalesce(sum(u.byte_count), 0)::bigint, s.part_count, s.block_count, s.filenode, s.base,
                      coalesce(array_agg(u.part) FILTER (WHERE u.part IS NOT NULL), '{}'),
                      coalesce(bool_or(u.snapshot <> s.base), false)
               FROM changeover.split s LEFT JOIN changeover.unit u USING (migration, table_schema, table_name)
               WHERE s.migration = $1
               GROUP BY s.table_schema, s.table_name, s.part_count, s.block_count, s.filenode, s.base
               HAVING NOT coalesce(bool_or(u.complete), false)";
    for row in target.query(sql, &[&migration.as_str()]).await.map_err(doing())? {
        recorded.partial.insert(name(&row), partial(&row, migration)?);
    }
    Ok(recorded)
}

fn partial(row: &Row, migration: &MigrationName) -> Result<Partial, Error> {
    let wrong = |what| Error::MalformedState { migration: migration.clone(), what };
    let (rows, bytes) = counts(row);
    let part = |part: &i32| u32::try_from(*part).map_err(|_| wrong("a part's number"));
    Ok(Partial {
        cut: Cut {
            part_count: u32::try_from(row.get::<_, i32>(4)).map_err(|_| wrong("a number of parts"))?,
            block_count: u64::try_from(row.get::<_, i64>(5)).map_err(|_| wrong("a number of blocks"))?,
        },
        filenode: u32::try_from(row.get::<_, i64>(6)).map_err(|_| wrong("a table's file"))?,
        base: row.get::<_, String>(7).parse().map_err(|_| wrong("a snapshot"))?,
        done: row.get::<_, Vec<i32>>(8).iter().map(part).collect::<Result<_, _>>()?,
        mixed: row.get(9),
        rows,
        bytes,
    })
}

/// The hand-overs of the tables whose copy is complete, as recorded on the target.
pub async fn handovers(target: &Session, migration: &MigrationName) -> Result<Vec<TableHandover>, Error> {
    let sql = "SELECT table_schema, table_name, snapshot, until::text FROM changeover.unit
               WHERE migration = $1 AND part = 0 AND complete ORDER BY table_schema, table_name";
    let rows = target.query(sql, &[&migration.as_str()]).await;
    let rows = rows.map_err(Error::query("read the tables' hand-overs"))?;
    rows.iter().map(|row| handover(row, migration)).collect()
}

fn handover(row: &Row, migration: &MigrationName) -> Result<TableHandover, Error> {
    let wrong = |what| Error::MalformedState { migration: migration.clone(), what };
    let (snapshot, until): (String, String) = (row.get(2), row.get(3));
    Ok(TableHandover {
        table: name(row),
        snapshot: snapshot.parse().map_err(|_| wrong("a snapshot"))?,
        until: until.parse().map_err(|_| wrong("a position"))?,
    })
}

fn name(row: &Row) -> TableName {
    TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))
}

fn counts(row: &Row) -> (u64, u64) {
    (row.get::<_, i64>(2).unsigned_abs(), row.get::<_, i64>(3).unsigned_abs())
}
