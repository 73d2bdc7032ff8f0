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
mod record;
mod encoder;
mod envelope;
mod events;
mod plan;
mod value;
mod array;
mod json;
mod mark;
mod window;
mod machine;
mod driver;
mod broker;
mod admin;
mod position;
mod stored;
#[cfg(test)]
mod published;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod walk;

pub use driver::{forget, resume_point, run};
pub use encoder::{Emit, Encoder};
pub use error::Error;
pub use options::{Format, Options, Ports, UnknownFormat, WindowLimits};
pub use record::{Header, Placement, Record};
pub use topics::Topics;
