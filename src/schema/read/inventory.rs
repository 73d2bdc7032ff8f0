//! Puts the inventory together from what each query finds.

use super::relations::Relation;
use super::{columns, database, keys, relations, sequences};
use crate::model::{ReplicaIdentity, TableFilter, TableName};
use crate::schema::Error;
use crate::schema::catalog::{
    Catalog, Column, NotStreamed, NotStreamedKind, Partition, Table, TableKind, Trigger, UniqueKey,
};
use crate::wire::Session;

/// What `filter` names on that server. System schemas, temporary tables, our own schema and what belongs to an
/// extension (`CREATE EXTENSION` makes it on the target) are never part of it.
pub async fn read_catalog(session: &Session, filter: &TableFilter) -> Result<Catalog, Error> {
    let (server_version_num, database) = database::read(session).await?;
    let all = relations::read(session).await?;
    let (relations, not_streamed) = choose(all, filter);
    let tables = read_tables(session, server_version_num, relations).await?;
    Ok(Catalog {
        server_version_num,
        database,
        sequences: sequences::read(session, filter, &tables).await?,
        extensions: database::extensions(session).await?,
        large_object_count: database::large_object_count(session).await?,
        tables,
        not_streamed,
    })
}

/// The relations that logical replication carries, and those it does not with the reason.
fn choose(all: Vec<Relation>, filter: &TableFilter) -> (Vec<Relation>, Vec<NotStreamed>) {
    let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
    for relation in all.into_iter().filter(|relation| filter.matches(&relation.name)) {
        match relation.not_streamed() {
            Some(why) => left_out.push(NotStreamed { name: relation.name, why }),
            None => chosen.push(relation),
        }
    }
    (chosen, left_out)
}

async fn read_tables(session: &Session, version: u32, relations: Vec<Relation>) -> Result<Vec<Table>, Error> {
    let oids: Vec<u32> = relations.iter().map(|relation| relation.oid).collect();
    let (sizes, mut inherits, mut columns, mut unique_keys, mut foreign_keys, mut triggers) = tokio::try_join!(
        relations::sizes(session, &oids),
        relations::parents(session, &oids),
        columns::read(session, version, &oids),
        keys::unique(session, version, &oids),
        keys::foreign(session, &oids),
        keys::triggers(session, &oids),
    )?;
    let mut tables: Vec<Table> = relations
        .into_iter()
        .map(|relation| {
            let oid = relation.oid;
            let parts = Parts {
                size: sizes.get(&oid).copied().unwrap_or_default(),
                parents: inherits.remove(&oid).unwrap_or_default(),
                columns: columns.remove(&oid).unwrap_or_default(),
                unique_keys: unique_keys.remove(&oid).unwrap_or_default(),
                triggers: triggers.remove(&oid).unwrap_or_default(),
            };
            let mut table = parts.into_table(relation);
            table.foreign_keys = foreign_keys.remove(&oid).unwrap_or_default();
            table
        })
        .collect();
    tables.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(tables)
}

/// What the queries found about one table.
struct Parts {
    size: relations::Size,
    parents: Vec<TableName>,
    columns: Vec<Column>,
    unique_keys: Vec<keys::Key>,
    triggers: Vec<Trigger>,
}

impl Parts {
    fn into_table(self, relation: Relation) -> Table {
        let primary = self.unique_keys.iter().map(|key| &key.key).find(|key| key.primary);
        let primary_key = primary.map(|key| key.columns.clone());
        let identity_columns = self.identity_columns(relation.replica_identity);
        let partition = relation.bounds.zip(self.parents.first().cloned());
        Table {
            name: relation.name,
            oid: relation.oid,
            kind: if relation.partitioned { TableKind::Partitioned } else { TableKind::Ordinary },
            inherits: if partition.is_some() { Vec::new() } else { self.parents },
            partition: partition.map(|(bounds, parent)| Partition { parent, bounds }),
            partition_key: relation.partition_key,
            leaf_count: relation.leaf_count,
            leaves: Vec::new(),
            inner: Vec::new(),
            owner: relation.owner,
            columns: self.columns,
            primary_key,
            unique_keys: self.unique_keys.into_iter().map(|key| key.key).collect(),
            foreign_keys: Vec::new(),
            replica_identity: relation.replica_identity,
            identity_columns,
            triggers: self.triggers,
            row_security: relation.row_security,
            row_estimate: relation.row_estimate,
            size_bytes: self.size.bytes,
            block_count: self.size.block_count,
        }
    }

    /// As `RelationGetReplicaIndex` finds them: a deferrable primary key identifies nothing.
    fn identity_columns(&self, identity: ReplicaIdentity) -> Vec<String> {
        let of = |wanted: &dyn Fn(&keys::Key) -> bool| {
            let usable = |key: &UniqueKey| key.valid && !key.deferrable && !key.partial && !key.expression;
            let found = self.unique_keys.iter().find(|key| wanted(key) && usable(&key.key));
            found.map(|key| key.key.columns.clone()).unwrap_or_default()
        };
        match identity {
            ReplicaIdentity::Default => of(&|key| key.key.primary),
            ReplicaIdentity::Index => of(&|key| key.replica_identity),
            ReplicaIdentity::Full => self.columns.iter().map(|column| column.name.clone()).collect(),
            ReplicaIdentity::Nothing => Vec::new(),
        }
    }
}

impl Relation {
    fn not_streamed(&self) -> Option<NotStreamedKind> {
        match (self.kind.as_str(), self.persistence.as_str()) {
            ("f", _) => Some(NotStreamedKind::Foreign),
            ("m", _) => Some(NotStreamedKind::MaterializedView),
            (_, "u") => Some(NotStreamedKind::Unlogged),
            (_, _) => None,
        }
    }
}
