//! Waits and performs: one loop over what arrives, what is asked, and what the target answers.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::link::Parcel;
use crate::model::{Aligned, ApplyCommand, Batch, Disposition, Lsn, Misaligned, SinkName, Transaction, Xid};
use crate::telemetry::Point;
use crate::wire::{self, Endpoint, ServerError, Session};

use super::careful;
use super::catalog::Shapes;
use super::error::Error;
use super::flights::{Course, Flight, Flights};
use super::group::{Counts, Extent, Group, Limit};
use super::joining::{self, Joining};
use super::lanes::{Division, Lane, is_divided_anew};
use super::machine::{Input, Recent, State};
use super::members::read_members;
use super::options::{Options, Ports};
use super::origin::origin_of;
use super::position;
use super::queue::{Arrived, Next, Queue};
use super::report;
use super::sending::Staged;
use super::session::{Claim, Outcome, Target};
use super::transaction::{self, Step};

/// How often the position is written when only it has moved. A restart reads the source again from the position, so
/// this bounds what an idle target keeps from being confirmed, and an idle daemon costs one small commit in it.
const POSITION_INTERVAL: Duration = Duration::from_secs(1);

/// The same for tables that are set apart: the main lane stands still until their position is seen to have reached its
/// own. They are for as long only as it takes to catch up.
const APART_POSITION_INTERVAL: Duration = Duration::from_millis(50);

/// What has to wait when a group is done for us to be behind: then the next one may wait for company. At a thousand
/// small transactions a second a commit's worth of waiting is a tenth of this.
const BEHIND_BYTES: usize = 64 << 10;

/// Unique and exclusion violations, and rows that were not found: what an order of sets may cause by itself.
const ORDER_MATTERS: [&str; 3] = ["23505", "23P01", transaction::WRONG_COUNT];

/// Applies the stream until the input ends or `stop` is cancelled. An error with [`Disposition::Retry`] means: run
/// again, with input from [`super::read_position`] on.
pub async fn run(options: Options, ports: Ports) -> Result<(), Error> {
    // On the heap: what waits for a session is large and would be part of every future above.
    let (endpoint, migration, lane, epoch) =
        (options.endpoint.clone(), options.migration.clone(), options.lane, options.epoch);
    let driver = Box::pin(open(options, ports)).await?;
    match Box::pin(driver.run()).await {
        Err(Error::Superseded { .. }) if Box::pin(is_divided_anew(&endpoint, &migration, lane, epoch)).await? => {
            Err(Error::Divided)
        }
        ended => ended,
    }
}

async fn open(options: Options, mut ports: Ports) -> Result<Driver, Error> {
    let catalog = wire::connect(&options.endpoint, "apply catalog").await.map_err(Error::Connect)?;
    let held = position::adopt(&catalog, &options.migration, options.lane, options.epoch, options.start).await?;
    // Read after the generation: a newer division than that only makes the first group fail.
    let division = Division::new(options.lane, &read_members(&catalog, &options.migration).await?);
    let claim = Claim {
        migration: options.migration.clone(),
        lane: options.lane,
        epoch: options.epoch,
        generation: held.generation,
    };
    let origin = origin_of(&options.migration, options.lane, 0);
    let target = Target::open(&options.endpoint, claim.clone(), &origin).await?;
    let start = held.position.max(options.start);
    let joining = ports.ahead.take().and_then(|port| Joining::begin(&options, port, &target, &claim, &division, start));
    report::start(start, &ports.settled);
    info!(lane = ?options.lane, position = start.map(tracing::field::display), "applying");
    let driver = Driver::new(options, ports, catalog, (claim, target), division, start);
    Ok(Driver { joining, ..driver })
}

pub(super) struct Driver {
    pub(super) ports: Ports,
    pub(super) catalog: Session,
    pub(super) endpoint: Endpoint,
    pub(super) claim: Claim,
    /// Sessions without work. Whoever comes back last goes first.
    pub(super) idle: Vec<Target>,
    /// How many there may be, those at work included.
    pub(super) sessions_max: usize,
    /// What the first session may, and all others therefore have to.
    pub(super) replica: bool,
    pub(super) has_origin: bool,
    shapes: Shapes,
    sink: SinkName,
    pub(super) position_interval: Duration,
    pub(super) group_bytes: usize,
    group_delay: Duration,
    pub(super) held_bytes: usize,
    dead_letters: bool,
    /// Where we stood when we came, or what was applied ahead since: what ends here or before is not applied again.
    start: Option<Lsn>,

