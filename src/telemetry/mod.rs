//! What operators see of the inside: every metric name once, logs, error chains, the clock.

pub mod clock;
mod logs;
pub mod metrics;

mod chain;

pub use chain::chain;
pub use logs::{LogFormat, init_logs};
