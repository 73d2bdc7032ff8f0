//! A transaction that is executed ahead of its commit, over a session of its own, beside the main lane.
//!
//! ```text
//!  AheadPart ─► [group ◄ fold] ─► pipe ─► target: BEGIN, rows, rows …
//!                                   ▲ not before the main lane has committed what came before
//!  AheadCommit ─► Due ─► [joining]: nothing else under way ─go─► position, COMMIT
//! ```
//!
//! Nothing of it is seen before that, and the row of the position is not touched: the main lane moves it meanwhile. There is
//! no second attempt: whatever is not as expected gives the transaction up, and it comes again at its commit, in the way
//! of all others, which knows what to do about a refusal.

use std::collections::{HashSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::link::{Parcel, Receiver, Sender};
use crate::model::{AheadCommit, AheadEvent, AheadGivenUp, AheadPart, AheadTicket, Lsn, Xid};
use crate::telemetry::{Point, chain, metrics as names};
use crate::wire::{self, Session};

use super::catalog::Shapes;
use super::error::Error;
use super::group::{Counts, Group, Limit};
use super::lanes::Division;
use super::options::Options;
use super::origin::origin_ahead;
use super::queue::{Arrived, Member};
use super::session::{Claim, Outcome, Script, Sent, Target};
use super::table::{RowKey, Table};
use super::transaction::Step;

/// Groups under way: one that executes and the next, so that the server never waits for us.
const FLIGHTS_MAX: usize = 2;
/// How often we look whether another session of ours waits for the open transaction. Twice in a row is too long: on the
/// source they did not wait for each other, so here one of them might for ever.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOKS_BLOCKED_MAX: u32 = 2;
/// How long the end of a session's backend is waited for. Its origin is free for the next only then.
const GONE_PATIENCE: Duration = Duration::from_secs(5);
const GONE_PAUSE: Duration = Duration::from_millis(10);

/// What the main lane tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The target holds everything up to here.
    pub(super) passed: Option<Lsn>,
    /// It does not stand still.
    pub(super) flows: bool,
}

/// All rows of a transaction are written. Dropped, it is given up.
pub(super) struct Due {
    pub(super) commit: AheadCommit,
    pub(super) counts: Counts,
    /// To the decoder: the target holds it.
    pub(super) reply: oneshot::Sender<()>,
    /// To us: now is the time.
    pub(super) go: oneshot::Sender<()>,
    pub(super) ended: oneshot::Receiver<Ended>,
}

/// What became of a commit.
#[derive(Debug)]
pub(super) enum Ended {
    Committed,
    /// The target holds nothing of it.
    GivenUp,
    /// The position tells.
    Unknown(Error),
}

pub(super) struct Runner {
    pub(super) options: Options,
    pub(super) claim: Claim,
    pub(super) division: Division,
    /// A transaction is refused unless it is known to end behind here: the target may hold it, or its rows.
    pub(super) floor: Option<Lsn>,
    /// The main lane's writes carry an origin, so ours have to.
    pub(super) needs_origin: bool,
    pub(super) input: Receiver<AheadEvent>,
    pub(super) told: watch::Receiver<Told>,
    pub(super) due: Sender<Due>,
    pub(super) open: Option<Box<Open>>,
    pub(super) input_ended: bool,
}

/// The transaction under way.
pub(super) struct Open {
    xid: Xid,
    ticket: AheadTicket,
    target: Target,
    /// Reads the catalog, looks for who waits, and sees to it that the other one's backend ends.
    beside: Session,
    shapes: Shapes,
    group: Group,
    /// What the target has to hold before the group is executed.
    after: Lsn,
    begun: bool,
    flights: VecDeque<Sent<Step>>,
    counts: Counts,
    stage: Stage,
    look_due: Instant,
    looks_blocked: u32,
}

enum Stage {
    /// More may come.
    Gathering,
    /// All has come.
    Complete { commit: AheadCommit, reply: oneshot::Sender<()> },
    /// All is written, and the main lane is asked.
    Asked { commit: AheadCommit, go: oneshot::Receiver<()>, ended: oneshot::Sender<Ended> },
}

enum Event {
    Arrived(Option<Parcel<AheadEvent>>),
    Answered(Result<Outcome<Step>, Error>),
    /// The main lane has said something; `false`: it has ended.
    Told(bool),
    Go(bool),
    LookDue,
}

/// How an attempt ended, for the metric.
#[derive(Clone, Copy)]
enum Fate {
    Committed,
    GivenUp,
    RolledBack,
}

