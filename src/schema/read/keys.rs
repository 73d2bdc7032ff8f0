//! Keys and triggers.

use super::ByTable;
use crate::model::TableName;
use crate::schema::Error;
use crate::schema::catalog::{ForeignKey, Trigger, TriggerState, UniqueKey};
use crate::wire::Session;

/// A unique index, and whether the replica identity is it.
pub(super) struct Key {
    pub(super) key: UniqueKey,
    pub(super) replica_identity: bool,
}

pub(super) async fn unique(session: &Session, version: u32, oids: &[u32]) -> Result<ByTable<Key>, Error> {
    let nulls_not_distinct = if version >= 150_000 { "i.indnullsnotdistinct" } else { "false" };
    let sql = format!(
        "SELECT i.indrelid, c.relname::text,
                ARRAY(SELECT a.attname::text
                      FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, n)
                      JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                      WHERE k.n <= i.indnkeyatts ORDER BY k.n),
                i.indisprimary,
                EXISTS (SELECT FROM pg_catalog.pg_constraint o
                        WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('p', 'u', 'x')),
                NOT i.indimmediate, i.indpred IS NOT NULL, i.indexprs IS NOT NULL, {nulls_not_distinct}, i.indisvalid,
                i.indisreplident
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
         WHERE i.indrelid = ANY ($1::oid[]) AND i.indisunique
         ORDER BY i.indrelid, i.indisprimary DESC, c.relname"
    );
    let rows = session.query(&sql, &[&oids]).await.map_err(Error::query("read the unique keys"))?;
    let mut found = ByTable::new();
    for row in rows {
        let key = UniqueKey {
            name: row.get(1),
            columns: row.get(2),
            primary: row.get(3),
            constraint: row.get(4),
            deferrable: row.get(5),
            partial: row.get(6),
            expression: row.get(7),
            nulls_not_distinct: row.get(8),
            valid: row.get(9),
        };
        found.entry(row.get(0)).or_default().push(Key { key, replica_identity: row.get(10) });
    }
    Ok(found)
}

/// As declared: the copies that a partitioned table's key has on its partitions are left out.
pub(super) async fn foreign(session: &Session, oids: &[u32]) -> Result<ByTable<ForeignKey>, Error> {
    let columns = |table: &str, numbers: &str| {
        format!(
            "ARRAY(SELECT a.attname::text FROM pg_catalog.unnest(o.{numbers}) WITH ORDINALITY AS k (attnum, n)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = o.{table} AND a.attnum = k.attnum ORDER BY k.n)"
        )
    };
    let sql = format!(
        "SELECT o.conrelid, o.conname::text, {}, n.nspname::text, c.relname::text, {}, o.condeferrable, o.condeferred,
                o.convalidated
         FROM pg_catalog.pg_constraint o JOIN pg_catalog.pg_class c ON c.oid = o.confrelid
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE o.conrelid = ANY ($1::oid[]) AND o.contype = 'f' AND o.conparentid = 0
         ORDER BY o.conrelid, o.conname",
        columns("conrelid", "conkey"),
        columns("confrelid", "confkey"),
    );
    let rows = session.query(&sql, &[&oids]).await.map_err(Error::query("read the foreign keys"))?;
    let mut found = ByTable::new();
    for row in rows {
        let key = ForeignKey {
            name: row.get(1),
            columns: row.get(2),
            references: TableName::new(row.get::<_, String>(3), row.get::<_, String>(4)),
            referenced_columns: row.get(5),
            deferrable: row.get(6),
            initially_deferred: row.get(7),
            validated: row.get(8),
        };
        found.entry(row.get(0)).or_default().push(key);
    }
    Ok(found)
}

pub(super) async fn triggers(session: &Session, oids: &[u32]) -> Result<ByTable<Trigger>, Error> {
    let sql = "SELECT t.tgrelid, t.tgname::text, t.tgenabled::text FROM pg_catalog.pg_trigger t
               WHERE t.tgrelid = ANY ($1::oid[]) AND NOT t.tgisinternal
                 AND NOT pg_catalog.starts_with(t.tgname::text, 'changeover_watch_') ORDER BY t.tgrelid, t.tgname";
    let rows = session.query(sql, &[&oids]).await.map_err(Error::query("read the triggers"))?;
    let mut found = ByTable::new();
    for row in rows {
        let trigger = Trigger { name: row.get(1), enabled: trigger_state(row.get(2))? };
        found.entry(row.get(0)).or_default().push(trigger);
    }
    Ok(found)
}

fn trigger_state(letter: String) -> Result<TriggerState, Error> {
    match letter.as_str() {
        "O" => Ok(TriggerState::Origin),
        "R" => Ok(TriggerState::Replica),
        "A" => Ok(TriggerState::Always),
        "D" => Ok(TriggerState::Disabled),
        _ => Err(Error::UnknownCatalogValue { what: "whether a trigger is enabled", found: letter }),
    }
}
