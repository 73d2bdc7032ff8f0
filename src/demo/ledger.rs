//! What each client was told, and how that compares with what a database holds. Pure.

use std::collections::{BTreeMap, HashMap};

use tokio::time::{Duration, Instant};

/// The balance each account starts with.
pub(super) const OPENING_CENTS: i64 = 100_000;

/// What one transaction does beside appending `(client, n)` to the write log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Transfer {
        from: i64,
        to: i64,
        cents: i64,
    },
    /// A new order, known by the `n` of the transaction that placed it.
    Place,
    /// Raises the order's version by one.
    Revise {
        order: u64,
    },
    Cancel {
        order: u64,
    },
}

/// What one client was told about its transactions, which it numbers from 1.
#[derive(Debug)]
pub(super) struct Ledger {
    pub client: usize,
    next: u64,
    committed: Vec<u64>,
    /// Transactions that ended in an error. Whether one with a lost answer to COMMIT took place only the write log knows.
    doubtful: Vec<(u64, Effect)>,
    /// Orders that exist, by the `n` that placed them, with their version.
    orders: BTreeMap<u64, u64>,
    /// Orders that a doubtful transaction touched: nothing is claimed about them, and nobody touches them again.
    untouchable: Vec<u64>,
    transfers: HashMap<i64, i64>,
    commits: Vec<Instant>,
}

/// What a database holds of it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How often each `(client, n)` stands in the write log.
    pub log: HashMap<(usize, u64), u64>,
    /// The version of each order by who placed it.
    pub orders: HashMap<(usize, u64), u64>,
    pub balances: HashMap<i64, i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Faults {
    pub lost: u64,
    pub duplicated: u64,
}

impl Ledger {
    pub(super) fn new(client: usize) -> Self {
        Self {
            client,
            next: 1,
            committed: Vec::new(),
            doubtful: Vec::new(),
            orders: BTreeMap::new(),
            untouchable: Vec::new(),
            transfers: HashMap::new(),
            commits: Vec::new(),
        }
    }

    /// A number for the next transaction.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Some order that exists: the first from `at` on, else the first of all.
    pub(super) fn order_from(&self, at: u64) -> Option<u64> {
        self.orders.range(at..).next().or_else(|| self.orders.iter().next()).map(|(order, _)| *order)
    }

    pub(super) fn order_count(&self) -> usize {
        self.orders.len()
    }

    pub(super) fn told_committed(&mut self, n: u64, effect: Effect, now: Instant) {
        self.committed.push(n);
        self.commits.push(now);
        match effect {
            Effect::Transfer { from, to, cents } => {
                *self.transfers.entry(from).or_default() -= cents;
                *self.transfers.entry(to).or_default() += cents;
            }
            Effect::Place => {
                self.orders.insert(n, 1);
            }
            Effect::Revise { order } => *self.orders.entry(order).or_default() += 1,
            Effect::Cancel { order } => {
                self.orders.remove(&order);
            }
        }
    }

    /// The transaction ended in an error.
    pub(super) fn told_nothing(&mut self, n: u64, effect: Effect) {
        self.doubtful.push((n, effect));
        match effect {
            Effect::Transfer { .. } => {}
            Effect::Place => self.untouchable.push(n),
            Effect::Revise { order } | Effect::Cancel { order } => {
                self.orders.remove(&order);
                self.untouchable.push(order);
            }
        }
    }

    pub(super) fn committed_count(&self) -> u64 {
        self.committed.len() as u64
    }

    pub(super) fn failed_count(&self) -> u64 {
        self.doubtful.len() as u64
    }

    /// The longest time between two commits, one after the other, that overlaps the time from `start` to `end`.
    pub(super) fn longest_gap(&self, start: Instant, end: Instant) -> Duration {
        let pairs = self.commits.iter().zip(self.commits.iter().skip(1));
        let overlapping = pairs.filter(|(before, after)| **before <= end && **after >= start);
        overlapping.map(|(before, after)| *after - *before).max().unwrap_or_default()
    }

    fn log_faults(&self, held: &Held) -> Faults {
        let times = |n: u64| held.log.get(&(self.client, n)).copied().unwrap_or(0);
        let doubtful = self.doubtful.iter().map(|(n, _)| *n);
        Faults {
            lost: self.committed.iter().filter(|n| times(**n) == 0).count() as u64,
            duplicated: self.committed.iter().copied().chain(doubtful).map(|n| times(n).saturating_sub(1)).sum(),
        }
    }

    /// Orders that are missing, outdated, or there although they were cancelled: each is a lost write.
    fn lost_in_orders(&self, held: &Held) -> u64 {
        let mine = held.orders.iter().filter(|((client, _), _)| *client == self.client);
        let risen = mine.filter(|((_, n), _)| !self.orders.contains_key(n) && !self.untouchable.contains(n)).count();
        let differs = |(n, version): &(&u64, &u64)| held.orders.get(&(self.client, **n)) != Some(*version);
        (risen + self.orders.iter().filter(differs).count()) as u64
    }

