//! The session loop: connect, stream, and connect again.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Error;
use crate::link;
use crate::model::{FrameBatch, Lsn, SourceIdentity};
use crate::wire::Endpoint;

#[derive(Clone, Debug)]
pub struct Options {
    pub endpoint: Endpoint,
    pub slot: String,
    pub publications: Vec<String>,
    /// Refuse any other source; `None` only before the first position is stored.
    pub expected: Option<SourceIdentity>,
    /// Let the source send transactions before they commit (14 and later).
    pub streaming: bool,
    /// How often the source is told where we are when nothing asks for it sooner.
    pub status_interval: Duration,
}

pub struct Ports {
    pub events: link::Sender<SourceEvent>,
    /// What every sink holds durably: the source may forget it.
    pub confirmed: watch::Receiver<Option<Lsn>>,
    /// What the decoder has emitted through: where a new session begins. `None`: where the slot stands.
    pub resume: watch::Receiver<Option<Lsn>>,
    pub state: watch::Sender<SessionState>,
    /// Ends the stream properly.
    pub stop: CancellationToken,
}

/// What the decoder is told, in order.
#[derive(Debug)]
pub enum SourceEvent {
    /// A new session: whatever was half received before it comes again.
    Session {
        proto_version: u32,
        streaming: bool,
        start: Lsn,
    },
    Frames(FrameBatch),
}

/// How the session stands, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    Connecting,
    Streaming {
        received: Lsn,
    },
    /// Between two sessions; `error` is why.
    Waiting {
        error: String,
        attempt: u32,
    },
    Stopped,
}

/// Streams until `stop` is cancelled (`Ok`) or something needs the operator. What goes away by itself is waited out.
pub async fn run(_options: Options, _ports: Ports) -> Result<(), Error> {
    unimplemented!()
}
