//! Rows that users put into tables of an extension (`pg_extension_config_dump`): `CREATE EXTENSION` makes the tables and
//! cannot know the rows, and no publication holds them.

use tokio_postgres::Row;
use tracing::info;

use super::CopyOptions;
use crate::model::{TableName, quote_literal};
use crate::schema::Error;
use crate::wire::{self, Mode, RawConnection, Session};

const TITLE: &str = "rows of extensions";

/// A table or sequence that its extension declared to hold its user's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtensionTable {
    pub extension: String,
    pub name: TableName,
    sequence: bool,
    /// Which rows are the user's: empty, or `WHERE ...` as the extension wrote it.
    condition: String,
    /// What a copy carries, as SQL.
    columns: String,
}

/// In the order in which the extensions declared them.
pub async fn extension_tables(session: &Session) -> Result<Vec<ExtensionTable>, Error> {
    let sql = "SELECT e.extname::text, n.nspname::text, c.relname::text, c.relkind = 'S', coalesce(x.condition, ''),
                      coalesce((SELECT pg_catalog.string_agg(pg_catalog.quote_ident(a.attname), ', ' ORDER BY a.attnum)
                                FROM pg_catalog.pg_attribute a
                                WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                                  AND a.attgenerated = ''), '')
               FROM pg_catalog.pg_extension e
               CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition))
                          WITH ORDINALITY AS x (relation, condition, number)
               JOIN pg_catalog.pg_class c ON c.oid = x.relation JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               ORDER BY e.oid, x.number";
    let rows = session.query(sql, &[]).await.map_err(Error::query("read the tables of extensions"))?;
    let table = |row: &Row| ExtensionTable {
        extension: row.get(0),
        name: TableName::new(row.get::<_, String>(1), row.get::<_, String>(2)),
        sequence: row.get(3),
        condition: row.get(4),
        columns: row.get(5),
    };
    Ok(rows.iter().map(table).collect())
}

/// In one transaction that records it; without effect when it is recorded as done. A table's rows are there once its
/// extension is, so this comes behind the schema.
pub(super) async fn copy(options: &CopyOptions, target: &Session) -> Result<(), Error> {
    let doing = || Error::query("read what is done of the schema");
    let sql = "SELECT EXISTS (SELECT FROM changeover.step WHERE migration = $1 AND step = $2)";
    if target.query_one(sql, &[&options.migration.as_str(), &TITLE]).await.map_err(doing())?.get(0) {
        return Ok(());
    }
    let source = wire::connect(&options.source, "extensions").await.map_err(Error::Connect)?;
    let tables = extension_tables(&source).await?;
    let mut from = wire::connect_raw(&options.source, Mode::Sql, "extensions").await.map_err(Error::Connect)?;
    let mut to = wire::connect_raw(&options.target, Mode::Sql, "extensions").await.map_err(Error::Connect)?;
    let begin = to.simple_query("BEGIN").await;
    begin.map_err(Error::rows("tables of extensions"))?;
    for table in &tables {
        let named = format!("{} of extension {}", table.name, table.extension);
        let outcome = if table.sequence {
            copy_value(&source, &mut to, table).await?
        } else {
            copy_rows(&mut from, &mut to, table).await
        };
        let count = outcome.map_err(Error::rows(named))?;
        info!(table = %table.name, extension = table.extension, count, "rows of an extension copied");
    }
    let record = format!(
        "INSERT INTO changeover.step (migration, step) VALUES ('{}', {}); COMMIT",
        options.migration,
        quote_literal(TITLE)
    );
    to.simple_query(&record).await.map_err(Error::rows("tables of extensions"))?;
    Ok(())
}

async fn copy_rows(
    from: &mut RawConnection,
    to: &mut RawConnection,
    table: &ExtensionTable,
) -> Result<u64, wire::Error> {
    let ExtensionTable { condition, columns, .. } = table;
    let name = table.name.quoted();
    let mut out = from.copy_out(&format!("COPY (SELECT {columns} FROM ONLY {name} {condition}) TO STDOUT")).await?;
    let mut sink = to.copy_in(&format!("COPY {name} ({columns}) FROM STDIN")).await?;
    while let Some(chunk) = out.next().await? {
        sink.write(&chunk.frames).await?;
    }
    sink.finish().await
}

async fn copy_value(
    source: &Session,
    to: &mut RawConnection,
    table: &ExtensionTable,
) -> Result<Result<u64, wire::Error>, Error> {
    let name = table.name.quoted();
    let row = source.query_one(&format!("SELECT last_value, is_called FROM {name}"), &[]).await;
    let row = row.map_err(Error::query(format!("read the sequence {}", table.name)))?;
    let (value, called): (i64, bool) = (row.get(0), row.get(1));
    let sql = format!("SELECT pg_catalog.setval({}, '{value}'::bigint, {called})", quote_literal(&name));
    Ok(to.simple_query(&sql).await.map(|_| 1))
}
