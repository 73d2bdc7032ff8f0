//! COPY as it travels: whole CopyData messages, which look the same in both directions, so that what one server sends
//! can be given to another without being taken apart ("COPY Operations" in the documentation).

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::message::frontend;

use super::messages::HEADER_BYTES;
use super::raw::is_aside;
use super::server_error::ServerError;
use super::{Error, RawConnection};

/// "Binary Format" of COPY in the documentation: signature, flags, and an extension of no length. Stands before the first
/// row, which the server sends in the same message.
pub const COPY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// After the last row, in the place of a row's number of columns.
pub const COPY_TRAILER: &[u8; 2] = &(-1i16).to_be_bytes();

/// One or more whole CopyData messages, headers included.
#[derive(Clone, Debug)]
pub struct CopyChunk {
    pub frames: Bytes,
    /// How many messages. The server sends a row in each; in binary format one more, at the end, holds the trailer.
    pub frame_count: u64,
}

impl CopyChunk {
    /// What is inside the messages.
    pub fn payloads(&self) -> impl Iterator<Item = Bytes> + use<> {
        let mut rest = self.frames.clone();
        std::iter::from_fn(move || take_payload(&mut rest))
    }
}

/// Takes the first of several whole messages off; what is inside it. `None`: no whole message is there.
pub fn take_payload(frames: &mut Bytes) -> Option<Bytes> {
    let length = frames.get(1..)?.first_chunk::<4>()?;
    let end = u32::from_be_bytes(*length) as usize + 1;
    let is_whole = (HEADER_BYTES..=frames.len()).contains(&end);
    is_whole.then(|| frames.split_to(end).split_off(HEADER_BYTES))
}

/// Appends a message that holds these bytes, one part behind the other.
pub fn put_message(out: &mut BytesMut, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    out.put_u8(b'd');
    out.put_u32(u32::try_from(length + 4).expect("a message of COPY is smaller than 1 GiB"));
    for part in parts {
        out.put_slice(part);
    }
}

/// The rows of a `COPY … TO STDOUT`. Dropped before its end, the connection can only be dropped as well.
#[derive(Debug)]
pub struct CopyOut<'a> {
    connection: &'a mut RawConnection,
    row_count: Option<u64>,
}

/// A `COPY … FROM STDIN` under way. Dropped unfinished, the connection can only be dropped as well, and the server
/// undoes the copy.
#[derive(Debug)]
pub struct CopyIn<'a> {
    connection: &'a mut RawConnection,
}

impl RawConnection {
    /// Begins a `COPY … TO STDOUT`.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, Error> {
        self.ask_copy_out(sql).await?;
        self.copy_out_asked().await
    }

    /// Asks for a `COPY … TO STDOUT` without waiting for the answer: the server reads ahead, as far as the socket's
    /// buffers go, until [`Self::copy_out_asked`] takes it up. Nothing else can be asked meanwhile.
    pub async fn ask_copy_out(&mut self, sql: &str) -> Result<(), Error> {
        self.ask(sql).await?;
        self.in_copy = true;
        Ok(())
    }

    /// Takes up what [`Self::ask_copy_out`] has asked for.
    pub async fn copy_out_asked(&mut self) -> Result<CopyOut<'_>, Error> {
        self.await_copy(b'H').await?;
        Ok(CopyOut { connection: self, row_count: None })
    }

    /// Goes on with a copy that was taken up and has not come to its end.
    pub fn copy_out_under_way(&mut self) -> CopyOut<'_> {
        CopyOut { connection: self, row_count: None }
    }

    /// A copy was asked for or begun, and not brought to its end.
    pub fn is_in_copy(&self) -> bool {
        self.in_copy
    }

    /// Begins a `COPY … FROM STDIN`.
    pub async fn copy_in(&mut self, sql: &str) -> Result<CopyIn<'_>, Error> {
        self.begin_copy(sql, b'G').await?;
        Ok(CopyIn { connection: self })
    }

    /// Asks for a copy and waits for the server's word (`answer`) that it has begun.
    pub(super) async fn begin_copy(&mut self, sql: &str, answer: u8) -> Result<(), Error> {
        self.ask(sql).await?;
        self.await_copy(answer).await
    }

    async fn await_copy(&mut self, answer: u8) -> Result<(), Error> {
        let message = self.next().await?;
        match message.tag {
            tag if tag == answer => {
                self.in_copy = true;
                Ok(())
            }
            b'E' => {
                let source = ServerError::read(&message.body);
                self.until_ready().await?;
                Err(self.refused(source))
            }
            tag => Err(self.misunderstood(tag, "the beginning of a copy")),
        }
    }

    /// Reads from the end of a copy to the server's being ready; rows as it counted them.
    async fn end_copy(&mut self) -> Result<u64, Error> {
        let (mut row_count, mut failed) = (0, None);
        loop {
            let message = self.next().await?;
            match message.tag {
                b'C' => row_count = row_count_of(&message.body),
                b'E' => failed = Some(ServerError::read(&message.body)),
                b'Z' => break,
                tag => return Err(self.misunderstood(tag, "the end of a copy")),
            }
        }
        self.in_copy = false;
        failed.map_or(Ok(row_count), |source| Err(self.refused(source)))
    }
}

