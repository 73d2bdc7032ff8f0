//! One session under way: waits, hands frames on, performs what the machine decides.

use std::future::{pending, ready};
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::admit::Admitted;
use super::machine::{Effect, Input, Machine, Timing, Why};
use super::pace::Pace;
use super::run::{Options, Ports, SessionState, SourceEvent};
use super::{Error, frames};
use crate::link;
use crate::model::{FrameBatch, FramePayload, Lsn};
use crate::telemetry::{Point, clock};
use crate::wire::{self, CopyBoth, CopyBothEvent, Endpoint, sqlstate};

/// A source from which nothing has come for this long, though it was asked, is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The server ends the session after `wal_sender_timeout` without a report; this many fit in.
const REPORTS_PER_SENDER_TIMEOUT: u32 = 4;
/// How long the last words may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Driver<'a> {
    both: CopyBoth,
    machine: Machine,
    pace: Pace,
    /// Not before this is the socket read again.
    rest_until: Option<Instant>,
    events: &'a link::Sender<SourceEvent>,
    confirmed: &'a mut watch::Receiver<Option<Lsn>>,
    state: &'a watch::Sender<SessionState>,
    stop: &'a CancellationToken,
    /// The machine hears of it once.
    stop_given: bool,
    endpoint: &'a Endpoint,
    renew_at: Option<Lsn>,
    /// At most one attempt to find out whether the source still lets anybody in: true when it does not.
    probe: JoinSet<bool>,
    left: Option<Why>,
    /// We stop because a new session is to follow.
    renews: bool,
}

/// How a session ends when nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finished {
    Stopped,
    /// A backlog has been read in bulk, as far as it is read so; a session follows at once.
    CaughtUp,
    /// Another one is to follow at once.
    Renew,
}

/// What has happened. Waiting for it has changed nothing.
enum Event {
    Frames(FrameBatch),
    Input(Input),
    /// A report is on its way; nothing more.
    Sent,
}

impl<'a> Driver<'a> {
    pub(super) fn new(both: CopyBoth, admitted: &Admitted, options: &'a Options, ports: &'a mut Ports) -> Self {
        let now = Instant::now();
        let longest = admitted.sender_timeout.map(|sender_timeout| sender_timeout / REPORTS_PER_SENDER_TIMEOUT);
        let status_interval = longest.map_or(options.status_interval, |longest| options.status_interval.min(longest));
        let timing = Timing { status_interval, silence_max: SILENCE_MAX };
        let Ports { events, confirmed, state, stop, .. } = ports;
        let machine = Machine::new(timing, admitted.start, *confirmed.borrow_and_update(), now);
        Self {
            both,
            machine,
            pace: if admitted.ahead_until.is_some() { Pace::of_backlog() } else { Pace::default() },
            rest_until: None,
            events,
            confirmed,
            state,
            stop,
            stop_given: false,
            endpoint: &options.endpoint,
            renew_at: admitted.renew_at,
            probe: JoinSet::new(),
            left: None,
            renews: false,
        }
    }

    /// Hands `first` on and then all that comes, until we are asked to stop, want another session, or this one breaks.
    pub(super) async fn run(mut self, first: SourceEvent) -> Result<Finished, Error> {
        self.hand_on(first, 0).await?;
        while self.left.is_none() {
            match self.next_event(true).await? {
                Event::Frames(batch) => self.on_frames(batch).await?,
                Event::Input(input) => self.decide(input),
                Event::Sent => {}
            }
            self.renew_once_settled();
        }
        let finished = if self.renews { Finished::Renew } else { Finished::Stopped };
        self.leave().await.map(|()| finished)
    }

    /// Not as soon as the backlog has been read: the server would decode once more what the sinks do not hold yet, at the
    /// very time at which they need its processors.
    fn renew_once_settled(&mut self) {
        let is_settled = self.renew_at.is_some() && *self.confirmed.borrow() >= self.renew_at;
        if is_settled && !self.renews && self.left.is_none() {
            tracing::info!("caught up: a new session takes transactions before they commit");
            self.renews = true;
            self.decide(Input::Stop);
        }
    }

    async fn on_frames(&mut self, batch: FrameBatch) -> Result<(), Error> {
        self.rest_until = self.pace.on_read(&batch).map(|rest| Instant::now() + rest);
        if self.pace.widens(&batch) {
            self.both.widen()?;
        }
        self.decide(received(&batch));
        if let Some(received) = self.machine.received() {
            self.state.send_replace(SessionState::Streaming { received });
        }
        if !self.machine.is_streaming() {
            return Ok(());
        }
        let size_bytes = batch.size_bytes;
        self.hand_on(SourceEvent::Frames(batch), size_bytes).await
    }

    /// Sends to the decoder. While its link is full the source is not read, but it is reported to, and a stop is heard:
    /// what was not handed on comes again.
    async fn hand_on(&mut self, event: SourceEvent, size_bytes: usize) -> Result<(), Error> {
        let mut sending = pin!(self.events.send(event, size_bytes));
        let mut blocked = false;
        while self.machine.is_streaming() {
            let next = tokio::select! { biased;
                // First, since it costs nothing while there is room.
                sent = &mut sending => Err(sent),
                next = self.next_event(false), if blocked => Ok(next),
                () = ready(()), if !blocked => {
                    blocked = true;
                    self.decide(Input::Blocked);
                    continue;
                }
            };
            match next {
                Err(Ok(())) => break,
                // The decoder has gone, and knows why.
                Err(Err(_closed)) => self.decide(Input::Stop),
                Ok(event) => {
                    if let Event::Input(input) = event? {
                        self.decide(input);
                    }
                }
            }
        }
        if blocked {
            self.decide(Input::Listening);
        }
        Ok(())
    }

