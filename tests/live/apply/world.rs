//! Two databases on one server: changes of the first are decoded by its slot and applied to the second.

#![allow(unreachable_pub, reason = "shared by the modules beside it")]

use std::sync::Arc;
use std::time::Duration;

use changeover::apply::{self, Error};
use changeover::decode::{Decoder, MemoryStash, Options as DecodeOptions};
use changeover::link;
use changeover::model::{
    ApplyCommand, Batch, Frame, FrameBatch, FramePayload, Lsn, MigrationName, Settled, TableFilter, TablePattern,
};
use changeover::telemetry::{Latency, Tally};
use changeover::wire::Endpoint;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::{Db, Server, server};

pub struct World {
    pub server: Server,
    pub source: Db,
    pub target: Db,
    decoder: Decoder,
    pub options: apply::Options,
    /// Values come in binary form.
    binary: bool,
}

/// What runs beside the applier in a test.
pub struct Running {
    pub input: link::Sender<Arc<Batch>>,
    pub commands: link::Sender<ApplyCommand>,
    pub settled: watch::Receiver<Settled>,
}

const READ: &str = "SELECT lsn::text, data FROM pg_logical_slot_get_binary_changes('s', NULL, NULL, \
     'proto_version', '1', 'publication_names', 'p', 'messages', 'true', 'binary', $1)";

pub fn migration() -> MigrationName {
    "test".parse().unwrap()
}

/// The server's URL has a database `postgres`.
pub fn url_of(server: &Server, database: &str) -> String {
    let (base, name) = server.url().rsplit_once('/').unwrap();
    assert_eq!(name, "postgres", "{}", server.url());
    format!("{base}/{database}")
}

impl World {
    pub async fn new(schema: &str) -> Self {
        Self::cut_at(schema, 1 << 20).await
    }

    /// Batches are cut at `batch_bytes`.
    pub async fn cut_at(schema: &str, batch_bytes: usize) -> Self {
        let server = server();
        let admin = server.connect().await;
        for database in ["source", "target"] {
            admin
                .exec(&format!(
                    "CREATE DATABASE {database} TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
                ))
                .await;
        }
        let source = Db::connect(&url_of(&server, "source")).await;
        let target = Db::connect(&url_of(&server, "target")).await;
        source.exec(schema).await;
        target.exec(schema).await;
        target.exec(include_str!("../../../schemas/target.sql")).await;
        source.exec("CREATE PUBLICATION p FOR ALL TABLES").await;
        source.exec("SELECT pg_create_logical_replication_slot('s', 'pgoutput')").await;
        let decode =
            DecodeOptions { batch_bytes, part_bytes: batch_bytes, resume_after: Lsn::new(1).unwrap(), next_seq: 0 };
        let mut decoder = Decoder::new(decode, Box::new(MemoryStash::new(1 << 20)));
        decoder.begin_session(1);
        let pattern = |text| TablePattern::parse(text).unwrap();
        let options = apply::Options {
            endpoint: Endpoint::parse(&url_of(&server, "target")).unwrap(),
            migration: migration(),
            lane: apply::Lane::Main,
            epoch: 1,
            start: None,
            filter: TableFilter { include: vec![pattern("*.*")], exclude: Vec::new() },
            gathered: changeover::model::GatheredLeaves::default(),
            renames: std::collections::BTreeMap::default(),
            handovers: Vec::new(),
            group_bytes: 1 << 20,
            sessions: 2,
            group_delay: Duration::ZERO,
            dead_letters: false,
            held_bytes: 4 << 20,
        };
        Self { server, source, target, decoder, options, binary: false }
    }

    /// The same, with values in binary form, of the tables that the migration consists of then.
    pub async fn binary(schema: &str, batch_bytes: usize, tables: &[&str]) -> Self {
        let mut world = Self::cut_at(schema, batch_bytes).await;
        let tables = tables.join(", ");
        world.source.exec(&format!("DROP PUBLICATION p; CREATE PUBLICATION p FOR TABLE {tables}")).await;
        world.decoder.begin_binary_session(1);
        world.binary = true;
        world
    }

    pub fn source_url(&self) -> String {
        url_of(&self.server, "source")
    }

    pub fn target_url(&self) -> String {
        url_of(&self.server, "target")
    }

    /// What the source has committed since the last call.
    pub async fn decoded(&mut self) -> Vec<Arc<Batch>> {
        let rows = self.source.query(READ, &[&self.binary.to_string()]).await.unwrap();
        let end: String = self.source.scalar("SELECT pg_current_wal_insert_lsn()").await;
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
        let mut batches = Vec::new();
        let mut emit = |batch| -> Result<(), std::convert::Infallible> {
            batches.push(Arc::new(batch));
            Ok(())
        };
        self.decoder.on_frames(&FrameBatch { frames, size_bytes: 0 }, &mut emit).unwrap();
        batches
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
        self.beside(async |running| {
            for batch in batches {
                let size = batch.size_bytes();
                if running.input.send(batch, size).await.is_err() {
                    break;
                }
            }
        })
        .await
    }

    /// Runs the applier while `act` does what it does; the input ends with it.
    pub async fn beside(&self, act: impl AsyncFnOnce(&mut Running)) -> Result<(), Error> {
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
        let (applied, ()) = tokio::join!(apply::run(self.options.clone(), ports), acting);
        applied
    }

    /// The backend of the last applier may take its time to notice that its client is gone, and keeps the origin meanwhile.
    pub async fn alone(&self) {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'changeover apply'";
        self.target.until(sql, "0").await;
    }

    /// Both sides hold the same rows of these tables, byte for byte in text.
    pub async fn assert_same(&self, tables: &[&str]) {
        for table in tables {
            assert_eq!(self.target.rows(table).await, self.source.rows(table).await, "{table}");
        }
    }
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
