//! From what was typed, and what stands in files and in the environment, to an [`Endpoint`].

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::endpoint::{
    ChannelBinding, ClientCertificate, Endpoint, Environment, Host, Keepalive, RootCertificates, SslMode, Tls,
};
use super::parameters::{self, seconds, wrong};
use super::parse::{self, Setting};
use super::{Error, passfile, service};
use crate::model::Secret;

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

/// Reads either form of a connection.
pub(super) fn endpoint(text: &str, environment: Environment<'_>) -> Result<Endpoint, Error> {
    let mut settings = Settings::new(parse::settings(text)?)?;
    if let Some(name) = settings.take("service") {
        settings.add_missing(service::settings(&name, environment)?)?;
    }
    settings.into_endpoint(environment)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// With nothing in the environment but a user.
    fn parse(text: &str) -> Result<Endpoint, Error> {
        endpoint(text, &|name| (name == "USER").then(|| "me".to_owned()))
    }

    #[test]
    fn what_is_not_written_is_what_libpq_takes() {
        let endpoint = parse("postgres://blue").unwrap();
        assert_eq!((endpoint.user(), endpoint.dbname(), endpoint.port()), ("me", "me", 5432));
        assert_eq!((endpoint.tls.mode, endpoint.channel_binding), (SslMode::Prefer, ChannelBinding::Prefer));
        assert_eq!(*endpoint.host(), Host::Name("blue".to_owned()));
        assert!(super::endpoint("postgres://blue", &|_| None).unwrap_err().to_string().contains("USER@host"));
    }

    #[test]
    fn a_host_is_a_name_an_address_or_a_directory() {
        for (text, expected, shown) in [
            ("postgres://u@10.0.0.1:7/d", Host::Ip([10, 0, 0, 1].into()), "postgres://u@10.0.0.1:7/d"),
            ("postgres://u@[::1]/d", Host::Ip("::1".parse().unwrap()), "postgres://u@[::1]:5432/d"),
            (
                "postgres:///d?host=/run/pg&user=u",
                Host::Socket("/run/pg".into()),
                "postgres://u@/d?host=/run/pg&port=5432",
            ),
            ("host=blue user=u dbname=d hostaddr=10.0.0.1", Host::Name("blue".to_owned()), "postgres://u@blue:5432/d"),
        ] {
            let endpoint = parse(text).unwrap();
            assert_eq!((endpoint.host(), endpoint.to_string().as_str()), (&expected, shown));
            assert_eq!(parse(shown).unwrap().host(), &expected, "what is shown can be typed");
        }
    }

    #[test]
    fn the_password_is_for_the_child_and_for_nobody_else() {
        let endpoint = parse("postgres://u:hunter2@blue/d?sslmode=require").unwrap();
        let variables = endpoint.libpq_env();
        assert!(variables.contains(&("PGPASSWORD", "hunter2".to_owned())));
        assert!(variables.contains(&("PGSSLMODE", "require".to_owned())));
        assert!(!format!("{endpoint} {endpoint:?}").contains("hunter2"));
        let other = endpoint.with_dbname("e").with_password(Secret::new("x"));
        assert_eq!((other.dbname(), other.password.as_ref().map(Secret::reveal)), ("e", Some("x")));
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for (text, hint) in [
            ("postgres://u@blue/d?sslmode=verify", "verify-full"),
            ("postgres://u@blue/d?ssl_mode=require", "sslmode"),
            ("postgres://u@blue/d?port=0", "1 to 65535"),
            ("postgres://u@a,b/d", "one server"),
            ("postgres://u@blue/d?sslcert=/x", "private key"),
            ("postgres://u@blue/d?sslmode=require&sslrootcert=system", "verify-full"),
            ("postgres://u@blue/d?target_session_attrs=primary", "one server"),
            ("postgres://u@blue/d?connect_timeout=soon", "seconds"),
            ("service=none", "[none]"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn the_systems_roots_are_for_verifying_everything() {
        let endpoint = parse("postgres://u@blue/d?sslrootcert=system").unwrap();
        assert_eq!((endpoint.tls.mode, endpoint.tls.root), (SslMode::VerifyFull, Some(RootCertificates::System)));
    }
}
