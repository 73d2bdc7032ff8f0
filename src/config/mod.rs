//! The only reader of files and environment.
//!
//! ```text
//! file ─► [document] known keys, right kinds ─► [environment] overrides ─► [raw] as typed ─► [check] ─► [checked] Config
//! ```
//!
//! All problems of a configuration are reported at once, each with its key path and line. [`keys`] lists every key; the
//! environment variables, `schemas/config.schema.json` and the suggestions for unknown keys come from that list.

mod load;
mod document;
mod environment;
mod keys;
mod raw;
mod check;
mod routers;
mod findings;
mod problem;
mod units;
mod draft;
mod checked;

#[cfg(test)]
mod tests;

pub use checked::{
    Adoptable, Apply, COPY_RATE_MIN, CommandRouter, Config, Control, Cutover, HttpRouter, Kafka, KafkaFormat, Limits,
    Log, PgBouncer, Router, Snapshot, SnapshotMode, Source, Target, Throttle, Verify,
};
pub use draft::{DraftTable, draft};
#[cfg(debug_assertions)]
pub use environment::points_directory;
pub use environment::{Environment, process_environment};
pub use load::{load, parse};
pub use problem::{Problem, Problems};
pub use units::{UnitError, format_size, parse_duration, parse_size};
