//! A connection that is logged in already, dressed up as one that is not.
//!
//! The SQL client has no door for a connection that somebody else opened: it insists on sending a startup packet and on
//! being let in. So its packet is swallowed, and it is told what the server told us. That way TLS, certificates,
//! channel binding and every error of the login exist once, for both kinds of connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::messages::Messages;
use super::startup::Greeting;
use super::transport::Stream;

pub(super) struct Adopted {
    stream: Stream,
    /// What the client still has to hear before it hears the server.
    told: Bytes,
    startup: StartupPacket,
}

/// The client's startup packet: an `Int32` length that counts itself, and the rest.
enum StartupPacket {
    /// As much of the length as has been written.
    Length(Vec<u8>),
    /// Bytes of the packet that are still to come. 0: it is over.
    Left(usize),
}

impl Adopted {
    pub(super) fn new(messages: Messages, greeting: &Greeting) -> Self {
        let (stream, arrived) = messages.into_parts();
        let mut told = BytesMut::new();
        tell(&mut told, b'R', &0_i32.to_be_bytes());
        for (name, value) in &greeting.parameters {
            tell(&mut told, b'S', format!("{name}\0{value}\0").as_bytes());
        }
        let key = [greeting.backend_pid.to_be_bytes(), greeting.cancel_key.to_be_bytes()].concat();
        tell(&mut told, b'K', &key);
        tell(&mut told, b'Z', b"I");
        told.extend_from_slice(&arrived);
        Self { stream, told: told.freeze(), startup: StartupPacket::Length(Vec::new()) }
    }
}

fn tell(told: &mut BytesMut, tag: u8, body: &[u8]) {
    told.put_u8(tag);
    told.put_u32(u32::try_from(body.len() + 4).expect("what a server says at login is far below 4 GiB"));
    told.put_slice(body);
}

impl StartupPacket {
    /// How many bytes at the front of `written` belong to the packet.
    fn swallow(&mut self, written: &[u8]) -> usize {
        let mut swallowed = 0;
        if let Self::Length(length) = self {
            let missing = 4 - length.len();
            length.extend(written.iter().take(missing));
            swallowed = missing.min(written.len());
            let Some(whole) = length.first_chunk::<4>() else { return swallowed };
            *self = Self::Left((u32::from_be_bytes(*whole) as usize).saturating_sub(4));
        }
        if let Self::Left(left) = self {
            let taken = (*left).min(written.len() - swallowed);
            *left -= taken;
            swallowed += taken;
        }
        swallowed
    }
}

impl AsyncRead for Adopted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.told.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.told.len().min(buf.remaining());
        buf.put_slice(&self.told[..length]);
        self.told.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Adopted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.startup.swallow(buf) {
            0 => Pin::new(&mut self.stream).poll_write(cx, buf),
            swallowed => Poll::Ready(Ok(swallowed)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_startup_packet_is_swallowed_and_nothing_else() {
        let packet = [0, 0, 0, 9, 1, 2, 3, 4, 5, b'Q', b'!'];
        for cut in 1..packet.len() {
            let mut startup = StartupPacket::Length(Vec::new());
            let mut passed = Vec::new();
            for mut part in [&packet[..cut], &packet[cut..]] {
                while !part.is_empty() {
                    match startup.swallow(part) {
                        0 => {
                            passed.push(part[0]);
                            part = &part[1..];
                        }
                        swallowed => part = &part[swallowed..],
                    }
                }
            }
            assert_eq!(passed, b"Q!", "cut at {cut}");
        }
    }
}
