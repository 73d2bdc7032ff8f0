//! Whether a target's tables can take a source's rows, and what an application would miss there afterwards.

mod difference;
mod ddl;
mod columns;
mod parts;
mod tables;

pub use difference::{Difference, DifferenceKind};
pub use tables::{Described, compare};
