//! When a group is written out and sent, and whether its commit waits for the disk.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::driver::Driver;
use super::error::Error;
use super::flights::{Course, Flight};
use super::group::{Extent, Group};
use super::origin::origin_of;
use super::report;
use super::session::{Script, Target};
use super::split::{self, Share};
use super::transaction::{self, Step};
use crate::telemetry::Point;

/// A commit does not wait for the disk, except once in this long, and where somebody waits for its position: the log is
/// written in order, so it makes those before it durable too. The position is told only then. A crash of the target takes
/// rows and position back together, and they come again. Native replication commits alike by default.
const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Nothing that went ahead should hold up what is before it. Should it do so all the same (the target holds values for equal
/// that the source tells apart), the server cannot see that the one waits for the other. So we look, when a group takes
/// longer than most.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Whether the first session waits for another one of them.
const HELD_UP: &str = "SELECT pg_catalog.pg_blocking_pids(($1::int[])[1]) && ($1::int[])[2:]";

/// A group that is written out for the session that will be free next.
pub(super) struct Staged {
    pub(super) group: Group,
    script: Script<Step>,
    kind: Kind,
}

enum Kind {
    /// All of it, when nothing else is under way.
    Whole { flushes: bool },
    /// What may go ahead.
    Ahead { shares: Vec<Share> },
}

impl Driver {
    /// Gathers, sends what it is time for, and writes out what can be sent next.
    pub(super) async fn launch(&mut self) -> Result<(), Error> {
        while !self.stopping && !self.is_joining() {
            self.fill()?;
            let sent = match self.staged.take() {
                Some(staged) => self.send_staged(staged).await,
                None if self.flights.is_empty() => self.send_whole().await?,
                None if self.is_full() && !self.waits_for_end => self.write_next().await?,
                None => false,
            };
            if !sent {
                break;
            }
        }
        Ok(())
    }

    pub(super) async fn send_what_is_staged(&mut self) {
        if let Some(staged) = self.staged.take().filter(|_| !self.stopping) {
            self.send_staged(staged).await;
        }
    }

    async fn send_staged(&mut self, staged: Staged) -> bool {
        let may_go = match &staged.kind {
            Kind::Whole { .. } => self.flights.is_empty(),
            Kind::Ahead { .. } => self.flights.len() < self.sessions_max,
        };
        if !may_go {
            self.staged = Some(staged);
            return false;
        }
        let target = self.idle.pop().expect("the session it was written for is free again");
        match staged.kind {
            Kind::Whole { flushes } => self.send_to_end(target, staged.group, staged.script, flushes).await,
            Kind::Ahead { shares } => self.send_ahead(target, staged.group, staged.script, shares).await,
        }
        true
    }

    /// The usual way: one group after the other.
    async fn send_whole(&mut self) -> Result<bool, Error> {
        if self.group.is_empty() || self.would_commit_early() || !self.is_due() {
            return Ok(false);
        }
        let flushes = self.flushes(&self.group);
        let group = std::mem::take(&mut self.group);
        let mut target = self.idle.pop().expect("nothing is under way");
        let script = transaction::write(&mut target, &group, flushes)?;
        self.send_to_end(target, group, script, flushes).await;
        Ok(true)
    }

    /// A full group is there while others are under way: sends what may go ahead of them in a session of its own, or
    /// writes out what the session of the first of them can be given when that is done. `true` when something was done.
    async fn write_next(&mut self) -> Result<bool, Error> {
        let others = self.flights.len();
        let is_taken = others >= self.sessions_max;
        if is_taken && !self.flights.is_ending() {
            // More is to be written for its session first.
            return Ok(false);
        }
        let Some(shares) = self.split(is_taken) else {
            // With several under way, what it has to wait for will be less when the next one is done.
            match others {
                1 => self.stage_whole()?,
                _ => self.waits_for_end = true,
            }
            return Ok(false);
        };
        if is_taken {
            let target = self.flights.executing().expect("looked at above");
            let script = transaction::write_ahead(target, &self.group, &shares)?;
            let group = std::mem::take(&mut self.group);
            self.staged = Some(Staged { group, script, kind: Kind::Ahead { shares } });
            return Ok(false);
        }
        let Some(mut target) = self.free_session().await else { return Ok(true) };
        let script = transaction::write_ahead(&mut target, &self.group, &shares)?;
        let group = std::mem::take(&mut self.group);
        self.send_ahead(target, group, script, shares).await;
        Ok(true)
    }

    /// What of the group may go ahead of those under way, or of all but the first of them.
    fn split(&self, is_first_done: bool) -> Option<Vec<Share>> {
        let nothing_before = is_first_done && self.flights.len() == 1;
        let earlier = self.flights.groups().skip(usize::from(is_first_done));
        // Otherwise triggers fire and foreign keys look at other tables.
        let may_go = self.replica && !nothing_before;
        may_go.then(|| split::split(&self.group, earlier, &self.kept_back)).flatten()
    }

    /// Writes a full group out while the server is busy with the one before.
    fn stage_whole(&mut self) -> Result<(), Error> {
        let flushes = self.flushes(&self.group);
        let Some(target) = self.flights.executing() else { return Ok(()) };
        let script = transaction::write(target, &self.group, flushes)?;
        let group = std::mem::take(&mut self.group);
        self.staged = Some(Staged { group, script, kind: Kind::Whole { flushes } });
        Ok(())
    }

    /// A session that is free; opens one more while there may be more. `None` where that cannot be had: then we go on with
    /// those there are.
    async fn free_session(&mut self) -> Option<Target> {
        if let Some(target) = self.idle.pop() {
            return Some(target);
        }
        let number = self.flights.len();
        let origin = origin_of(&self.claim.migration, self.claim.lane, number);
        let why = match Box::pin(Target::open(&self.endpoint, self.claim.clone(), &origin)).await {
            Ok(target) if target.replica == self.replica && target.has_origin == self.has_origin => {
                return Some(target);
            }
            Ok(_) => "it may do less than the first".to_owned(),
            Err(error) => crate::telemetry::chain(&error),
        };
        warn!(sessions = number, why, "no further session on the target: groups are applied with those there are");
        self.sessions_max = number;
        None
    }

    async fn send_to_end(&mut self, mut target: Target, group: Group, script: Script<Step>, flushes: bool) {
        self.gather_until = None;
        Point::GroupDue.reach();
        let sent = target.send(script).await;
        report::sent(&group, false);
        let course = Course::Ends { sent };
        self.flights.push(Flight { group, target: Some(target), course, flushes });
        self.touch_first();
    }

    async fn send_ahead(&mut self, mut target: Target, group: Group, script: Script<Step>, shares: Vec<Share>) {
        let sent = target.send(script).await;
        Point::GroupAhead.reach();
        let course = Course::Ahead { sent, shares };
        self.flights.push(Flight { group, target: Some(target), course, flushes: false });
    }

    /// Everything before the first group is committed: sends what of it is left.
    pub(super) async fn take_turn(&mut self) -> Result<(), Error> {
        let Some(group) = self.flights.groups().next() else { return Ok(()) };
        let flushes = self.flushes(group);
        let first = self.flights.at(0);
        if matches!(first.course, Course::Ahead { .. } | Course::Ends { .. }) {
            return Ok(());
        }
        let mut target = match first.target.take() {
            Some(target) => target,
            None => self.idle.pop().expect("the session of the group before is free"),
        };
        let group = &first.group;
        let script = match &first.course {
            Course::Waits { shares } => transaction::write_rest(&mut target, group, shares, flushes)?,
            Course::Refused => transaction::write_again(&mut target, group, flushes)?,
            Course::Unsent => transaction::write(&mut target, group, flushes)?,
            Course::Ahead { .. } | Course::Ends { .. } => unreachable!("looked at above"),
        };
        let went_ahead = matches!(first.course, Course::Waits { .. });
        Point::GroupDue.reach();
        let sent = target.send(script).await;
        report::sent(&first.group, went_ahead);
        first.target = Some(target);
        first.course = Course::Ends { sent };
        first.flushes = flushes;
        self.touch_first();
        Ok(())
    }

    /// The first group is on its way to its commit. Whoever asks for its keys asks us first, and is not answered before
    /// they are there.
    fn touch_first(&self) {
        if let (Some(touched), Some(group)) = (&self.ports.touched, self.flights.groups().next()) {
            report::touch(group, touched.as_ref());
        }
    }

    /// What was written out may rest on statements that the server has not prepared after all, and those that it would
    /// have prepared are not.
    pub(super) fn unstage(&mut self) {
        if let Some(staged) = self.staged.take() {
            debug_assert!(self.group.members.is_empty(), "nothing is gathered behind it");
            self.group = staged.group;
            if let Some(target) = self.flights.executing() {
                target.forget_statements();
            }
        }
    }

    /// Gives up what went ahead where the group before it waits for it.
    pub(super) async fn relieve(&mut self) -> Result<(), Error> {
        if self.look_again_at().is_none_or(|at| at > Instant::now()) {
            return Ok(());
        }
        self.looked_at = Instant::now();
        let processes: Vec<i32> = self.flights.processes().collect();
        let held_up = self.catalog.query_one(HELD_UP, &[&processes]).await;
        let held_up = held_up.map_err(|source| Error::Query { what: "look what a group waits for", source })?;
        if held_up.get(0) {
            warn!("a group waits for one that went ahead of its turn: applying one after the other from now on");
            self.flights.give_up_ahead();
            self.unstage();
            self.sessions_max = 1;
        }
        Ok(())
    }

    /// When to look whether what went ahead holds up the first group, unless that comes to its end.
    fn look_again_at(&self) -> Option<Instant> {
        let others = self.flights.len() > 1 && self.sessions_max > 1;
        others.then(|| self.flights.first_since.max(self.looked_at) + LOOK_INTERVAL)
    }

    /// Whether the commit of a group that is sent now waits for the disk.
    fn flushes(&self, group: &Group) -> bool {
        let waited_for = group.urgent || self.state.hurries() || self.input_ended;
        // The last piece's commit is for all pieces, and those before it do not know what follows.
        let in_parts = group.extent != Extent::Whole;
        waited_for || in_parts || self.flushed.elapsed() >= FLUSH_INTERVAL
    }

    fn is_due(&self) -> bool {
        let full = self.is_full() || !self.queue.is_empty();
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
        match self.flights.is_empty() {
            true if self.is_joining() || self.group.is_empty() || self.would_commit_early() => None,
            true => self.group_due(),
            false => self.look_again_at(),
        }
    }

    /// A position alone has to wait for the end of an open transaction, which it would commit.
    fn would_commit_early(&self) -> bool {
        self.open.is_some() && self.group.extent == Extent::Whole
    }

    /// A source transaction is divided among groups that are not done yet.
    pub(super) fn is_in_parts(&self) -> bool {
        let staged = self.staged.as_ref().map(|staged| &staged.group);
        self.flights.groups().chain(staged).chain([&self.group]).any(|group| group.extent != Extent::Whole)
    }

    /// What went ahead was refused: it is done again in its turn, and the table waits for its turn from now on.
    pub(super) fn refused_ahead(&mut self, at: usize, label: Step, sqlstate: &str) {
        let flight = self.flights.at(at);
        flight.course = Course::Refused;
        if let Step::Layer(layer) = label
            && let Some(table) = flight.group.layers.list()[layer].table()
        {
            debug!(table = %table.relation.name, sqlstate, "refused ahead of its turn: the table waits for its turn");
            self.kept_back.insert(table.place);
        }
    }
}
