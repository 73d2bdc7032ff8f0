//! Where everything stands in the stream: the tracker shared by the stages, and who is told when it moves.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::model::{Lsn, SinkName};
use crate::progress::{Decoded, SinkLag, Tracker};
use crate::spool::Resumed;
use crate::telemetry::clock;

/// A source that says nothing for this long, though it sends keepalives while idle, counts as unheard: lag then grows.
const UNHEARD_AFTER_US: i64 = 45_000_000;

pub(super) struct Flow {
    tracker: Mutex<Tracker>,
    /// What the slot may be told.
    confirmed: watch::Sender<Option<Lsn>>,
    /// What has been decoded, and where a new session therefore begins.
    received: watch::Sender<Option<Lsn>>,
    moved: Notify,
    heard_at_us: AtomicI64,
}

impl Flow {
    /// `settled` is what each sink holds durably, `resumed` what the spool holds for them.
    pub(super) fn new(settled: &[(SinkName, Lsn)], resumed: &Resumed) -> Self {
        let tracker = Tracker::new(settled.iter().copied());
        let tracker = match resumed.durable {
            Some(through) => tracker.with_spool(through, resumed.last_transaction, &resumed.backlog),
            None => tracker,
        };
        Self {
            confirmed: watch::Sender::new(Some(tracker.confirmed().min(resumed.stream))),
            received: watch::Sender::new(Some(resumed.stream)),
            tracker: Mutex::new(tracker),
            moved: Notify::new(),
            heard_at_us: AtomicI64::new(clock::unix_us()),
        }
    }

    pub(super) fn confirmed(&self) -> watch::Receiver<Option<Lsn>> {
        self.confirmed.subscribe()
    }

    pub(super) fn received(&self) -> watch::Receiver<Option<Lsn>> {
        self.received.subscribe()
    }

    /// The source said something.
    pub(super) fn heard(&self) {
        self.heard_at_us.store(clock::unix_us(), Ordering::Relaxed);
    }

    /// The spool has taken a batch.
    pub(super) fn decoded(&self, decoded: Decoded) {
        let mut tracker = self.lock();
        tracker.decoded(decoded);
        self.received.send_replace(Some(decoded.through()));
        self.confirm(&tracker);
        drop(tracker);
        self.moved.notify_waiters();
    }

    /// The spool is durable through here.
    pub(super) fn kept(&self, through: Lsn) {
        let mut tracker = self.lock();
        tracker.kept(through);
        self.confirm(&tracker);
    }

    /// Log that the source need not keep because the spool holds it.
    pub(super) fn released_bytes(&self) -> u64 {
        self.lock().released_bytes()
    }

    pub(super) fn settled(&self, sink: SinkName, through: Lsn) {
        let mut tracker = self.lock();
        tracker.settled(sink, through);
        self.confirm(&tracker);
        drop(tracker);
        self.moved.notify_waiters();
    }

    /// A sink more, which stands where `like` does.
    pub(super) fn join(&self, sink: SinkName, like: SinkName) {
        self.lock().join(sink, like);
    }

    /// A sink fewer; without effect when it is not there.
    pub(super) fn leave(&self, sink: SinkName) {
        let mut tracker = self.lock();
        tracker.leave(sink);
        self.confirm(&tracker);
        drop(tracker);
        self.moved.notify_waiters();
    }

    /// Waits until every sink holds everything through `barrier`. Cancel-safe.
    pub(super) async fn drained(&self, barrier: Lsn) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Enabled before the look, so that a move between look and wait is not missed.
            moved.as_mut().enable();
            if self.lock().drained(barrier) {
                return;
            }
            moved.await;
        }
    }

    /// Waits until `sink` holds everything through `barrier` durably. Cancel-safe.
    pub(super) async fn settled_past(&self, sink: SinkName, barrier: Lsn) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            moved.as_mut().enable();
            if self.lock().reached(sink, barrier) {
                return;
            }
            moved.await;
        }
    }

    /// The source's log reaches this far.
    pub(super) fn heard_of(&self, wal_end: Lsn) {
        self.lock().heard_of(wal_end);
    }

    pub(super) fn source_ends(&self, at: Lsn) {
        self.lock().source_ends(at);
    }

    pub(super) fn lag(&self, sink: SinkName) -> Option<SinkLag> {
        let now = clock::unix_us();
        let unheard = now.saturating_sub(self.heard_at_us.load(Ordering::Relaxed));
        self.lock().lag(sink, now, (unheard > UNHEARD_AFTER_US).then_some(unheard))
    }

    pub(super) fn settled_through(&self, sink: SinkName) -> Option<Lsn> {
        self.lock().settled_through(sink)
    }

    pub(super) fn decoded_through(&self) -> Option<Lsn> {
        self.lock().decoded_through()
    }

    pub(super) fn wal_end(&self) -> Option<Lsn> {
        self.lock().wal_end()
    }

    /// Never more than a new session would begin behind: the target holds what was applied ahead a moment before the
    /// decoder has told of it.
    fn confirm(&self, tracker: &Tracker) {
        let confirmed = Some(tracker.confirmed()).min(*self.received.borrow());
        self.confirmed.send_if_modified(|known| {
            let moves = confirmed > *known;
            if moves {
                *known = confirmed;
            }
            moves
        });
    }

    fn lock(&self) -> MutexGuard<'_, Tracker> {
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
