//! Two databases, on one server as a rule: changes of the first are decoded by its slot and applied to the second.

#![allow(unreachable_pub, reason = "shared by the modules beside it")]

use std::sync::Arc;
use std::time::Duration;

use changeover::apply::{self, Error};
use changeover::decode::{Decoder, MemoryStash, Options as DecodeOptions};
use changeover::link;
use changeover::model::{
    ApplyCommand, Batch, Frame, FrameBatch, FramePayload, Lsn, Settled, TableFilter, TablePattern,
};
use changeover::telemetry::{Latency, Tally};
use changeover::wire::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{Db, Server, cluster_of, server};

pub struct World {
    /// The source's, and the target's too unless that has one of its own.
    pub server: Server,
    target_server: Option<Server>,
    pub source: Db,
    pub target: Db,
    feed: Feed,
    pub options: apply::Options,
}

/// A slot of the database it is for, and what decodes its changes.
pub struct Feed {
    slot: &'static str,
    publication: &'static str,
    /// Besides those that every server knows.
    parameters: &'static str,
    decoders: Vec<Decoder>,
}

/// What runs beside the applier in a test.
pub struct Running {
    pub input: link::Sender<Arc<Batch>>,
    pub commands: link::Sender<ApplyCommand>,
    pub settled: watch::Receiver<Settled>,
}

/// The server's URL has a database `postgres`.
pub fn url_of(server: &Server, database: &str) -> String {
    let (base, name) = server.url().rsplit_once('/').unwrap();
    assert_eq!(name, "postgres", "{}", server.url());
    format!("{base}/{database}")
}