    /// Waits; changes nothing. Cancel-safe.
    async fn next_event(&mut self, listening: bool) -> Result<Event, Error> {
        let stopping = stopped(self.stop, self.stop_given);
        let traffic = traffic(&mut self.both, listening, self.rest_until);
        tokio::select! { biased;
            // Rare and short: none of these can keep the stream waiting.
            () = stopping => Ok(Event::Input(Input::Stop)),
            lsn = settled(self.confirmed) => Ok(Event::Input(Input::Confirmed(lsn))),
            () = sleep_until(self.machine.due()) => Ok(Event::Input(Input::Due)),
            () = closing(&mut self.probe) => Ok(Event::Input(Input::Closing)),
            event = traffic => event,
        }
    }

    fn decide(&mut self, input: Input) {
        self.stop_given |= input == Input::Stop;
        for effect in self.machine.on(input, Instant::now()) {
            match effect {
                Effect::Report(report) => {
                    tracing::trace!(?report, "report to the source");
                    Point::ReportDue.reach();
                    self.both.queue(&frames::encode(report, clock::unix_us()));
                    Point::Reported.reach();
                }
                Effect::SayDone => self.both.queue_done(),
                Effect::Probe if self.probe.is_empty() => {
                    self.probe.spawn(lets_nobody_in(self.endpoint.clone()));
                }
                // The last one has not come back yet.
                Effect::Probe => {}
                Effect::Leave(why) => self.left = Some(why),
            }
        }
    }

    async fn leave(self) -> Result<(), Error> {
        let ended = match self.left {
            Some(Why::Stopped) | None => Ok(()),
            Some(Why::Ended) => Err(Error::StreamEnded),
            Some(Why::Silent) => return Err(Error::SourceSilent { seconds: SILENCE_MAX.as_secs() }),
            Some(Why::Closing) => {
                let confirmed = *self.confirmed.borrow();
                let confirmed = confirmed.map_or_else(|| "the beginning".to_owned(), |lsn| lsn.to_string());
                return Err(Error::SourceStopping { confirmed });
            }
        };
        // A server that shuts down closes at once, and a report that did not get out is not missed.
        let closed = timeout(CLOSE_PATIENCE, self.both.close()).await;
        tracing::debug!(?closed, "session closed");
        ended
    }
}

/// Whether the source refuses everybody because it is shutting down.
async fn lets_nobody_in(endpoint: Endpoint) -> bool {
    let connected = wire::connect_plain(&endpoint, "probe").await;
    connected
        .err()
        .is_some_and(|error| error.server().is_some_and(|said| said.sqlstate() == sqlstate::CANNOT_CONNECT_NOW))
}

/// A probe that came back with yes. Never otherwise. Cancel-safe.
async fn closing(probe: &mut JoinSet<bool>) {
    while let Some(closing) = probe.join_next().await {
        if closing.unwrap_or(false) {
            return;
        }
    }
    pending().await
}

fn received(batch: &FrameBatch) -> Input {
    let is_keepalive = |payload: &FramePayload| matches!(payload, FramePayload::Keepalive { .. });
    Input::Received {
        through: batch.frames.iter().filter_map(|frame| frame.wal_end).max(),
        has_data: !batch.frames.iter().all(|frame| is_keepalive(&frame.payload)),
        reply_requested: batch
            .frames
            .iter()
            .any(|frame| matches!(frame.payload, FramePayload::Keepalive { reply_requested: true })),
    }
}

/// What the connection has for us. When nobody listens, only what is queued goes out. Cancel-safe.
async fn traffic(both: &mut CopyBoth, listening: bool, rest_until: Option<Instant>) -> Result<Event, Error> {
    let lost = || Error::wire("follow the source's stream");
    if both.queued_bytes() > 0 && (!listening || rest_until.is_some()) {
        both.send_queued().await.map_err(lost())?;
        return Ok(Event::Sent);
    }
    if !listening {
        both.lay_aside().map_err(lost())?;
        return pending().await;
    }
    if let Some(rest_until) = rest_until.filter(|until| Instant::now() < *until) {
        both.lay_aside().map_err(lost())?;
        sleep_until(rest_until).await;
        both.glance().map_err(lost())?;
    }
    match both.next().await.map_err(lost())? {
        CopyBothEvent::Data(chunk) => {
            let batch = frames::decode(&chunk);
            batch.map(Event::Frames).ok_or(Error::Malformed { what: "a replication message of unknown form" })
        }
        CopyBothEvent::Ended => Ok(Event::Input(Input::Ended)),
    }
}

/// The next position that every sink holds. Never, once nobody is left to tell. Cancel-safe.
async fn settled(confirmed: &mut watch::Receiver<Option<Lsn>>) -> Lsn {
    while confirmed.changed().await.is_ok() {
        if let Some(lsn) = *confirmed.borrow_and_update() {
            return lsn;
        }
    }
    pending().await
}

/// Never, once it has been heard.
async fn stopped(stop: &CancellationToken, heard: bool) {
    if heard { pending().await } else { stop.cancelled().await }
}
