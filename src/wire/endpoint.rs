//! Where a server is and how we present ourselves to it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Error, settings};
use crate::model::Secret;

/// One database on one server, with everything that is needed to open a connection to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(super) host: Host,
    /// Where to connect when the host's name is only for verification (libpq's `hostaddr`).
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    pub(super) user: String,
    pub(super) password: Option<Secret>,
    pub(super) dbname: String,
    pub(super) tls: Tls,
    pub(super) channel_binding: ChannelBinding,
    pub(super) connect_timeout: Duration,
    pub(super) keepalive: Keepalive,
    pub(super) application_name: Option<String>,
    pub(super) options: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(String),
    Ip(IpAddr),
    /// The directory of a Unix socket; a `host` that begins with `/`.
    Socket(PathBuf),
}

/// How far a connection is protected ("SSL Support" in libpq's documentation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// Plain first, TLS when the server insists.
    Allow,
    /// TLS first, plain when the server has none.
    Prefer,
    /// TLS, whoever answers; with a root certificate file present the same as `VerifyCa`.
    Require,
    VerifyCa,
    VerifyFull,
}

/// Which certificates are believed, and which one we show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tls {
    pub mode: SslMode,
    pub root: Option<RootCertificates>,
    pub client: Option<ClientCertificate>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RootCertificates {
    /// What the operating system trusts (`sslrootcert=system`).
    System,
    File(PathBuf),
}

/// PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Whether the password exchange is tied to the TLS channel, so that nobody in the middle can pass it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    Prefer,
    Require,
}

/// TCP keepalive and user timeout; `None` leaves the system's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Keepalive {
    pub enabled: bool,
    pub idle: Option<Duration>,
    pub interval: Option<Duration>,
    pub count: Option<u32>,
    pub user_timeout: Option<Duration>,
}

/// How a variable of the environment is read; tests pass their own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Endpoint {
    /// Reads `postgres://user@host:port/database?parameter=value` or libpq's `host=… user=…`. A password that is not
    /// written there is taken from `PGPASSWORD`, then from the password file, as libpq does.
    pub fn parse(text: &str) -> Result<Self, Error> {
        settings::endpoint(text, &|name| std::env::var(name).ok())
    }

    pub fn user(&self) -> &str {
        &self.user
    }

    pub fn host(&self) -> &Host {
        &self.host
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// The same server, another database.
    pub fn with_dbname(&self, dbname: impl Into<String>) -> Self {
        Self { dbname: dbname.into(), ..self.clone() }
    }

    pub fn with_password(&self, password: Secret) -> Self {
        Self { password: Some(password), ..self.clone() }
    }

    pub(super) fn password(&self) -> Option<&Secret> {
        self.password.as_ref()
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    pub(super) fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        self.connect_timeout
    }

    pub(super) fn keepalive(&self) -> &Keepalive {
        &self.keepalive
    }

    pub(super) fn application_name(&self) -> Option<&str> {
        self.application_name.as_deref()
    }

    pub(super) fn options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    /// The environment of a child that uses libpq (`pg_dump`), so that nothing secret stands in its arguments.
    pub fn libpq_env(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            ("PGHOST", self.host.to_string()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGDATABASE", self.dbname.clone()),
            ("PGSSLMODE", self.tls.mode.as_str().to_owned()),
            ("PGCHANNELBINDING", self.channel_binding.as_str().to_owned()),
            ("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string()),
            ("PGAPPNAME", "changeover pg_dump".to_owned()),
        ];
        let mut push = |name, value: Option<String>| variables.extend(value.map(|value| (name, value)));
        push("PGHOSTADDR", self.address.map(|address| address.to_string()));
        push("PGPASSWORD", self.password.as_ref().map(|password| password.reveal().to_owned()));
        push("PGOPTIONS", self.options.clone());
        push("PGSSLROOTCERT", self.tls.root.as_ref().map(RootCertificates::to_string));
        let client = self.tls.client.as_ref();
        push("PGSSLCERT", client.map(|client| client.certificate.display().to_string()));
        push("PGSSLKEY", client.map(|client| client.key.display().to_string()));
        variables
    }
}

/// Without the password, and without what nobody needs in a message.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Socket(directory) => {
                write!(f, "postgres://{}@/{}?host={}", self.user, self.dbname, directory.display())?;
                write!(f, "&port={}", self.port)
            }
            Host::Ip(IpAddr::V6(address)) => {
                write!(f, "postgres://{}@[{address}]:{}/{}", self.user, self.port, self.dbname)
            }
            host @ (Host::Name(_) | Host::Ip(IpAddr::V4(_))) => {
                write!(f, "postgres://{}@{host}:{}/{}", self.user, self.port, self.dbname)
            }
        }
    }
}

/// As libpq takes it in `PGHOST`.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Socket(directory) => write!(f, "{}", directory.display()),
        }
    }
}

impl fmt::Display for RootCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl SslMode {
    pub(super) const ALL: [Self; 6] =
        [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }
}

impl ChannelBinding {
    pub(super) const ALL: [Self; 3] = [Self::Disable, Self::Prefer, Self::Require];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }
}
