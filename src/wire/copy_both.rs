//! CopyBoth: the mode of a walsender, in which either side may speak at any time ("Streaming Replication Protocol").

use postgres_protocol::message::frontend;

use super::raw::is_aside;
use super::server_error::ServerError;
use super::{CopyChunk, Error, RawConnection};

/// A connection in CopyBoth mode.
#[derive(Debug)]
pub struct CopyBoth {
    connection: RawConnection,
}

/// What the server said.
#[derive(Clone, Debug)]
pub enum CopyBothEvent {
    Data(CopyChunk),
    /// The server sends no more data. It still listens.
    Ended,
}

impl RawConnection {
    /// Sends a command that the server answers with CopyBothResponse (`START_REPLICATION`).
    pub async fn copy_both(mut self, command: &str) -> Result<CopyBoth, Error> {
        self.begin_copy(command, b'W').await?;
        Ok(CopyBoth { connection: self })
    }
}

impl CopyBoth {
    /// Waits for the server to say something, and sends what is queued meanwhile. Cancel-safe.
    pub async fn next(&mut self) -> Result<CopyBothEvent, Error> {
        loop {
            if let Some(event) = self.take()? {
                return Ok(event);
            }
            let exchanged = self.connection.messages.exchange().await;
            exchanged.map_err(|error| self.connection.lost(error))?;
        }
    }

    /// Lets arrive what arrives without being woken for it, until the next call that reads or sends.
    pub fn lay_aside(&mut self) -> Result<(), Error> {
        self.connection.messages.lay_aside().map_err(|error| self.connection.lost(error))
    }

    /// Lets the server send more before it is read: for messages so large that few of them fill the window.
    pub fn widen(&mut self) -> Result<(), Error> {
        self.connection.messages.widen().map_err(|error| self.connection.lost(error))
    }

    /// Takes in what has arrived since it was laid aside; what is whole of it is what [`Self::next`] answers with at once.
    /// Nothing for a connection inside TLS or over a Unix socket.
    pub fn glance(&mut self) -> Result<(), Error> {
        self.connection.messages.glance().map_err(|error| self.connection.lost(error))
    }

    /// Puts a CopyData message in line; it goes out with the next [`Self::next`] or [`Self::send_queued`].
    pub fn queue(&mut self, payload: &[u8]) {
        let data = frontend::CopyData::new(payload).expect("a message of ours is far below the 2 GiB that fit a frame");
        data.write(&mut self.connection.messages.outbox);
    }

    /// Sends what is queued, without listening. Cancel-safe.
    pub async fn send_queued(&mut self) -> Result<(), Error> {
        self.connection.messages.send().await.map_err(|error| self.connection.lost(error))
    }

    /// Bytes in line, to be bounded by the caller.
    pub fn queued_bytes(&self) -> usize {
        self.connection.messages.outbox.len()
    }

    /// Says that we send no more data.
    pub fn queue_done(&mut self) {
        frontend::copy_done(&mut self.connection.messages.outbox);
    }

    /// Reads to the end of the command and closes the connection. Data that still comes is dropped.
    pub async fn close(mut self) -> Result<(), Error> {
        self.send_queued().await?;
        loop {
            let message = self.connection.next().await?;
            match message.tag {
                b'Z' => return self.connection.close().await,
                b'E' => return Err(self.connection.refused(ServerError::read(&message.body))),
                _ => {}
            }
        }
    }

    fn take(&mut self) -> Result<Option<CopyBothEvent>, Error> {
        loop {
            let run = self.connection.messages.take_run(b'd');
            let (frames, frame_count) = run.map_err(|error| self.connection.lost(error))?;
            if frame_count > 0 {
                return Ok(Some(CopyBothEvent::Data(CopyChunk { frames, frame_count })));
            }
            let message = self.connection.messages.take().map_err(|error| self.connection.lost(error))?;
            let Some(message) = message else { return Ok(None) };
            match message.tag {
                // A server that shuts down ends the command without ending the copy first (`WalSndDone`).
                b'c' | b'C' => return Ok(Some(CopyBothEvent::Ended)),
                b'E' => return Err(self.connection.refused(ServerError::read(&message.body))),
                _ if is_aside(&message) => {}
                tag => return Err(self.connection.misunderstood(tag, "replication")),
            }
        }
    }
}
