//! What the source says about the slot (`pg_replication_slots`).

use super::Error;
use super::slot::text;
use crate::model::{Lsn, quote_literal};
use crate::wire::{RawConnection, Session};

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
    /// Where the server's log ends.
    pub wal_end: Option<Lsn>,
}

/// `None` when there is no such slot.
pub async fn slot_state(session: &Session, slot: &str) -> Result<Option<SlotState>, Error> {
    let sql = state_sql(session.server_version_num(), slot);
    let messages = session.simple_query(&sql).await.map_err(Error::query("look at the slot"))?;
    let state = messages.iter().find_map(|message| {
        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { return None };
        Some(SlotState::read(|index| row.get(index)))
    });
    Ok(state)
}

/// The same on a walsender's connection.
pub(super) async fn slot_state_on(connection: &mut RawConnection, slot: &str) -> Result<Option<SlotState>, Error> {
    let sql = state_sql(connection.server_version_num(), slot);
    let rows = connection.simple_query(&sql).await.map_err(Error::wire("look at the slot"))?;
    Ok(rows.first().map(|row| SlotState::read(|index| text(Some(row), index))))
}

fn state_sql(server_version_num: u32, slot: &str) -> String {
    let since = |version, column: &'static str| if server_version_num >= version { column } else { "NULL" };
    format!(
        "SELECT plugin, database, active_pid, restart_lsn, confirmed_flush_lsn, wal_status, {}, {},
                pg_wal_lsn_diff(wal_end, restart_lsn)::bigint, wal_end
         FROM pg_replication_slots, (SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                                                 ELSE pg_current_wal_lsn() END AS wal_end) AS log
         WHERE slot_name = {}",
        since(170_000, "invalidation_reason"),
        since(140_000, "two_phase"),
        quote_literal(slot)
    )
}

impl SlotState {
    fn read<'a>(column: impl Fn(usize) -> Option<&'a str>) -> Self {
        let owned = |index| column(index).map(str::to_owned);
        let lsn = |index| column(index).and_then(|text| text.parse().ok());
        Self {
            plugin: owned(0),
            database: owned(1),
            active_pid: column(2).and_then(|text| text.parse().ok()),
            restart_lsn: lsn(3),
            confirmed_flush: lsn(4),
            wal_status: owned(5),
            invalidation_reason: owned(6),
            two_phase: column(7) == Some("t"),
            retained_bytes: column(8).and_then(|text| text.parse().ok()).unwrap_or(0),
            wal_end: lsn(9),
        }
    }
}
