//! How the copy spares the source: it stands still while the source is under load, and goes no faster than it is told.
//!
//! ```text
//!  blue ◄─asks, one connection─ [sampler] ─Sample▶ [machine] ◄─ pause, resume, a rate ── operator
//!                                                     │ may_begin: before a unit     (load, pause)
//!                                                     └ admit: between its chunks    (load up to a limit, rate)
//! ```
//!
//! A pause lets units that are under way come to their end; who then waits lets go of its snapshot ([`super::worker`]). Load
//! stops them in the middle, by no longer reading their sockets; but a unit keeps its snapshot meanwhile, and so each may
//! stand still for no longer than `hold_max` altogether, after which it is brought to its end whatever the load.
//! A rate slows units down and bounds nothing: who asks for little must expect snapshots that stay open for long.

mod options;
mod bucket;
mod machine;
mod sampler;
mod driver;

pub(super) use driver::Pace;
pub use driver::Throttle;
pub use machine::ThrottleRead;
pub use options::{LoadLimits, ThrottleOptions};
