//! How much of a backlog is asked for at once, and when it had better come as a stream. Pure.
//!
//! The server shows nothing of a span before it has decoded all of it, so the first one is small; and it decodes the log
//! from the last point on at which nothing older was open, so spans grow and are few.

use std::fmt;
use std::time::Duration;

use crate::model::Lsn;

/// Nothing waits for long before there is something to do.
const FIRST_BYTES: u64 = 8 << 20;
const GROWTH: u64 = 3;
/// What is left is as well taken by the stream.
const LEFT_BYTES: u64 = 16 << 20;
/// So much log with no change in it that is ours: something large has yet to commit, and a stream takes that while the
/// server still decodes it.
const BARREN_BYTES: u64 = 32 << 20;
/// So much log is read again for each span while something old is open, and put away by the server.
const PINNED_BYTES: u64 = 1 << 30;
/// A span that was under way for longer than this is followed by a smaller one: a statement holds a snapshot.
const LONG: Duration = Duration::from_secs(8);

#[derive(Clone, Debug)]
pub(super) struct Spans {
    span_bytes: u64,
    max_bytes: u64,
    /// Since something of ours was last in it.
    barren_bytes: u64,
}

/// What a span turned out to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    pub(super) from: Lsn,
    pub(super) to: Lsn,
    /// Where the server begins to read for the next one.
    pub(super) restart: Option<Lsn>,
    pub(super) message_count: usize,
    pub(super) took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfit {
    Barren,
    Pinned,
}

impl Spans {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { span_bytes: FIRST_BYTES.min(max_bytes), max_bytes, barren_bytes: 0 }
    }

    /// Up to where the next span goes, from `at` in a log that ends at `end`. `None`: too little is left.
    pub(super) fn next(&mut self, at: Lsn, end: Lsn) -> Option<Lsn> {
        let left = end.bytes_since(at);
        if left < LEFT_BYTES {
            return None;
        }
        // Not one more for a rest that is hardly worth it.
        let whole = left < self.span_bytes.saturating_add(LEFT_BYTES);
        let span_bytes = if whole { left } else { self.span_bytes };
        self.span_bytes = self.span_bytes.saturating_mul(GROWTH).min(self.max_bytes);
        Lsn::new(at.get() + span_bytes)
    }

    pub(super) fn on_taken(&mut self, taken: Taken) -> Result<(), Unfit> {
        let Taken { from, to, restart, message_count, took } = taken;
        self.barren_bytes = if message_count == 0 { self.barren_bytes + to.bytes_since(from) } else { 0 };
        if self.barren_bytes >= BARREN_BYTES {
            return Err(Unfit::Barren);
        }
        if restart.is_some_and(|restart| to.bytes_since(restart) >= PINNED_BYTES) {
            return Err(Unfit::Pinned);
        }
        if took > LONG {
            self.span_bytes = (to.bytes_since(from) / 2).max(FIRST_BYTES).min(self.max_bytes);
        }
        Ok(())
    }
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Barren => "nothing in it has committed: a large transaction is better taken as it comes",
            Self::Pinned => "an old transaction is open in it: each span would be decoded from there",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    fn taken(from: u64, to: u64) -> Taken {
        Taken { from: lsn(from), to: lsn(to), restart: Some(lsn(from)), message_count: 1, took: Duration::from_secs(1) }
    }

    #[test]
    fn spans_grow_to_their_limit_and_reach_the_end_of_whatever_there_is() {
        for max_bytes in [1 << 20, 8 << 20, 100 << 20, 256 << 20] {
            for end in [1, LEFT_BYTES, LEFT_BYTES + 1, 64 << 20, 65_000_001, 3 << 30] {
                let (mut spans, mut at, mut sizes) = (Spans::new(max_bytes), lsn(1), Vec::new());
                while let Some(upto) = spans.next(at, lsn(end)) {
                    assert!(upto > at && upto <= lsn(end));
                    sizes.push(upto.bytes_since(at));
                    spans.on_taken(taken(at.get(), upto.get())).unwrap();
                    at = upto;
                }
                assert!(end - at.get() < LEFT_BYTES, "what is left is little");
                assert!(sizes.iter().all(|size| *size < max_bytes + LEFT_BYTES), "{sizes:?}");
                let grows = |pair: &[u64]| pair[1] == (pair[0] * GROWTH).min(max_bytes);
                assert!(sizes.windows(2).rev().skip(1).all(grows), "{sizes:?}");
            }
        }
    }

    #[test]
    fn a_span_that_took_long_is_followed_by_a_smaller_one() {
        let mut spans = Spans::new(256 << 20);
        let too_long = LONG + Duration::from_millis(1);
        for (bytes, took, expected) in
            [(64 << 20, LONG, FIRST_BYTES), (64 << 20, too_long, 32 << 20), (8 << 20, too_long, FIRST_BYTES)]
        {
            spans.on_taken(Taken { took, ..taken(1, 1 + bytes) }).unwrap();
            assert_eq!(spans.span_bytes, expected);
        }
    }

    #[test]
    fn nothing_at_all_for_long_and_an_old_transaction_are_for_the_stream() {
        let barren = |from: u64, bytes: u64| Taken { message_count: 0, ..taken(from, from + bytes) };
        let mut spans = Spans::new(256 << 20);
        spans.on_taken(barren(1, BARREN_BYTES - 1)).unwrap();
        spans.on_taken(taken(1, 2)).unwrap();
        spans.on_taken(barren(1, BARREN_BYTES - 1)).unwrap();
        assert_eq!(spans.on_taken(barren(1, 1)), Err(Unfit::Barren));
        let mut spans = Spans::new(256 << 20);
        let since = |bytes| Taken { restart: Some(lsn(1)), ..taken(1, 1 + bytes) };
        spans.on_taken(since(PINNED_BYTES - 1)).unwrap();
        assert_eq!(spans.on_taken(since(PINNED_BYTES)), Err(Unfit::Pinned));
        spans.on_taken(Taken { restart: None, ..since(PINNED_BYTES) }).unwrap();
    }
}
