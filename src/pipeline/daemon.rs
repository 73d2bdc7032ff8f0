//! The daemon of one migration: starts every part, carries the migration through its phases, answers requests.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::ahead::AheadDesk;
use super::board::Board;
use super::commands::Commands;
use super::durable::Durable;
use super::error::Error;
use super::flow::Flow;
use super::handle::{Handle, Request};
use super::lead::keep_leading;
use super::migrate::Migrate;
use super::options::{Shares, apply_options, kafka_options};
use super::prepare::{Prepared, copies_rows, prepare};
use super::receive::Receive;
use super::requests::{Requests, verified_tables};
use super::resync::{Resync, SettingApart};
use super::sinks::{Feed, KafkaSink, TargetSink};
use super::status::Phase;
use super::strangers::Strangers;
use super::supervise::Supervisor;
use super::touched::Listeners;
use super::watchers;
use crate::apply;
use crate::config::Config;
use crate::decode::{self, Decoder};
use crate::link;
use crate::model::SinkName;
use crate::source::SessionState;
use crate::spool::{self, Resumed, Spool, Standing};
use crate::telemetry::chain;
use crate::verify::{DirtyKeys, Table};

/// Requests waiting for an answer: operators, not clients.
const REQUEST_LINK_BYTES: usize = 64 << 10;
const REQUEST_LINK_COUNT: usize = 16;

/// Rows decoded into one batch, at most.
const BATCH_BYTES: usize = 256 << 10;

/// A daemon that has not started.
pub struct Daemon {
    config: Arc<Config>,
    requests: link::Receiver<Request>,
    board: Board,
}

/// A daemon and the handle to it. The handle answers from now on; its status says `preparing` until the daemon runs.
pub fn daemon(config: Config) -> (Handle, Daemon) {
    let config = Arc::new(config);
    let (sender, requests) = link::channel(REQUEST_LINK_BYTES, REQUEST_LINK_COUNT);
    let board = Board::new(&config);
    let status = board.clone();
    (Handle::new(sender, Arc::new(move || status.status())), Daemon { config, requests, board })
}

impl Daemon {
    /// Runs until `stop` is cancelled or a request stops it. An error here is one of the start; later ones are kept by
    /// the parts they arise in and told by the status.
    pub async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let (prepared, leading) = tokio::select! { biased;
            () = stop.cancelled() => return Ok(()),
            prepared = prepare(&self.config) => prepared?,
        };
        let shares = Shares::of(self.config.limits.memory_bytes);
        let supervisor =
            Supervisor { troubles: self.board.troubles(), resume: Arc::new(Notify::new()), stop: stop.clone() };
        let (spool, resumed) = resume_spool(&self.config, &prepared, shares.spool_bytes).await?;
        let mut sinks = vec![(SinkName::Target, prepared.target_position)];
        if self.config.kafka.is_some() {
            // Its own position is read when it first reaches the broker: it holds what nobody keeps for it.
            sinks.push((SinkName::Kafka, resumed.oldest));
        }
        let mut settled = sinks.clone();
        settled.extend(prepared.apart.map(|position| (SinkName::Resync, position)));
        let flow = Arc::new(Flow::new(&settled, &resumed));
        // Until the stream says how far it goes, this does: who has heard nothing yet is not caught up.
        flow.heard_of(prepared.source_end);
        // Its place; what is set apart already needs it from the first batch on.
        let apart = Some(spool.cursor(SinkName::Resync)).filter(|_| prepared.apart.is_some());
        if apart.is_none() {
            spool.vacate(SinkName::Resync);
        }
        let (session, session_state) = watch::channel(SessionState::Connecting);
        let tables: Arc<[Table]> = verified_tables(&prepared.wanted, &self.config.rows).into();
        let listeners = Arc::new(Listeners::new(Arc::new(DirtyKeys::new(tables, shares.dirty_bytes))));
        let commands = Commands::default();
        // Kafka has to be told every change, and a table that is set apart is applied from the stream.
        let ahead = (self.config.kafka.is_none()).then(|| {
            let applies_soon = prepared.phase == Phase::Streaming || !copies_rows(&self.config);
            let able = applies_soon && prepared.apart.is_none();
            AheadDesk::new(shares.link_bytes, able, stop.clone())
        });
        self.board.attach(&prepared, Arc::clone(&flow), spool.clone(), session_state);

