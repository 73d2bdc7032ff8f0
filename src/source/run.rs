//! The session loop: connect, stream, and connect again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::admit::{Admitted, Ways, admit};
use super::backoff::Backoff;
use super::bulk::{self, Ended};
use super::driver::{Driver, Finished};
use super::slot::leave;
use crate::link;
use crate::model::{Disposition, FrameBatch, Lsn, SourceIdentity};
use crate::telemetry;
use crate::wire::{self, Endpoint, Mode, RawConnection};

#[derive(Clone, Debug)]
pub struct Options {
    pub endpoint: Endpoint,
    pub slot: String,
    pub publications: Vec<String>,
    /// Refuse any other source; `None` only before the first position is stored.
    pub expected: Option<SourceIdentity>,
    /// Let the source send transactions before they commit (14 and later).
    pub streaming: bool,
    /// Let a backlog come in binary form (14 and later), where [`crate::model::binary`] knows the types of all columns.
    pub binary: bool,
    /// So much of the log of a backlog is read in bulk at a time, at most; 0: none.
    pub bulk_bytes: u64,
    /// No snapshot of ours is held on the source for longer while a backlog is read in bulk.
    pub held_max: Duration,
    /// How often the source is told where we are when nothing asks for it sooner. Shortened where the source's
    /// `wal_sender_timeout` demands it.
    pub status_interval: Duration,
}

pub struct Ports {
    pub events: link::Sender<SourceEvent>,
    /// What every sink holds durably: the source may forget it.
    pub confirmed: watch::Receiver<Option<Lsn>>,
    /// What the decoder has emitted through: where a new session begins. `None`: where the slot stands.
    pub resume: watch::Receiver<Option<Lsn>>,
    pub state: watch::Sender<SessionState>,
    /// Whether the target takes transactions ahead of their commits.
    pub ahead: watch::Receiver<bool>,
    /// One that it took was given up: the rest of the backlog comes at its commits. Whoever gives up sets it.
    pub plain: Arc<AtomicBool>,
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
        /// Values come in their types' binary form.
        binary: bool,
        start: Lsn,
        /// Transactions that commit up to here are streamed to be applied ahead of their commits.
        ahead_until: Option<Lsn>,
    },
    Frames(FrameBatch),
    /// The session has broken off, and it is not known when there will be another one.
    Broken,
}

/// How the session stands, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionState {
    Connecting,
    Streaming {
        received: Lsn,
    },
    /// Between two sessions; `error` is why, `attempt` how many have failed in a row.
    Waiting {
        error: String,
        attempt: u32,
    },
    Stopped,
}

/// What one session leaves to the next.
struct Inheritance {
    /// Its backend, which the server may not have ended yet.
    predecessor: Option<i32>,
    ways: Ways,
    /// Transactions were to be applied ahead of their commits.
    was_ahead: bool,
    backoff: Backoff,
}

/// Streams until `stop` is cancelled (`Ok`) or something needs the operator. What goes away by itself is waited out.
pub async fn run(options: Options, mut ports: Ports) -> Result<(), Error> {
    let stop = ports.stop.clone();
    let backoff = Backoff::default();
    let mut left = Inheritance { predecessor: None, ways: Ways::ALL, was_ahead: false, backoff };
    let ended = loop {
        ports.state.send_replace(SessionState::Connecting);
        let ended = one_session(&options, &mut ports, &mut left).await;
        if ended.is_err() {
            left.ways = Ways::ALL;
        }
        let error = match ended {
            Err(error) if error.disposition() == Disposition::Retry && !stop.is_cancelled() => telemetry::chain(&error),
            Ok(Finished::CaughtUp) => continue,
            Ok(Finished::Renew) => {
                left.ways = Ways::NONE;
                ports.plain.store(false, Ordering::Relaxed);
                continue;
            }
            Ok(Finished::Stopped) => break Ok(()),
            Err(error) => break Err(error),
        };
        let pause = left.backoff.after_failure(fastrand::f64());
        tracing::warn!(error, attempt = left.backoff.failures(), ?pause, "source session broke off");
        ports.state.send_replace(SessionState::Waiting { error, attempt: left.backoff.failures() });
        // A decoder that is gone knows why.
        if left.was_ahead && told(&ports, SourceEvent::Broken).await.is_err() {
            break Ok(());
        }
        tokio::select! { biased;
            () = stop.cancelled() => break Ok(()),
            () = sleep(pause) => {}
        }
    };
    ports.state.send_replace(SessionState::Stopped);
    tracing::info!(slot = options.slot, "source session ended");
    ended
}

/// Tells the decoder, until we are asked to stop.
async fn told(ports: &Ports, event: SourceEvent) -> Result<(), link::Closed> {
    tokio::select! { biased;
        () = ports.stop.cancelled() => Err(link::Closed),
        sent = ports.events.send(event, 0) => sent,
    }
}

async fn one_session(options: &Options, ports: &mut Ports, left: &mut Inheritance) -> Result<Finished, Error> {
    left.was_ahead = false;
    let resume = *ports.resume.borrow_and_update();
    let ahead = *ports.ahead.borrow() && !ports.plain.load(Ordering::Relaxed);
    let begun = tokio::select! { biased;
        () = ports.stop.cancelled() => return Ok(Finished::Stopped),
        begun = begin(options, resume, left, ahead) => begun,
    };
    let (connection, admitted) = begun?;
    let Admitted { start, proto_version, streaming, binary, ahead_until, bulk, .. } = admitted;
    let session = SourceEvent::Session { proto_version, streaming, binary, start, ahead_until };
    if bulk {
        leave(connection).await;
        tracing::info!(slot = options.slot, %start, proto_version, binary, "source's backlog is read in bulk");
        return in_bulk(options, &admitted, session, ports, &mut left.ways).await;
    }
    let both = connection.copy_both(&admitted.command).await.map_err(Error::wire("begin the stream"))?;
    left.backoff.on_success();
    tracing::info!(slot = options.slot, %start, proto_version, streaming, binary, "source streams");
    left.was_ahead = ahead_until.is_some();
    ports.state.send_replace(SessionState::Streaming { received: start });
    let driver = Driver::new(both, &admitted, options, ports);
    driver.run(session).await
}

async fn in_bulk(
    options: &Options,
    admitted: &Admitted,
    session: SourceEvent,
    ports: &mut Ports,
    ways: &mut Ways,
) -> Result<Finished, Error> {
    // A decoder that is gone knows why.
    if told(ports, session).await.is_err() {
        return Ok(Finished::Stopped);
    }
    ports.state.send_replace(SessionState::Streaming { received: admitted.start });
    match bulk::catch_up(options, admitted, ports).await? {
        Ended::Stopped => Ok(Finished::Stopped),
        Ended::CaughtUp => Ok(Finished::CaughtUp),
        Ended::GivenUp(why) => {
            tracing::info!(why, "what is left of the backlog comes as a stream");
            ways.bulk = false;
            Ok(Finished::CaughtUp)
        }
    }
}

async fn begin(
    options: &Options,
    resume: Option<Lsn>,
    left: &mut Inheritance,
    ahead: bool,
) -> Result<(RawConnection, Admitted), Error> {
    let connected = wire::connect_raw(&options.endpoint, Mode::Replication, "stream").await;
    let mut connection = connected.map_err(Error::wire("connect to the source for replication"))?;
    let admitted = admit(&mut connection, options, resume, left.predecessor, left.ways, ahead).await?;
    left.predecessor = Some(connection.backend_pid());
    Ok((connection, admitted))
}
