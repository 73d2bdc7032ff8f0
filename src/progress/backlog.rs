//! When the changes that a sink has not settled yet were committed: what "lag in seconds" is read from.

use std::collections::VecDeque;

use crate::model::Lsn;

/// Samples kept at most. When there are more, every second one goes: the lag then is read a little too early, by the
/// distance of two samples, never too late.
const SAMPLES_MAX: usize = 4096;

/// The ends of batches still unsettled, each with the commit time of the first transaction in it.
#[derive(Clone, Debug, Default)]
pub(super) struct Backlog {
    samples: VecDeque<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    end: Lsn,
    first_committed_at_us: i64,
}

impl Backlog {
    pub(super) fn push(&mut self, end: Lsn, first_committed_at_us: i64) {
        if self.samples.len() == SAMPLES_MAX {
            self.thin_out();
        }
        self.samples.push_back(Sample { end, first_committed_at_us });
    }

    pub(super) fn settle(&mut self, through: Lsn) {
        while self.samples.front().is_some_and(|sample| sample.end <= through) {
            self.samples.pop_front();
        }
    }

    /// Commit time of the oldest transaction that is not settled; `None` when nothing is missing.
    pub(super) fn oldest_us(&self) -> Option<i64> {
        self.samples.front().map(|sample| sample.first_committed_at_us)
    }

    /// Joins neighbours: the later end, the earlier time.
    fn thin_out(&mut self) {
        let joined = self
            .samples
            .make_contiguous()
            .chunks(2)
            .map(|pair| Sample { end: pair[pair.len() - 1].end, first_committed_at_us: pair[0].first_committed_at_us });
        self.samples = joined.collect();
    }
}
