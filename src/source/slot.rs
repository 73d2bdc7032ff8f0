//! The slot on the source: made, looked at, dropped.

use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::Error;
use super::blockers::open_transactions;
use super::slot_state::{SlotState, slot_state};
use crate::model::{Lsn, SourceIdentity, quote_identifier};
use crate::wire::{self, Endpoint, Mode, RawConnection, Row, Session, sqlstate};

/// Who the source is and how far its log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    pub identity: SourceIdentity,
    pub wal_flush: Lsn,
    pub server_version_num: u32,
}

/// What to do with a slot that somebody reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenActive {
    Refuse,
    /// End its walsender first.
    Terminate,
}

/// How long a cancelled or terminated walsender may take to let go of its slot.
const LETTING_GO: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// `IDENTIFY_SYSTEM` and the server's version.
pub async fn identify(endpoint: &Endpoint) -> Result<Identified, Error> {
    let connected = wire::connect_raw(endpoint, Mode::Replication, "identify").await;
    let mut connection = connected.map_err(Error::wire("connect to the source for replication"))?;
    let identified = identify_on(&mut connection).await?;
    leave(connection).await;
    Ok(identified)
}

/// Says good-bye. A source that is gone already has told us all that we asked for.
pub(super) async fn leave(connection: RawConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "the source had closed the connection already");
    }
}

/// The same on a connection that is there already.
pub(super) async fn identify_on(connection: &mut RawConnection) -> Result<Identified, Error> {
    let server_version_num = connection.server_version_num();
    let rows = connection.simple_query("IDENTIFY_SYSTEM").await.map_err(Error::wire("ask the source who it is"))?;
    let column = |index| text(rows.first(), index);
    let identified = || {
        Some(Identified {
            identity: SourceIdentity { system_identifier: column(0)?.to_owned(), timeline: column(1)?.parse().ok()? },
            wal_flush: column(2)?.parse().ok()?,
            server_version_num,
        })
    };
    identified().ok_or(Error::Malformed { what: "IDENTIFY_SYSTEM gave no identity" })
}

/// A column of a row as text.
pub(super) fn text(row: Option<&Row>, index: usize) -> Option<&str> {
    std::str::from_utf8(row?.get(index)?.as_ref()?).ok()
}

/// Creates a logical slot for pgoutput and returns its consistent point. When the source does not get there within
/// `limit`, because transactions that were running stay open, the error names them and no slot is left behind.
pub async fn create_slot(endpoint: &Endpoint, slot: &str, limit: Duration) -> Result<Lsn, Error> {
    let connected = wire::connect_raw(endpoint, Mode::Replication, "create slot").await;
    let mut connection = connected.map_err(Error::wire("connect to the source for replication"))?;
    let cancel_token = connection.cancel_token();
    let command = create_command(connection.server_version_num(), slot);
    let failed = || Error::wire("create the slot");
    let created = {
        let mut creating = pin!(connection.simple_query(&command));
        match timeout(limit, &mut creating).await {
            Ok(created) => created.map_err(failed()),
            Err(_) => {
                let observer = wire::connect(endpoint, "create slot").await;
                let observer = observer.map_err(Error::wire("look for what blocks the slot"))?;
                let blockers = open_transactions(&observer).await;
                // An ephemeral slot goes with the command that makes it (`ReplicationSlotRelease`); what the cancel
                // comes too late for is a slot that is done, which is as good.
                cancel_token.cancel().await.map_err(Error::wire("cancel the slot's creation"))?;
                match timeout(LETTING_GO, &mut creating).await {
                    Ok(Ok(rows)) => Ok(rows),
                    Ok(Err(_)) | Err(_) => {
                        drop_slot(&observer, slot, WhenActive::Terminate).await?;
                        let (slot, seconds) = (slot.to_owned(), limit.as_secs());
                        return Err(Error::SlotNotCreated { slot, seconds, blockers: blockers? });
                    }
                }
            }
        }
    };
    let rows = match created {
        Err(error) if error.sqlstate() == Some(sqlstate::DUPLICATE_OBJECT) => {
            return Err(Error::SlotExists { slot: slot.to_owned() });
        }
        created => created?,
    };
    leave(connection).await;
    let consistent_point = text(rows.first(), 1).and_then(|text| text.parse().ok());
    consistent_point.ok_or(Error::Malformed { what: "the new slot has no consistent point" })
}

/// The list in parentheses came with 15 ("Streaming Replication Protocol", CREATE_REPLICATION_SLOT).
fn create_command(server_version_num: u32, slot: &str) -> String {
    let snapshot = if server_version_num >= 150_000 { "(SNAPSHOT 'nothing')" } else { "NOEXPORT_SNAPSHOT" };
    format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput {snapshot}", quote_identifier(slot))
}

/// Drops the slot; `false` when there is none.
pub async fn drop_slot(session: &Session, slot: &str, when_active: WhenActive) -> Result<bool, Error> {
    let deadline = Instant::now() + LETTING_GO;
    loop {
        let Some(state) = slot_state(session, slot).await? else { return Ok(false) };
        match (state.active_pid, when_active) {
            (Some(pid), WhenActive::Refuse) => return Err(Error::SlotActive { slot: slot.to_owned(), pid }),
            (Some(pid), WhenActive::Terminate) => terminate(session, pid).await?,
            (None, _) => {}
        }
        let dropped = session.execute("SELECT pg_drop_replication_slot($1)", &[&slot]).await;
        match dropped.map_err(Error::query("drop the slot")) {
            Ok(_) => return Ok(true),
            Err(error) if error.sqlstate() == Some(sqlstate::UNDEFINED_OBJECT) => return Ok(false),
            // It stays active for a moment after its walsender was told to go (PITFALLS 28).
            Err(error) if error.sqlstate() == Some(sqlstate::OBJECT_IN_USE) && Instant::now() < deadline => {
                sleep(POLL_INTERVAL).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn terminate(session: &Session, pid: i32) -> Result<(), Error> {
    let sql = "SELECT pg_terminate_backend($1)";
    session.execute(sql, &[&pid]).await.map(drop).map_err(Error::query("end the slot's walsender"))
}

impl SlotState {
    /// Why the source no longer keeps what the slot needs, if so. By the view's columns: the texts of the errors
    /// change between versions (PITFALLS 26).
    pub fn invalidated(&self) -> Option<String> {
        match (&self.invalidation_reason, self.wal_status.as_deref()) {
            (Some(reason), _) => Some(reason.clone()),
            (None, Some("lost")) => Some("wal_removed".to_owned()),
            (None, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_written_as_the_version_reads_it() {
        assert_eq!(create_command(140_012, "s"), r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput NOEXPORT_SNAPSHOT"#);
        let since_15 = r#"CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'nothing')"#;
        assert_eq!(create_command(150_000, "s"), since_15);
    }
}
