//! Where a server is and how we present ourselves to it.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::parameters::{self, seconds, wrong};
use super::parse::{self, Setting};
use super::{Error, passfile, service};
use crate::model::Secret;

/// One database on one server, with everything that is needed to open a connection to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    host: Host,
    /// Where to connect when the host's name is only for verification (libpq's `hostaddr`).
    address: Option<IpAddr>,
    port: u16,
    user: String,
    password: Option<Secret>,
    dbname: String,
    tls: Tls,
    channel_binding: ChannelBinding,
    connect_timeout: Duration,
    keepalive: Keepalive,
    application_name: Option<String>,
    options: Option<String>,
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

/// How long we wait for a server when the URL does not say. libpq waits for ever; a daemon that says nothing for
/// minutes is worse than one that tries again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Keepalive when the URL does not say. The system's two hours would leave a session to a vanished server open, and
/// its locks held, for longer than anyone waits.
const KEEPALIVE: Keepalive = Keepalive {
    enabled: true,
    idle: Some(Duration::from_secs(30)),
    interval: Some(Duration::from_secs(10)),
    count: Some(3),
    user_timeout: None,
};
const PORT: u16 = 5432;

/// How a variable of the environment is read; tests pass their own.
pub(super) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Endpoint {
    /// Reads `postgres://user@host:port/database?parameter=value` or libpq's `host=… user=…`. A password that is not
    /// written there is taken from `PGPASSWORD`, then from the password file, as libpq does.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::parse_in(text, &|name| std::env::var(name).ok())
    }

    pub(super) fn parse_in(text: &str, environment: Environment<'_>) -> Result<Self, Error> {
        let mut settings = Settings::new(parse::settings(text)?)?;
        if let Some(name) = settings.take("service") {
            settings.add_missing(service::settings(&name, environment)?)?;
        }
        settings.into_endpoint(environment)
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
    const ALL: [Self; 6] = [Self::Disable, Self::Allow, Self::Prefer, Self::Require, Self::VerifyCa, Self::VerifyFull];

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
    const ALL: [Self; 3] = [Self::Disable, Self::Prefer, Self::Require];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }
}

/// What was typed, on its way to an [`Endpoint`].
struct Settings(Vec<Setting>);

impl Settings {
    fn new(typed: Vec<Setting>) -> Result<Self, Error> {
        let mut settings = Self(Vec::new());
        for (name, value) in typed {
            // Like libpq, a parameter after `?` wins over the part of the URL that says the same.
            settings.0.retain(|(known, _)| *known != name);
            if parameters::is_used(&name)? && !value.is_empty() {
                settings.0.push((name, value));
            }
        }
        Ok(settings)
    }

