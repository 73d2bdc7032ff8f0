//! Where workers wait, where the operator's word arrives, and who asks the source.

use std::convert::Infallible;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::machine::{Admission, Input, Machine, Sample, ThrottleRead, Turn};
use super::options::ThrottleOptions;
use super::sampler::{self, SampleError};
use crate::telemetry::{chain, clock};
use crate::wire::Session;

/// A part that is read under another snapshot than those before it costs a pass over its table at the end, which is more
/// than the source pays for a snapshot that is open for so long.
const LONG_HOLD: Duration = Duration::from_secs(30);

/// What is asked may take its statement's timeout several times over, and the way there and back.
const ANSWER_PATIENCE: Duration = Duration::from_secs(15);

/// One for a daemon; whoever copies waits here.
#[derive(Debug)]
pub struct Throttle {
    options: ThrottleOptions,
    machine: Mutex<Machine>,
    /// Those who wait look again.
    turned: Notify,
    held_since_us: AtomicI64,
    /// Held by whoever asks the source: one at a time, however many copies are under way.
    asking: tokio::sync::Mutex<()>,
}

/// What one unit has waited for so far.
#[derive(Debug)]
pub struct Pace<'a> {
    throttle: &'a Throttle,
    held: Duration,
}

impl Throttle {
    pub fn new(options: ThrottleOptions) -> Self {
        let machine = Machine::new(options.limits.clone(), options.hold_max, options.rate_max, Instant::now());
        Self {
            options,
            machine: Mutex::new(machine),
            turned: Notify::new(),
            held_since_us: AtomicI64::new(0),
            asking: tokio::sync::Mutex::new(()),
        }
    }

    /// Waits until a unit may be begun, or until `stop`. Ask before there is a snapshot.
    pub async fn may_begin(&self, stop: &CancellationToken) {
        self.wait_until(stop, Machine::may_begin).await;
    }

    /// Whether a unit may be begun at this moment.
    pub fn may_begin_now(&self) -> bool {
        self.lock().may_begin()
    }

    /// Returns once a hold has lasted so long that it is worth giving a snapshot up for: at once in a pause.
    pub async fn long_hold(&self) {
        let paused = async { self.wait_until(&CancellationToken::new(), Machine::paused).await };
        tokio::select! {
            () = paused => {}
            () = sleep(LONG_HOLD) => {}
        }
    }

    /// Waits out the operator's pause.
    pub async fn unpaused(&self, stop: &CancellationToken) {
        self.wait_until(stop, |machine| !machine.paused()).await;
    }

    async fn wait_until(&self, stop: &CancellationToken, holds: impl Fn(&Machine) -> bool) {
        loop {
            let turned = self.turned.notified();
            tokio::pin!(turned);
            // Enabled before the look, so that a turn between look and wait is not missed.
            turned.as_mut().enable();
            if holds(&self.lock()) {
                return;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = turned => {}
            }
        }
    }