impl CopyOut<'_> {
    /// What has arrived, at least one message; `None` at the end. Cancel-safe until it has returned `None`.
    pub async fn next(&mut self) -> Result<Option<CopyChunk>, Error> {
        if self.row_count.is_some() {
            return Ok(None);
        }
        loop {
            let (frames, frame_count) = self.connection.messages.take_run(b'd').map_err(|e| self.connection.lost(e))?;
            if frame_count > 0 {
                return Ok(Some(CopyChunk { frames, frame_count }));
            }
            let Some(message) = self.connection.messages.take().map_err(|error| self.connection.lost(error))? else {
                self.connection.messages.fill().await.map_err(|error| self.connection.lost(error))?;
                continue;
            };
            match message.tag {
                b'c' => {
                    self.row_count = Some(self.connection.end_copy().await?);
                    return Ok(None);
                }
                b'E' => {
                    let source = ServerError::read(&message.body);
                    self.connection.until_ready().await?;
                    return Err(self.connection.refused(source));
                }
                _ if is_aside(&message) => {}
                tag => return Err(self.connection.misunderstood(tag, "a copy")),
            }
        }
    }

    /// Rows as the server counted them, once [`Self::next`] has returned `None`.
    pub fn row_count(&self) -> Option<u64> {
        self.row_count
    }
}

impl CopyIn<'_> {
    /// Sends whole CopyData messages. An error of the server ends the copy and leaves the connection usable. Not
    /// cancel-safe.
    pub async fn write(&mut self, frames: &[u8]) -> Result<(), Error> {
        let mut sent = 0;
        while let Some(left @ [_, ..]) = frames.get(sent..) {
            let more = self.connection.messages.send_or_hear(left).await;
            sent += more.map_err(|error| self.connection.lost(error))?;
            if let Err(error) = self.hear().await {
                // The server reads on where we stopped: the message that was cut goes out before the next command.
                self.connection.messages.outbox.extend_from_slice(rest_of_message(frames, sent));
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends one row, or any part of the stream, as a CopyData message of its own.
    pub async fn write_payload(&mut self, payload: &[u8]) -> Result<(), Error> {
        let data = frontend::CopyData::new(payload).map_err(|error| self.connection.protocol(error.to_string()))?;
        data.write(&mut self.connection.messages.outbox);
        self.connection.messages.send().await.map_err(|error| self.connection.lost(error))?;
        self.hear().await
    }

    /// Ends the copy; rows as the server counted them.
    pub async fn finish(self) -> Result<u64, Error> {
        frontend::copy_done(&mut self.connection.messages.outbox);
        self.connection.messages.send().await.map_err(|error| self.connection.lost(error))?;
        self.connection.end_copy().await
    }

    /// Gives the copy up; the server undoes it.
    pub async fn fail(self, reason: &str) -> Result<(), Error> {
        frontend::copy_fail(reason, &mut self.connection.messages.outbox)
            .map_err(|error| self.connection.protocol(error.to_string()))?;
        self.connection.messages.send().await.map_err(|error| self.connection.lost(error))?;
        self.connection.until_ready().await
    }

    /// Looks at what the server has said meanwhile. After an error it reads and drops the rest of the copy, and is
    /// ready for the next command without our ending the copy.
    async fn hear(&mut self) -> Result<(), Error> {
        while let Some(message) = self.connection.messages.take().map_err(|error| self.connection.lost(error))? {
            match message.tag {
                b'E' => {
                    let source = ServerError::read(&message.body);
                    self.connection.until_ready().await?;
                    return Err(self.connection.refused(source));
                }
                _ if is_aside(&message) => {}
                tag => return Err(self.connection.misunderstood(tag, "a copy")),
            }
        }
        Ok(())
    }
}

/// What is missing of the message that the first `sent` bytes end in; nothing where they end with one.
fn rest_of_message(frames: &[u8], sent: usize) -> &[u8] {
    let mut end = 0;
    while end < sent {
        let Some(length) = frames.get(end + 1..).and_then(|rest| rest.first_chunk::<4>()) else { break };
        end += 1 + u32::from_be_bytes(*length) as usize;
    }
    frames.get(sent..end).unwrap_or_default()
}

/// `COPY 42`
fn row_count_of(tag: &[u8]) -> u64 {
    let text = std::str::from_utf8(tag).unwrap_or_default().trim_end_matches('\0');
    text.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_what_the_messages_hold() {
        let frames = Bytes::from_static(b"d\0\0\0\x05ad\0\0\0\x04d\0\0\0\x06bc");
        let payloads: Vec<Bytes> = CopyChunk { frames, frame_count: 3 }.payloads().collect();
        assert_eq!(payloads, [&b"a"[..], b"", b"bc"]);
    }

    #[test]
    fn a_message_that_was_cut_is_known_by_its_rest() {
        let frames = b"d\0\0\0\x05ad\0\0\0\x04d\0\0\0\x06bc";
        let rests: Vec<usize> = (0..=frames.len()).map(|sent| rest_of_message(frames, sent).len()).collect();
        assert_eq!(rests, [0, 5, 4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 6, 5, 4, 3, 2, 1, 0]);
    }

    #[test]
    fn the_server_counts_the_rows() {
        assert_eq!(row_count_of(b"COPY 42\0"), 42);
        assert_eq!(row_count_of(b""), 0);
    }
}
