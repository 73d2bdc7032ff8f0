//! A TCP socket that can be laid aside: registered with the runtime's poller, it wakes us for every packet that arrives,
//! whether we are about to read or not, and the sender pays for the wake-up (a walsender sends each row by itself).

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Reads and writes as a [`TcpStream`] does. The first of either takes up again what was laid aside.
#[derive(Debug)]
pub(super) struct Socket(State);

#[derive(Debug)]
enum State {
    Polled(TcpStream),
    LaidAside(std::net::TcpStream),
    /// Between the two, or what could not be registered again: the descriptor is gone.
    Lost,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(State::Polled(stream))
    }

    /// Nothing that arrives is told from now on, not even the connection's end.
    pub(super) fn lay_aside(&mut self) -> io::Result<()> {
        if let State::Polled(_) = &self.0
            && let State::Polled(stream) = std::mem::replace(&mut self.0, State::Lost)
        {
            self.0 = State::LaidAside(stream.into_std()?);
        }
        Ok(())
    }

    /// Appends what has arrived at a socket that is laid aside, up to `bytes_max` and to the room there is; nothing when it
    /// is not. Its end and its errors are left to whoever reads it next.
    pub(super) fn glance(&mut self, inbox: &mut BytesMut, bytes_max: usize) {
        let State::LaidAside(stream) = &mut self.0 else { return };
        let mut taken = inbox.len();
        // Room has to be written once before it can be read into: not more of it than is wanted.
        inbox.resize(inbox.capacity().min(taken + bytes_max), 0);
        while let Some(room) = inbox.get_mut(taken..).filter(|room| !room.is_empty()) {
            match stream.read(room) {
                Ok(0) | Err(_) => break,
                Ok(length) => taken += length,
            }
        }
        inbox.truncate(taken);
    }

    /// A receive buffer of so many bytes, between two ends on one machine; elsewhere it is the system's, and grows by itself.
    pub(super) fn widen(&self, bytes: u32) -> io::Result<()> {
        let (socket, peer) = match &self.0 {
            State::Polled(stream) => (socket2::SockRef::from(stream), stream.peer_addr()?),
            State::LaidAside(stream) => (socket2::SockRef::from(stream), stream.peer_addr()?),
            State::Lost => return Ok(()),
        };
        if peer.ip().is_loopback() { socket.set_recv_buffer_size(bytes as usize) } else { Ok(()) }
    }

    fn take_up(&mut self) -> io::Result<&mut TcpStream> {
        if let State::LaidAside(_) = &self.0
            && let State::LaidAside(stream) = std::mem::replace(&mut self.0, State::Lost)
        {
            // It was never made blocking.
            self.0 = State::Polled(TcpStream::from_std(stream)?);
        }
        match &mut self.0 {
            State::Polled(stream) => Ok(stream),
            State::LaidAside(_) | State::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().take_up()?).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.get_mut().take_up()?).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().take_up()?).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.get_mut().take_up()?).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_arrives_meanwhile_is_read_afterwards_and_the_end_is_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ours, theirs) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut socket, mut peer) = (Socket::new(ours.unwrap()), theirs.unwrap().0);
        for round in 0..100_u8 {
            socket.lay_aside().unwrap();
            socket.lay_aside().unwrap();
            peer.write_all(&[round]).await.unwrap();
            assert_eq!(socket.read_u8().await.unwrap(), round);
            socket.lay_aside().unwrap();
            socket.write_all(&[round]).await.unwrap();
            assert_eq!(peer.read_u8().await.unwrap(), round);
        }
        let mut inbox = BytesMut::with_capacity(8);
        socket.glance(&mut inbox, 8);
        assert!(inbox.is_empty(), "it is not laid aside");
        socket.lay_aside().unwrap();
        socket.glance(&mut inbox, 8);
        assert!(inbox.is_empty(), "nothing has arrived");
        peer.write_all(b"abc").await.unwrap();
        while inbox.is_empty() {
            socket.glance(&mut inbox, 1);
        }
        socket.glance(&mut inbox, 1);
        assert_eq!(&inbox[..], b"ab");
        assert_eq!(socket.read_u8().await.unwrap(), b'c');
        socket.lay_aside().unwrap();
        drop(peer);
        assert_eq!(socket.read(&mut [0]).await.unwrap(), 0);
    }
}