        let mut tasks = JoinSet::new();
        tasks.spawn(keep_leading(Arc::clone(&self.config), prepared.epoch, leading, stop.clone()));
        let decoder = Decoder::new(
            decode::Options {
                batch_bytes: BATCH_BYTES,
                part_bytes: shares.part_bytes,
                resume_after: resumed.stream,
                next_seq: resumed.next_seq,
            },
            Box::new(spool.stash(shares.stash_bytes)),
        );
        let receive = Receive {
            config: Arc::clone(&self.config),
            identity: prepared.identity.clone(),
            flow: Arc::clone(&flow),
            spool: spool.clone(),
            session,
            supervisor: supervisor.clone(),
            ahead: ahead.clone(),
            plain: Arc::default(),
        };
        tasks.spawn(receive.run(decoder));
        if resumed.durable.is_some() {
            let durable = Durable { flow: Arc::clone(&flow), spool: spool.clone(), supervisor: supervisor.clone() };
            tasks.spawn(durable.run());
        }
        let feed = Feed { flow: Arc::clone(&flow), supervisor: supervisor.clone(), link_bytes: shares.link_bytes };
        let tables: Vec<_> = prepared.wanted.streamed_tables().collect();
        if let Some(options) = kafka_options(&self.config, &prepared.identity, &tables) {
            let sink = KafkaSink {
                feed: feed.clone(),
                options,
                settled: self.board.settled(SinkName::Kafka),
                stream_start: resumed.oldest,
                owed_from: resumed.owed[&SinkName::Kafka],
            };
            tasks.spawn(sink.run(spool.cursor(SinkName::Kafka)));
        }
        tasks.spawn(watchers::watch_slot(Arc::clone(&self.config), self.board.clone(), stop.clone()));
        let strangers = Arc::new(Strangers::new(&self.config, &self.board, &listeners, &prepared.wanted));
        tasks.spawn(Arc::clone(&strangers).run(stop.clone()));
        let apply = apply_options(&self.config, &prepared, &shares);
        let catalog = Arc::new(prepared.wanted.clone());
        let turn = Arc::default();
        let setting_apart = SettingApart {
            config: Arc::clone(&self.config),
            desk: self.board.resync(),
            flow: Arc::clone(&flow),
            spool: spool.clone(),
            listeners: Arc::clone(&listeners),
            epoch: prepared.epoch,
        };
        setting_apart.desk.begin(prepared.resyncing.union(&prepared.joining).cloned().collect());
        apart.into_iter().for_each(|cursor| setting_apart.desk.keep(cursor));
        let resync = Resync {
            setting_apart: setting_apart.clone(),
            board: self.board.clone(),
            supervisor: supervisor.clone(),
            turn: Arc::clone(&turn),
            catalog: Arc::clone(&catalog),
            joining: prepared.joining.clone(),
            apply: apply::Options { lane: apply::Lane::Apart, start: None, ..apply.clone() },
            link_bytes: shares.link_bytes,
        };
        tasks.spawn(resync.run());
        let target = TargetSink {
            sink: SinkName::Target,
            feed,
            options: apply,
            commands: commands.clone(),
            ahead,
            touched: listeners.clone(),
            tally: self.board.tally(),
            latency: self.board.latency(),
            settled: self.board.settled(SinkName::Target),
        };
        let migrate = Migrate {
            config: Arc::clone(&self.config),
            board: self.board.clone(),
            flow: Arc::clone(&flow),
            supervisor: supervisor.clone(),
        };
        let requests = Requests {
            config: Arc::clone(&self.config),
            board: self.board.clone(),
            flow,
            commands,
            listeners,
            supervisor: supervisor.clone(),
            catalog,
            setting_apart,
            epoch: prepared.epoch,
            turn,
            strangers,
        };
        tasks.spawn(migrate.run(prepared, target, spool.cursor(SinkName::Target)));
        tasks.spawn(requests.serve(self.requests));
        stop.cancelled().await;
        info!("stopping");
        spool.close();
        while let Some(ended) = tasks.join_next().await {
            if let Err(failure) = ended {
                std::panic::resume_unwind(failure.into_panic());
            }
        }
        if let Err(error) = blocking(move || spool.tidy()).await {
            warn!(error = chain(&error), "the spool keeps what nobody needs until the next start");
        }
        Ok(())
    }
}

/// What an earlier run left in the spool is gone on with, or found to be needed by nobody.
async fn resume_spool(config: &Config, prepared: &Prepared, memory_bytes: usize) -> Result<(Spool, Resumed), Error> {
    let mut settled = vec![(SinkName::Target, Some(prepared.target_position))];
    if config.kafka.is_some() {
        settled.push((SinkName::Kafka, None));
    }
    // Without tables that are set apart its place is given up at once.
    settled.push((SinkName::Resync, Some(prepared.apart.unwrap_or(prepared.target_position))));
    let options = spool::Options {
        dir: config.limits.spool_dir.clone(),
        memory_bytes,
        disk_bytes: config.limits.spool_bytes,
        sinks: settled.iter().map(|(sink, _)| *sink).collect(),
    };
    let standing = Standing {
        migration: config.migration.clone(),
        source: prepared.identity.clone(),
        consistent_point: prepared.consistent_point,
        epoch: prepared.epoch,
        slot: prepared.stream_start,
        settled,
    };
    let durable = config.spool.release_source_wal;
    Ok(blocking(move || Spool::resume(&options, &standing, durable)).await?)
}

/// Work on the disk, away from tokio's workers.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(failure) => std::panic::resume_unwind(failure.into_panic()),
    }
}
