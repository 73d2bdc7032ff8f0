//! The rows of every table, copied in parallel under one snapshot of the source and handed over to the stream exactly.
//!
//! ```text
//! [snapshots]: one [holder] after another: locks, then an exported snapshot ──┐ adopted by every worker
//! [plan]: tables and block ranges, largest first ─► [worker] × N: COPY ═ frames as they are ═► COPY   (one transaction
//!                                                        ├─ row of changeover.unit [record] ──────────  on the target)
//!                                                        └─ [settle], where parts were read under several snapshots
//! ```
//!
//! After a crash the snapshot is gone, and what is recorded stays: the next attempt copies the other parts under a
//! snapshot of its own. A table without key cannot be settled afterwards, so it begins again. A source that reads no block
//! ranges gives the parts of a table out of one pass ([in_order]).

mod error;
mod progress;
mod estimate;
mod plan;
mod sql;
mod holder;
mod snapshots;
mod destination;
mod record;
mod split;
mod throttle;
mod worker;
mod in_order;
mod settle;
mod run;

pub use error::Error;
pub use progress::{CopyState, Progress, ProgressRead, TableProgress};
pub use record::handovers;
pub use run::{Options, run};
pub use throttle::{LoadLimits, Throttle, ThrottleOptions, ThrottleRead};
