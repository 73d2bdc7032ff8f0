//! The load: clients that write through the pooler and remember what they were told.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::ledger::{Effect, Ledger};
use super::shop::{Session, statements};

/// A client that cannot connect tries again after this long.
const RECONNECT_DELAY: Duration = Duration::from_millis(100);
/// Below this many orders of its own a client places more than it cancels.
const ORDERS_KEPT: usize = 40;

/// The running clients.
pub(super) struct Load {
    clients: JoinSet<Ledger>,
    stop: CancellationToken,
    committed: Arc<AtomicU64>,
    begun: Vec<Arc<AtomicU64>>,
}

/// What all clients have in common.
#[derive(Clone)]
struct Common {
    url: String,
    accounts: i64,
    period: Duration,
    stop: CancellationToken,
    committed: Arc<AtomicU64>,
}

impl Load {
    /// Starts `count` clients (numbered from 1) of the database at `url`; together they begin at most `rate`
    /// transactions a second.
    pub(super) fn start(url: String, accounts: i64, count: usize, rate: u32) -> Self {
        let clients = u32::try_from(count).unwrap_or(u32::MAX);
        let period = Duration::from_secs(1) * clients / rate.max(1);
        let (stop, committed) = (CancellationToken::new(), Arc::default());
        let common = Common {
            url,
            accounts,
            period: period.max(Duration::from_millis(1)),
            stop: stop.clone(),
            committed: Arc::clone(&committed),
        };
        let mut clients = JoinSet::new();
        let begun: Vec<Arc<AtomicU64>> = (0..count).map(|_| Arc::default()).collect();
        for (number, begun) in (1..).zip(&begun) {
            clients.spawn(run_client(number, common.clone(), Arc::clone(begun)));
        }
        Self { clients, stop, committed, begun }
    }

    /// The number of the last transaction that each client has begun, by client.
    pub(super) fn begun(&self) -> HashMap<usize, u64> {
        (1..).zip(&self.begun).map(|(number, begun)| (number, begun.load(Ordering::Acquire))).collect()
    }

    /// Transactions committed so far.
    pub(super) fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Lets every client finish the transaction it is in.
    pub(super) async fn stop(self) -> Vec<Ledger> {
        self.stop.cancel();
        self.clients.join_all().await
    }
}

async fn run_client(number: usize, common: Common, begun: Arc<AtomicU64>) -> Ledger {
    let mut ledger = Ledger::new(number);
    // Not the same for each client, the same in each run.
    let mut random = fastrand::Rng::with_seed(number as u64);
    let mut ticks = interval(common.period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut session = None;
    while !common.stop.is_cancelled() {
        ticks.tick().await;
        let Some(open) = connected(&mut session, &common).await else { continue };
        let (n, effect) = (ledger.number(), choose(&ledger, &mut random, common.accounts));
        begun.store(n, Ordering::Release);
        match transact(open, &statements(number, n, effect)).await {
            Ok(()) => {
                ledger.told_committed(n, effect, Instant::now());
                common.committed.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(client = number, n, error = %crate::telemetry::chain(&error), "a transaction failed");
                ledger.told_nothing(n, effect);
                session = None;
            }
        }
    }
    ledger
}

/// The session, opened if there is none; `None` after a pause when that fails (no transaction was begun, so none failed).
async fn connected<'a>(session: &'a mut Option<Session>, common: &Common) -> Option<&'a Session> {
    if session.is_none() {
        match Session::open(&common.url).await {
            Ok(open) => *session = Some(open),
            Err(_) => sleep(RECONNECT_DELAY).await,
        }
    }
    session.as_ref()
}

async fn transact(session: &Session, statements: &[String]) -> Result<(), tokio_postgres::Error> {
    session.batch_execute("BEGIN").await?;
    for statement in statements {
        session.batch_execute(statement).await?;
    }
    session.batch_execute("COMMIT").await
}

fn choose(ledger: &Ledger, random: &mut fastrand::Rng, accounts: i64) -> Effect {
    let order = ledger.order_from(random.u64(..1 << 16));
    match (random.u8(..10), order) {
        (0..4, _) => {
            let from = random.i64(1..=accounts);
            let other = random.i64(1..accounts);
            Effect::Transfer { from, to: if other >= from { other + 1 } else { other }, cents: random.i64(1..500) }
        }
        (4..6, Some(order)) => Effect::Revise { order },
        (6..8, Some(order)) if ledger.order_count() > ORDERS_KEPT => Effect::Cancel { order },
        (_, _) => Effect::Place,
    }
}
