//! The slot on the source.

use std::time::Duration;

use super::Error;
use crate::model::{Lsn, SourceIdentity};
use crate::wire::{Endpoint, Session};

/// Who the source is and how far its log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    pub identity: SourceIdentity,
    pub wal_flush: Lsn,
    pub server_version_num: u32,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotState {
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub active_pid: Option<i32>,
    pub restart_lsn: Option<Lsn>,
    pub confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// PostgreSQL 17 and later.
    pub invalidation_reason: Option<String>,
    pub two_phase: bool,
    /// Log that the server keeps for this slot.
    pub retained_bytes: u64,
}

/// What to do with a slot that somebody reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenActive {
    Refuse,
    /// End its walsender first.
    Terminate,
}

/// `IDENTIFY_SYSTEM` and the server's version.
pub async fn identify(_endpoint: &Endpoint) -> Result<Identified, Error> {
    unimplemented!()
}

/// Creates a logical slot for pgoutput and returns its consistent point. When the source does not get there within
/// `timeout`, because transactions that were running stay open, the error names them and no slot is left behind.
pub async fn create_slot(_endpoint: &Endpoint, _slot: &str, _timeout: Duration) -> Result<Lsn, Error> {
    unimplemented!()
}

/// Drops the slot; `false` when there is none.
pub async fn drop_slot(_session: &Session, _slot: &str, _when_active: WhenActive) -> Result<bool, Error> {
    unimplemented!()
}

/// `None` when there is no such slot.
pub async fn slot_state(_session: &Session, _slot: &str) -> Result<Option<SlotState>, Error> {
    unimplemented!()
}
