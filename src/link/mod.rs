//! Bounded links between stages: crossbeam channels whose capacity is counted in bytes as well as in parcels.
//!
//! Either end may be a thread or a task. A task never blocks its worker: it waits on a semaphore (room) or a notify
//! (something to take) and only then touches the channel. The permit for a parcel's bytes comes back when the parcel is
//! dropped, not when it is received, so what a stage is working on is still counted.

mod budget;
mod channel;

pub use budget::{Budget, Permit};
pub use channel::{Closed, Parcel, Receiver, Sender, channel};
