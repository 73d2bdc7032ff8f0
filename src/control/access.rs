//! Who may change something.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::routes::refusal;
use crate::model::Secret;
use crate::pipeline::Refused;

/// The rule for everything that is not a GET.
#[derive(Clone)]
pub(super) struct Access {
    /// Digests are compared instead of the tokens, so that the time a comparison takes says nothing about the token.
    token_digest: Option<[u8; 32]>,
}

impl Access {
    pub(super) fn new(token: Option<Secret>) -> Self {
        Self { token_digest: token.map(|token| digest(token.reveal())) }
    }

    fn check(&self, peer: IpAddr, headers: &HeaderMap) -> Result<(), (StatusCode, Refused)> {
        match self.token_digest {
            Some(expected) => check_token(expected, headers),
            None => check_local(peer, headers),
        }
    }
}

/// Middleware over the routes that change something.
pub(super) async fn guard(
    State(access): State<Access>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match access.check(peer.ip(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err((status, refused)) => (status, refusal(&refused)).into_response(),
    }
}

fn check_token(expected: [u8; 32], headers: &HeaderMap) -> Result<(), (StatusCode, Refused)> {
    let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let (scheme, token) = sent.and_then(|value| value.split_once(' ')).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("bearer") && digest(token.trim()) == expected {
        return Ok(());
    }
    let reason = if sent.is_some() { "the token is wrong" } else { "a token is needed" };
    let hint = "send `Authorization: Bearer …` with the token that is in the daemon's control.token_file";
    Err((StatusCode::UNAUTHORIZED, Refused::now(reason, hint)))
}

/// Without a token the operating system's users of this machine are trusted, but not the web pages they look at: a page
/// can make a browser post to an address on this machine, and the browser then names the page as `Origin`; a page whose
/// name was made to resolve to this machine is given away by `Host`.
fn check_local(peer: IpAddr, headers: &HeaderMap) -> Result<(), (StatusCode, Refused)> {
    let refuse = |reason: &str| {
        let hint = "set control.token_file in the daemon's configuration and send that token";
        Err((StatusCode::FORBIDDEN, Refused::now(reason, hint)))
    };
    if !peer.to_canonical().is_loopback() {
        return refuse("without a token only clients on the daemon's machine may change anything");
    }
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()).filter(|host| is_local(host)) else {
        return refuse("the request was sent to a name that is not this machine's");
    };
    match headers.get(ORIGIN).map(|origin| origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://"))) {
        None => Ok(()),
        Some(Some(origin)) if origin == host => Ok(()),
        Some(_) => refuse("the request comes from another web page"),
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return address.ip().to_canonical().is_loopback(),
        Err(_) => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn answer(token: Option<&str>, peer: &str, headers: &[(&str, &str)]) -> Option<StatusCode> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let name: axum::http::HeaderName = name.parse().unwrap();
            map.insert(name, HeaderValue::from_str(value).unwrap());
        }
        let access = Access::new(token.map(Secret::new));
        access.check(peer.parse().unwrap(), &map).err().map(|(status, _)| status)
    }

    #[test]
    fn with_a_token_only_its_owner_may_change_anything() {
        let local = "127.0.0.1";
        assert_eq!(answer(Some("key"), "10.0.0.9", &[("authorization", "Bearer key")]), None);
        assert_eq!(answer(Some("key"), local, &[("authorization", "bearer key")]), None);
        for wrong in ["Bearer kez", "Bearer ", "Basic key", "key"] {
            assert_eq!(
                answer(Some("key"), local, &[("authorization", wrong)]),
                Some(StatusCode::UNAUTHORIZED),
                "{wrong}"
            );
        }
        assert_eq!(answer(Some("key"), local, &[("host", "localhost")]), Some(StatusCode::UNAUTHORIZED));
    }

    #[test]
    fn without_a_token_only_this_machine_may_and_no_web_page_on_it() {
        let host = ("host", "127.0.0.1:9187");
        let forbidden = Some(StatusCode::FORBIDDEN);
        assert_eq!(answer(None, "127.0.0.1", &[host]), None);
        assert_eq!(answer(None, "::ffff:127.0.0.1", &[("host", "localhost:9187")]), None);
        assert_eq!(answer(None, "::1", &[("host", "[::1]:9187"), ("origin", "http://[::1]:9187")]), None);
        assert_eq!(answer(None, "10.0.0.9", &[host]), forbidden);
        assert_eq!(answer(None, "127.0.0.1", &[("host", "evil.example:9187")]), forbidden);
        assert_eq!(answer(None, "127.0.0.1", &[host, ("origin", "http://evil.example")]), forbidden);
        assert_eq!(answer(None, "127.0.0.1", &[host, ("origin", "null")]), forbidden);
    }
}
