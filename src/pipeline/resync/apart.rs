//! Setting tables apart: the one moment in which the main lane stands still for it.

use std::sync::Arc;

use super::desk::Desk;
use crate::apply::Standstill;
use crate::config::Config;
use crate::model::{Lsn, SinkName, TableName};
use crate::pipeline::error::Error;
use crate::pipeline::flow::Flow;
use crate::pipeline::touched::Listeners;
use crate::spool::Spool;

/// What it takes.
#[derive(Clone)]
pub(in crate::pipeline) struct SettingApart {
    pub(in crate::pipeline) config: Arc<Config>,
    pub(in crate::pipeline) desk: Arc<Desk>,
    pub(in crate::pipeline) flow: Arc<Flow>,
    pub(in crate::pipeline) spool: Spool,
    pub(in crate::pipeline) listeners: Arc<Listeners>,
    pub(in crate::pipeline) epoch: i64,
}

impl SettingApart {
    /// The main lane leaves `tables` at the position that is returned; `added` when they join the migration with it. The
    /// caller holds the desk's gate and the turn of verification, and nothing is under way.
    ///
    /// After an error it may have come to pass all the same (an answer that was lost), so what is held in the spool stays
    /// held until the runner has looked.
    pub(in crate::pipeline) async fn perform(&self, tables: &[TableName], added: bool) -> Result<Lsn, Error> {
        let target = &self.config.target.endpoint;
        let standstill = Standstill::begin(target, &self.config.migration, self.epoch).await?;
        let position = standstill.position();
        // While it stands still nothing is released or confirmed beyond `position`: from here on nothing of it is lost.
        let beside = self.spool.cursor_beside(SinkName::Resync, SinkName::Target);
        self.desk.keep(beside.ok_or(Error::SpoolForgot)?);
        self.flow.join(SinkName::Resync, SinkName::Target);
        self.desk.begin(tables.iter().cloned().collect());
        for table in tables {
            self.listeners.all().distrust(&table.to_string());
        }
        self.desk.begun.notify_one();
        standstill.set_apart(tables, added).await?;
        Ok(position)
    }

    /// Nothing is held for tables that are set apart any more: there are none.
    pub(super) fn release(&self) {
        drop(self.desk.take_cursor());
        self.flow.leave(SinkName::Resync);
    }
}
