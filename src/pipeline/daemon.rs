//! The daemon of one migration: starts every part, carries the migration through its phases, answers requests.

use std::sync::Arc;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::board::Board;
use super::commands::Commands;
use super::error::Error;
use super::flow::Flow;
use super::handle::{Handle, Request};
use super::lead::keep_leading;
use super::migrate::Migrate;
use super::options::{Shares, apply_options, kafka_options};
use super::prepare::prepare;
use super::receive::Receive;
use super::requests::{Requests, verified_tables};
use super::resync::{Resync, SettingApart};
use super::sinks::{Feed, KafkaSink, TargetSink};
use super::supervise::Supervisor;
use super::touched::Listeners;
use super::watchers;
use crate::apply;
use crate::config::Config;
use crate::decode::{self, Decoder};
use crate::link;
use crate::model::SinkName;
use crate::source::SessionState;
use crate::spool::{self, Spool};
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
        let mut sinks = vec![(SinkName::Target, prepared.target_position)];
        if self.config.kafka.is_some() {
            // Its own position is read when it first reaches the broker; the slot was never told more than that.
            sinks.push((SinkName::Kafka, prepared.stream_start));
        }
        let mut resume = sinks.clone();
        resume.extend(prepared.apart.map(|position| (SinkName::Resync, position)));
        let flow = Arc::new(Flow::new(&resume));
        let spool = Spool::open(spool::Options {
            dir: self.config.limits.spool_dir.clone(),
            memory_bytes: shares.spool_bytes,
            disk_bytes: self.config.limits.spool_bytes,
            sinks: sinks.iter().map(|(sink, _)| *sink).chain([SinkName::Resync]).collect(),
        })?;
        // Its place; what is set apart already needs it from the first batch on.
        let apart = Some(spool.cursor(SinkName::Resync)).filter(|_| prepared.apart.is_some());
        let (session, session_state) = watch::channel(SessionState::Connecting);
        let tables: Arc<[Table]> = verified_tables(&prepared.wanted).into();
        let listeners = Arc::new(Listeners::new(Arc::new(DirtyKeys::new(tables, shares.dirty_bytes))));
        let commands = Commands::default();
        self.board.attach(&prepared, Arc::clone(&flow), spool.clone(), session_state);

        let mut tasks = JoinSet::new();
        tasks.spawn(keep_leading(Arc::clone(&self.config), prepared.epoch, leading, stop.clone()));
        let decoder = Decoder::new(
            decode::Options { batch_bytes: BATCH_BYTES, resume_after: prepared.stream_start, next_seq: 0 },
            Box::new(spool.stash(shares.stash_bytes)),
        );
        let receive = Receive {
            config: Arc::clone(&self.config),
            identity: prepared.identity.clone(),
            flow: Arc::clone(&flow),
            spool: spool.clone(),
            session,
            supervisor: supervisor.clone(),
        };
        tasks.spawn(receive.run(decoder));
        let feed = Feed { flow: Arc::clone(&flow), supervisor: supervisor.clone(), link_bytes: shares.link_bytes };
        let tables: Vec<_> = prepared.wanted.row_tables().collect();
        if let Some(options) = kafka_options(&self.config, &prepared.identity, &tables) {
            let sink = KafkaSink {
                feed: feed.clone(),
                options,
                settled: self.board.settled(SinkName::Kafka),
                stream_start: prepared.stream_start,
            };
            tasks.spawn(sink.run(spool.cursor(SinkName::Kafka)));
        }
        tasks.spawn(watchers::watch_slot(Arc::clone(&self.config), self.board.clone(), stop.clone()));
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
        Ok(())
    }
}