    pub(super) state: State,
    pub(super) hold_reply: Option<oneshot::Sender<Lsn>>,
    pub(super) align_reply: Option<oneshot::Sender<Result<Aligned, Misaligned>>>,
    pub(super) recent: Recent,

    pub(super) queue: Queue,
    pub(super) group: Group,
    /// The next group, written out while another one flies. Nothing is gathered behind it.
    pub(super) staged: Option<Staged>,
    pub(super) flights: Flights,
    /// Nothing of the group may go ahead before another one is done.
    pub(super) waits_for_end: bool,
    /// When we last looked whether what went ahead holds up what is before it.
    pub(super) looked_at: Instant,
    /// A source transaction came in parts and its target transaction is open. What its pieces did so far.
    pub(super) open: Option<Counts>,
    /// Tables (by [`super::table::Table::place`]) whose sets failed for their order: no longer folded.
    ordered: HashSet<u32>,
    /// Tables whose changes were refused ahead of their turn.
    pub(super) kept_back: HashSet<u32>,
    /// End of the last transaction that was applied.
    applied: Option<Lsn>,
    /// Everything up to here was taken from the queue.
    pub(super) reached: Option<Lsn>,
    pub(super) committed: Instant,
    /// When everything that was committed was durable.
    pub(super) flushed: Instant,
    /// Until when the group may wait for company.
    pub(super) gather_until: Option<Instant>,

    /// What is applied ahead of its commit, where that is possible.
    pub(super) joining: Option<Joining>,

    pub(super) input_ended: bool,
    commands_ended: bool,
    pub(super) stopping: bool,
}

enum Event {
    Stop,
    /// By whom in the row of those under way.
    Answered(usize, Result<Outcome<Step>, Error>),
    Asked(Option<Parcel<ApplyCommand>>),
    Arrived(Option<Parcel<Arc<Batch>>>),
    Due,
    Ahead(joining::Event),
}

const fn sink_of(lane: Lane) -> SinkName {
    match lane {
        Lane::Main => SinkName::Target,
        Lane::Apart => SinkName::Resync,
    }
}

const fn position_interval(lane: Lane) -> Duration {
    match lane {
        Lane::Main => POSITION_INTERVAL,
        Lane::Apart => APART_POSITION_INTERVAL,
    }
}

impl Driver {
    fn new(
        options: Options,
        ports: Ports,
        catalog: Session,
        (claim, target): (Claim, Target),
        division: Division,
        start: Option<Lsn>,
    ) -> Self {
        Self {
            ports,
            catalog,
            endpoint: options.endpoint,
            claim,
            sessions_max: options.sessions,
            replica: target.replica,
            has_origin: target.has_origin,
            idle: vec![target],
            shapes: Shapes::new(options.filter, options.renames, options.gathered, options.handovers, division),
            sink: sink_of(options.lane),
            position_interval: position_interval(options.lane),
            group_bytes: options.group_bytes,
            group_delay: options.group_delay,
            held_bytes: options.held_bytes,
            dead_letters: options.dead_letters,
            start,
            state: State::default(),
            hold_reply: None,
            align_reply: None,
            recent: Recent::default(),
            queue: Queue::default(),
            group: Group::default(),
            staged: None,
            flights: Flights::default(),
            waits_for_end: false,
            looked_at: Instant::now(),
            open: None,
            ordered: HashSet::new(),
            kept_back: HashSet::new(),
            applied: start,
            reached: None,
            committed: Instant::now(),
            flushed: Instant::now(),
            gather_until: None,
            joining: None,
            input_ended: false,
            commands_ended: false,
            stopping: false,
        }
    }

    async fn run(mut self) -> Result<(), Error> {
        loop {
            self.relieve().await?;
            self.launch().await?;
            self.rest();
            self.tell_ahead();
            if self.is_done() {
                return Ok(());
            }
            let event = self.next_event().await;
            self.on_event(event).await?;
        }
    }

