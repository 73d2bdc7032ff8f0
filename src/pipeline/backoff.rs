//! How long to wait before trying again.

use std::time::Duration;

/// First wait. A server that restarts is usually back within a second.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait: an operator who repairs the cause sees us come back within this.
const CEILING: Duration = Duration::from_secs(15);
/// What ran this long before it failed counts as recovered, and the waits start over.
const RECOVERED_AFTER: Duration = Duration::from_secs(60);

/// Doubles from 200 ms to 15 s.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after an attempt that lasted `ran`.
    pub(super) fn after(&mut self, ran: Duration) -> Duration {
        if ran >= RECOVERED_AFTER {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(CEILING);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_ceiling_and_starts_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..9).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]);
        assert_eq!(backoff.after(RECOVERED_AFTER), FIRST);
    }
}
