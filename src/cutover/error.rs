//! What can go wrong in a cutover.

use super::ports::PortError;
use super::router::RouterError;
use crate::model::Disposition;
use crate::{verify, wire};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect to {side}")]
    Connect {
        side: &'static str,
        #[source]
        source: wire::Error,
    },
    /// `what` is a step, never a value.
    #[error("{what} on {side}")]
    Query {
        side: &'static str,
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("{what} on {side}: no answer within {seconds} s")]
    NoAnswer { side: &'static str, what: &'static str, seconds: u64 },
    #[error("read the answer to {what} from {side}")]
    Answer { side: &'static str, what: &'static str },
    #[error("fence blue: only {found} of {wanted} tables are")]
    Unproven { found: usize, wanted: usize },
    #[error("fence blue: its locks could not be taken in {attempts} attempts")]
    NoLocks { attempts: u32 },
    #[error("ask router {router} to {step}")]
    Router {
        router: String,
        step: &'static str,
        #[source]
        source: Box<RouterError>,
    },
    #[error("{what}")]
    Port {
        what: &'static str,
        #[source]
        source: PortError,
    },
    #[error("read whether green owns the writes, before the daemon was stopped")]
    Undecided,
    /// Boxed: it is larger than all the others together.
    #[error("verify")]
    Verify(#[source] Box<verify::Error>),
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Connect { source, .. } => source.disposition(),
            Self::Verify(source) => source.disposition(),
            Self::Query { source, .. } => match source.code() {
                Some(code) if *code == tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE => halt(
                    "the migration's role must own the tables on blue, and may need CREATE on the database: see `check`",
                ),
                Some(_) | None => Disposition::Retry,
            },
            Self::NoAnswer { .. } | Self::Answer { .. } | Self::Port { .. } => Disposition::Retry,
            Self::Unproven { .. } => halt("see what removes triggers on blue, then `cutover` again"),
            Self::NoLocks { .. } => halt("end the transactions that write for long on blue, then `cutover` again"),
            Self::Undecided => {
                halt("start the daemon again when green answers: until then clients are held and blue takes no writes")
            }
            Self::Router { .. } => halt("see that the router answers, then `cutover` again"),
        }
    }
}

impl From<verify::Error> for Error {
    fn from(source: verify::Error) -> Self {
        Self::Verify(Box::new(source))
    }
}

/// `.map_err(query(BLUE, "read the clock"))`.
pub(super) fn query(side: &'static str, what: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |source| Error::Query { side, what, source }
}

pub(super) const BLUE: &str = "blue";
pub(super) const GREEN: &str = "green";
