//! Tables that are copied again, or join, while everything else streams on.
//!
//! ```text
//! asked for, or to join ─► set apart at the main lane's position ─► [empty], or made ─► copied under a snapshot of now
//!    ─► [run]: a lane of their own applies what was committed since ─► taken back by the main lane where that one stands
//! ```
//!
//! How far they are is recorded on the target (`apply::MemberStep`), so that a daemon that comes back goes on from there.
//! What they need of the stream is held for them by a cursor and a sink of their own, from before they are set apart.

mod desk;
mod apart;
mod empty;
mod request;
mod run;

pub(super) use apart::SettingApart;
pub(super) use desk::Desk;
pub(super) use run::Resync;
