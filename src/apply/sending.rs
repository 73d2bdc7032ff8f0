//! When a group is written out and sent, and whether its commit waits for the disk.

use std::time::Duration;

use tokio::time::Instant;

use super::driver::Driver;
use super::error::Error;
use super::group::{Extent, Group};
use super::report;
use super::session::{Script, Sent};
use super::transaction::{self, Step};
use crate::telemetry::Point;

/// A commit does not wait for the disk, except once in this long, and where somebody waits for its position: the log is
/// written in order, so it makes those before it durable too. The position is told only then. A crash of the target takes
/// rows and position back together, and they come again. Native replication commits alike by default.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// A group that is being executed.
pub(super) struct Flight {
    pub(super) group: Group,
    pub(super) sent: Sent<Step>,
    /// Its commit is durable when it is answered.
    pub(super) flushes: bool,
}

/// A group that is written out.
pub(super) struct Staged {
    pub(super) group: Group,
    script: Script<Step>,
    flushes: bool,
}

impl Driver {
    /// Writes a full group out while the server is busy with the one before.
    pub(super) fn stage(&mut self) -> Result<(), Error> {
        if self.flight.is_some() && self.staged.is_none() && self.group.size_bytes >= self.group_bytes {
            self.staged = Some(self.write_out()?);
        }
        Ok(())
    }

    /// What was written out may rest on statements that the server has not prepared after all.
    pub(super) fn unstage(&mut self) {
        if let Some(staged) = self.staged.take() {
            debug_assert!(self.group.members.is_empty(), "nothing is gathered behind it");
            self.group = staged.group;
        }
    }

    /// Sends the group when it is time.
    pub(super) async fn launch(&mut self) -> Result<(), Error> {
        if self.flight.is_some() || self.stopping || self.is_joining() {
            return Ok(());
        }
        let staged = match self.staged.take() {
            Some(staged) => staged,
            None if self.group.is_empty() || !self.is_due() => return Ok(()),
            None => self.write_out()?,
        };
        self.gather_until = None;
        Point::GroupDue.reach();
        let sent = self.target.send(staged.script).await;
        // Whoever asks for these keys asks us first, and is not answered before they are there.
        if let Some(touched) = &self.ports.touched {
            report::touch(&staged.group, touched.as_ref());
        }
        self.flight = Some(Flight { group: staged.group, sent, flushes: staged.flushes });
        Ok(())
    }

    fn write_out(&mut self) -> Result<Staged, Error> {
        let waited_for = self.group.urgent || self.state.hurries() || self.input_ended;
        // The last piece's commit is for all pieces, and those before it do not know what follows.
        let in_parts = self.group.extent != Extent::Whole;
        let flushes = waited_for || in_parts || self.flushed.elapsed() >= FLUSH_INTERVAL;
        let group = std::mem::take(&mut self.group);
        let script = transaction::write(&mut self.target, &group, flushes)?;
        Ok(Staged { group, script, flushes })
    }

    fn is_due(&self) -> bool {
        let full = self.group.size_bytes >= self.group_bytes || !self.queue.is_empty();
        self.input_ended || full || self.state.hurries() || self.group_due().is_none_or(|due| due <= Instant::now())
    }

    /// When the group is to be sent at the latest; `None` for at once.
    fn group_due(&self) -> Option<Instant> {
        if self.group.urgent {
            None
        } else if self.group.has_work() {
            self.gather_until
        } else if self.flushed < self.committed {
            Some(self.flushed + FLUSH_INTERVAL)
        } else {
            Some(self.committed + self.position_interval)
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        if self.flight.is_some() || self.is_joining() || self.group.is_empty() { None } else { self.group_due() }
    }

    /// A source transaction is divided among target statements that are not sent yet.
    pub(super) fn waits_in_parts(&self) -> bool {
        let staged = self.staged.as_ref().map(|staged| &staged.group);
        staged.into_iter().chain([&self.group]).any(|group| group.extent != Extent::Whole)
    }
}
