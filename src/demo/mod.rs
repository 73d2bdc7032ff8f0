//! Throw-away servers, and `changeover demo` on top of them.
//!
//! [programs] finds what is installed, [workspace] owns a directory and the process in it, [cluster] and [pooler] are the
//! two kinds of server. The tests start theirs through the same doors (`tests/support`).

mod error;
mod programs;
mod workspace;
mod template;
mod cluster;
mod pooler;

mod options;
mod run;
mod report;

pub use cluster::{ClusterOptions, PgCluster, StopMode};
pub use error::Error;
pub use options::DemoOptions;
pub use pooler::{PgBouncer, PoolerOptions, Upstream};
pub use programs::{PostgresPrograms, tools_dir};
pub use report::{DemoReport, Verdict};
pub use run::run;
pub use workspace::{Workspace, free_port};
