//! Throw-away servers, and `changeover demo` on top of them.
//!
//! [programs] finds what is installed, [workspace] owns a directory and the process in it, [cluster] and [pooler] are the
//! two kinds of server. The tests start theirs through the same doors (`tests/support`).
//!
//! The demo itself is told in [run]: the [stage] is set, [clients] write and note in their [ledger] what they were told, the daemon
//! (our own program, driven over HTTP) migrates, and what green holds is compared with the ledgers.

mod error;
mod programs;
mod workspace;
mod template;
mod cluster;
mod pooler;

mod options;
mod run;
mod stage;
mod shop;
mod clients;
mod ledger;
mod stream;
mod keep;
mod screen;
mod report;

pub use cluster::{ClusterOptions, PgCluster, StopMode};
pub use error::Error;
pub use options::DemoOptions;
pub use pooler::{PgBouncer, PoolerOptions, Upstream};
pub use programs::{PostgresPrograms, tools_dir};
pub use report::{DemoReport, Verdict};
pub use run::run;
pub use workspace::{Workspace, free_port};
