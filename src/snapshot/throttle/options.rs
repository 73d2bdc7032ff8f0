//! What the caller decides about sparing the source.

use std::time::Duration;

use crate::wire::Endpoint;

#[derive(Clone, Debug)]
pub struct ThrottleOptions {
    pub source: Endpoint,
    pub limits: LoadLimits,
    /// How often the source is asked, at most.
    pub interval: Duration,
    /// How long one question may take there.
    pub query_timeout: Duration,
    /// How long a unit may stand still in the middle, all its holds together: it keeps a snapshot meanwhile.
    pub hold_max: Duration,
    /// Bytes a second for all workers together, until the operator says otherwise.
    pub rate_max: Option<u64>,
}

/// What counts as load. `None` is not asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadLimits {
    /// Bytes of log that a standby has not replayed.
    pub standby_lag_bytes: Option<u64>,
    /// Age of the oldest log that a standby has not replayed.
    pub standby_delay: Option<Duration>,
    /// Client sessions with a statement under way, ours aside.
    pub active_sessions: Option<u64>,
    /// A query of the user's: the copy stands still while it says true.
    pub hold_query: Option<String>,
}

impl LoadLimits {
    /// Whether there is anything to ask.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    pub(super) fn asks_standbys(&self) -> bool {
        self.standby_lag_bytes.is_some() || self.standby_delay.is_some()
    }
}
