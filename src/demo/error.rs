//! What can go wrong with throw-away servers.

use std::io;
use std::path::PathBuf;

use crate::control::ClientError;
use crate::model::Disposition;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("find the program {program}")]
    NotInstalled { program: String, purpose: &'static str },
    #[error("find the programs of PostgreSQL {major} (there are: {found})")]
    NoSuchVersion { major: u32, found: String },
    #[error("find a user to run a server as: there is neither postgres nor nobody")]
    NoUser,
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("run {program}")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("run {program}: {output}")]
    Failed { program: String, output: String },
    #[error("start {server}: {log}")]
    NotStarted { server: &'static str, log: String },
    #[error("find a free port on 127.0.0.1")]
    NoPort,
    #[error("{what}")]
    Sql {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("{what}: the server answered with something else than numbers")]
    Unreadable { what: &'static str },
    /// The daemon's last words.
    #[error("go on without the daemon, which ended: {log}")]
    DaemonEnded { log: String },
    #[error("{what}")]
    Asked {
        what: &'static str,
        #[source]
        source: ClientError,
    },
    #[error("go on while {part} stands still: {error}")]
    Halted { part: String, error: String },
    #[error("wait for {what}: not there after {seconds} s")]
    TooLate { what: &'static str, seconds: u64 },
    #[error("cut over: {reason}")]
    NotCutOver { reason: String },
    #[error("understand what the daemon answered")]
    Answer(#[source] serde_json::Error),
    #[error("read the stream back from Kafka")]
    Kafka(#[source] rdkafka::error::KafkaError),
    #[error("read the stream back from Kafka: {0}")]
    Stream(&'static str),
    #[error("finish: interrupted")]
    Interrupted,
}

impl Error {
    pub(super) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql { what, source }
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
    /// Nothing here is worth another try by itself: the servers are ours, and whoever asked is there to ask again.
    pub fn disposition(&self) -> Disposition {
        let hint = match self {
            Self::NotInstalled { purpose, .. } => format!("install it with `docker/setup.sh --for {purpose}`"),
            Self::NoSuchVersion { .. } => {
                "install it with `docker/setup.sh --for test`, or name its directory in CHANGEOVER_POSTGRES_BIN"
                    .to_owned()
            }
            Self::NoUser => "PostgreSQL refuses to run as root: run this as another user".to_owned(),
            Self::File { .. } | Self::NoPort => {
                "make room: servers live in directories below TMPDIR and listen on ports of 127.0.0.1".to_owned()
            }
            Self::Spawn { .. } | Self::Failed { .. } | Self::NotStarted { .. } => {
                "make the program run by hand first; another installation can be named in CHANGEOVER_POSTGRES_BIN"
                    .to_owned()
            }
            Self::Asked { source, .. } => {
                source.hint().unwrap_or_else(|| "try again with `--keep` to look around".to_owned())
            }
            Self::Kafka(_) | Self::Stream(_) => {
                "make sure that the broker of `--kafka` answers, and try again".to_owned()
            }
            Self::TooLate { .. } => "try again when the machine is less busy, or with fewer `--rows`".to_owned(),
            Self::Interrupted => "nothing is left behind; start it again at any time".to_owned(),
            Self::Sql { .. }
            | Self::Unreadable { .. }
            | Self::DaemonEnded { .. }
            | Self::Halted { .. }
            | Self::NotCutOver { .. }
            | Self::Answer(_) => "this is a fault of the program: report it with what is said above".to_owned(),
        };
        Disposition::Halt { hint }
    }
}
