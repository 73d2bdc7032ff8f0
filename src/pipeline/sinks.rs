//! The two sinks, each with its own cursor in the spool, each kept running by itself.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use super::ahead::AheadDesk;
use super::commands::Commands;
use super::error::Error;
use super::flow::Flow;
use super::supervise::Supervisor;
use crate::model::{Batch, Lsn, Settled, SinkName, Touched};
use crate::spool::Cursor;
use crate::telemetry::{Latency, Tally};
use crate::{apply, link, publish};

/// Read from the spool and not yet taken by the sink.
const LINK_COUNT: usize = 256;

/// What both sinks need.
#[derive(Clone)]
pub(super) struct Feed {
    pub(super) flow: Arc<Flow>,
    pub(super) supervisor: Supervisor,
    /// Bytes between the spool's cursor and the sink.
    pub(super) link_bytes: usize,
}

pub(super) struct TargetSink {
    /// The target, or the part of it that is set apart.
    pub(super) sink: SinkName,
    pub(super) feed: Feed,
    pub(super) options: apply::Options,
    pub(super) commands: Commands,
    /// For what is applied ahead of its commit; `None` for a part of the target, and where others read the stream too.
    pub(super) ahead: Option<AheadDesk>,
    pub(super) touched: Arc<dyn Touched>,
    pub(super) tally: Arc<Tally>,
    pub(super) latency: Arc<Latency>,
    pub(super) settled: watch::Sender<Settled>,
}

pub(super) struct KafkaSink {
    pub(super) feed: Feed,
    pub(super) options: publish::Options,
    pub(super) settled: watch::Sender<Settled>,
    /// Where what this daemon can send begins.
    pub(super) stream_start: Lsn,
    /// From where on Kafka was owed the stream: when it has nothing, it must still be from there on.
    pub(super) owed_from: Lsn,
}

impl TargetSink {
    /// Runs until the daemon stops.
    pub(super) async fn run(self, cursor: Cursor) {
        let cursor = Mutex::new(cursor);
        self.feed.supervisor.keep("target", || self.once(&cursor)).await;
    }

    /// Tables that are set apart or taken back are no trouble: the applier reads how they are divided and goes on.
    pub(super) async fn once(&self, cursor: &Mutex<Cursor>) -> Result<(), Error> {
        loop {
            match self.undivided(cursor).await {
                Err(Error::Apply(apply::Error::Divided)) => {}
                ended => return ended,
            }
        }
    }

    async fn undivided(&self, cursor: &Mutex<Cursor>) -> Result<(), Error> {
        let (batches, input) = link::channel(self.feed.link_bytes, LINK_COUNT);
        let ports = apply::Ports {
            input,
            commands: self.commands.renew(),
            ahead: self.ahead.as_ref().map(AheadDesk::renew),
            settled: self.settled.clone(),
            touched: Some(Arc::clone(&self.touched)),
            tally: Arc::clone(&self.tally),
            latency: Arc::clone(&self.latency),
            stop: self.feed.supervisor.stop.clone(),
        };
        let applying = async { apply::run(self.options.clone(), ports).await.map_err(Error::from) };
        self.feed.pump(self.sink, &self.settled, cursor, batches, applying).await
    }
}

impl KafkaSink {
    /// Runs until the daemon stops.
    pub(super) async fn run(self, cursor: Cursor) {
        let cursor = Mutex::new(cursor);
        self.feed.supervisor.keep("kafka", || self.once(&cursor)).await;
    }

    async fn once(&self, cursor: &Mutex<Cursor>) -> Result<(), Error> {
        let (batches, input) = link::channel(self.feed.link_bytes, LINK_COUNT);
        let ports = publish::Ports { input, settled: self.settled.clone(), stop: self.feed.supervisor.stop.clone() };
        let (options, start, owed_from) = (self.options.clone(), self.stream_start, self.owed_from);
        let mut thread = JoinSet::new();
        thread.spawn_blocking(move || {
            let held = publish::resume_point(&options)?.map(|position| position.commit_end);
            if held.unwrap_or(owed_from) < start {
                return Err(Error::KafkaBehind { held, start });
            }
            Ok(publish::run(options, ports)?)
        });
        let publishing = async {
            match thread.join_next().await.expect("one thread was started above") {
                Ok(result) => result,
                Err(failure) => std::panic::resume_unwind(failure.into_panic()),
            }
        };
        self.feed.pump(SinkName::Kafka, &self.settled, cursor, batches, publishing).await
    }
}

impl Feed {
    /// Feeds a sink from the first batch it has not settled, and tells what it settles, until the sink ends.
    async fn pump(
        &self,
        sink: SinkName,
        settled: &watch::Sender<Settled>,
        cursor: &Mutex<Cursor>,
        batches: link::Sender<Arc<Batch>>,
        running: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut cursor = cursor.lock().await;
        cursor.rewind()?;
        let mut reports = settled.subscribe();
        tokio::pin!(running);
        let mut next = None;
        loop {
            tokio::select! { biased;
                // The sink's end first: nothing may be reported for it afterwards.
                ended = &mut running => return ended,
                // Its reports before more work: they free room in the spool.
                changed = reports.changed() => {
                    changed.expect("the sender is borrowed by this function");
                    let through = reports.borrow_and_update().through;
                    if let Some(through) = through {
                        cursor.release(through);
                        self.flow.settled(sink, through);
                    }
                }
                // A batch that found no room is kept for the next turn, so cancelling the send loses nothing.
                sent = send(&batches, &next), if next.is_some() => {
                    next = None;
                    if sent.is_err() {
                        return running.await;
                    }
                }
                batch = cursor.next(), if next.is_none() => match batch? {
                    Some(batch) => next = Some(batch),
                    // The spool is closed: the sink takes what is in the link, and ends.
                    None => {
                        drop(batches);
                        return self.drain(sink, reports, running).await;
                    }
                },
            }
        }
    }

    async fn drain(
        &self,
        sink: SinkName,
        mut reports: watch::Receiver<Settled>,
        mut running: std::pin::Pin<&mut impl Future<Output = Result<(), Error>>>,
    ) -> Result<(), Error> {
        loop {
            tokio::select! { biased;
                ended = &mut running => return ended,
                changed = reports.changed() => {
                    changed.expect("the sender outlives the sink");
                    let through = reports.borrow_and_update().through;
                    if let Some(through) = through {
                        self.flow.settled(sink, through);
                    }
                }
            }
        }
    }
}

async fn send(batches: &link::Sender<Arc<Batch>>, next: &Option<Arc<Batch>>) -> Result<(), link::Closed> {
    match next {
        Some(batch) => batches.send(Arc::clone(batch), batch.size_bytes()).await,
        None => Ok(()),
    }
}
