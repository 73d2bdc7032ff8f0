//! The target: committed changes become rows, exactly once, many source transactions to a target transaction.
//!
//! ```text
//!  Batch ─► [queue] ─► [group ◄ fold] ─► [sql + encode] ─► [pipe] ─► target: position, rows, COMMIT in one go
//!              ▲ hold, advance: [machine]                     │ a refusal
//!              └──────────────── [driver] ◄── [careful]: row by row, in order
//! ```
//!
//! A group is a run of whole source transactions and becomes one target transaction, so a reader of the target never
//! sees half of one (I3), and the position in its first statement commits with the rows (I1). While the server executes
//! a group, the next one is folded to its net effect. Sets are optimistic: a constraint that only the order of the
//! source can satisfy, or a row that is not there, fails the whole target transaction, which is then applied again row
//! by row in order. Order is never traded for a different result. Rows whose keys are neighbours are found in one pass over
//! their index ([near]).
//!
//! Partitions of the source that the target keeps in one table ([`crate::model::GatheredLeaves`]) are applied to that, as
//! changes of one table: rows move between them.
//! A large transaction of a backlog is executed ahead of its commit, over a session of its own ([ahead]), and committed when
//! the main lane has committed everything before it ([joining]).
//!
//! A table that is copied again while the others stream is set apart, in a second lane with a position of its own
//! ([lanes], [members]), and taken back when that has caught up.

mod options;
mod error;
mod position;
mod members;
mod lanes;
mod origin;
mod strangers;

mod table;
mod facts;
mod catalog;

mod machine;
mod queue;
mod group;
mod fold;
mod near;
mod net;
mod split;
mod key;
mod sql;
mod encode;

mod session;
mod statements;
mod transaction;
mod letters;
mod careful;
mod report;
mod flights;
mod sending;
mod driver;
mod standing;

mod ahead;
mod joining;

pub use driver::run;
pub use error::Error;
pub use lanes::{Lane, Standstill};
pub use members::{
    Member, MemberStep, enter_step, entering, finish_members, forget_members, read_members, record_members,
};
pub use options::{AheadPort, Options, Ports};
pub use origin::drop_origins;
pub use position::{adopt_position, read_lane_position, read_position};
pub use strangers::{Stranger, Watched, fold_notes, parts_of, read_strangers, unwatch, watch};