    /// For one unit, from its beginning to its end.
    pub fn pace(&self) -> Pace<'_> {
        Pace { throttle: self, held: Duration::ZERO }
    }

    /// No unit is begun from now on; those under way come to their end.
    pub fn pause(&self) {
        self.on(Input::Pause);
    }

    pub fn resume(&self) {
        self.on(Input::Resume);
    }

    /// Bytes a second for all workers together; `None` is no limit.
    pub fn limit_rate(&self, bytes_per_second: Option<u64>) {
        self.on(Input::Rate(bytes_per_second));
    }

    pub fn read(&self) -> ThrottleRead {
        let read = self.lock().read(Instant::now());
        let since = self.held_since_us.load(Ordering::Relaxed);
        ThrottleRead { held_since_us: (!read.reasons.is_empty()).then_some(since), ..read }
    }

    /// Runs `copying` to its end and asks the source meanwhile how it bears it.
    pub async fn beside<T>(&self, copying: impl Future<Output = T>) -> T {
        let _unwatched_after = Watched(self);
        tokio::select! {
            ended = copying => ended,
            never = self.watch() => match never {},
        }
    }

    async fn watch(&self) -> Infallible {
        if !self.options.limits.any() {
            return std::future::pending().await;
        }
        let _alone = self.asking.lock().await;
        let mut session = None;
        loop {
            let input = match self.ask(&mut session).await {
                Ok(sample) => Input::Sampled(sample),
                Err(error) => {
                    debug!(error = chain(&error), "the source was not asked about load");
                    Input::NotSampled(chain(&error))
                }
            };
            self.on(input);
            sleep(self.options.interval).await;
        }
    }

    /// Keeps the session for the next time if it is still good for it.
    async fn ask(&self, session: &mut Option<Session>) -> Result<Sample, SampleError> {
        let patience = self.options.query_timeout * 3 + ANSWER_PATIENCE;
        let late = SampleError::NoAnswer { seconds: patience.as_secs() };
        let open = match session.take() {
            Some(open) if !open.is_closed() => open,
            Some(_) | None => timeout(patience, sampler::open(&self.options)).await.map_err(|_| late)??,
        };
        match timeout(patience, sampler::ask(&open, &self.options.limits)).await {
            Ok(asked) => {
                let sample = asked?;
                *session = Some(open);
                Ok(sample)
            }
            Err(_) => {
                // The next one must not stand beside it on the source.
                if let Err(error) = open.cancel_token().cancel().await {
                    debug!(%error, "a question about load could not be cancelled");
                }
                Err(SampleError::NoAnswer { seconds: patience.as_secs() })
            }
        }
    }

    fn on(&self, input: Input) {
        let (turn, read) = {
            let mut machine = self.lock();
            let now = Instant::now();
            let turn = machine.on(input, now);
            if turn == Turn::Held {
                self.held_since_us.store(clock::unix_us(), Ordering::Relaxed);
            }
            (turn, machine.read(now))
        };
        match turn {
            Turn::Same => return,
            Turn::Held => info!(reasons = read.reasons.join("; "), "copy held"),
            Turn::Released => info!(held_s = read.held_total.as_secs(), "copy goes on"),
            Turn::Told => info!(paused = read.paused, rate_max = read.rate_max, "copy told"),
        }
        self.turned.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pace<'_> {
    /// Waits until the next `bytes` may pass, or until `stop`. Not reading on is what holds the source back.
    pub async fn admit(&mut self, bytes: u64, stop: &CancellationToken) {
        loop {
            let turned = self.throttle.turned.notified();
            tokio::pin!(turned);
            turned.as_mut().enable();
            let since = Instant::now();
            let admission = self.throttle.lock().admit(bytes, self.held, since);
            let (Admission::Held(wait) | Admission::TooFast(wait)) = admission else { return };
            tokio::select! {
                () = stop.cancelled() => return,
                () = turned => {}
                () = sleep(wait) => {}
            }
            if matches!(admission, Admission::Held(_)) {
                self.held += since.elapsed();
            }
        }
    }
}

/// Nobody asks any more once it is dropped, so what was said last holds no longer.
struct Watched<'a>(&'a Throttle);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.on(Input::Unwatched);
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::LoadLimits;
    use super::*;
    use crate::wire::Endpoint;

    /// A source where nobody listens.
    fn throttle(limits: LoadLimits) -> Throttle {
        Throttle::new(ThrottleOptions {
            source: Endpoint::parse("postgres://nobody@127.0.0.1:1/none").unwrap(),
            limits,
            interval: Duration::from_millis(1),
            query_timeout: Duration::from_secs(1),
            hold_max: Duration::from_secs(3600),
            rate_max: None,
        })
    }

    async fn soon<T>(waiting: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), waiting).await.expect("it waits for ever")
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_with_the_turn() {
        let (throttle, stop) = (throttle(LoadLimits::default()), CancellationToken::new());
        throttle.pause();
        soon(async { tokio::join!(throttle.may_begin(&stop), throttle.unpaused(&stop), async { throttle.resume() }) })
            .await;
        throttle.limit_rate(Some(1));
        let mut pace = throttle.pace();
        pace.admit(1 << 40, &stop).await;
        // At that rate the next byte would pass in thirty thousand years.
        soon(async { tokio::join!(pace.admit(1, &stop), async { throttle.limit_rate(None) }) }).await;
    }

    #[tokio::test]
    async fn a_stop_ends_every_wait() {
        let (throttle, stop) = (throttle(LoadLimits::default()), CancellationToken::new());
        throttle.pause();
        throttle.on(Input::NotSampled("said so".to_owned()));
        let mut pace = throttle.pace();
        soon(async { tokio::join!(throttle.may_begin(&stop), pace.admit(1, &stop), async { stop.cancel() }) }).await;
    }

    #[tokio::test]
    async fn a_source_that_is_not_there_holds_the_copy_and_only_while_there_is_one() {
        let throttle = throttle(LoadLimits { active_sessions: Some(1), ..LoadLimits::default() });
        assert_eq!(throttle.read(), ThrottleRead::default());
        let copying = async {
            while throttle.read().reasons.is_empty() {
                tokio::task::yield_now().await;
            }
            throttle.read()
        };
        let read = soon(throttle.beside(copying)).await;
        assert!(
            read.reasons[0]
                .contains("is not known: connect to ask about load: connect to postgres://nobody@127.0.0.1:1/none")
        );
        assert!(read.held_since_us.is_some());
        let after = throttle.read();
        assert_eq!((after.reasons, after.held_since_us), (Vec::new(), None));
        soon(throttle.may_begin(&CancellationToken::new())).await;
    }
}
