//! pgoutput bytes to committed transactions in commit order ("Logical Replication Message Formats" in the
//! documentation; protocol versions 1 to 4 with `streaming 'on'`). Pure: no I/O, no clock, no thread.
//!
//! ```text
//! source ─FrameBatch▶ [machine] ─parse▶ [message] ─▶ [shapes] oid to relation ─▶ [assembly] ─Batch▶ spool
//!                         │ chunks of transactions in progress            ▲
//!                         └──────▶ [streams] ─▶ Stash ──at STREAM COMMIT──┘ replayed through the same road
//! ```
//!
//! One thing pgoutput does not say: a logical message inside a stream carries the top-level transaction, also when a
//! sub-transaction wrote it (`pgoutput_message`). If that sub-transaction was rolled back after it had been streamed, the
//! message is recognised and dropped only when a row of the same sub-transaction stands before it.

mod machine;
mod message;
mod wire;
mod shapes;
mod assembly;
mod streams;
mod memory_stash;
mod error;
#[cfg(test)]
mod tests;

pub use crate::model::{Stash, StashError, StashedFrame, StashedFrames};
pub use error::{Error, Interrupted};
pub use machine::{Counts, Decoder, Options};
pub use memory_stash::MemoryStash;
pub use message::Tag;