    /// A service's settings stand behind what was typed.
    fn add_missing(&mut self, more: Vec<Setting>) -> Result<(), Error> {
        for (name, value) in Self::new(more)?.0 {
            if !self.0.iter().any(|(known, _)| *known == name) {
                self.0.push((name, value));
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn take_with<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str, &str) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        self.take(name).map(|value| read(name, &value)).transpose()
    }

    fn into_endpoint(mut self, environment: Environment<'_>) -> Result<Endpoint, Error> {
        let address = self.take_with("hostaddr", |name, value| {
            value.parse::<IpAddr>().map_err(|_| wrong(name, "expected an IP address"))
        })?;
        let host = self.take_with("host", read_host)?.or(address.map(Host::Ip)).unwrap_or_else(default_host);
        let port = self.take_with("port", read_port)?.unwrap_or(PORT);
        let user = self
            .take("user")
            .or_else(|| environment("USER"))
            .ok_or_else(|| wrong("user", "it is missing: write postgres://USER@host/database"))?;
        let dbname = self.take("dbname").unwrap_or_else(|| user.clone());
        let passfile = self.take("passfile");
        let password = match self.take("password").or_else(|| environment("PGPASSWORD")) {
            Some(password) => Some(Secret::new(password)),
            None => {
                let wanted = passfile::Wanted { host: &host, port, dbname: &dbname, user: &user };
                passfile::look_up(passfile.as_deref(), &wanted, environment)?
            }
        };
        Ok(Endpoint {
            address,
            port,
            user,
            password,
            dbname,
            tls: self.tls(environment)?,
            channel_binding: self
                .take_with("channel_binding", |name, value| {
                    one_of(name, value, &ChannelBinding::ALL, ChannelBinding::as_str)
                })?
                .unwrap_or(ChannelBinding::Prefer),
            connect_timeout: self.connect_timeout()?,
            keepalive: self.keepalive(&host)?,
            application_name: self.take("application_name"),
            options: self.take("options"),
            host,
        })
    }

    fn connect_timeout(&mut self) -> Result<Duration, Error> {
        // Asked for "no limit": a day is none to a person, and still a bound.
        const NO_LIMIT: Duration = Duration::from_secs(24 * 3600);
        let given = self.take_with("connect_timeout", seconds)?;
        Ok(given.map_or(CONNECT_TIMEOUT, |limit| limit.unwrap_or(NO_LIMIT)))
    }

    fn keepalive(&mut self, host: &Host) -> Result<Keepalive, Error> {
        let enabled = self.take("keepalives").is_none_or(|value| value.trim() != "0");
        let enabled = enabled && !matches!(host, Host::Socket(_));
        let count = self.take_with("keepalives_count", |name, value| {
            value.trim().parse::<u32>().map_err(|_| wrong(name, "expected a number"))
        })?;
        let user_timeout = self.take_with("tcp_user_timeout", |name, value| {
            value.trim().parse::<u64>().map_err(|_| wrong(name, "expected a number of milliseconds"))
        })?;
        Ok(Keepalive {
            enabled,
            idle: self.take_with("keepalives_idle", seconds)?.unwrap_or(KEEPALIVE.idle),
            interval: self.take_with("keepalives_interval", seconds)?.unwrap_or(KEEPALIVE.interval),
            count: count.filter(|count| *count > 0).or(KEEPALIVE.count),
            user_timeout: user_timeout.filter(|ms| *ms > 0).map(Duration::from_millis).or(KEEPALIVE.user_timeout),
        })
    }

    fn tls(&mut self, environment: Environment<'_>) -> Result<Tls, Error> {
        let home = environment("HOME").map(|home| PathBuf::from(home).join(".postgresql"));
        let root = match self.take("sslrootcert").as_deref() {
            Some("system") => Some(RootCertificates::System),
            Some(path) => Some(RootCertificates::File(path.into())),
            None => existing(home.as_deref(), "root.crt").map(RootCertificates::File),
        };
        let mode = self
            .take_with("sslmode", |name, value| one_of(name, value, &SslMode::ALL, SslMode::as_str))?
            .unwrap_or(if root == Some(RootCertificates::System) { SslMode::VerifyFull } else { SslMode::Prefer });
        if root == Some(RootCertificates::System) && mode != SslMode::VerifyFull {
            return Err(wrong("sslmode", "sslrootcert=system needs verify-full: anyone can have a certificate"));
        }
        let certificate =
            self.take("sslcert").map(PathBuf::from).or_else(|| existing(home.as_deref(), "postgresql.crt"));
        let key = self.take("sslkey").map(PathBuf::from).or_else(|| existing(home.as_deref(), "postgresql.key"));
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (Some(_), None) => return Err(wrong("sslkey", "it is missing: sslcert needs its private key")),
            (None, _) => None,
        };
        Ok(Tls { mode, root, client })
    }
}

fn existing(directory: Option<&Path>, name: &str) -> Option<PathBuf> {
    directory.map(|directory| directory.join(name)).filter(|path| path.exists())
}

fn read_host(name: &str, value: &str) -> Result<Host, Error> {
    if value.contains(',') {
        return Err(wrong(name, "several hosts are not supported: name the one server that is meant"));
    }
    Ok(if value.starts_with('/') {
        Host::Socket(value.into())
    } else {
        value.parse().map_or_else(|_| Host::Name(value.to_owned()), Host::Ip)
    })
}

fn read_port(name: &str, value: &str) -> Result<u16, Error> {
    let port = value.trim().parse::<u16>().ok().filter(|port| *port > 0);
    port.ok_or_else(|| wrong(name, "expected a number from 1 to 65535"))
}

/// What libpq does without a host: Debian's directory of sockets if it is there, else this machine by name.
fn default_host() -> Host {
    let directory = Path::new("/var/run/postgresql");
    if directory.is_dir() { Host::Socket(directory.to_owned()) } else { Host::Name("localhost".to_owned()) }
}

fn one_of<T: Copy>(name: &str, value: &str, all: &[T], text: impl Fn(T) -> &'static str) -> Result<T, Error> {
    all.iter().copied().find(|choice| text(*choice) == value).ok_or_else(|| {
        let choices: Vec<&str> = all.iter().map(|choice| text(*choice)).collect();
        wrong(name, &format!("expected one of {}", choices.join(", ")))
    })
}
