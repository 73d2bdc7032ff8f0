//! Proving who we are: what the server asks for, and what we answer ("SASL Authentication", "Message Flow").

use bytes::Bytes;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{self, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};
use postgres_protocol::message::frontend;

use super::endpoint::ChannelBinding;
use super::messages::Messages;
use crate::model::Secret;

/// What an AuthenticationRequest leads to. The server may not skip a step, so this is a chain of states.
pub(super) enum Login<'a> {
    /// Nothing was asked yet. Left by any first request.
    Begin(Credentials<'a>),
    /// A password was sent. Left by AuthenticationOk.
    PasswordSent,
    /// The first SCRAM message was sent. Left by the server's challenge.
    ScramBegun(Box<ScramSha256>),
    /// Our proof was sent. Left by the server's own proof.
    ScramProven(Box<ScramSha256>),
    /// The server has proven that it knows the password as well. Left by AuthenticationOk.
    ScramVerified,
    /// We are in.
    Done,
}

pub(super) struct Credentials<'a> {
    pub(super) user: &'a str,
    pub(super) password: Option<&'a Secret>,
    pub(super) channel_binding: ChannelBinding,
    /// Whether the connection is inside TLS, and its `tls-server-end-point` where that has one.
    pub(super) protected: bool,
    pub(super) server_end_point: Option<Vec<u8>>,
}

pub(super) enum Refusal {
    PasswordMissing,
    /// A sentence about what did not go together.
    Other(String),
}

const OK: i32 = 0;
const CLEARTEXT_PASSWORD: i32 = 3;
const MD5_PASSWORD: i32 = 5;
const SASL: i32 = 10;
const SASL_CONTINUE: i32 = 11;
const SASL_FINAL: i32 = 12;

impl<'a> Login<'a> {
    /// Takes the body of an AuthenticationRequest, writes the answer into `messages`, and says where that leaves us.
    pub(super) fn on_request(self, body: &Bytes, messages: &mut Messages) -> Result<Login<'a>, Refusal> {
        let (code, rest) = split_code(body)?;
        match (self, code) {
            (Self::Begin(credentials), OK) => {
                credentials.refuse_without_binding("the server asked for no password at all")?;
                Ok(Self::Done)
            }
            (Self::Begin(credentials), CLEARTEXT_PASSWORD) => {
                credentials.refuse_without_binding("the server asked for the password itself")?;
                answer(messages, |out| {
                    frontend::password_message(credentials.password()?.as_bytes(), out).map_err(other)
                })?;
                Ok(Self::PasswordSent)
            }
            (Self::Begin(credentials), MD5_PASSWORD) => {
                credentials.refuse_without_binding("the server asked for an MD5 hash of the password")?;
                let salt = *rest.first_chunk::<4>().ok_or_else(|| other("the server's salt is too short"))?;
                let hash = md5_hash(credentials.user.as_bytes(), credentials.password()?.as_bytes(), salt);
                answer(messages, |out| frontend::password_message(hash.as_bytes(), out).map_err(other))?;
                Ok(Self::PasswordSent)
            }
            (Self::Begin(credentials), SASL) => {
                let (mechanism, binding) = credentials.choose(rest)?;
                let scram = ScramSha256::new(credentials.password()?.as_bytes(), binding);
                answer(messages, |out| {
                    frontend::sasl_initial_response(mechanism, scram.message(), out).map_err(other)
                })?;
                Ok(Self::ScramBegun(Box::new(scram)))
            }
            (Self::ScramBegun(mut scram), SASL_CONTINUE) => {
                scram.update(rest).map_err(other)?;
                answer(messages, |out| frontend::sasl_response(scram.message(), out).map_err(other))?;
                Ok(Self::ScramProven(scram))
            }
            (Self::ScramProven(mut scram), SASL_FINAL) => {
                scram.finish(rest).map_err(|_| other("the server does not know the password that it checked"))?;
                Ok(Self::ScramVerified)
            }
            (Self::PasswordSent | Self::ScramVerified, OK) => Ok(Self::Done),
            (Self::Begin(_), _) => Err(other(format!(
                "the server asks for an authentication that is not supported (code {code}); use SCRAM or a client certificate"
            ))),
            (_, _) => Err(other(format!("the server sent authentication request {code} out of turn"))),
        }
    }
}

impl Credentials<'_> {
    fn password(&self) -> Result<&str, Refusal> {
        self.password.map(Secret::reveal).ok_or(Refusal::PasswordMissing)
    }

    /// Without SCRAM-SHA-256-PLUS nobody has proven that there is none in the middle.
    fn refuse_without_binding(&self, what: &str) -> Result<(), Refusal> {
        match self.channel_binding {
            ChannelBinding::Require => {
                Err(other(format!("{what}, and channel_binding=require insists on SCRAM bound to the TLS channel")))
            }
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
        }
    }

    /// The best mechanism that both sides have. Where we could have bound and the server did not offer it, that is
    /// said (`unrequested`), so that a server that did offer it notices the man in the middle (RFC 5802, section 6).
    fn choose(&self, offered: &[u8]) -> Result<(&'static str, sasl::ChannelBinding), Refusal> {
        let mut offered = offered.split(|byte| *byte == 0);
        let (mut plain, mut plus) = (false, false);
        for name in &mut offered {
            plain |= name == SCRAM_SHA_256.as_bytes();
            plus |= name == SCRAM_SHA_256_PLUS.as_bytes();
        }
        let binding = self.server_end_point.clone().filter(|_| self.channel_binding != ChannelBinding::Disable);
        match binding {
            Some(binding) if plus => Ok((SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(binding))),
            binding if plain => {
                self.refuse_without_binding(self.why_unbound(plus))?;
                let unbound = match binding {
                    Some(_) => sasl::ChannelBinding::unrequested(),
                    None => sasl::ChannelBinding::unsupported(),
                };
                Ok((SCRAM_SHA_256, unbound))
            }
            _ => Err(other("the server offers no SASL mechanism that is supported (SCRAM-SHA-256)")),
        }
    }

    fn why_unbound(&self, offered: bool) -> &'static str {
        match (self.protected, offered) {
            (false, _) => "the connection is not inside TLS",
            (true, false) => "the server does not offer SCRAM-SHA-256-PLUS",
            (true, true) => "the server's certificate has a signature that cannot be bound to",
        }
    }
}

fn other(what: impl ToString) -> Refusal {
    Refusal::Other(what.to_string())
}

fn split_code(body: &Bytes) -> Result<(i32, &[u8]), Refusal> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or_else(|| other("the server's request is too short"))?;
    Ok((i32::from_be_bytes(*code), rest))
}

fn answer(
    messages: &mut Messages,
    write: impl FnOnce(&mut bytes::BytesMut) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    write(&mut messages.outbox)
}
