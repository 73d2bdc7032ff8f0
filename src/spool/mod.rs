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
//! asking the source. The log is a cache: the slot still holds everything that is not settled, so the files of an earlier
//! run are removed at start.

mod driver;
mod cursor;
mod machine;
mod segment;
mod record;
mod file_stash;
mod block;
mod directory;
mod usage;
mod error;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use cursor::Cursor;
pub use driver::{Options, Spool};
pub use error::Error;
pub use file_stash::FileStash;
pub use usage::{CursorUsage, Usage};
