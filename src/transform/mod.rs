//! What happens to a row between source and target. Pure: the same functions for copied, streamed and verified rows.
//!
//! For now there is one answer, and every room that asks is ready for more.

mod plan;

pub use plan::Plan;
