//! A backlog read in bulk: decoded by SQL functions and sent by COPY, a span of log at a time.
//!
//! A walsender pays for a system call or two with each row that it sends; COPY fills its buffer first. What is decoded so
//! is put into a temporary file of the server until it is sent ("Logical Decoding Functions" in the documentation:
//! the functions return when the last row is known), so it is asked for in spans ([`super::spans`]), and while the rows of
//! one are taken the next is decoded, on another connection. The functions move their slot when they return, whether we
//! got the rows or not; so they get temporary copies of it (`pg_copy_logical_replication_slot`) that end with the
//! session. Ours moves as ever: to what every sink holds.

use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::admit::Admitted;
use super::run::{Options, Ports, SessionState, SourceEvent};
use super::slot::text;
use super::slot_state::slot_state_on;
use super::spans::{Spans, Taken};
use super::{Error, frames};
use crate::model::{Frame, FrameBatch, FramePayload, Lsn, quote_literal};
use crate::telemetry::{self, Point, clock};
use crate::wire::{self, CopyChunk, Mode, RawConnection};

/// A server that decodes says nothing meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Each time the server reads its log again from where it kept it for us, so not after each span.
const SPANS_PER_RELEASE: u64 = 2;
/// Nor much later than this: a slot that nobody uses for long may be given up (`idle_replication_slot_timeout`), and the
/// log that it keeps takes room.
const RELEASE_INTERVAL: Duration = Duration::from_secs(15);
/// A stream makes the server decode once more what the sinks do not hold yet, at the very time at which they need its
/// processors. A sink that is away is not waited for.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);
/// Class of SQLSTATE: somebody has ended our session or the server.
const OPERATOR_INTERVENTION: &str = "57";
const CANCEL_PATIENCE: Duration = Duration::from_secs(2);
const SLOT_NAME_MAX: usize = 63;

/// Slots that it takes beside ours: one a connection.
pub const SLOTS_TO_CATCH_UP: i64 = 2;

/// How it ended when nothing is wrong with the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Stopped,
    /// Hardly anything is left.
    CaughtUp,
    /// The rest had better come as a stream, because of this.
    GivenUp(String),
}

/// Why the next span is not read.
enum Halted {
    Unfit(String),
    /// Whoever takes the events has gone, and knows why.
    Closed,
    Failed(Error),
}

/// A connection, and a copy of the slot that ends with it.
struct Lane {
    connection: RawConnection,
    /// The copy's name.
    copy: String,
    has_copy: bool,
    /// A span was asked for; that it comes has not been heard, which is with its first row.
    is_asked: bool,
}

struct Bulk<'a> {
    /// The one whose rows are handed on.
    now: Lane,
    /// The one on which the server decodes the next span meanwhile.
    next: Lane,
    slot: &'a str,
    /// As SQL literals.
    parameters: &'a str,
    /// Everything that committed before this has been handed on.
    at: Lsn,
    /// Where the log ended when it was last asked for.
    end: Lsn,
    released: Lsn,
    released_at: Instant,
    release_bytes: u64,
    /// A statement holds a snapshot on the source: what nobody takes for this long is asked for again, as a stream.
    held_max: Duration,
    spans: Spans,
    ports: &'a mut Ports,
}

/// A span has been decoded.
struct Decoded {
    to: Lsn,
    restart: Option<Lsn>,
    /// When the next one was asked for, if there is one.
    next_asked: Option<Instant>,
}

/// Reads what there is of the log from the admitted start on, until little is left.
pub(super) async fn catch_up(options: &Options, admitted: &Admitted, ports: &mut Ports) -> Result<Ended, Error> {
    let (now, next) = tokio::join!(Box::pin(Lane::open(options)), Box::pin(Lane::open(options)));
    let (now, next) = (now?, next?);
    let (stop, cancels) = (ports.stop.clone(), [now.connection.cancel_token(), next.connection.cancel_token()]);
    let mut bulk = Bulk {
        now,
        next,
        slot: &options.slot,
        parameters: &admitted.parameters,
        at: admitted.start,
        end: admitted.start,
        released: admitted.start,
        released_at: Instant::now(),
        release_bytes: options.bulk_bytes.saturating_mul(SPANS_PER_RELEASE),
        held_max: options.held_max,
        spans: Spans::new(options.bulk_bytes),
        ports,
    };
    let halted = tokio::select! { biased;
        () = stop.cancelled() => Halted::Closed,
        caught_up = bulk.read_all() => match caught_up {
            Ok(()) => {
                bulk.leave().await;
                return Ok(Ended::CaughtUp);
            }
            Err(halted) => halted,
        }
    };
    // What the server still decodes for us is of no use to anybody.
    for cancel in cancels {
        let cancelled = timeout(CANCEL_PATIENCE, cancel.cancel()).await;
        tracing::debug!(?cancelled, "backlog left to the stream");
    }
    match halted {
        Halted::Closed => Ok(Ended::Stopped),
        Halted::Unfit(why) => Ok(Ended::GivenUp(why)),
        // Whatever this server does not let us do (a slot, a temporary file), the stream may do without.
        Halted::Failed(error) if error.sqlstate().is_some_and(|code| !code.starts_with(OPERATOR_INTERVENTION)) => {
            Ok(Ended::GivenUp(telemetry::chain(&error)))
        }
        Halted::Failed(error) => Err(error),
    }
}

