//! Bytes to and from a server: TCP or a Unix socket, in the open or inside TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::Error;
use super::endpoint::{Endpoint, Host, Keepalive};
use super::socket::Socket;

/// An open connection. TLS runs over TCP only: a PostgreSQL server has none on its Unix socket.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(Socket),
    Unix(UnixStream),
    Tls(Box<TlsStream<Socket>>),
}

impl Stream {
    /// Whether a read gives a TLS record rather than all that has arrived.
    pub(super) fn gives_records(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Does not wake us for what arrives, until the next read or write.
    pub(super) fn lay_aside(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.lay_aside(),
            Self::Tls(stream) => stream.get_mut().0.lay_aside(),
            Self::Unix(_) => Ok(()),
        }
    }

    /// Lets more arrive before it is read, where the window is [`Window::Narrow`].
    pub(super) fn widen(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.widen(WIDENED_BYTES),
            Self::Tls(stream) => stream.get_mut().0.widen(WIDENED_BYTES),
            Self::Unix(_) => Ok(()),
        }
    }

    /// What has arrived since it was laid aside, as far as it can be had without waiting.
    pub(super) fn glance(&mut self, inbox: &mut BytesMut, bytes_max: usize) {
        match self {
            Self::Tcp(socket) => socket.glance(inbox, bytes_max),
            Self::Unix(_) | Self::Tls(_) => {}
        }
    }
}

/// How much the other side may send before we read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// The system's, which grows as it is used.
    AsItComes,
    /// Little, where both ends are on one machine: what a walsender sends row by row then waits in its own kernel's
    /// queue, and leaves in large segments when we read, instead of each row by itself at the walsender's expense.
    /// Between machines a small window would cost throughput.
    Narrow,
}

/// Of `SO_RCVBUF`; the kernel doubles it, for what it needs itself (socket(7)).
const NARROW_BYTES: u32 = 32 << 10;
/// The same for rows so large that few of them fill the narrow one.
const WIDENED_BYTES: u32 = 64 << 10;
/// Much smaller than the window: sender and receiver both wait for room for a whole segment (RFC 1122, 4.2.3.3 and
/// 4.2.3.4), and those of the loopback device are as large as this window, which then stood still until a timer ran out.
const NARROW_SEGMENT_BYTES: u32 = 4 << 10;

/// Opens the socket; nothing has been said yet.
pub(super) async fn open(endpoint: &Endpoint, window: Window) -> Result<Stream, Error> {
    let reach = |source| Error::Reach { endpoint: endpoint.to_string(), source };
    match endpoint.host() {
        Host::Socket(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", endpoint.port()));
            Ok(Stream::Unix(UnixStream::connect(path).await.map_err(reach)?))
        }
        Host::Name(_) | Host::Ip(_) => {
            let stream = first_that_answers(&addresses(endpoint).await?, window).await.map_err(reach)?;
            prepare(&stream, endpoint.keepalive()).map_err(reach)?;
            Ok(Stream::Tcp(Socket::new(stream)))
        }
    }
}

async fn addresses(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, Error> {
    if let Some(address) = endpoint.address() {
        return Ok(vec![(address, endpoint.port()).into()]);
    }
    let host = endpoint.host().to_string();
    let found = tokio::net::lookup_host((host.as_str(), endpoint.port())).await;
    found.map(Iterator::collect).map_err(|source| Error::Resolve { host, source })
}

/// Tries each address; the error of the last one stands for all.
async fn first_that_answers(addresses: &[SocketAddr], window: Window) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the host's name has no address");
    for address in addresses {
        match connect(*address, window).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn connect(address: SocketAddr, window: Window) -> io::Result<TcpStream> {
    if window == Window::AsItComes || !address.ip().is_loopback() {
        return TcpStream::connect(address).await;
    }
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_recv_buffer_size(NARROW_BYTES)?;
    socket2::SockRef::from(&socket).set_tcp_mss(NARROW_SEGMENT_BYTES)?;
    socket.connect(address).await
}

fn prepare(stream: &TcpStream, keepalive: &Keepalive) -> io::Result<()> {
    // Small messages (feedback, a lone commit) must not wait for an acknowledgement of the last ones.
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(keepalive.user_timeout)?;
    if !keepalive.enabled {
        return Ok(());
    }
    let mut probes = socket2::TcpKeepalive::new();
    if let Some(idle) = keepalive.idle {
        probes = probes.with_time(idle);
    }
    if let Some(interval) = keepalive.interval {
        probes = probes.with_interval(interval);
    }
    if let Some(count) = keepalive.count {
        probes = probes.with_retries(count);
    }
    socket.set_tcp_keepalive(&probes)
}

/// `match` over the three, since each is polled the same way.
macro_rules! each {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($inner) => $call,
            Stream::Unix($inner) => $call,
            Stream::Tls($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}