impl Runner {
    /// Runs until the main lane ends, and with it whatever is open.
    pub(super) async fn run(mut self) {
        loop {
            if let Err(why) = self.go_on().await {
                self.give_up(why).await;
            }
            let done = match self.next_event().await {
                Event::Told(false) => return,
                Event::Told(true) => Ok(()),
                Event::Arrived(None) => {
                    self.input_ended = true;
                    Ok(())
                }
                Event::Arrived(Some(parcel)) => self.take_in(parcel.item).await,
                Event::Answered(outcome) => self.answered(outcome),
                Event::Go(true) => {
                    self.commit().await;
                    Ok(())
                }
                Event::Go(false) => Err(AheadGivenUp::because("the applier stands still")),
                Event::LookDue => self.look().await,
            };
            if let Err(why) = done {
                self.give_up(why).await;
            }
        }
    }

    /// Waits and changes nothing but what it was told: each branch is cancel-safe.
    async fn next_event(&mut self) -> Event {
        let takes_input = self.takes_input();
        let Self { input, told, open, .. } = self;
        let look_due = open.as_ref().map(|open| open.look_due);
        let (flight, stage) = match open {
            Some(open) => {
                let Open { target, flights, stage, .. } = &mut **open;
                (flights.front_mut().map(|sent| (target, sent)), Some(stage))
            }
            None => (None, None),
        };
        let answered = async {
            match flight {
                Some((target, sent)) => target.outcome(sent).await,
                None => pending().await,
            }
        };
        let going = async {
            match stage {
                Some(Stage::Asked { go, .. }) => go.await.is_ok(),
                Some(Stage::Gathering | Stage::Complete { .. }) | None => pending().await,
            }
        };
        tokio::select! {
            biased; // to stop, then to make room, then to take more in
            changed = told.changed() => Event::Told(changed.is_ok()),
            go = going => Event::Go(go),
            outcome = answered => Event::Answered(outcome),
            parcel = input.recv(), if takes_input => Event::Arrived(parcel),
            () = sleep_until(look_due.unwrap_or_else(Instant::now)), if look_due.is_some() => Event::LookDue,
        }
    }

    fn takes_input(&self) -> bool {
        let has_room = self.open.as_ref().is_none_or(|open| {
            matches!(open.stage, Stage::Gathering) && !open.group.is_full(Limit::alone(self.options.group_bytes))
        });
        has_room && !self.input_ended
    }

    async fn take_in(&mut self, event: AheadEvent) -> Result<(), AheadGivenUp> {
        match event {
            AheadEvent::Part { part, ticket } if part.begins() => {
                if self.open.is_some() {
                    self.give_up(AheadGivenUp::because("another one has begun")).await;
                }
                match Box::pin(self.begin(&part, &ticket)).await {
                    Ok(open) => self.open = Some(Box::new(open)),
                    Err(why) => {
                        told_given_up(part.xid(), &ticket, why);
                        return Ok(());
                    }
                }
                self.add(part).await
            }
            AheadEvent::Part { part, ticket } => {
                if self.open.as_ref().is_some_and(|open| open.ticket.is_same(&ticket)) {
                    return self.add(part).await;
                }
                ticket.give_up(AheadGivenUp::because("the applier has begun anew"));
                Ok(())
            }
            AheadEvent::Commit { commit, reply } => {
                // Whoever waits for the reply to one that was given up sees that there will be none.
                if let Some(open) = self.open.as_mut().filter(|open| open.xid == commit.xid) {
                    open.stage = Stage::Complete { commit, reply };
                }
                Ok(())
            }
            AheadEvent::RollBack => {
                if let Some(open) = self.open.take() {
                    info!(xid = open.xid.0, "a transaction applied ahead of its commit is rolled back");
                    open.retire(Fate::RolledBack).await;
                }
                Ok(())
            }
        }
    }

    async fn begin(&self, part: &AheadPart, ticket: &AheadTicket) -> Result<Open, AheadGivenUp> {
        let Options { endpoint, filter, renames, gathered, .. } = &self.options;
        if Some(part.ends_behind()) < self.floor {
            return Err(AheadGivenUp::because("the target may hold it already"));
        }
        let failed = |error: Error| AheadGivenUp::because(chain(&error));
        let beside = wire::connect(endpoint, "apply ahead catalog").await;
        let beside = beside.map_err(|error| failed(Error::Connect(error)))?;
        let opened = Target::open(endpoint, self.claim.clone(), &origin_ahead(&self.claim.migration)).await;
        let target = opened.map_err(failed)?;
        if !target.replica || (self.needs_origin && !target.has_origin) {
            return Err(AheadGivenUp::because("a second session on the target is not allowed what the first one is"));
        }
        let (xid, after) = (part.xid(), part.after);
        info!(xid = xid.0, %after, "applying a transaction ahead of its commit");
        Ok(Open {
            xid,
            ticket: ticket.clone(),
            target,
            beside,
            shapes: Shapes::new(filter.clone(), renames.clone(), gathered.clone(), Vec::new(), self.division.clone()),
            group: Group::default(),
            after,
            begun: false,
            flights: VecDeque::new(),
            counts: Counts::new(),
            stage: Stage::Gathering,
            look_due: Instant::now() + LOOK_INTERVAL,
            looks_blocked: 0,
        })
    }