impl Bulk<'_> {
    async fn read_all(&mut self) -> Result<(), Halted> {
        self.now.copy(self.slot).await?;
        self.now.advance(self.at).await?;
        self.end = self.now.log_end().await?;
        let mut asked = match self.spans.next(self.at, self.end) {
            Some(upto) => Some(self.now.ask(upto, self.parameters).await?),
            None => None,
        };
        while let Some(begun) = asked {
            let first = self.now.rows().await?;
            let decoded = self.ask_for_next().await?;
            let (from, to) = (self.at, decoded.to);
            let message_count = self.hand_on_all(first, begun).await?;
            Point::SpanRead.reach();
            // As a walsender says how far it has come.
            let payload = FramePayload::Keepalive { reply_requested: false };
            let passed = Frame { wal_end: Some(to), sent_at_us: clock::unix_us(), payload };
            self.hand_on(FrameBatch { frames: vec![passed], size_bytes: 0 }, begun).await?;
            self.at = to;
            let taken = Taken { from, to, restart: decoded.restart, message_count, took: begun.elapsed() };
            self.spans.on_taken(taken).map_err(|unfit| Halted::Unfit(unfit.to_string()))?;
            std::mem::swap(&mut self.now, &mut self.next);
            asked = decoded.next_asked;
        }
        self.settle().await;
        self.release().await
    }

    /// With its first row the function has returned, and moved its slot to the end of the span: a copy of that one goes on
    /// from there while the rows are sent.
    async fn ask_for_next(&mut self) -> Result<Decoded, Halted> {
        self.release().await?;
        let state = slot_state_on(&mut self.next.connection, &self.now.copy).await?;
        let (to, restart) = state.map(|state| (state.confirmed_flush, state.restart_lsn)).unwrap_or_default();
        let to =
            to.filter(|to| *to > self.at).ok_or(Error::Malformed { what: "a slot did not move with its reader" })?;
        self.end = self.next.log_end().await?;
        let Some(upto) = self.spans.next(to, self.end) else { return Ok(Decoded { to, restart, next_asked: None }) };
        self.next.copy(&self.now.copy).await?;
        let next_asked = Some(self.next.ask(upto, self.parameters).await?);
        Ok(Decoded { to, restart, next_asked })
    }

    /// Answers with the number of rows.
    async fn hand_on_all(&mut self, first: Option<CopyChunk>, begun: Instant) -> Result<usize, Halted> {
        let (mut chunk, mut message_count) = (first, 0);
        while let Some(rows) = chunk {
            let batch = frames::decode_rows(&rows, self.end, clock::unix_us());
            let batch = batch.ok_or(Error::Malformed { what: "a decoded change of unknown form" })?;
            message_count += batch.frames.len();
            self.hand_on(batch, begun).await?;
            chunk = self.now.rows().await?;
        }
        Ok(message_count)
    }

    /// `begun`: when what the batch is of was asked for.
    async fn hand_on(&mut self, batch: FrameBatch, begun: Instant) -> Result<(), Halted> {
        let received = batch.frames.iter().filter_map(|frame| frame.reached()).max();
        let size_bytes = batch.size_bytes;
        let sending = self.ports.events.send(SourceEvent::Frames(batch), size_bytes);
        let sent = timeout_at(begun + self.held_max, sending).await;
        let sent = sent.map_err(|_| Halted::Unfit("nobody takes what is read".to_owned()))?;
        sent.map_err(|_closed| Halted::Closed)?;
        if let Some(received) = received {
            self.ports.state.send_replace(SessionState::Streaming { received });
        }
        Ok(())
    }

    /// Lets the source forget what every sink holds.
    async fn release(&mut self) -> Result<(), Halted> {
        let is_late = self.released_at.elapsed() >= RELEASE_INTERVAL;
        let due_bytes = if is_late { 1 } else { self.release_bytes };
        let confirmed = *self.ports.confirmed.borrow();
        let Some(confirmed) = confirmed.filter(|lsn| lsn.bytes_since(self.released) >= due_bytes) else {
            return Ok(());
        };
        let sql = format!("SELECT pg_replication_slot_advance({}, '{confirmed}')", quote_literal(self.slot));
        Point::ReportDue.reach();
        self.next.query("let the source forget what has arrived", &sql).await?;
        Point::Reported.reach();
        (self.released, self.released_at) = (confirmed, Instant::now());
        Ok(())
    }

    /// Waits until the sinks hold what was read, if that is soon.
    async fn settle(&mut self) {
        let at = Some(self.at);
        let settled = timeout(SETTLE_PATIENCE, self.ports.confirmed.wait_for(|confirmed| *confirmed >= at)).await;
        tracing::debug!(settled = settled.is_ok(), through = %self.at, "backlog read");
    }

    /// The slot's copies go with their sessions.
    async fn leave(self) {
        for lane in [self.now, self.next] {
            let closed = timeout(CANCEL_PATIENCE, lane.connection.close()).await;
            tracing::debug!(?closed, "backlog's session closed");
        }
    }
}

