//! An operator asks for tables to be copied again.

use std::collections::BTreeSet;

use tracing::info;

use super::empty::{acts_as_replica, places};
use crate::model::{TableFilter, TableName, TablePattern};
use crate::pipeline::error::Error;
use crate::pipeline::gathered::gathered_by;
use crate::pipeline::handle::{Refused, ResyncRequest};
use crate::pipeline::requests::{Requests, refused};
use crate::schema::Catalog;
use crate::wire;

impl Requests {
    /// Answers once the tables are set apart: from then on it is done, over any restart.
    pub(in crate::pipeline) async fn resync(&self, request: ResyncRequest) -> Result<serde_json::Value, Refused> {
        self.in_phase("resync")?;
        let tables = self.asked_for(&request).await?;
        // In this order, as everywhere: the runner holds the gate for a moment, a verification the turn for hours.
        let desk = self.board.resync();
        let _turn = self.turn()?;
        let _gate = desk.gate.lock().await;
        if let Some(what) = desk.why_not_whole() {
            return Err(Refused::now(
                format!("a resync is under way ({what})"),
                "wait for it: `changeover status --watch` shows it",
            ));
        }
        self.in_phase("resync")?;
        self.may_be_emptied(&tables).await?;
        let position = self.setting_apart.perform(&tables, false).await.map_err(|error| refused(&error))?;
        // An applier that stands still over one of these tables may go on without it.
        self.supervisor.resume.notify_waiters();
        info!(%position, tables = tables.len(), "resync begun as asked");
        let names: Vec<String> = tables.iter().map(TableName::to_string).collect();
        Ok(serde_json::json!({ "tables": names, "position": position.to_string() }))
    }

    async fn asked_for(&self, request: &ResyncRequest) -> Result<Vec<TableName>, Refused> {
        if request.tables.is_empty() {
            return Err(Refused::now("resync no table", "name at least one, as schema.table"));
        }
        let mut chosen = BTreeSet::new();
        for text in &request.tables {
            let pattern = TablePattern::parse(text)
                .map_err(|error| Refused::now(error.to_string(), "write it as schema.table"))?;
            let found = holders(&self.catalog, &pattern);
            if found.is_empty() {
                if let Some((leaf, root)) = gathered_by(&self.catalog, &pattern) {
                    return Err(Refused::now(
                        format!(
                            "resync {leaf}: the target partitions {root} otherwise, and rows move between its partitions, \
                             so none of them can be copied again alone"
                        ),
                        format!("`changeover resync {root}` copies all of it again"),
                    ));
                }
                return Err(self.why_unknown(text, pattern).await);
            }
            chosen.extend(found);
        }
        Ok(chosen.into_iter().collect())
    }

    async fn why_unknown(&self, text: &str, pattern: TablePattern) -> Refused {
        let hint = "`changeover status` lists the tables of the migration";
        let filter = TableFilter { include: vec![pattern], exclude: Vec::new() };
        let look = async {
            let source = wire::connect(&self.config.source.endpoint, "resync").await.map_err(Error::Source)?;
            Ok::<_, Error>(crate::schema::read_catalog(&source, &filter).await?)
        };
        match look.await {
            Ok(catalog) if !catalog.tables.is_empty() => Refused::now(
                format!("{text} is on the source, and not of this migration"),
                "let [tables] include match it and start the daemon again: then it is added",
            ),
            Ok(catalog) if !catalog.not_streamed.is_empty() => Refused::now(
                format!("{text} is no table that can be streamed (unlogged, foreign, or a materialised view)"),
                hint,
            ),
            Ok(_) => Refused::now(format!("the source has no table {text}"), hint),
            Err(error) => refused(&error),
        }
    }

    /// Asked before anything is changed.
    async fn may_be_emptied(&self, tables: &[TableName]) -> Result<(), Refused> {
        let look = async {
            let target = wire::connect(&self.config.target.endpoint, "resync").await.map_err(Error::Target)?;
            Ok::<_, Error>((places(&target, tables).await?, acts_as_replica(&target).await?))
        };
        let (places, as_replica) = look.await.map_err(|error| refused(&error))?;
        if let Some(missing) = tables.iter().find(|table| places.iter().all(|place| place.table != **table)) {
            return Err(Refused::now(
                format!("resync {missing}, which has no table of its own on the target"),
                "create it there; rows that went into a table of others cannot be told from theirs",
            ));
        }
        if let Some(place) = places.iter().find(|place| !as_replica && place.needs_replica()) {
            return Err(Refused::now(
                format!(
                    "resync {}, whose foreign keys and triggers on the target would act while it is emptied",
                    place.table
                ),
                "let the target's role set session_replication_role (superuser, or GRANT SET ON PARAMETER from \
                 PostgreSQL 15 on)",
            ));
        }
        Ok(())
    }
}

/// The tables that a pattern names and that hold rows: for a partitioned one those below it.
fn holders(catalog: &Catalog, pattern: &TablePattern) -> BTreeSet<TableName> {
    let named = |table: &TableName| {
        let mut at = Some(table.clone());
        // As many levels as there are tables, at most.
        for _ in &catalog.tables {
            let Some(name) = at else { return false };
            if pattern.matches(&name) {
                return true;
            }
            let above = catalog.table(&name).and_then(|table| table.partition.as_ref());
            at = above.map(|partition| partition.parent.clone());
        }
        false
    };
    catalog.row_tables().map(|table| &table.name).filter(|name| named(name)).cloned().collect()
}
