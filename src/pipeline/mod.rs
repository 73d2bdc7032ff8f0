//! The only room that spawns, connects rooms and acts on errors.
//!
//! Requests come in through a [`Handle`]; what is going on goes out as [`Status`].
//!
//! ```text
//! [prepare] state, leadership, publication, slot
//!     ▼
//! [daemon] starts ─► [receive] source ─► decode ─► spool ─┬─► [sinks] target
//!     │                                                    └─► [sinks] Kafka
//!     ├──► [durable] spool ─► disk ─► what the source may forget, when the spool is more than a cache
//!     ├──► [migrate] copying (indexes beside it) ─► indexing ─► catching up ─► streaming      every part under [supervise]
//!     ├──► [resync] tables that are copied again or join, in a lane of their own, while the others stream
//!     └──► [requests] verify, cutover, resync, pause, resume, stop
//! ```

mod status;
mod handle;
mod daemon;
mod options;
mod prepare;
mod membership;
mod gathered;
mod lead;
mod machine;
mod migrate;
mod receive;
mod sinks;
mod flow;
mod durable;
mod ahead;
mod commands;
mod touched;
mod requests;
mod cutover;
mod resync;
mod strangers;
mod watchers;
mod board;
mod supervise;
mod troubles;
mod backoff;
mod copy;
mod cleanup;
mod error;

pub use cleanup::{Removed, abort, complete};
pub use copy::{Copied, copy};
pub use daemon::{Daemon, daemon};
pub use error::Error;
pub use handle::{CutoverRequest, Handle, REQUEST_TIMEOUT, Refused, ResyncRequest, ThrottleRequest, VerifyRequest};
pub use status::{
    CutoverStatus, LatencyStatus, Owner, Phase, ResyncStage, ResyncStatus, SinkStatus, SnapshotStatus, SourceStatus,
    SpoolStatus, Status, StepStatus, TableState, TableStatus, TableVerdictStatus, ThrottleStatus, Trouble,
    VerificationStatus, WorkUnit,
};
