//! Asks the source how it bears the copy, over one connection.

use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::machine::{Sample, Standby};
use super::options::{LoadLimits, ThrottleOptions};
use crate::model::Lsn;
use crate::telemetry::chain;
use crate::wire::{self, Session};

/// Standbys looked at. No primary feeds this many; more are cascaded.
const STANDBYS_MAX: u32 = 100;

/// Physical walsenders: what follows a logical slot is no standby, ours least of all. `pg_receivewal` replays nothing and
/// is left out by that.
const STANDBYS: &str = "SELECT pg_catalog.pg_current_wal_lsn()::text, w.name, w.replay_lsn::text, \
            pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), w.replay_lsn)::bigint, \
            extract(epoch FROM w.replay_lag)::float8 \
     FROM (SELECT) AS one LEFT JOIN (\
         SELECT coalesce(nullif(r.application_name, ''), 'process ' || r.pid) AS name, r.replay_lsn, r.replay_lag \
         FROM pg_catalog.pg_stat_replication r \
         WHERE r.state IN ('catchup', 'streaming') AND r.replay_lsn IS NOT NULL AND NOT EXISTS (\
             SELECT FROM pg_catalog.pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')\
     ) AS w ON true";

/// Ours are told by role and by the name that they share with the session that asks, unless the URL gives all another.
const ACTIVE_SESSIONS: &str = "SELECT count(*) FROM pg_catalog.pg_stat_activity a, \
         pg_catalog.current_setting('application_name') AS own(name) \
     WHERE a.backend_type = 'client backend' AND a.state NOT IN ('idle', 'disabled') \
       AND NOT (a.usename = current_user AND (a.application_name = own.name \
                OR own.name LIKE 'changeover %' AND a.application_name LIKE 'changeover %'))";

/// Without it the views hide what other roles do, and a busy source would look idle.
const SEES_ALL: &str = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE')";

#[derive(Debug, thiserror::Error)]
pub(super) enum SampleError {
    #[error("connect to ask about load")]
    Connect(#[source] wire::Error),
    #[error("{what}")]
    Query {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("see what other roles do: GRANT pg_read_all_stats to the source's role (or pg_monitor)")]
    Hidden,
    #[error("hear from the source within {seconds} s")]
    NoAnswer { seconds: u64 },
    #[error("read what the source said about {0}")]
    Malformed(&'static str),
}

/// A session that can only look, and not for long.
pub(super) async fn open(options: &ThrottleOptions) -> Result<Session, SampleError> {
    let session = wire::connect(&options.source, "throttle").await.map_err(SampleError::Connect)?;
    let failed = |what| move |source| SampleError::Query { what, source };
    let timeout_ms = options.query_timeout.as_millis();
    let setup = format!("SET statement_timeout = {timeout_ms}; SET default_transaction_read_only = on");
    session.batch_execute(&setup).await.map_err(failed("limit what is asked about load"))?;
    let asks_views = options.limits.asks_standbys() || options.limits.active_sessions.is_some();
    if asks_views {
        let row = session.query_one(SEES_ALL, &[]).await.map_err(failed("see what our role may see"))?;
        if !row.get::<_, bool>(0) {
            return Err(SampleError::Hidden);
        }
    }
    Ok(session)
}

/// Asks everything that there is a limit for.
pub(super) async fn ask(session: &Session, limits: &LoadLimits) -> Result<Sample, SampleError> {
    let mut sample = Sample::default();
    if limits.asks_standbys() {
        let sql = format!("{STANDBYS} LIMIT {STANDBYS_MAX}");
        let failed = |source| SampleError::Query { what: "ask for the lag of the standbys", source };
        let rows = session.query(&sql, &[]).await.map_err(failed)?;
        sample.wal_end = rows.first().map(|row| lsn(row.get(0))).transpose()?;
        sample.standbys = rows.iter().filter_map(standby).collect::<Result<_, _>>()?;
    }
    if limits.active_sessions.is_some() {
        let failed = |source| SampleError::Query { what: "count the active sessions", source };
        let count: i64 = session.query_one(ACTIVE_SESSIONS, &[]).await.map_err(failed)?.get(0);
        sample.active_sessions = Some(count.unsigned_abs());
    }
    if let Some(query) = &limits.hold_query {
        sample.hold_query = Some(ask_user(session, query).await?);
    }
    Ok(sample)
}

/// As a subquery: one value, however many rows it would have returned. An error of the query is its answer; one of the
/// connection is none.
async fn ask_user(session: &Session, query: &str) -> Result<Result<bool, String>, SampleError> {
    match session.query_one(&format!("SELECT (\n{query}\n)"), &[]).await {
        Ok(row) if *row.columns()[0].type_() == Type::BOOL => Ok(Ok(row.get::<_, Option<bool>>(0) == Some(true))),
        Ok(row) => Ok(Err(format!("it returns {} where boolean is expected", row.columns()[0].type_()))),
        Err(error) if error.code().is_some() && !session.is_closed() => Ok(Err(chain(&error))),
        Err(source) => Err(SampleError::Query { what: "ask hold_query", source }),
    }
}

/// `None` for the row that stands there when there is no standby.
fn standby(row: &Row) -> Option<Result<Standby, SampleError>> {
    let name: String = row.get::<_, Option<_>>(1)?;
    let replayed: String = row.get::<_, Option<_>>(2)?;
    let lag: i64 = row.get::<_, Option<_>>(3)?;
    let delay: Option<f64> = row.get(4);
    Some(lsn(replayed).map(|replayed| Standby {
        name,
        replayed,
        lag_bytes: u64::try_from(lag).unwrap_or(0),
        delay: delay.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
    }))
}

fn lsn(text: String) -> Result<Lsn, SampleError> {
    text.parse().map_err(|_| SampleError::Malformed("the standbys' positions"))
}
