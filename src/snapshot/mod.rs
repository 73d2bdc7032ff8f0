//! The rows of every table, copied in parallel under one snapshot of the source and handed over to the stream exactly.
//!
//! ```text
//! [holder]: locks, then one exported snapshot ──┐ adopted by every worker
//! [plan]: tables and block ranges, largest first ─► [worker] × N: COPY ═ frames as they are ═► COPY   (one transaction
//!                                                        └─ [record] row of changeover.unit ──────────  on the target)
//! ```
//!
//! After a crash the snapshot is gone. Tables recorded as complete keep theirs; the others are emptied and copied again
//! under a new one, because parts of a table that were cut by block under different snapshots do not fit together.

mod error;
mod progress;
mod estimate;
mod plan;
mod sql;
mod holder;
mod destination;
mod record;
mod worker;
mod run;

pub use error::Error;
pub use progress::{CopyState, Progress, ProgressRead, TableProgress};
pub use record::handovers;
pub use run::{Options, run};
