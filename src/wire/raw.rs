//! A connection whose messages we read ourselves.

use bytes::Bytes;

use super::{Endpoint, Error};

/// What the connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An ordinary backend.
    Sql,
    /// A walsender for logical replication (`replication=database`), which also takes SQL.
    Replication,
}

/// A row of a simple query: text output, `None` for NULL.
pub type Row = Vec<Option<Bytes>>;

pub struct RawConnection {}

/// Connects; settings are pinned as for [`super::connect`].
pub async fn connect_raw(_endpoint: &Endpoint, _mode: Mode, _purpose: &str) -> Result<RawConnection, Error> {
    unimplemented!()
}

/// Whole CopyData messages, header included, as they travel on the wire.
pub struct CopyChunk {
    pub frames: Bytes,
    pub frame_count: u64,
}

/// The rows of a `COPY … TO STDOUT`.
pub struct CopyOut<'a> {
    _connection: &'a mut RawConnection,
}

/// A `COPY … FROM STDIN` under way. Dropped unfinished, the connection is closed with it.
pub struct CopyIn<'a> {
    _connection: &'a mut RawConnection,
}

impl RawConnection {
    /// The rows of the last statement that returned any.
    pub async fn simple_query(&mut self, _sql: &str) -> Result<Vec<Row>, Error> {
        unimplemented!()
    }

    pub async fn copy_out(&mut self, _sql: &str) -> Result<CopyOut<'_>, Error> {
        unimplemented!()
    }

    pub async fn copy_in(&mut self, _sql: &str) -> Result<CopyIn<'_>, Error> {
        unimplemented!()
    }
}

impl CopyOut<'_> {
    /// What has arrived, at least one message; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<CopyChunk>, Error> {
        unimplemented!()
    }

    /// Rows as the server counted them; only after [`Self::next`] has returned `None`.
    pub fn row_count(&self) -> Option<u64> {
        unimplemented!()
    }
}

impl CopyIn<'_> {
    /// Sends whole CopyData messages.
    pub async fn write(&mut self, _frames: &[u8]) -> Result<(), Error> {
        unimplemented!()
    }

    /// Ends the copy; rows as the server counted them.
    pub async fn finish(self) -> Result<u64, Error> {
        unimplemented!()
    }

    /// Gives the copy up; the server undoes it.
    pub async fn fail(self, _reason: &str) -> Result<(), Error> {
        unimplemented!()
    }
}