    /// Waits and changes nothing but what it was told: each branch is cancel-safe.
    async fn next_event(&mut self) -> Event {
        let (takes_input, due) = (self.takes_input(), self.due());
        let obeys = !self.commands_ended && !self.is_joining();
        let Ports { input, commands, stop, .. } = &mut self.ports;
        let is_flying = !self.flights.is_empty();
        tokio::select! {
            biased; // to stop, then to make room, then to obey, and only then to take more in
            () = stop.cancelled(), if !self.stopping => Event::Stop,
            (at, outcome) = self.flights.answer(), if is_flying => Event::Answered(at, outcome),
            ahead = Joining::next(&mut self.joining) => Event::Ahead(ahead),
            command = commands.recv(), if obeys => Event::Asked(command),
            parcel = input.recv(), if takes_input => Event::Arrived(parcel),
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => Event::Due,
        }
    }

    async fn on_event(&mut self, event: Event) -> Result<(), Error> {
        match event {
            Event::Stop => self.stopping = true,
            Event::Answered(at, outcome) => self.answered(at, outcome?).await?,
            Event::Asked(Some(command)) => self.obey(command.item),
            Event::Asked(None) => {
                // Nobody is left who could release us.
                self.commands_ended = true;
                self.turn(Input::Release);
            }
            Event::Arrived(Some(parcel)) => self.take_in(parcel).await?,
            Event::Arrived(None) => self.input_ended = true,
            Event::Due => {}
            Event::Ahead(event) => self.on_joining(event)?,
        }
        Ok(())
    }

    /// Takes in a batch and whatever else has arrived meanwhile, so that it becomes one group.
    async fn take_in(&mut self, parcel: Parcel<Arc<Batch>>) -> Result<(), Error> {
        let mut next = Some(parcel);
        while let Some(parcel) = next {
            let tables = self.shapes.resolve(&self.catalog, &parcel.item.relations, self.replica).await?;
            let looks = matches!(self.state, State::Looking { .. });
            let divided = self.shapes.leaves_out(&parcel.item.relations);
            self.queue.push(Arrived::new(parcel.item, tables, divided));
            if looks {
                let newest: Vec<Next> = self.queue.newest().collect();
                self.show(newest);
            }
            self.fill()?;
            next = if self.takes_input() { self.ports.input.try_recv() } else { None };
        }
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.group.is_full(Limit { bytes: self.group_bytes, sessions: self.sessions_max })
    }

    fn takes_input(&self) -> bool {
        let has_room = if self.state.flows() {
            self.queue.is_empty() && !self.is_full() && self.staged.is_none()
        } else {
            self.queue.size_bytes() < self.held_bytes
        };
        has_room && !self.input_ended && !self.stopping
    }