    async fn add(&mut self, part: AheadPart) -> Result<(), AheadGivenUp> {
        match &mut self.open {
            Some(open) => open.add(part).await,
            None => Ok(()),
        }
    }

    /// Sends what is due, and asks for the commit when all is done.
    async fn go_on(&mut self) -> Result<(), AheadGivenUp> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let told = *self.told.borrow();
        // Whoever lets the applier stand still waits for what comes next in the stream, which does not come before us.
        if !told.flows {
            return Err(AheadGivenUp::because("the applier stands still"));
        }
        while open.is_due(self.options.group_bytes) && told.passed >= Some(open.after) {
            open.send().await?;
        }
        if !open.is_written() {
            return Ok(());
        }
        match std::mem::replace(&mut open.stage, Stage::Gathering) {
            Stage::Complete { commit, reply } => {
                let ((go, going), (ending, ended)) = (oneshot::channel(), oneshot::channel());
                open.stage = Stage::Asked { commit, go: going, ended: ending };
                let due = Due { commit, counts: std::mem::take(&mut open.counts), reply, go, ended };
                let gone = |_| AheadGivenUp::because("the applier has ended");
                self.due.send(due, 1).await.map_err(gone)
            }
            stage @ (Stage::Gathering | Stage::Asked { .. }) => {
                open.stage = stage;
                Ok(())
            }
        }
    }

    fn answered(&mut self, outcome: Result<Outcome<Step>, Error>) -> Result<(), AheadGivenUp> {
        let open = self.open.as_mut().expect("only what is open is answered");
        open.flights.pop_front();
        match outcome {
            Ok(Outcome::Done) => Ok(()),
            Ok(Outcome::Failed { error, .. }) => {
                Err(AheadGivenUp::because(format!("the target refused a statement (SQLSTATE {})", error.sqlstate())))
            }
            Err(error) => Err(AheadGivenUp::because(chain(&error))),
        }
    }

    /// The main lane has committed everything before it, and commits nothing more until it knows.
    async fn commit(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        let Stage::Asked { commit, ended, .. } = std::mem::replace(&mut open.stage, Stage::Gathering) else {
            unreachable!("only one that has asked is told to go")
        };
        Point::AheadDue.reach();
        let outcome = open.commit(commit).await;
        let refused = match &outcome {
            Ended::Committed => None,
            Ended::GivenUp => Some("the position could not be written".to_owned()),
            Ended::Unknown(error) => Some(chain(error)),
        };
        let fate = match refused {
            None => {
                Point::AheadCommitted.reach();
                info!(xid = commit.xid.0, position = %commit.end, "committed a transaction that was applied ahead");
                self.floor = self.floor.max(Some(commit.end));
                Fate::Committed
            }
            Some(why) => {
                told_given_up(open.xid, &open.ticket, AheadGivenUp::because(why));
                Fate::GivenUp
            }
        };
        // One that has ended looks at the position when it begins again.
        drop(ended.send(outcome));
        open.retire(fate).await;
    }

    async fn give_up(&mut self, why: AheadGivenUp) {
        let Some(mut open) = self.open.take() else { return };
        told_given_up(open.xid, &open.ticket, why);
        if let Stage::Asked { ended, .. } = std::mem::replace(&mut open.stage, Stage::Gathering) {
            drop(ended.send(Ended::GivenUp));
        }
        open.retire(Fate::GivenUp).await;
    }

    /// Whether others wait for us. They might for ever: when the target has a unique key that the source does not have.
    async fn look(&mut self) -> Result<(), AheadGivenUp> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.look_due = Instant::now() + LOOK_INTERVAL;
        let lost = |error| AheadGivenUp::because(chain(&Error::Query { what: "look for who waits", source: error }));
        let blocked = open.beside.query_one(BLOCKED, &[&open.target.process()]).await.map_err(lost)?;
        open.looks_blocked = if blocked.get(0) { open.looks_blocked + 1 } else { 0 };
        if open.looks_blocked >= LOOKS_BLOCKED_MAX {
            return Err(AheadGivenUp::because("another session of ours waits for it on the target"));
        }
        Ok(())
    }
}

/// Sessions of our own role: what it may be that waits, and what we may see of it.
const BLOCKED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity \
     WHERE usename = current_user AND datname = current_database() AND wait_event_type = 'Lock' \
     AND $1 = ANY (pg_catalog.pg_blocking_pids(pid)))";

fn told_given_up(xid: Xid, ticket: &AheadTicket, why: AheadGivenUp) {
    warn!(xid = xid.0, %why, "a transaction applied ahead is given up: it comes again at its commit");
    ticket.give_up(why);
}

