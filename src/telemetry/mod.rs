//! What operators see of the inside: every metric name once, logs, error chains, the clock.

pub mod clock;
mod latency;
mod logs;
pub mod metrics;

mod chain;
mod points;
mod tally;

pub use chain::chain;
pub use latency::Latency;
pub use logs::{LogFormat, init_logs};
pub use points::Point;
#[cfg(debug_assertions)]
pub use points::arm_points;
pub use tally::Tally;
