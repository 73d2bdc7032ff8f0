//! What can go wrong between us and a server, and what is to be done about it.

use std::path::PathBuf;

use super::server_error::ServerError;
use super::sqlstate;
use crate::model::Disposition;

/// `Display` never holds a password, nor row values: PostgreSQL puts those into DETAIL, which is kept out of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was typed is not repeated: it may hold the password in an unexpected place.
    #[error("read the connection's URL: {what}")]
    Url { what: String },
    #[error("read the connection's parameter {name}: {what}")]
    Parameter { name: String, what: String },
    #[error("read {}: {what}", path.display())]
    File { path: PathBuf, what: String },
    #[error("find the address of {host}")]
    Resolve {
        host: String,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to {endpoint}")]
    Reach {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to {endpoint}: no answer within {seconds} s")]
    NoAnswer { endpoint: String, seconds: u64 },
    #[error("connect to {endpoint}: the server offers no TLS, and sslmode={mode} insists on it")]
    NoTls { endpoint: String, mode: &'static str },
    /// The certificate we were shown, or what we know to check it with, is not good enough.
    #[error("verify the certificate of {endpoint}")]
    Certificate {
        endpoint: String,
        #[source]
        source: rustls::Error,
    },
    /// Our own side of TLS cannot be set up.
    #[error("prepare TLS for {endpoint}: {what}")]
    TlsSetup { endpoint: String, what: String },
    #[error("log in to {endpoint}: the server wants a password and there is none")]
    PasswordMissing { endpoint: String },
    #[error("log in to {endpoint}: {what}")]
    Authenticate { endpoint: String, what: String },
    /// The server refused the connection in words of its own.
    #[error("log in to {endpoint}")]
    Refused {
        endpoint: String,
        #[source]
        source: ServerError,
    },
    /// A setting that shapes values or waits could not be pinned.
    #[error("set {setting} on {endpoint}")]
    Pin {
        endpoint: String,
        setting: &'static str,
        #[source]
        source: ServerError,
    },
    #[error("query {endpoint}")]
    Statement {
        endpoint: String,
        #[source]
        source: ServerError,
    },
    #[error("keep the connection to {endpoint}")]
    Connection {
        endpoint: String,
        #[source]
        source: std::io::Error,
    },
    /// What answers does not speak PostgreSQL's protocol as we know it.
    #[error("understand {endpoint}: {what}")]
    Protocol { endpoint: String, what: String },
    #[error("hand the connection to {endpoint} to the SQL client")]
    Client {
        endpoint: String,
        #[source]
        source: tokio_postgres::Error,
    },
}

impl Error {
    /// What the server said, where it said something.
    pub fn server(&self) -> Option<&ServerError> {
        match self {
            Self::Refused { source, .. } | Self::Pin { source, .. } | Self::Statement { source, .. } => Some(source),
            Self::Url { .. }
            | Self::Parameter { .. }
            | Self::File { .. }
            | Self::Resolve { .. }
            | Self::Reach { .. }
            | Self::NoAnswer { .. }
            | Self::NoTls { .. }
            | Self::Certificate { .. }
            | Self::TlsSetup { .. }
            | Self::PasswordMissing { .. }
            | Self::Authenticate { .. }
            | Self::Connection { .. }
            | Self::Protocol { .. }
            | Self::Client { .. } => None,
        }
    }

    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        let halt = |hint: &str| Disposition::Halt { hint: hint.to_owned() };
        match self {
            Self::Resolve { .. }
            | Self::Reach { .. }
            | Self::NoAnswer { .. }
            | Self::Connection { .. }
            | Self::Client { .. } => Disposition::Retry,
            Self::Url { .. } | Self::Parameter { .. } | Self::File { .. } => {
                halt("correct the connection's settings, then start again")
            }
            Self::NoTls { .. } => {
                halt("switch `ssl` on at the server, or allow a plain connection with sslmode=prefer")
            }
            Self::Certificate { .. } => halt(
                "give sslrootcert the certificate authority that signed the server's certificate, and use a host name \
                 that the certificate is for",
            ),
            Self::TlsSetup { .. } => halt("correct sslrootcert, sslcert or sslkey, then start again"),
            Self::PasswordMissing { .. } => {
                halt("put the password into ~/.pgpass (chmod 600), PGPASSWORD or the URL, then start again")
            }
            Self::Authenticate { .. } => {
                halt("compare pg_hba.conf and the role's password with channel_binding and sslmode of the URL")
            }
            Self::Protocol { .. } => halt("make sure that a PostgreSQL server listens at this address, not a proxy"),
            Self::Refused { source, .. } | Self::Statement { source, .. } => sqlstate::disposition(source.sqlstate()),
            Self::Pin { source, setting, .. } => match sqlstate::disposition(source.sqlstate()) {
                Disposition::Retry => Disposition::Retry,
                Disposition::Halt { .. } => {
                    halt(&format!("let the role set {setting}, or remove what forbids it (an extension or a pooler)"))
                }
            },
        }
    }
}

/// What is to be done about an error of a [`super::Session`]'s client.
pub fn disposition_of(error: &tokio_postgres::Error) -> Disposition {
    match error.code() {
        Some(code) => sqlstate::disposition(code.code()),
        None if error.is_closed() || has_io_cause(error) => Disposition::Retry,
        None => Disposition::Halt { hint: "this is no fault of the server's: please report it".to_owned() },
    }
}

fn has_io_cause(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>())
}
