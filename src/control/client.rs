//! Talks to a running daemon over HTTP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::Secret;
use crate::pipeline::{
    CutoverRequest, REQUEST_TIMEOUT, Refused, ResyncRequest, Status, ThrottleRequest, VerifyRequest,
};

/// Long enough for a daemon on a busy machine, short enough for an operator.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read: a status of ten thousand tables has about four megabytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Blocks its thread; not for use on a tokio worker.
pub struct Client {
    agent: ureq::Agent,
    base: String,
    token: Option<Secret>,
}

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("no daemon answers at {base}")]
    Unreachable {
        base: String,
        #[source]
        source: Box<ureq::Error>,
    },
    /// The daemon's own words.
    #[error("{0}")]
    Refused(Refused),
    #[error("understand the answer of {base}: is it a changeover daemon?")]
    Answer {
        base: String,
        #[source]
        source: Box<ureq::Error>,
    },
    /// Something answers, but not ours.
    #[error("{base} answered with HTTP status {status}: is it a changeover daemon?")]
    Stranger { base: String, status: u16 },
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "start the daemon with `changeover run`, or use the configuration file it runs with (control.listen)"
                    .to_owned(),
            ),
            Self::Refused(refused) => refused.hint.clone(),
            Self::Answer { .. } | Self::Stranger { .. } => {
                Some("control.listen must be the address that the daemon of this migration was started with".to_owned())
            }
        }
    }
}

impl Client {
    /// For the daemon that listens on `listen`; one that listens everywhere is asked on this machine.
    pub fn new(listen: SocketAddr, token: Option<Secret>) -> Self {
        let ip = match listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
        };
        let agent = ureq::Agent::config_builder()
            // A proxy for the web knows nothing of the daemon.
            .proxy(None)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build()
            .into();
        Self { agent, base: format!("http://{}", SocketAddr::new(ip, listen.port())), token }
    }

    pub fn status(&self) -> Result<Status, ClientError> {
        let sent = self.agent.get(format!("{}/api/v1/status", self.base)).call();
        self.read(sent)
    }

    /// Answers with a `verify::Report`.
    pub fn verify(&self, request: &VerifyRequest) -> Result<Value, ClientError> {
        self.post("verify", request)
    }

    /// Answers with a `cutover::Report`.
    pub fn cutover(&self, request: &CutoverRequest) -> Result<Value, ClientError> {
        self.post("cutover", request)
    }

    /// Answers once the tables are set apart, with `tables` and `position`.
    pub fn resync(&self, request: &ResyncRequest) -> Result<Value, ClientError> {
        self.post("resync", request)
    }

    pub fn pause(&self) -> Result<Value, ClientError> {
        self.post("pause", &serde_json::json!({}))
    }

    pub fn resume(&self) -> Result<Value, ClientError> {
        self.post("resume", &serde_json::json!({}))
    }

    pub fn throttle(&self, request: &ThrottleRequest) -> Result<Value, ClientError> {
        self.post("throttle", request)
    }

    pub fn stop(&self) -> Result<Value, ClientError> {
        self.post("stop", &serde_json::json!({}))
    }

    fn post(&self, verb: &str, body: &impl Serialize) -> Result<Value, ClientError> {
        let mut request = self.agent.post(format!("{}/api/v1/{verb}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        self.read(request.send_json(body))
    }

    fn read<T: DeserializeOwned>(
        &self,
        sent: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> Result<T, ClientError> {
        let mut answer =
            sent.map_err(|source| ClientError::Unreachable { base: self.base.clone(), source: Box::new(source) })?;
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        if status.is_success() {
            let wrong = |source| ClientError::Answer { base: self.base.clone(), source: Box::new(source) };
            return body.read_json().map_err(wrong);
        }
        match body.read_json::<Refused>() {
            Ok(refused) => Err(ClientError::Refused(refused)),
            Err(_) => Err(ClientError::Stranger { base: self.base.clone(), status: status.as_u16() }),
        }
    }
}
