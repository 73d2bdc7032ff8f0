//! Handing the clients over: gates, hold, fence, drain, verify, sequences, commit point, flip; and back from any step
//! before the commit point as if nothing had happened.
//!
//! ```text
//!  [gates] ─► hold clients ─► fence blue ─► drain ─► verify ─► sequences ─► COMMIT POINT ─► flip ─► green owns
//!                 └──────────────┴────────────┴────────┴───────────┴─► unfence ─► release ─► blue owns
//! ```
//!
//! Which side owns the writes is one row on green (`changeover.journal`, step `committed`): [`recover`] reads it after
//! a crash and goes forward or back. The reverse stream will start after the flip; its place in `machine` is marked.

mod report; // what is said about it
mod error;
mod ports; // what the pipeline does for a cutover
mod machine; // which step is next, and what undoes it
mod journal; // the durable record
mod fence; // what makes writes to blue impossible
mod router; // what sends the clients to either side
mod gates; // what must hold before anything is touched
mod forecast; // how long the pause will be
mod stage; // sessions, the prepared fence, the gates' answers
mod driver; // performs the steps
mod recover; // after a crash
mod retire; // when the migration is complete

#[cfg(test)]
mod machine_tests;

pub use driver::{Options, Parts, run};
pub use error::Error;
pub use fence::remove_fence;
pub use gates::Gate;
pub use journal::remove_journal;
pub use machine::{Step, Why};
pub use ports::{Lacking, Lag, PortError, PortFuture, Ports};
pub use recover::{Recovered, recover};
pub use report::{Outcome, Owner, Report, StepTime};
pub use retire::{Retired, retire};
pub use router::{Command, Http, PgBouncer, Router, RouterError, RouterFuture};
