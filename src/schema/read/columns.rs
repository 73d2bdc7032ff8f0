//! Columns, with what is known of their types.

use tokio_postgres::Row;

use super::{ByTable, types};
use crate::model::TypeName;
use crate::schema::Error;
use crate::schema::catalog::{BinaryCopy, Column, GeneratedKind, IdentityKind};
use crate::wire::Session;

pub(super) async fn read(session: &Session, version: u32, oids: &[u32]) -> Result<ByTable<Column>, Error> {
    let sql = "SELECT a.attrelid, a.attname::text, a.attnum, a.atttypid, tn.nspname::text, t.typname::text,
                      pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod, a.attnotnull,
                      a.attidentity::text, a.attgenerated::text,
                      CASE WHEN a.attcollation <> t.typcollation
                           THEN pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
                      CASE WHEN a.attgenerated = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) END
               FROM pg_catalog.pg_attribute a
               JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
               JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
               LEFT JOIN pg_catalog.pg_collation co ON co.oid = a.attcollation
               LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
               LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
               WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
               ORDER BY a.attrelid, a.attnum";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the columns"))?;
    let type_oids: Vec<u32> = rows.iter().map(|row| row.get(3)).collect();
    let binary = types::binary_copy(session, version, type_oids).await?;
    let mut found = ByTable::new();
    for row in &rows {
        let known = binary.get(&row.get(3)).copied().unwrap_or(BinaryCopy::Never);
        found.entry(row.get(0)).or_default().push(column(row, known)?);
    }
    Ok(found)
}

fn column(row: &Row, binary_copy: BinaryCopy) -> Result<Column, Error> {
    let (identity, generated): (String, String) = (row.get(9), row.get(10));
    Ok(Column {
        name: row.get(1),
        number: row.get(2),
        type_oid: row.get(3),
        type_name: TypeName { schema: row.get(4), name: row.get(5) },
        type_text: row.get(6),
        type_modifier: row.get(7),
        not_null: row.get(8),
        identity: match identity.as_str() {
            "" => None,
            "a" => Some(IdentityKind::Always),
            "d" => Some(IdentityKind::ByDefault),
            _ => return Err(Error::UnknownCatalogValue { what: "a column's identity", found: identity }),
        },
        generated: match generated.as_str() {
            "" => None,
            "s" => Some(GeneratedKind::Stored),
            "v" => Some(GeneratedKind::Virtual),
            _ => return Err(Error::UnknownCatalogValue { what: "how a column is generated", found: generated }),
        },
        collation: row.get(11),
        default: row.get(12),
        binary_copy,
    })
}
