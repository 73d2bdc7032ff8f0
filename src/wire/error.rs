//! What can go wrong between us and a server, and what is to be done about it.

use std::path::PathBuf;

use crate::model::Disposition;

/// `Display` never holds a password, nor row values: PostgreSQL puts those into DETAIL, which is kept out of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the connection's URL: {what}")]
    Url { what: String },
    #[error("read the connection's parameter {name}: {what}")]
    Parameter { name: String, what: String },
    #[error("read {}: {what}", path.display())]
    File { path: PathBuf, what: String },
    #[error("connect to {endpoint}")]
    Reach {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to {endpoint}: no answer within {seconds} s")]
    NoAnswer { endpoint: String, seconds: u64 },
    #[error("talk to {endpoint}")]
    Connection {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("query {endpoint}")]
    Query {
        endpoint: String,
        #[source]
        source: tokio_postgres::Error,
    },
}

impl Error {
    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        Disposition::Retry
    }
}