    /// Moves what may be applied from the queue into the group.
    pub(super) fn fill(&mut self) -> Result<(), Error> {
        while !self.is_full() && self.staged.is_none() {
            match self.queue.peek() {
                None => break,
                Some(Next::Through(through)) => {
                    self.queue.pop();
                    self.reach(through);
                }
                Some(Next::Transaction(member)) => {
                    let transaction = member.transaction();
                    if self.holds(transaction) {
                        self.queue.pop();
                        continue;
                    }
                    let allowed = self.state.allows(transaction.end_at_least(), transaction.part.begins());
                    if !allowed || !self.group.accepts(transaction.part) {
                        break;
                    }
                    self.queue.pop();
                    self.group.add(member, &self.ordered)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the target has the transaction already.
    pub(super) fn holds(&self, transaction: &Transaction) -> bool {
        Some(transaction.end_at_least()) <= self.start
    }

    fn reach(&mut self, through: Lsn) {
        self.reached = self.reached.max(Some(through));
        let durable = self.ports.settled.borrow().through;
        let in_parts = self.open.is_some() || self.is_in_parts();
        if Some(through) > durable && !in_parts {
            self.group.reach(through);
        }
    }

    /// Tells the machine when nothing is left to do.
    fn rest(&mut self) {
        if self.is_quiet() && self.group.is_empty() && self.state.hurries() {
            let applied = self.applied;
            self.turn(Input::Quiet { applied });
        }
    }

    /// Nothing was taken from the queue that the target does not hold, but for a position.
    pub(super) fn is_quiet(&self) -> bool {
        let nothing_under_way = self.flights.is_empty() && self.staged.is_none() && self.open.is_none();
        nothing_under_way && self.group.members.is_empty()
    }

    /// The target holds this one, which came another way, and everything before it.
    pub(super) fn applied_ahead(&mut self, xid: Xid, end: Lsn) {
        debug_assert!(self.is_quiet(), "it is committed alone");
        // What was to be written is a position before it.
        self.group = Group::default();
        self.recent.add(xid);
        self.applied = Some(end);
        self.start = self.start.max(Some(end));
    }

    fn is_done(&self) -> bool {
        let drained = self.group.is_empty() && self.staged.is_none() && (self.queue.is_empty() || !self.state.flows());
        if self.stopping {
            // What went ahead of its turn is undone with its session.
            !self.flights.is_ending() && !self.is_joining()
        } else {
            self.flights.is_empty() && !self.is_joining() && self.input_ended && drained
        }
    }

    async fn answered(&mut self, at: usize, outcome: Outcome<Step>) -> Result<(), Error> {
        if let Course::Ahead { shares, .. } = &mut self.flights.at(at).course {
            let shares = std::mem::take(shares);
            match outcome {
                Outcome::Done => self.flights.at(at).course = Course::Waits { shares },
                Outcome::Failed { label, error } => self.refused_ahead(at, label, error.sqlstate()),
            }
            return if at == 0 { self.take_turn().await } else { Ok(()) };
        }
        self.ended(outcome).await
    }

    /// The first group was answered to its end.
    async fn ended(&mut self, outcome: Outcome<Step>) -> Result<(), Error> {
        let Flight { group, flushes, target, .. } = self.flights.pop().expect("only a flight is answered");
        let mut target = target.expect("what was sent has a session");
        let mut flushed = flushes;
        match outcome {
            Outcome::Done => {}
            Outcome::Failed { label: Step::Layer(layer), error } if error.disposition() != Disposition::Retry => {
                self.mistrust(&group, layer, &error);
                self.unstage();
                flushed = true;
                let set_aside = careful::apply(&mut target, &group, self.dead_letters).await?;
                report::set_aside(&set_aside);
            }
            Outcome::Failed { label, error } => return Err(transaction::refused(&target, label, error)),
        }
        self.idle.push(target);
        self.waits_for_end = false;
        // The server should not wait for our accounts. Nothing is gathered before they are made: they tell whether a
        // transaction is open.
        self.take_turn().await?;
        self.send_what_is_staged().await;
        Point::GroupCommitted.reach();
        self.done(group, flushed);
        Point::GroupTold.reach();
        let waiting = self.group.size_bytes + self.queue.size_bytes();
        self.gather_until = (waiting >= BEHIND_BYTES).then(|| Instant::now() + self.group_delay);
        Ok(())
    }

    /// A set was refused. Where its order may be why, the table keeps the source's order from now on.
    fn mistrust(&mut self, group: &Group, layer: usize, error: &ServerError) {
        let Some(table) = group.layers.list()[layer].table() else { return };
        warn!(table = %table.relation.name, sqlstate = error.sqlstate(), "set refused: applying its group row by row");
        if ORDER_MATTERS.contains(&error.sqlstate()) {
            self.ordered.insert(table.place);
        }
    }

    /// The target has executed the group, and committed it unless it is a piece with more to come.
    pub(super) fn done(&mut self, mut group: Group, flushed: bool) {
        group.count_earlier(self.open.take().unwrap_or_default());
        if matches!(group.extent, Extent::Piece { last: false, .. }) {
            self.open = Some(group.counts);
            return;
        }
        for member in &group.members {
            let transaction = member.transaction();
            self.recent.add(transaction.xid);
            self.applied = Some(transaction.end);
        }
        if let Some(joining) = &mut self.joining {
            joining.pass(group.through);
        }
        self.committed = Instant::now();
        report::tally(&group, &self.ports.tally);
        report::visible(&group, self.sink, &self.ports.settled, &self.ports.latency);
        if flushed {
            self.flushed = self.committed;
            report::durable(&group, &self.ports.settled);
        } else {
            self.reached = self.reached.max(group.through);
        }
        if let Some(through) = self.reached {
            // What came behind the last piece had to wait for it, and what is not durable for one that is.
            self.reach(through);
        }
    }
}
