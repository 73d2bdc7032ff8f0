//! Messages over a stream: a tag, a length, a body ("Message Formats" in the documentation).
//!
//! `postgres_protocol::message::backend::Message::parse` refuses the replication messages, so headers are read here and
//! bodies by whoever knows the tag.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::transport::Stream;

pub(super) const HEADER_BYTES: usize = 5;
/// How much one read asks for. A walsender or a COPY that is ahead of us fills it, and then a row costs no call.
const READ_BYTES: usize = 256 * 1024;
/// Below this much room a new buffer is begun; what was sliced out of the old one keeps it alive as long as needed.
const READ_BYTES_MIN: usize = 32 * 1024;
/// PostgreSQL's own bound on what it sends at once (`MaxAllocSize`, with room for the frame).
const MESSAGE_BYTES_MAX: usize = 0x4000_0000;

/// A stream, what has arrived on it and what is still to be sent.
#[derive(Debug)]
pub(super) struct Messages {
    stream: Stream,
    inbox: BytesMut,
    pub(super) outbox: BytesMut,
}

/// One message of the server.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Bytes,
}

impl Messages {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, inbox: BytesMut::new(), outbox: BytesMut::new() }
    }

    /// The stream, and what had arrived on it beyond the last message taken.
    pub(super) fn into_parts(self) -> (Stream, BytesMut) {
        (self.stream, self.inbox)
    }

    /// Waits for the next message. Cancel-safe.
    pub(super) async fn next(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    /// The next message if all of it is there.
    pub(super) fn take(&mut self) -> io::Result<Option<Message>> {
        let Some((tag, length)) = self.peek(0)?.filter(|(_, length)| self.inbox.len() >= *length) else {
            return Ok(None);
        };
        let mut body = self.inbox.split_to(length).freeze();
        body.advance(HEADER_BYTES);
        Ok(Some(Message { tag, body }))
    }

    /// Takes all whole messages with this tag that stand at the front, headers and all, as one slice, and counts them.
    pub(super) fn take_run(&mut self, tag: u8) -> io::Result<(Bytes, u64)> {
        let (mut end, mut count) = (0, 0);
        while let Some((found, length)) = self.peek(end)? {
            if found != tag || self.inbox.len() - end < length {
                break;
            }
            end += length;
            count += 1;
        }
        Ok((self.inbox.split_to(end).freeze(), count))
    }

    /// Tag and whole length of the message that begins `at`, once its header has arrived.
    fn peek(&self, at: usize) -> io::Result<Option<(u8, usize)>> {
        let Some(&[tag, a, b, c, d]) = self.inbox.get(at..).and_then(|rest| rest.first_chunk::<HEADER_BYTES>()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            let what = format!("a message of type {:?} claims {length} bytes", char::from(tag));
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Some((tag, length + 1)))
    }

    /// Waits until more has arrived; the end of the stream is an error. Cancel-safe.
    pub(super) async fn fill(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Sends the outbox and meanwhile takes in what arrives; returns once something has. Cancel-safe.
    pub(super) async fn exchange(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| {
            let sent = self.poll_send(cx);
            match (self.poll_fill(cx), sent) {
                // What the server said before it closed tells more than our not being able to send.
                (Poll::Ready(Ok(())), _) => Poll::Ready(Ok(())),
                (Poll::Pending | Poll::Ready(Err(_)), Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
                (filled, Poll::Pending | Poll::Ready(Ok(()))) => filled,
            }
        })
        .await
    }

    /// Sends the outbox. Cancel-safe: what was sent has left the outbox.
    pub(super) async fn send(&mut self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_send(cx)).await
    }

    /// Sends of the outbox what goes without waiting. What stands in the way is met again by whoever waits.
    pub(super) async fn send_at_once(&mut self) {
        std::future::poll_fn(|cx| {
            let _met_again = self.poll_send(cx);
            Poll::Ready(())
        })
        .await;
    }

    /// Sends the outbox and then of `bytes` as many as go at once; returns how many. Takes in what has arrived, so that
    /// neither side waits for the other to read: 0 is returned when something has and nothing could be sent.
    pub(super) async fn send_or_hear(&mut self, bytes: &[u8]) -> io::Result<usize> {
        std::future::poll_fn(|cx| {
            let heard = self.poll_fill(cx)?.is_ready();
            match self.poll_send_some(cx, bytes) {
                // As above: what was heard explains it.
                Poll::Pending | Poll::Ready(Err(_)) if heard => Poll::Ready(Ok(0)),
                sent @ (Poll::Pending | Poll::Ready(_)) => sent,
            }
        })
        .await
    }

    /// Does not wake us for what arrives, until the next call that reads or sends.
    pub(super) fn lay_aside(&mut self) -> io::Result<()> {
        self.stream.lay_aside()
    }

    /// Lets more arrive before it is read.
    pub(super) fn widen(&mut self) -> io::Result<()> {
        self.stream.widen()
    }

    /// Takes in what has arrived since it was laid aside.
    pub(super) fn glance(&mut self) -> io::Result<()> {
        self.make_room()?;
        self.stream.glance(&mut self.inbox, READ_BYTES);
        Ok(())
    }

    /// Says no more. The other side may have gone first, which is no error here.
    pub(super) async fn shut_down(&mut self) -> io::Result<()> {
        self.send().await?;
        self.stream.shutdown().await
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outbox))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outbox.advance(sent);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_send_some(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_read_once(cx))?;
        // TLS gives one record of at most 16 KiB at a time; what is there already is taken along.
        while self.stream.gives_records() && self.inbox.capacity() - self.inbox.len() >= READ_BYTES_MIN {
            // An end or an error is found again by the next read.
            let Poll::Ready(Ok(())) = self.poll_read_once(cx) else { break };
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read_once(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.make_room()?;
        // The future keeps nothing between polls, so a fresh one each time loses nothing.
        let read = ready!(pin!(self.stream.read_buf(&mut self.inbox)).poll(cx))?;
        if read == 0 {
            let what = "the server closed the connection";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)));
        }
        Poll::Ready(Ok(()))
    }

    /// A message larger than the buffer doubles it, so that it is moved a few times at most and nothing is allotted for
    /// a length that was only claimed.
    fn make_room(&mut self) -> io::Result<()> {
        if self.inbox.capacity() - self.inbox.len() >= READ_BYTES_MIN {
            return Ok(());
        }
        let missing = self.peek(0)?.map_or(0, |(_, length)| length.saturating_sub(self.inbox.len()));
        self.inbox.reserve(READ_BYTES.max(missing.min(self.inbox.len())));
        Ok(())
    }
}
