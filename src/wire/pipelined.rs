//! Many statements under way at once, by messages that the caller makes ("Pipelining" in the documentation).

use bytes::BytesMut;

use super::Error;
use super::raw::{RawConnection, is_aside};
use super::server_error::ServerError;

/// What the server says to a pipeline, as far as it decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One statement is done, with so many rows (the last word of CommandComplete's tag; 0 where that is no number).
    Completed { rows: u64 },
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
                    b'C' => return Ok(Answer::Completed { rows: rows_of(&message.body) }),
                    b'I' => return Ok(Answer::Completed { rows: 0 }),
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

/// Of a tag such as `UPDATE 5` or `INSERT 0 5` ("Message Formats", CommandComplete).
fn rows_of(tag: &[u8]) -> u64 {
    let tag = tag.strip_suffix(&[0]).unwrap_or(tag);
    let last = tag.rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    std::str::from_utf8(last).ok().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::rows_of;

    #[test]
    fn a_tag_ends_with_its_rows() {
        let tags = [
            &b"UPDATE 5\0"[..],
            b"INSERT 0 12\0",
            b"DELETE 0\0",
            b"COMMIT\0",
            b"",
            b"\0",
            b"COPY 18446744073709551616\0",
        ];
        assert_eq!(tags.map(rows_of), [5, 12, 0, 0, 0, 0, 0]);
    }
}
