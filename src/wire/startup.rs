//! From nothing to a connection that takes commands: socket, TLS, startup packet, login.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::auth::{Credentials, Login, Refusal};
use super::endpoint::{Endpoint, Host, SslMode};
use super::messages::{Message, Messages};
use super::server_error::ServerError;
use super::socket::Socket;
use super::transport::{self, Stream, Window};
use super::{Error, tls};

/// What the server told us while we logged in.
#[derive(Clone, Debug, Default)]
pub(super) struct Greeting {
    /// Settings that the server reports (`server_version`, `client_encoding` …).
    pub(super) parameters: HashMap<String, String>,
    pub(super) backend_pid: i32,
    pub(super) cancel_key: i32,
}

/// How the bytes are protected in one attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plain,
    Tls,
    /// TLS where the server has it, plain on the same connection where it has not.
    TlsIfOffered,
}

/// Logs in. `parameters` go into the startup packet, after those of the endpoint.
pub(super) async fn log_in(
    endpoint: &Endpoint,
    parameters: &[(&str, &str)],
    window: Window,
) -> Result<(Messages, Greeting), Error> {
    let mut failed = None;
    for protection in attempts(endpoint) {
        let attempt = timeout(endpoint.connect_timeout(), attempt(endpoint, *protection, parameters, window)).await;
        match attempt {
            Ok(Ok(connected)) => return Ok(connected),
            Ok(Err(error)) if !other_protection_may_help(&error) => return Err(failed.unwrap_or(error)),
            // The first refusal is the one that tells what is wrong.
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_) => return Err(no_answer(endpoint)),
        }
    }
    Err(failed.expect("every mode has an attempt, and each attempt that does not return fails"))
}

/// Opens a connection for a cancel request: no login, and the same protection as the connection it is about.
pub(super) async fn open_for_cancel(endpoint: &Endpoint) -> Result<Stream, Error> {
    let protection = attempts(endpoint).first().copied().unwrap_or(Protection::Plain);
    let opened = timeout(endpoint.connect_timeout(), protect(endpoint, protection, Window::AsItComes)).await;
    opened.map_err(|_| no_answer(endpoint))?.map(|(stream, _)| stream)
}

fn no_answer(endpoint: &Endpoint) -> Error {
    Error::NoAnswer { endpoint: endpoint.to_string(), seconds: endpoint.connect_timeout().as_secs() }
}

/// libpq's order for each mode; a Unix socket has no TLS and ignores the mode, as in libpq.
fn attempts(endpoint: &Endpoint) -> &'static [Protection] {
    if matches!(endpoint.host(), Host::Socket(_)) {
        return &[Protection::Plain];
    }
    match endpoint.tls().mode {
        SslMode::Disable => &[Protection::Plain],
        SslMode::Allow => &[Protection::Plain, Protection::Tls],
        SslMode::Prefer => &[Protection::TlsIfOffered, Protection::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Protection::Tls],
    }
}

/// pg_hba.conf may know this role only with, or only without TLS; and a handshake may fail that `prefer` does not need.
fn other_protection_may_help(error: &Error) -> bool {
    // Not 28P01: a wrong password is as wrong the other way, and trying it twice may lock the role out.
    let not_let_in = matches!(error, Error::Refused { source, .. } if source.sqlstate() == "28000");
    not_let_in || matches!(error, Error::Certificate { .. } | Error::NoTls { .. } | Error::TlsSetup { .. })
}

async fn attempt(
    endpoint: &Endpoint,
    protection: Protection,
    parameters: &[(&str, &str)],
    window: Window,
) -> Result<(Messages, Greeting), Error> {
    let (stream, server_end_point) = protect(endpoint, protection, window).await?;
    let credentials = Credentials {
        user: endpoint.user(),
        password: endpoint.password(),
        channel_binding: endpoint.channel_binding(),
        protected: matches!(stream, Stream::Tls(_)),
        server_end_point,
    };
    let mut login = LoginUnderWay { endpoint, messages: Messages::new(stream), greeting: Greeting::default() };
    login.introduce(parameters)?;
    login.run(credentials).await?;
    Ok((login.messages, login.greeting))
}

/// The stream, and the channel binding of its certificate.
async fn protect(
    endpoint: &Endpoint,
    protection: Protection,
    window: Window,
) -> Result<(Stream, Option<Vec<u8>>), Error> {
    let stream = transport::open(endpoint, window).await?;
    match (protection, stream) {
        (Protection::Tls | Protection::TlsIfOffered, Stream::Tcp(mut socket)) => {
            if offers_tls(endpoint, &mut socket).await? {
                return shake_hands(endpoint, socket).await;
            }
            match protection {
                Protection::Tls => {
                    Err(Error::NoTls { endpoint: endpoint.to_string(), mode: endpoint.tls().mode.as_str() })
                }
                Protection::TlsIfOffered | Protection::Plain => Ok((Stream::Tcp(socket), None)),
            }
        }
        (_, stream) => Ok((stream, None)),
    }
}

