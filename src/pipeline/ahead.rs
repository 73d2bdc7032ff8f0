//! The way to the applier that runs now, for what is applied ahead of its commit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::model::{Ahead, AheadCommit, AheadEvent, AheadGivenUp, AheadPart, AheadTicket};
use crate::{apply, link};

/// Parts between decoder and applier.
const LINK_COUNT: usize = 256;
/// The first applier begins beside the stream, and one that ended is followed by another, within this.
const APPLIER_PATIENCE: Duration = Duration::from_secs(5);
const APPLIER_PAUSE: Duration = Duration::from_millis(20);

/// The applier is made anew after each failure; this always leads to the present one. `None` in a daemon whose stream
/// has other readers too.
#[derive(Clone)]
pub(super) struct AheadDesk {
    now: Arc<Mutex<Option<link::Sender<AheadEvent>>>>,
    able: watch::Sender<bool>,
    link_bytes: usize,
    stop: CancellationToken,
}

/// The decoder's end.
struct Lane {
    desk: AheadDesk,
    runtime: Handle,
    under_way: Option<(link::Sender<AheadEvent>, AheadTicket)>,
}

impl AheadDesk {
    /// `able`: what is to be thought of the target until its applier has said.
    pub(super) fn new(link_bytes: usize, able: bool, stop: CancellationToken) -> Self {
        Self { now: Arc::default(), able: watch::Sender::new(able), link_bytes, stop }
    }

    pub(super) fn able(&self) -> watch::Receiver<bool> {
        self.able.subscribe()
    }

    /// Leads to a new applier from now on.
    pub(super) fn renew(&self) -> apply::AheadPort {
        let (sender, input) = link::channel(self.link_bytes, LINK_COUNT);
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        apply::AheadPort { input, able: self.able.clone() }
    }

    /// Used on a thread of its own.
    pub(super) fn lane(&self) -> Box<dyn Ahead> {
        Box::new(Lane { desk: self.clone(), runtime: Handle::current(), under_way: None })
    }

    /// The applier that runs, or the first that does soon.
    async fn applier(&self) -> Result<link::Sender<AheadEvent>, AheadGivenUp> {
        let deadline = Instant::now() + APPLIER_PATIENCE;
        loop {
            let sender = self.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match sender {
                Some(sender) if !sender.is_closed() => return Ok(sender),
                _ if Instant::now() >= deadline || self.stop.is_cancelled() || !*self.able.borrow() => {
                    return Err(AheadGivenUp::because("nothing is being applied to the target"));
                }
                Some(_) | None => sleep(APPLIER_PAUSE).await,
            }
        }
    }
}

impl Lane {
    fn send(&self, event: AheadEvent, size_bytes: usize) -> Result<(), AheadGivenUp> {
        let gone = || AheadGivenUp::because("the applier has ended");
        let (sender, ticket) = self.under_way.as_ref().ok_or_else(gone)?;
        let sent = sender.send_blocking(&self.runtime, event, size_bytes);
        match ticket.given_up() {
            Some(why) => Err(why),
            None => sent.map_err(|link::Closed| gone()),
        }
    }
}

impl Ahead for Lane {
    fn take(&mut self, part: AheadPart) -> Result<(), AheadGivenUp> {
        if part.begins() {
            let applier = self.runtime.block_on(self.desk.applier())?;
            self.under_way = Some((applier, AheadTicket::default()));
        }
        let size_bytes = part.batch.size_bytes();
        let ticket = self.under_way.as_ref().map(|(_, ticket)| ticket.clone()).unwrap_or_default();
        self.send(AheadEvent::Part { part, ticket }, size_bytes)
    }

    fn commit(&mut self, commit: AheadCommit) -> Result<(), AheadGivenUp> {
        let (reply, answer) = oneshot::channel();
        self.send(AheadEvent::Commit { commit, reply }, 1)?;
        let answer = self.runtime.block_on(answer);
        let given_up = self.under_way.take().and_then(|(_, ticket)| ticket.given_up());
        answer.map_err(|_| given_up.unwrap_or_else(|| AheadGivenUp::because("the applier has ended")))
    }

    fn roll_back(&mut self) {
        // An applier that has ended holds nothing of it.
        drop(self.send(AheadEvent::RollBack, 1));
        self.under_way = None;
    }
}
