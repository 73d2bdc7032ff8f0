//! A token bucket. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// What may be taken at once after a rest: a quarter of a second's worth. More would be seen as a burst by the source.
const BURST: f64 = 0.25;

/// Bytes that may pass, filled at a constant rate. It may be overdrawn by one chunk, whose size nobody knows before it
/// is there; whoever comes next waits for that as well, so that the rate is kept over any number of chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    bytes_per_second: u64,
    level: f64,
    filled_at: Instant,
}

impl Bucket {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), level: 0.0, filled_at: now }
    }

    pub(super) fn rate(&self) -> u64 {
        self.bytes_per_second
    }

    /// Takes `bytes`, or says how long to wait before asking again.
    pub(super) fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let rate = self.bytes_per_second as f64;
        let filled = now.saturating_duration_since(self.filled_at).as_secs_f64() * rate;
        self.level = (self.level + filled).min(rate * BURST);
        self.filled_at = now;
        if self.level < 0.0 {
            return Err(Duration::from_secs_f64(-self.level / rate));
        }
        self.level -= bytes as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes chunks of `sizes` in turn for `seconds`, as one who waits as told; bytes passed.
    fn pass(bucket: &mut Bucket, sizes: &[u64], start: Instant, seconds: u64) -> u64 {
        let (mut now, mut passed) = (start, 0);
        for size in sizes.iter().cycle() {
            while let Err(wait) = bucket.take(*size, now) {
                now += wait.max(Duration::from_micros(1));
            }
            if now >= start + Duration::from_secs(seconds) {
                break;
            }
            passed += size;
        }
        passed
    }

    #[test]
    fn the_rate_is_kept_over_chunks_of_any_size() {
        for sizes in [&[1_000][..], &[700_000], &[10, 3_000_000, 8_192]] {
            let start = Instant::now();
            let mut bucket = Bucket::new(1_000_000, start);
            let passed = pass(&mut bucket, sizes, start, 60);
            let largest = sizes.iter().max().unwrap();
            assert!(passed >= 59_000_000 && passed <= 60_000_000 + 2 * largest, "{sizes:?}: {passed}");
        }
    }

    #[test]
    fn a_rest_saves_up_no_more_than_a_quarter_of_a_second() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1_000_000, start);
        let later = start + Duration::from_secs(3600);
        let mut at_once = 0;
        while bucket.take(1_000, later).is_ok() {
            at_once += 1_000;
        }
        assert!((250_000..=252_000).contains(&at_once), "{at_once}");
    }
}
