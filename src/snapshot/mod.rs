//! The rows of every table, copied in parallel under one snapshot of the source and handed over to the stream exactly.

mod error;
mod progress;
mod run;

pub use error::Error;
pub use progress::{CopyState, Progress, ProgressRead, TableProgress};
pub use run::{Options, handovers, run};
