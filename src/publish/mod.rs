//! The Kafka sink of the ordered stream: committed transactions in, Debezium records and the sink's own position out,
//! in one Kafka transaction. Knows no SQL.
//!
//! ```text
//! Arc<Batch> ─► [machine: window] ─► [encoder: records] ─► [broker: transactional producer] ─► topics + position
//!                       ▲                                            │
//!                       └──────────── committed, aborted, lost ──────┘            Settled ─► progress
//! ```
//!
//! Exactly once rests on three things: the position is a record of the same Kafka transaction as the changes; a commit
//! whose outcome is unknown is never guessed (a new producer is made, which ends the old transaction one way or the
//! other, and the position is read back); and positions are compared by record, so a second daemon is noticed.
//! `schemas/README.md` describes the records.

mod options;
mod error;
mod topics;
mod json;
mod array;
mod value;
#[cfg(test)]
mod testing;

pub use error::Error;
pub use options::{Format, Options, Ports, UnknownFormat, WindowLimits};
pub use topics::Topics;

use crate::model::Position;

/// How far Kafka holds the stream; `None` when it holds nothing of this migration.
pub fn resume_point(_options: &Options) -> Result<Option<Position>, Error> {
    unreachable!("lands with the driver")
}

/// Publishes until the input ends or it is told to stop.
pub fn run(_options: Options, _ports: Ports) -> Result<(), Error> {
    unreachable!("lands with the driver")
}
