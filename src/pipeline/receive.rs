//! Source and decode: from the walsender to batches in the spool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::ahead::AheadDesk;
use super::error::Error;
use super::flow::Flow;
use super::supervise::Supervisor;
use crate::config::Config;
use crate::decode::{self, Decoder, Interrupted};
use crate::link;
use crate::model::SourceIdentity;
use crate::progress::Decoded;
use crate::source::{self, SessionState, SourceEvent};
use crate::spool::Spool;
use crate::telemetry::chain;

/// Read from the socket and not yet decoded. Small: what is behind it waits in the source's log, which is its place.
const LINK_BYTES: usize = 8 << 20;
const LINK_COUNT: usize = 1024;
/// Of a snapshot on the source by which a backlog is read: long for a target that keeps up, short for the source's vacuum.
const HELD_MAX: Duration = Duration::from_secs(60);
/// A third of the smallest `wal_sender_timeout` anyone is likely to set.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Receive {
    pub(super) config: Arc<Config>,
    pub(super) identity: SourceIdentity,
    pub(super) flow: Arc<Flow>,
    pub(super) spool: Spool,
    pub(super) session: watch::Sender<SessionState>,
    pub(super) supervisor: Supervisor,
    /// `None` when the target is not the only one that reads the stream.
    pub(super) ahead: Option<AheadDesk>,
    /// A transaction that was applied ahead was given up: the rest of the backlog comes at its commits.
    pub(super) plain: Arc<AtomicBool>,
}

impl Receive {
    /// Runs until the daemon stops. The decoder outlives every session, since it knows what it has emitted already.
    pub(super) async fn run(self, mut decoder: Decoder) {
        if let Some(ahead) = &self.ahead {
            decoder.lead_ahead(ahead.lane());
        }
        let decoder = Arc::new(tokio::sync::Mutex::new(decoder));
        self.supervisor.keep("source", || self.once(&decoder)).await;
    }

    /// What is given up is no trouble: the source sends it again.
    async fn once(&self, decoder: &Arc<tokio::sync::Mutex<Decoder>>) -> Result<(), Error> {
        loop {
            match self.follow(Arc::clone(decoder)).await {
                Err(Error::Decode(error @ decode::Error::AheadGivenUp { .. })) => {
                    self.plain.store(true, Ordering::Relaxed);
                    info!(why = chain(&error), "a new session takes the backlog at its commits");
                }
                ended => return ended,
            }
        }
    }

    async fn follow(&self, decoder: Arc<tokio::sync::Mutex<Decoder>>) -> Result<(), Error> {
        let (events, received) = link::channel(LINK_BYTES, LINK_COUNT);
        // Either side's end ends the other: the source when its link closes, the decoder when its link is empty.
        let stop = self.supervisor.stop.child_token();
        let ports = source::Ports {
            events,
            confirmed: self.flow.confirmed(),
            resume: self.flow.received(),
            state: self.session.clone(),
            ahead: self.ahead.as_ref().map_or_else(|| watch::channel(false).1, AheadDesk::able),
            plain: Arc::clone(&self.plain),
            stop: stop.clone(),
        };
        let options = self.options(&*decoder.lock().await);
        let mut decoding = JoinSet::new();
        let (flow, spool) = (Arc::clone(&self.flow), self.spool.clone());
        decoding.spawn_blocking(move || decode_all(&mut decoder.blocking_lock(), received, &flow, &spool));
        let streaming = source::run(options, ports);
        tokio::pin!(streaming);
        let (streamed, decoded) = tokio::select! {
            streamed = &mut streaming => (streamed, joined(&mut decoding).await),
            decoded = joined(&mut decoding) => {
                stop.cancel();
                (streaming.await, decoded)
            }
        };
        decoded?;
        streamed?;
        Ok(())
    }

    fn options(&self, decoder: &Decoder) -> source::Options {
        source::Options {
            endpoint: self.config.source.endpoint.clone(),
            slot: self.config.source.slot.name.clone(),
            publications: vec![self.config.source.publication.name.clone()],
            expected: Some(self.identity.clone()),
            streaming: decoder.takes_streams(),
            // Records for Kafka are made from text.
            binary: decoder.takes_binary() && self.config.kafka.is_none(),
            bulk_bytes: self.config.source.bulk_bytes,
            held_max: HELD_MAX.min(self.config.snapshot.snapshot_age_max),
            status_interval: STATUS_INTERVAL,
        }
    }
}

/// The decode stage, on a thread of its own: `append` blocks while the spool is full, and that is what stops the reading.
fn decode_all(
    decoder: &mut Decoder,
    mut received: link::Receiver<SourceEvent>,
    flow: &Flow,
    spool: &Spool,
) -> Result<(), Error> {
    while let Some(parcel) = received.recv_blocking() {
        match parcel.item {
            SourceEvent::Session { proto_version, binary, ahead_until, .. } => {
                if binary {
                    decoder.begin_binary_session(proto_version);
                } else {
                    decoder.begin_session(proto_version);
                }
                decoder.apply_ahead(ahead_until);
            }
            SourceEvent::Broken => decoder.end_session(),
            SourceEvent::Frames(frames) => {
                flow.heard();
                let handed_on = decoder.on_frames(&frames, &mut |batch| {
                    // Not before the spool has it: a new session begins behind what is told here.
                    let decoded = Decoded::of(&batch);
                    spool.append(batch).map(|()| flow.decoded(decoded))
                });
                handed_on.map_err(|interrupted| match interrupted {
                    Interrupted::Decode(error) => Error::from(error),
                    Interrupted::Emit(error) => Error::from(error),
                })?;
            }
        }
    }
    Ok(())
}

async fn joined(tasks: &mut JoinSet<Result<(), Error>>) -> Result<(), Error> {
    match tasks.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(failure)) => std::panic::resume_unwind(failure.into_panic()),
        None => Ok(()),
    }
}