/// A new database that holds these objects, and which compares text byte by byte.
pub async fn database(server: &Server, name: &str, schema: &str) -> Db {
    let admin = server.connect().await;
    admin.exec(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'")).await;
    let db = Db::connect(&url_of(server, name)).await;
    db.exec(schema).await;
    db
}

/// The same with what an applier keeps there.
pub async fn target_database(server: &Server, name: &str, schema: &str) -> Db {
    let db = database(server, name, schema).await;
    db.exec(include_str!("../../../schemas/target.sql")).await;
    db
}

/// Of an applier to this database of a server, of a migration of its own: origins belong to all databases together.
pub fn options_for(server: &Server, name: &str) -> apply::Options {
    apply::Options {
        endpoint: Endpoint::parse(&url_of(server, name)).unwrap(),
        migration: name.parse().unwrap(),
        lane: apply::Lane::Main,
        epoch: 1,
        start: None,
        filter: TableFilter { include: vec![TablePattern::parse("*.*").unwrap()], exclude: Vec::new() },
        gathered: changeover::model::GatheredLeaves::default(),
        renames: std::collections::BTreeMap::default(),
        handovers: Vec::new(),
        group_bytes: 1 << 20,
        sessions: 2,
        group_delay: Duration::ZERO,
        dead_letters: false,
        held_bytes: 4 << 20,
    }
}

impl World {
    pub async fn new(schema: &str) -> Self {
        Self::cut_at(schema, 1 << 20).await
    }

    /// Batches are cut at `batch_bytes`.
    pub async fn cut_at(schema: &str, batch_bytes: usize) -> Self {
        Self::on(server(), None, schema, batch_bytes).await
    }

    /// On servers of two major versions.
    pub async fn across(source: u32, target: u32, schema: &str) -> Self {
        Self::on(cluster_of(source).into(), Some(cluster_of(target).into()), schema, 1 << 20).await
    }

    async fn on(server: Server, target_server: Option<Server>, schema: &str, batch_bytes: usize) -> Self {
        let of_target = target_server.as_ref().unwrap_or(&server);
        let source = database(&server, "source", schema).await;
        let target = target_database(of_target, "target", schema).await;
        let feed = Feed::texts(&source, &[batch_bytes]).await;
        let options = options_for(of_target, "target");
        Self { server, target_server, source, target, feed, options }
    }

    /// The same, with values in binary form, of the tables that the migration consists of then.
    pub async fn binary(schema: &str, batch_bytes: usize, tables: &[&str]) -> Self {
        Self::cut_at(schema, batch_bytes).await.with_binaries(tables).await
    }

    /// From now on the changes of these tables, with values in binary form.
    pub async fn with_binaries(mut self, tables: &[&str]) -> Self {
        self.feed = Feed::binaries(&self.source, 1 << 20, tables).await;
        self
    }

    pub fn source_url(&self) -> String {
        url_of(&self.server, "source")
    }

    pub fn target_url(&self) -> String {
        url_of(self.target_server.as_ref().unwrap_or(&self.server), "target")
    }

    /// What the source has committed since the last call.
    pub async fn decoded(&mut self) -> Vec<Arc<Batch>> {
        self.feed.decoded(&self.source).await.remove(0)
    }

    /// Runs SQL on the source and applies what it did.
    pub async fn follow(&mut self, sql: &str) -> Result<(), Error> {
        self.source.exec(sql).await;
        let batches = self.decoded().await;
        self.alone().await;
        self.apply(batches).await
    }

    /// Applies the batches and ends.
    pub async fn apply(&self, batches: Vec<Arc<Batch>>) -> Result<(), Error> {
        apply_to(&self.options, batches).await
    }

    /// Runs the applier while `act` does what it does; the input ends with it.
    pub async fn beside(&self, act: impl AsyncFnOnce(&mut Running)) -> Result<(), Error> {
        beside(&self.options, act).await
    }

    pub async fn alone(&self) {
        alone(&self.target).await;
    }

    /// Both sides hold the same rows of these tables, byte for byte in text.
    pub async fn assert_same(&self, tables: &[&str]) {
        for table in tables {
            assert_eq!(self.target.rows(table).await, self.source.rows(table).await, "{table}");
        }
    }
}

impl Feed {
    /// Values come as text, once for each of these sizes at which batches are cut.
    pub async fn texts(source: &Db, batch_bytes: &[usize]) -> Self {
        source.exec("CREATE PUBLICATION p FOR ALL TABLES").await;
        let parameters = if source.major_version().await >= 14 { ", 'messages', 'true'" } else { "" };
        let decoders = batch_bytes.iter().map(|bytes| decoder(*bytes)).collect();
        Self::of(source, "s", "p", parameters, decoders).await
    }

    /// Values of these tables in binary form; as text from 13, which has no other.
    pub async fn binaries(source: &Db, batch_bytes: usize, tables: &[&str]) -> Self {
        source.exec(&format!("CREATE PUBLICATION p_binary FOR TABLE {}", tables.join(", "))).await;
        let mut decoder = decoder(batch_bytes);
        let mut parameters = "";
        if source.major_version().await >= 14 {
            decoder.begin_binary_session(1);
            parameters = ", 'messages', 'true', 'binary', 'true'";
        }
        Self::of(source, "s_binary", "p_binary", parameters, vec![decoder]).await
    }

    async fn of(
        source: &Db,
        slot: &'static str,
        publication: &'static str,
        parameters: &'static str,
        decoders: Vec<Decoder>,
    ) -> Self {
        source.exec(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')")).await;
        Self { slot, publication, parameters, decoders }
    }

    /// What the source has committed since the last call, from each of the decoders.
    pub async fn decoded(&mut self, source: &Db) -> Vec<Vec<Arc<Batch>>> {
        let read = format!(
            "SELECT lsn::text, data FROM pg_logical_slot_get_binary_changes('{}', NULL, NULL, \
             'proto_version', '1', 'publication_names', '{}'{})",
            self.slot, self.publication, self.parameters
        );
        let rows = source.query(&read, &[]).await.unwrap();
        let end: String = source.scalar("SELECT pg_current_wal_insert_lsn()").await;
        let mut frames: Vec<Frame> = rows
            .iter()
            .map(|row| {
                let lsn: &str = row.get(0);
                let data: Vec<u8> = row.get(1);
                Frame {
                    wal_end: lsn.parse().ok(),
                    sent_at_us: 0,
                    payload: FramePayload::XLogData { wal_start: lsn.parse().ok(), message: data.into() },
                }
            })
            .collect();
        let payload = FramePayload::Keepalive { reply_requested: false };
        frames.push(Frame { wal_end: end.parse().ok(), sent_at_us: 0, payload });
        let frames = FrameBatch { frames, size_bytes: 0 };
        let decode = |decoder: &mut Decoder| {
            let mut batches = Vec::new();
            let mut emit = |batch| -> Result<(), std::convert::Infallible> {
                batches.push(Arc::new(batch));
                Ok(())
            };
            decoder.on_frames(&frames, &mut emit).unwrap();
            batches
        };
        self.decoders.iter_mut().map(decode).collect()
    }
}

fn decoder(batch_bytes: usize) -> Decoder {
    let decode =
        DecodeOptions { batch_bytes, part_bytes: batch_bytes, resume_after: Lsn::new(1).unwrap(), next_seq: 0 };
    let mut decoder = Decoder::new(decode, Box::new(MemoryStash::new(1 << 20)));
    decoder.begin_session(1);
    decoder
}

/// Applies the batches and ends.
pub async fn apply_to(options: &apply::Options, batches: Vec<Arc<Batch>>) -> Result<(), Error> {
    beside(options, async |running| {
        for batch in batches {
            let size = batch.size_bytes();
            if running.input.send(batch, size).await.is_err() {
                break;
            }
        }
    })
    .await
}

/// Runs an applier while `act` does what it does; the input ends with it.
pub async fn beside(options: &apply::Options, act: impl AsyncFnOnce(&mut Running)) -> Result<(), Error> {
    let (input, receiver) = link::channel(64 << 20, 4096);
    let (commands, asked) = link::channel(1 << 10, 16);
    let (sender, settled) = watch::channel(Settled::default());
    let ports = apply::Ports {
        input: receiver,
        commands: asked,
        ahead: None,
        settled: sender,
        touched: None,
        tally: Arc::new(Tally::default()),
        latency: Arc::new(Latency::default()),
        stop: CancellationToken::new(),
    };
    let acting = async move {
        act(&mut Running { input, commands, settled }).await;
    };
    let (applied, ()) = tokio::join!(apply::run(options.clone(), ports), acting);
    applied
}

/// The backend of the last applier may take its time to notice that its client is gone, and keeps the origin meanwhile.
pub async fn alone(target: &Db) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'changeover apply'";
    target.until(sql, "0").await;
}

impl Running {
    pub async fn send(&self, batches: Vec<Arc<Batch>>) {
        for batch in batches {
            let size = batch.size_bytes();
            self.input.send(batch, size).await.unwrap();
        }
    }

    /// Waits until everything up to `lsn` is durable.
    pub async fn settled(&mut self, lsn: Lsn) {
        self.settled.wait_for(|settled| settled.through >= Some(lsn)).await.unwrap();
    }
}

/// The position of the last transaction.
pub fn end_of(batches: &[Arc<Batch>]) -> Lsn {
    batches.iter().flat_map(|batch| &batch.transactions).last().expect("something was committed").end
}
