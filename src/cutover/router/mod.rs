//! What sends the clients to blue or to green.

mod fragment; // the file that PgBouncer includes
mod pgbouncer;
mod command;
mod http;

pub use command::Command;
pub use http::Http;
pub use pgbouncer::PgBouncer;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// Boxed, so that `dyn Router` is possible.
pub type RouterFuture<'a> = Pin<Box<dyn Future<Output = Result<(), RouterError>> + Send + 'a>>;

/// Every step may be asked for again, also by a later daemon that knows nothing of the first call.
pub trait Router: Send + Sync {
    /// For logs and reports.
    fn name(&self) -> String;

    /// Whether it answers and could do its part; makes ready whatever can be made ready. Changes nothing for clients.
    fn check(&self) -> RouterFuture<'_>;

    /// No client is inside a transaction when this resolves, and none begins one. Dropped when the pause lasts too long;
    /// [`Self::release`] follows.
    fn hold(&self) -> RouterFuture<'_>;

    /// Clients go on, to green. After the commit point only.
    fn flip(&self) -> RouterFuture<'_>;

    /// Clients go on, to blue, whether or not they are held.
    fn release(&self) -> RouterFuture<'_>;
}

#[derive(Debug, thiserror::Error)]
pub enum RouterError {
    #[error("reach the console")]
    Console(#[from] crate::wire::Error),
    #[error("run {command} on the console")]
    Query {
        command: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("find database {database} on the console")]
    NoDatabase { database: String },
    #[error("see database {database} lead to green after the reload")]
    NotRepointed { database: String },
    #[error("{what} {path}")]
    File {
        what: &'static str,
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("run the program {program}")]
    Program {
        program: String,
        #[source]
        source: std::io::Error,
    },
    #[error("run the program {program}: it ended with {status}")]
    ProgramFailed { program: String, status: std::process::ExitStatus },
    #[error("call {url}: {what}")]
    Call { url: String, what: String },
    #[error("no answer within {} ms", .0.as_millis())]
    NoAnswer(Duration),
}
