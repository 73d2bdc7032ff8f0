//! Dumps: the program that makes them, and taking its text apart.

mod program;
mod entries;
mod keys;
mod lexer;

pub(crate) use entries::{Dump, Entry, Setting};
pub use lexer::Malformed;
pub(crate) use program::Section;
pub use program::{PgDump, find_pg_dump};
