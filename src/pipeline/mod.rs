//! The only room that spawns, connects rooms and acts on errors.
//!
//! Requests come in through a [`Handle`]; what is going on goes out as [`Status`].

mod handle;
mod status;

pub use handle::{CutoverRequest, Handle, REQUEST_TIMEOUT, Refused, VerifyRequest};
pub use status::{
    CutoverStatus, LatencyStatus, Owner, Phase, SinkStatus, SnapshotStatus, SourceStatus, SpoolStatus, Status,
    TableState, TableStatus, TableVerdictStatus, Trouble, VerificationStatus,
};
