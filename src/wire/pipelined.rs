//! Many statements under way at once, by messages that the caller makes ("Pipelining" in the documentation).

use bytes::BytesMut;

use super::Error;
use super::raw::{RawConnection, is_aside};
use super::server_error::ServerError;

/// What the server says to a pipeline, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One statement is done.
    Completed,
    /// A statement failed; the server skips everything up to the next Sync.
    Failed(ServerError),
    /// It has come to a Sync.
    Ready,
}

impl RawConnection {
    /// Sends whole frontend messages with the next [`Self::next_answer`]. The caller ends them with a Sync.
    pub fn queue(&mut self, messages: BytesMut) {
        if self.messages.outbox.is_empty() {
            self.messages.outbox = messages;
        } else {
            self.messages.outbox.unsplit(messages);
        }
    }

    /// Sends of what is queued as much as the socket takes at once, so that the server has something to do while the caller
    /// is busy. [`Self::next_answer`] sends the rest, and tells of what went wrong.
    pub async fn send_at_once(&mut self) {
        self.messages.send_at_once().await;
    }

    /// Sends what is queued and meanwhile waits for the next answer. Cancel-safe.
    pub async fn next_answer(&mut self) -> Result<Answer, Error> {
        loop {
            while let Some(message) = self.messages.take().map_err(|error| self.lost(error))? {
                match message.tag {
                    b'C' | b'I' => return Ok(Answer::Completed),
                    b'E' => return Ok(Answer::Failed(ServerError::read(&message.body))),
                    b'Z' => return Ok(Answer::Ready),
                    // Acknowledgements of Parse, Bind and Copy, and rows: the end of the statement says enough.
                    _ => drop(is_aside(&message)),
                }
            }
            self.messages.exchange().await.map_err(|error| self.lost(error))?;
        }
    }
}
