//! What servers send, and what it means: bytes recorded from every installed version, and a server as oracle.

#[path = "decode/oracle.rs"]
mod oracle;
#[path = "decode/recording.rs"]
mod recording;

use changeover::demo::{ClusterOptions, PgCluster, PostgresPrograms};

use crate::support::Db;

/// A slot of pgoutput and how it is read.
pub(super) struct Slot {
    pub(super) name: &'static str,
    pub(super) proto_version: u32,
    pub(super) streaming: bool,
}

/// A cluster that streams a transaction as soon as it holds 64 kB of changes, the least PostgreSQL allows.
pub(super) fn cluster_that_streams(major: u32) -> PgCluster {
    let programs = PostgresPrograms::of_major(major).unwrap();
    let options = ClusterOptions::fast(programs).setting("logical_decoding_work_mem", "64kB");
    PgCluster::start(options.setting("max_replication_slots", "20")).unwrap()
}

/// The newest protocol version of a server ("Logical Streaming Replication Parameters" in the documentation).
pub(super) fn proto_version_of(major: u32) -> u32 {
    match major {
        ..=13 => 1,
        14 | 15 => 2,
        _ => 4,
    }
}

impl Slot {
    pub(super) async fn create(&self, db: &Db) {
        db.exec(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", self.name)).await;
    }

    /// Every message since the slot was made: its position and its bytes in hexadecimal.
    pub(super) async fn peek(&self, db: &Db, major: u32, publication: &str) -> Vec<String> {
        let streaming = if self.streaming { ", 'streaming', 'on'" } else { "" };
        let messages = if major >= 14 { ", 'messages', 'true'" } else { "" };
        let sql = format!(
            "SELECT lsn || ' ' || encode(data, 'hex') FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL, \
             'proto_version', '{}', 'publication_names', '{publication}'{streaming}{messages})",
            self.name, self.proto_version
        );
        db.query_text(&sql).await
    }
}