    /// What the transfers, doubtful ones that took place included, add to each account.
    fn add_transfers(&self, held: &Held, sums: &mut HashMap<i64, i64>) {
        for (account, cents) in &self.transfers {
            *sums.entry(*account).or_default() += cents;
        }
        for (n, effect) in &self.doubtful {
            if let Effect::Transfer { from, to, cents } = effect
                && held.log.contains_key(&(self.client, *n))
            {
                *sums.entry(*from).or_default() -= cents;
                *sums.entry(*to).or_default() += cents;
            }
        }
    }
}

/// Compares everything that all clients were told with what is held.
pub(super) fn compare(ledgers: &[Ledger], held: &Held) -> Faults {
    let mut faults = Faults::default();
    let mut sums = HashMap::new();
    for ledger in ledgers {
        let of_log = ledger.log_faults(held);
        faults.lost += of_log.lost + ledger.lost_in_orders(held);
        faults.duplicated += of_log.duplicated;
        ledger.add_transfers(held, &mut sums);
    }
    let expected = |account: i64| OPENING_CENTS + sums.get(&account).copied().unwrap_or(0);
    let wrong = held.balances.iter().filter(|(account, balance)| **balance != expected(**account)).count();
    let missing = sums.keys().filter(|account| !held.balances.contains_key(account)).count();
    faults.lost += (wrong + missing) as u64;
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(1);
        let now = Instant::now();
        for effect in [
            Effect::Place,
            Effect::Place,
            Effect::Revise { order: 1 },
            Effect::Cancel { order: 2 },
            Effect::Transfer { from: 7, to: 8, cents: 5 },
        ] {
            let n = ledger.number();
            ledger.told_committed(n, effect, now);
        }
        ledger
    }

    fn held() -> Held {
        Held {
            log: (1..=5).map(|n| ((1, n), 1)).collect(),
            orders: HashMap::from([((1, 1), 2)]),
            balances: HashMap::from([(7, OPENING_CENTS - 5), (8, OPENING_CENTS + 5), (9, OPENING_CENTS)]),
        }
    }

    #[test]
    fn what_clients_were_told_and_nothing_else_is_no_fault() {
        assert_eq!(compare(&[ledger()], &held()), Faults::default());
    }

    #[test]
    fn every_kind_of_loss_and_duplication_is_counted() {
        type Damage = fn(&mut Held);
        let cases: [(&str, Damage, u64, u64); 7] = [
            (
                "a row of the log is missing",
                |held| {
                    held.log.remove(&(1, 3));
                },
                1,
                0,
            ),
            (
                "a row of the log is there twice",
                |held| {
                    held.log.insert((1, 3), 2);
                },
                0,
                1,
            ),
            (
                "an order is missing",
                |held| {
                    held.orders.remove(&(1, 1));
                },
                1,
                0,
            ),
            (
                "an update is missing",
                |held| {
                    held.orders.insert((1, 1), 1);
                },
                1,
                0,
            ),
            (
                "a deleted order is back",
                |held| {
                    held.orders.insert((1, 2), 1);
                },
                1,
                0,
            ),
            (
                "half a transfer is missing",
                |held| {
                    held.balances.insert(8, OPENING_CENTS);
                },
                1,
                0,
            ),
            (
                "an account is missing",
                |held| {
                    held.balances.remove(&7);
                },
                1,
                0,
            ),
        ];
        for (what, damage, lost, duplicated) in cases {
            let mut held = held();
            damage(&mut held);
            assert_eq!(compare(&[ledger()], &held), Faults { lost, duplicated }, "{what}");
        }
    }

    #[test]
    fn a_transaction_with_a_lost_answer_may_have_taken_place_or_not() {
        for took_place in [false, true] {
            let mut ledger = ledger();
            let (transfer, revision) = (ledger.number(), ledger.number());
            ledger.told_nothing(transfer, Effect::Transfer { from: 9, to: 7, cents: 1 });
            ledger.told_nothing(revision, Effect::Revise { order: 1 });
            let mut held = held();
            if took_place {
                held.log.extend([((1, transfer), 1), ((1, revision), 1)]);
                held.orders.insert((1, 1), 3);
                held.balances.insert(9, OPENING_CENTS - 1);
                held.balances.insert(7, OPENING_CENTS - 4);
            }
            assert_eq!(compare(&[ledger], &held), Faults::default(), "took place: {took_place}");
        }
    }

    #[test]
    fn the_longest_gap_is_looked_for_around_the_cutover_only() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut ledger = Ledger::new(1);
        for (n, millis) in [(1, 0), (2, 500), (3, 510), (4, 590), (5, 600)] {
            ledger.told_committed(n, Effect::Place, at(millis));
        }
        assert_eq!(ledger.longest_gap(at(520), at(560)), Duration::from_millis(80));
        assert_eq!(ledger.longest_gap(at(505), at(508)), Duration::from_millis(10));
    }
}
