//! pgoutput bytes to committed transactions in commit order ("Logical Replication Message Formats" in the
//! documentation; protocol versions 1 to 4 with `streaming 'on'`). Pure: no I/O, no clock, no thread.
//!
//! ```text
//! source ─FrameBatch▶ [machine] ─parse▶ [message] ─▶ [shapes] oid to relation ─▶ [assembly] ─Batch▶ spool
//!                         │ chunks of transactions in progress            ▲
//!                         └──────▶ [streams] ─▶ Stash ──at STREAM COMMIT──┘ replayed through the same road
//! ```
//!
//! In a backlog one transaction in progress at a time goes straight on instead, to be applied ahead of its commit ([ahead]).
//!
//! One thing pgoutput does not say: a logical message inside a stream carries the top-level transaction, also when a
//! sub-transaction wrote it (`pgoutput_message`), so nobody can tell whether the roll-back of a sub-transaction takes an
//! earlier message with it. Such a transaction is not guessed at: the session ends with an error that asks for a retry,
//! and [`Decoder::takes_streams`] says that the next one has to do without streams. Then the source sorts it out.

mod machine;
mod message;
mod wire;
mod shapes;
mod assembly;
mod streams;
mod ahead;
mod memory_stash;
mod error;
#[cfg(test)]
mod tests;

pub use crate::model::{Stash, StashError, StashedFrame, StashedFrames};
pub use error::{Error, Interrupted};
pub use machine::{Counts, Decoder, Options};
pub use memory_stash::MemoryStash;
pub use message::Tag;
