//! Whether both sides hold the same rows, exactly, while both are being written to.
//!
//! ```text
//!  applier stands still ─► snapshot S of source ─► applier brings target to S ─► snapshot T ─► applier goes on
//!                              S and T are compared at leisure, inside the databases, by count and 128-bit sum
//! ```
//!
//! A verdict names the position it is exact for. After a clean full pass ([`verify`]) only the keys that the applier
//! wrote since ([`DirtyKeys`]) are compared again: aligned once more just before a cutover ([`verify_dirty`]), and at
//! last while the source is fenced and nothing moves ([`Fenced`]).

mod table; // what is compared
mod report; // what is said about it
mod align; // what is asked of the applier
mod error;
mod sql; // the statements that digest rows
mod digest; // what they answer
mod shape; // sizes, and whether a table was emptied or rewritten meanwhile
mod snapshots; // one aligned pair of snapshots
mod progress; // how far a pass has come
mod machine; // which part of which table is digested next, and what that says of the table
mod worker; // a session that digests
mod narrow; // which rows differ
mod dirty; // keys the applier wrote since
mod driver; // the full pass
mod incremental; // the aligned pass over dirty keys
mod fenced; // the same inside the cutover's pause

pub use align::{AlignError, AlignFuture, Aligner};
pub use dirty::{DirtyKeys, DirtySummary};
pub use driver::{Options, verify};
pub use error::{Error, Side};
pub use fenced::Fenced;
pub use incremental::verify_dirty;
pub use progress::{Progress, ProgressCounts};
pub use report::{Differences, DifferingKey, DifferingKind, Report, TableVerdict, Verdict};
pub use table::{KeyColumn, Table};