impl Lane {
    async fn open(options: &Options) -> Result<Self, Error> {
        let connected = wire::connect_raw(&options.endpoint, Mode::Sql, "catch up").await;
        let connection = connected.map_err(Error::wire("connect to the source to read the backlog"))?;
        let copy = copy_name(&options.slot, connection.backend_pid());
        Ok(Self { connection, copy, has_copy: false, is_asked: false })
    }

    /// Takes a copy of `slot`, which may be in use, in place of the one it had.
    async fn copy(&mut self, slot: &str) -> Result<(), Halted> {
        let (slot, copy) = (quote_literal(slot), quote_literal(&self.copy));
        if std::mem::replace(&mut self.has_copy, true) {
            self.query("drop a copy of the slot", &format!("SELECT pg_drop_replication_slot({copy})")).await?;
        }
        let sql = format!("SELECT pg_copy_logical_replication_slot({slot}, {copy}, true)");
        self.query("copy the slot", &sql).await.map(drop)
    }

    /// Has the copy stand at `at`, if that is ahead of it.
    async fn advance(&mut self, at: Lsn) -> Result<(), Halted> {
        let copy = quote_literal(&self.copy);
        let sql = format!(
            "SELECT pg_replication_slot_advance({copy}, '{at}') FROM pg_replication_slots
             WHERE slot_name = {copy} AND confirmed_flush_lsn < '{at}'"
        );
        self.query("move the slot's copy to where we are", &sql).await.map(drop)
    }

    async fn log_end(&mut self) -> Result<Lsn, Halted> {
        let rows = self.query("ask for the end of the log", "SELECT pg_current_wal_flush_lsn()").await?;
        let end = text(rows.first(), 0).and_then(|text| text.parse().ok());
        end.ok_or(Halted::Failed(Error::Malformed { what: "the log has no end" }))
    }

    /// Asks for what committed up to `upto`; answers with the time.
    async fn ask(&mut self, upto: Lsn, parameters: &str) -> Result<Instant, Halted> {
        let copy = quote_literal(&self.copy);
        let sql = format!(
            "COPY (SELECT lsn, data FROM pg_logical_slot_get_binary_changes({copy}, '{upto}', NULL, VARIADIC ARRAY[{parameters}]))
             TO STDOUT (FORMAT binary)"
        );
        Point::SpanDue.reach();
        heard(self.connection.ask_copy_out(&sql)).await?;
        self.is_asked = true;
        Ok(Instant::now())
    }

    async fn rows(&mut self) -> Result<Option<CopyChunk>, Halted> {
        if std::mem::take(&mut self.is_asked) {
            heard(self.connection.copy_out_asked()).await?;
        }
        if self.connection.is_in_copy() { heard(self.connection.copy_out_under_way().next()).await } else { Ok(None) }
    }

    async fn query(&mut self, what: &'static str, sql: &str) -> Result<Vec<wire::Row>, Halted> {
        heard_while(what, self.connection.simple_query(sql)).await
    }
}

async fn heard<T>(answering: impl Future<Output = Result<T, wire::Error>>) -> Result<T, Halted> {
    heard_while("read the backlog", answering).await
}

async fn heard_while<T>(
    what: &'static str,
    answering: impl Future<Output = Result<T, wire::Error>>,
) -> Result<T, Halted> {
    let answered = timeout(SILENCE_MAX, answering).await;
    let answered = answered.map_err(|_| Error::SourceSilent { seconds: SILENCE_MAX.as_secs() })?;
    answered.map_err(|error| Error::wire(what)(error).into())
}

/// Of the session, so that one that the server has not ended yet is not in the way.
fn copy_name(slot: &str, backend_pid: i32) -> String {
    let suffix = format!("_{backend_pid}");
    let kept: String = slot.chars().take(SLOT_NAME_MAX - suffix.len()).collect();
    kept + &suffix
}

impl From<Error> for Halted {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_is_named_after_the_slot_and_the_session() {
        assert_eq!(copy_name("changeover_shop", 4711), "changeover_shop_4711");
        let long = copy_name(&"s".repeat(63), 4_194_304);
        assert_eq!((long.len(), long.ends_with("s_4194304")), (63, true));
    }
}
