//! Dumps: the program that makes them, and taking its text apart.

mod program;
mod entries;
mod lexer;

pub(crate) use entries::{Dump, Entry, Setting};
pub(crate) use program::Section;
pub use program::{PgDump, find_pg_dump};

/// A dump that is not what pg_dump writes.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("read the dump at byte {at_bytes}: {what}")]
pub struct Malformed {
    pub at_bytes: usize,
    pub what: &'static str,
}
