//! What the walsender sends, before anyone has looked inside.

use bytes::Bytes;

use super::Lsn;

/// A CopyData message of the replication stream ("Streaming Replication Protocol" in the documentation).
#[derive(Clone, Debug)]
pub struct Frame {
    /// The end of the source's log when this was sent.
    pub wal_end: Option<Lsn>,
    /// Microseconds since the Unix epoch, by the source's clock.
    pub sent_at_us: i64,
    pub payload: FramePayload,
}

impl Frame {
    /// How far the stream has come with it.
    pub fn reached(&self) -> Option<Lsn> {
        match &self.payload {
            FramePayload::XLogData { wal_start, .. } => *wal_start,
            FramePayload::Keepalive { .. } => self.wal_end,
        }
    }
}

#[derive(Clone, Debug)]
pub enum FramePayload {
    /// `w`: one pgoutput message.
    XLogData { wal_start: Option<Lsn>, message: Bytes },
    /// `k`: nothing new for us up to `wal_end`.
    Keepalive { reply_requested: bool },
}

/// What one read of the socket held. Sent as one parcel, because a channel operation a row would cost more than
/// decoding the row.
#[derive(Clone, Debug, Default)]
pub struct FrameBatch {
    pub frames: Vec<Frame>,
    /// Bytes of the buffer that the frames are slices of.
    pub size_bytes: usize,
}
