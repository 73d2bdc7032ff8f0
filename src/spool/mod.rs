//! The ordered log between decode and the sinks. Every sink reads it with its own cursor, so an outage of one does not
//! stop the other; what does not fit into memory goes to segment files, and when those are full the stream stops
//! reading.
//!
//! ```text
//! decode ─append▶ [memory: newest] ◀─────────── cursors that keep up
//!                     │ oldest, when memory is full
//!                     ▼
//!                 [segments on disk] ◀───────── cursors that are behind        [file_stash]: transactions in progress
//! ```
//!
//! A batch is kept until every sink has released it, so a sink that fails is made anew and fed again (`rewind`) without
//! asking the source. The log is one of two things:
//!
//! - a **cache**: the slot still holds everything that is not settled, so the files of an earlier run are removed at start;
//! - **durable** (`[spool] release_source_wal`): every batch is written and made durable within a bounded time ([`Spool::sync`]),
//!   and the source is told to forget what is. From then on the files may be the only copy, so a start goes on with
//!   them ([`resume`](Spool::resume)), and refuses rather than guesses when they do not reach from what the sinks hold
//!   to what the source has forgotten.

mod driver;
mod cursor;
mod held;
mod machine;
mod segment;
mod record;
mod resume;
mod recovery;
mod state;
mod file_stash;
mod block;
mod directory;
mod points;
mod usage;
mod removal;
mod error;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod durable_tests;
#[cfg(test)]
mod parts_tests;
#[cfg(test)]
mod walk;

pub use cursor::Cursor;
pub use driver::{Options, Spool};
pub use error::Error;
pub use file_stash::FileStash;
pub use removal::may_be_removed;
pub use resume::{Resumed, Standing};
pub use usage::{CursorUsage, Usage};
