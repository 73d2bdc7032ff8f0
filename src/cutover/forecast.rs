//! How long the pause will be: parts measured just before it, on the same sessions.

use std::time::Duration;

use super::report::StepTime;

/// Digesting one row by its key on either side, generously.
const KEY_COST: Duration = Duration::from_micros(20);
/// Between the last look and the fence the applier goes on: about this many keys more are written for each one now.
const KEY_GROWTH: u32 = 2;

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Measured {
    /// A question to every router and its answer.
    pub(super) routers: Duration,
    /// The fence's catalog changes on a scratch table.
    pub(super) fence: Duration,
    /// A durable commit on blue, through the stream, until every sink was durable past it.
    pub(super) drain: Duration,
    /// A round trip on the sessions that compare.
    pub(super) verify: Duration,
    pub(super) dirty_keys: u32,
    pub(super) sequences: Duration,
    /// A durable commit on green.
    pub(super) commit: Duration,
}

impl Measured {
    pub(super) fn steps(&self) -> Vec<StepTime> {
        vec![
            StepTime::new("hold", self.routers),
            StepTime::new("fence", self.fence),
            StepTime::new("drain", self.drain),
            StepTime::new("verify", self.verify + KEY_COST * self.dirty_keys * KEY_GROWTH),
            // Set while the sinks drain: only what takes longer than that counts.
            StepTime::new("sequences", self.sequences.saturating_sub(self.drain)),
            StepTime::new("commit", self.commit),
            // The file, the reload, the look whether it took, and the resume.
            StepTime::new("flip", self.routers * 2),
        ]
    }
}

pub(super) fn total(steps: &[StepTime]) -> f64 {
    steps.iter().map(|step| step.ms).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_is_the_sum_of_its_parts() {
        let ms = Duration::from_millis;
        let measured = Measured {
            routers: ms(1),
            fence: ms(2),
            drain: ms(3),
            dirty_keys: 100,
            commit: ms(4),
            ..Measured::default()
        };
        let steps = measured.steps();
        assert!((total(&steps) - (1.0 + 2.0 + 3.0 + 4.0 + 4.0 + 2.0)).abs() < 1e-6, "{steps:?}");
    }
}