impl Open {
    async fn add(&mut self, part: AheadPart) -> Result<(), AheadGivenUp> {
        let AheadPart { batch, after } = part;
        let tables = self.shapes.resolve(&self.beside, &batch.relations, self.target.replica).await;
        let tables = tables.map_err(|error| AheadGivenUp::because(chain(&error)))?;
        for table in tables.iter().flatten() {
            check(table)?;
        }
        let arrived = Arc::new(Arrived::new(Arc::new(batch), tables, false));
        for at in 0..arrived.batch.transactions.len() {
            let added = self.group.add(Member { arrived: Arc::clone(&arrived), at }, &HashSet::new());
            added.map_err(|error| AheadGivenUp::because(chain(&error)))?;
        }
        self.after = after;
        Ok(())
    }

    /// A server that has nothing to do gets what there is.
    fn is_due(&self, group_bytes: usize) -> bool {
        let is_full = self.group.is_full(Limit::alone(group_bytes)) || !matches!(self.stage, Stage::Gathering);
        !self.group.members.is_empty() && (self.flights.is_empty() || (is_full && self.flights.len() < FLIGHTS_MAX))
    }

    fn is_written(&self) -> bool {
        self.group.members.is_empty() && self.flights.is_empty()
    }

    async fn send(&mut self) -> Result<(), AheadGivenUp> {
        let mut group = std::mem::take(&mut self.group);
        let mut script = Script::checked_here();
        if !self.begun {
            self.target.begin(&mut script, Step::Frame);
            self.begun = true;
        }
        for (at, layer) in group.layers.list().iter().enumerate() {
            let written = self.target.layer(&mut script, layer, Step::Layer(at));
            written.map_err(|error| AheadGivenUp::because(chain(&error)))?;
        }
        group.count_earlier(std::mem::take(&mut self.counts));
        self.counts = std::mem::take(&mut group.counts);
        // What was gathered is written out: nothing is tried a second time, so nothing more is needed of it.
        drop(group);
        self.flights.push_back(self.target.send(script).await);
        Ok(())
    }

    /// With the position, in the same transaction; waits for the disk, and so for what the main lane has committed.
    async fn commit(&mut self, commit: AheadCommit) -> Ended {
        let mut script = Script::new();
        if !self.begun {
            self.target.begin(&mut script, Step::Frame);
        }
        self.target.position(&mut script, commit.end, Some(commit.committed_at_us), Step::Position);
        self.target.fixed(&mut script, "COMMIT", Step::Frame);
        match self.target.perform(script).await {
            Ok(Outcome::Done) => Ended::Committed,
            Ok(Outcome::Failed { label: Step::Position, .. }) => Ended::GivenUp,
            Ok(Outcome::Failed { error, .. }) => {
                Ended::Unknown(Error::Refused { what: "commit a transaction applied ahead", source: error })
            }
            Err(error) => Ended::Unknown(error),
        }
    }

    /// Closes the session and waits until its backend is gone: its locks would be in the way of the same rows.
    async fn retire(self: Box<Self>, fate: Fate) {
        let outcome = match fate {
            Fate::Committed => "committed",
            Fate::GivenUp => "given_up",
            Fate::RolledBack => "rolled_back",
        };
        metrics::counter!(names::AHEAD_TOTAL, names::LABEL_OUTCOME => outcome).increment(1);
        let Self { target, beside, .. } = *self;
        let process = target.process();
        if matches!(fate, Fate::Committed) {
            target.close().await;
        } else {
            drop(target);
        }
        let gone = tokio::time::timeout(GONE_PATIENCE, gone(&beside, process, !matches!(fate, Fate::Committed)));
        if !matches!(gone.await, Ok(Ok(()))) {
            warn!(process, "a session on the target may still be open: what waits for its locks goes on when it ends");
        }
    }
}

/// Row by row in the source's order is all that is right for some tables, and only the main lane's order is the source's.
fn check(table: &Table) -> Result<(), AheadGivenUp> {
    let name = &table.relation.name;
    if !table.isolated {
        return Err(AheadGivenUp::because(format!("triggers or rules fire on the target's table of {name}")));
    }
    if table.key == RowKey::WholeRow {
        return Err(AheadGivenUp::because(format!("rows of {name} have no key to tell them apart by")));
    }
    Ok(())
}

async fn gone(beside: &Session, process: i32, terminate: bool) -> Result<(), tokio_postgres::Error> {
    if terminate {
        let sql = "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = $1";
        beside.execute(sql, &[&process]).await?;
    }
    let sql = "SELECT FROM pg_catalog.pg_stat_activity WHERE pid = $1";
    while beside.query_opt(sql, &[&process]).await?.is_some() {
        tokio::time::sleep(GONE_PAUSE).await;
    }
    Ok(())
}
