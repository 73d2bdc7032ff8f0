//! What can go wrong with throw-away servers.

use std::io;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("find the program {program}: install it with `docker/setup.sh --for {purpose}`")]
    NotInstalled { program: String, purpose: &'static str },
    #[error(
        "find the programs of PostgreSQL {major} (there are: {found}): install them with `docker/setup.sh --for test`"
    )]
    NoSuchVersion { major: u32, found: String },
    #[error(
        "find a user to run a server as: PostgreSQL refuses to run as root, and there is neither `postgres` nor `nobody`"
    )]
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
}

impl Error {
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
