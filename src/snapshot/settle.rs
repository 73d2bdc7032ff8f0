//! Brings a table whose parts were read under several snapshots to the state that one snapshot sees.
//!
//! A crash, or the limit on a snapshot's age, ends the snapshot that a table was begun under (`base`). Its other parts are
//! read under later ones, without the rows that were written since. So what is on the target then is a subset of what
//! `base` saw: each row that has not been touched since, and some that have. In one transaction of the target, under one
//! snapshot of the source:
//!
//! ```text
//!  keys of the rows untouched since base ──► temporary table: what is not in it is deleted
//!  rows written since base, whole        ──► inserted
//! ```
//!
//! A tuple never changes, and never moves while its table keeps its file ([`super::holder`] watches it): untouched means
//! that the very tuple is still there, at its place, so that exactly one part has copied it. It costs a pass over the
//! source's table and its keys, and is never needed when nothing interrupts the copy.

use tracing::info;

use super::Error;
use super::plan::Copied;
use super::split::Begun;
use super::sql::{self, Settle, Taken};
use super::worker::{Moved, Worker};

impl Worker<'_> {
    /// Returns when the table is complete, as of the newest snapshot.
    pub(super) async fn settle(&mut self, copied: &Copied, begun: &Begun) -> Result<(), Error> {
        let table = &copied.table.name;
        let attempt = self.attempt;
        let holder = self.newest().await?;
        attempt.same_file(&holder, copied, begun)?;
        self.adopt(&holder).await?;
        info!(%table, snapshot = %holder.snapshot, "settling: its parts were read under several snapshots");
        let steps = Settle { copied, migration: &attempt.options.migration, base: &begun.base };
        let failed = |doing| Error::copy(table, doing);
        if self.target.simple_query(&steps.claim()).await.map_err(failed("claim the table to settle it"))?.is_empty() {
            return Err(Error::Overtaken { table: table.clone() });
        }
        self.target.simple_query(&steps.make_kept()).await.map_err(failed("make room for its keys"))?;
        let kept = self.pass(copied, &steps.kept_out(), &steps.kept_in()).await?;
        let removed = self.target.simple_query(&steps.remove_changed()).await;
        removed.map_err(failed("remove what was changed meanwhile"))?;
        let changed = self.pass(copied, &steps.changed_out(), &sql::copy_in(copied)).await?;
        holder.confirm().await?;
        let taken = Taken {
            snapshot: &holder.snapshot,
            until: holder.until,
            rows: kept.rows + changed.rows,
            bytes: changed.bytes,
        };
        self.target.simple_query(&steps.complete(&taken)).await.map_err(failed("record that it is settled"))?;
        attempt.progress.table(table).settle_table(taken.rows);
        info!(%table, kept = kept.rows, changed = changed.rows, "settled");
        Ok(())
    }

    async fn pass(&mut self, copied: &Copied, out: &str, into: &str) -> Result<Moved, Error> {
        let counts = super::progress::Counts::default();
        self.ask(&copied.table.name, out).await?;
        self.move_rows(&copied.table.name, into, &counts, None).await
    }
}