async fn offers_tls(endpoint: &Endpoint, socket: &mut Socket) -> Result<bool, Error> {
    let lost = |source| Error::Connection { endpoint: endpoint.to_string(), source };
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await.map_err(lost)?;
    // One byte and not more: what came after it would be outside TLS and from anyone (CVE-2021-23222).
    let mut answer = [0];
    socket.read_exact(&mut answer).await.map_err(lost)?;
    match answer {
        [b'S'] => Ok(true),
        [b'N'] => Ok(false),
        _ => Err(Error::Protocol {
            endpoint: endpoint.to_string(),
            what: "it answered the request for TLS with neither yes nor no".to_owned(),
        }),
    }
}

async fn shake_hands(endpoint: &Endpoint, socket: Socket) -> Result<(Stream, Option<Vec<u8>>), Error> {
    let wrong = |what| Error::TlsSetup { endpoint: endpoint.to_string(), what };
    let name = tls::server_name(endpoint.host()).map_err(wrong)?;
    let settings = endpoint.tls().clone();
    let config = tokio::task::spawn_blocking(move || tls::client_config(&settings)).await;
    let config = config.map_err(|error| wrong(error.to_string()))?.map_err(wrong)?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
    let stream = connected.map_err(|error| handshake_failed(endpoint, error))?;
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(|chain| chain.first());
    let binding = certificate.and_then(tls::server_end_point);
    Ok((Stream::Tls(Box::new(stream)), binding))
}

fn handshake_failed(endpoint: &Endpoint, error: std::io::Error) -> Error {
    let endpoint = endpoint.to_string();
    match error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>()) {
        Some(source) => Error::Certificate { endpoint, source: source.clone() },
        None => Error::Connection { endpoint, source: error },
    }
}

struct LoginUnderWay<'a> {
    endpoint: &'a Endpoint,
    messages: Messages,
    greeting: Greeting,
}

impl LoginUnderWay<'_> {
    fn introduce(&mut self, parameters: &[(&str, &str)]) -> Result<(), Error> {
        let mut all = vec![("user", self.endpoint.user()), ("database", self.endpoint.dbname())];
        all.extend(self.endpoint.options().map(|options| ("options", options)));
        all.extend_from_slice(parameters);
        frontend::startup_message(all, &mut self.messages.outbox).map_err(|error| self.misunderstood(error.to_string()))
    }

    async fn run(&mut self, credentials: Credentials<'_>) -> Result<(), Error> {
        let mut login = Login::Begin(credentials);
        loop {
            self.messages.send().await.map_err(|error| self.lost(error))?;
            let message = self.messages.next().await.map_err(|error| self.lost(error))?;
            match message.tag {
                b'R' => {
                    let next = login.on_request(&message.body, &mut self.messages);
                    login = next.map_err(|refusal| self.refused(refusal))?;
                }
                b'Z' if matches!(login, Login::Done) => return Ok(()),
                _ => self.on_other(&message)?,
            }
        }
    }

    fn on_other(&mut self, message: &Message) -> Result<(), Error> {
        match message.tag {
            b'E' => {
                let source = ServerError::read(&message.body);
                Err(Error::Refused { endpoint: self.endpoint.to_string(), source })
            }
            b'S' => {
                let mut texts = message.body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
                if let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                    self.greeting.parameters.insert(name.into_owned(), value.into_owned());
                }
                Ok(())
            }
            b'K' => {
                if let Some(&[a, b, c, d, e, f, g, h]) = message.body.first_chunk::<8>() {
                    self.greeting.backend_pid = i32::from_be_bytes([a, b, c, d]);
                    self.greeting.cancel_key = i32::from_be_bytes([e, f, g, h]);
                }
                Ok(())
            }
            // A notice; or the server knows no newer protocol than 3.0, which is the one we asked for.
            b'N' | b'v' => Ok(()),
            tag => Err(self.misunderstood(format!("a message of type {:?} during the login", char::from(tag)))),
        }
    }

    fn refused(&self, refusal: Refusal) -> Error {
        let endpoint = self.endpoint.to_string();
        match refusal {
            Refusal::PasswordMissing => Error::PasswordMissing { endpoint },
            Refusal::Other(what) => Error::Authenticate { endpoint, what },
        }
    }

    fn lost(&self, source: std::io::Error) -> Error {
        Error::Connection { endpoint: self.endpoint.to_string(), source }
    }

    fn misunderstood(&self, what: String) -> Error {
        Error::Protocol { endpoint: self.endpoint.to_string(), what }
    }
}
