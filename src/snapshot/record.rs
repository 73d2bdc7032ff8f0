//! What earlier attempts have finished: `changeover.unit`.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;

use super::Error;
use crate::model::{MigrationName, TableHandover, TableName};
use crate::wire::Session;

/// Tables with at least one recorded part.
#[derive(Default)]
pub(super) struct Recorded {
    /// Every part is there: rows and bytes.
    pub(super) complete: BTreeMap<TableName, (u64, u64)>,
    /// Begun and not finished: what is in them is ours to remove.
    pub(super) begun: BTreeSet<TableName>,
}

pub(super) async fn read(target: &Session, migration: &MigrationName) -> Result<Recorded, Error> {
    let sql = "SELECT table_schema, table_name, bool_or(complete), sum(row_count)::bigint, sum(byte_count)::bigint
               FROM changeover.unit WHERE migration = $1 GROUP BY table_schema, table_name";
    let rows = target.query(sql, &[&migration.as_str()]).await;
    let mut recorded = Recorded::default();
    for row in rows.map_err(Error::query("read which tables are copied"))? {
        if row.get(2) {
            let counts = (row.get::<_, i64>(3).unsigned_abs(), row.get::<_, i64>(4).unsigned_abs());
            recorded.complete.insert(name(&row), counts);
        } else {
            recorded.begun.insert(name(&row));
        }
    }
    Ok(recorded)
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
