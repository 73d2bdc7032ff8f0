//! Before a stream begins: is this the source, the slot and the place we think it is? Everything here refuses rather
//! than guesses; the server itself would let most of it pass.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Error;
use super::run::Options;
use super::slot::{Identified, identify_on, text};
use super::slot_state::{SlotState, slot_state_on};
use crate::model::{Lsn, binary, quote_identifier, quote_literal};
use crate::wire::RawConnection;

/// How long another reader of the slot may stay before it counts as one: the walsender of a predecessor that died takes
/// a moment to notice.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// A busy machine may leave our reports waiting for this long.
const SENDER_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// How the stream is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) start: Lsn,
    pub(super) proto_version: u32,
    pub(super) streaming: bool,
    pub(super) binary: bool,
    /// Once everything up to here is confirmed, a new session is to take transactions before they commit.
    pub(super) renew_at: Option<Lsn>,
    /// Those that commit up to here are streamed to be applied ahead of their commits.
    pub(super) ahead_until: Option<Lsn>,
    /// Read in bulk, instead of by the command.
    pub(super) bulk: bool,
    /// What the plug-in is given, as SQL literals.
    pub(super) parameters: String,
    /// The command that begins the stream.
    pub(super) command: String,
    /// `wal_sender_timeout`; `None` when it is off.
    pub(super) sender_timeout: Option<Duration>,
}

/// How a backlog may still be taken.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ways {
    pub(super) bulk: bool,
    /// Another session may follow the one that streams it.
    pub(super) renews: bool,
}

impl Ways {
    pub(super) const ALL: Self = Self { bulk: true, renews: true };
    /// Each once only until something breaks, whatever the next session finds.
    pub(super) const NONE: Self = Self { bulk: false, renews: false };
}

/// Checks everything and says how to begin. `resume` is what the decoder has emitted through; `predecessor` the backend
/// of our own last session; `ahead` whether the target takes transactions ahead of their commits.
pub(super) async fn admit(
    connection: &mut RawConnection,
    options: &Options,
    resume: Option<Lsn>,
    predecessor: Option<i32>,
    ways: Ways,
    ahead: bool,
) -> Result<Admitted, Error> {
    let identified = identify_on(connection).await?;
    check_identity(options, &identified)?;
    check_publications(connection, &options.publications).await?;
    let state = free_slot(connection, options, predecessor).await?;
    let start = check_slot(options, &state, resume)?;
    let sender_timeout = sender_timeout(connection).await?;
    let proto_version = proto_version(identified.server_version_num);
    let may_stream = options.streaming && proto_version >= 2;
    let backlog_end = Some(identified.wal_flush).filter(|end| is_backlog(start, *end));
    let bulk = ways.bulk && backlog_end.is_some() && options.bulk_bytes > 0;
    let renew_at = backlog_end.filter(|_| !bulk && ways.renews && may_stream);
    let ahead_until = renew_at.filter(|_| ahead);
    let streaming = may_stream && !bulk && (renew_at.is_none() || ahead_until.is_some());
    let wants_binary = options.binary && proto_version >= 2 && (bulk || renew_at.is_some());
    let binary = wants_binary && all_types_known(connection, &options.publications).await?;
    if ahead_until.is_some() {
        connection.simple_query(EAGER).await.map_err(Error::wire("have large transactions sent early"))?;
    }
    let parameters = parameters(options, identified.server_version_num, Form { streaming, binary });
    let command = start_command(&options.slot, start, &parameters);
    let parameters = literals(&parameters);
    let admitted = Admitted {
        start,
        proto_version,
        streaming,
        binary,
        renew_at,
        ahead_until,
        bulk,
        parameters,
        command,
        sender_timeout,
    };
    Ok(admitted)
}

/// The server sends the first of a transaction's changes when it holds this many kB, and the target has nothing to do before
/// that. More than an administrator allows is not asked for.
const EAGER: &str = "SELECT pg_catalog.set_config(name, least(setting::int4, 16384)::text, false) \
     FROM pg_catalog.pg_settings WHERE name = 'logical_decoding_work_mem'";

/// Whether every published column has a type of which we know the binary form. What the log holds may be of older
/// columns: the decoder looks too.
async fn all_types_known(connection: &mut RawConnection, publications: &[String]) -> Result<bool, Error> {
    let names: Vec<String> = publications.iter().map(|name| quote_literal(name)).collect();
    let known: Vec<String> = binary::known_types().map(|oid| oid.to_string()).collect();
    let sql = format!(
        "SELECT 1 FROM pg_publication_tables AS p JOIN pg_namespace AS n ON n.nspname = p.schemaname \
         JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.tablename \
         JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
         WHERE p.pubname IN ({}) AND a.atttypid NOT IN ({}) LIMIT 1",
        names.join(", "),
        known.join(", ")
    );
    let found = connection.simple_query(&sql).await.map_err(Error::wire("read the types of the published columns"))?;
    Ok(found.is_empty())
}

/// From so much log on, what is to come has mostly committed already: a large transaction that is sent before its commit
/// has to be put away here until that comes, and one that is sent at its commit is applied as it comes. The server
/// puts it away meanwhile (`logical_decoding_work_mem`), as it does for its own subscriptions. Unless the target takes it
/// ahead of its commit: then the server decodes it while the target writes it.
const BACKLOG_BYTES: u64 = 64 << 20;

fn is_backlog(start: Lsn, end: Lsn) -> bool {
    end.get().saturating_sub(start.get()) >= BACKLOG_BYTES
}

fn check_identity(options: &Options, identified: &Identified) -> Result<(), Error> {
    match &options.expected {
        Some(expected) if *expected != identified.identity => {
            Err(Error::OtherSource { expected: expected.clone(), found: identified.identity.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

async fn check_publications(connection: &mut RawConnection, publications: &[String]) -> Result<(), Error> {
    for publication in publications {
        let sql = format!("SELECT 1 FROM pg_publication WHERE pubname = {}", quote_literal(publication));
        let rows = connection.simple_query(&sql).await.map_err(Error::wire("read the publication"))?;
        if rows.is_empty() {
            return Err(Error::PublicationMissing { publication: publication.clone() });
        }
    }
    Ok(())
}

/// The slot's state once nobody else reads from it.
async fn free_slot(
    connection: &mut RawConnection,
    options: &Options,
    predecessor: Option<i32>,
) -> Result<SlotState, Error> {
    let deadline = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        let state = slot_state_on(connection, &options.slot).await?;
        let state = state.ok_or_else(|| Error::SlotMissing { slot: options.slot.clone() })?;
        let Some(pid) = state.active_pid else { return Ok(state) };
        if Some(pid) == predecessor {
            // Our own, from before the connection broke; the server may not notice for a minute.
            let sql = format!("SELECT pg_terminate_backend({pid})");
            connection.simple_query(&sql).await.map_err(Error::wire("end our last session on the source"))?;
        } else if Instant::now() >= deadline {
            return Err(Error::SlotActive { slot: options.slot.clone(), pid });
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Where to begin.
fn check_slot(options: &Options, state: &SlotState, resume: Option<Lsn>) -> Result<Lsn, Error> {
    let slot = || options.slot.clone();
    let of_another = |found: Option<&str>, wanted: &str| Error::SlotOfAnother {
        slot: slot(),
        found: found.unwrap_or("physical replication").to_owned(),
        wanted: wanted.to_owned(),
    };
    if state.plugin.as_deref() != Some("pgoutput") {
        return Err(of_another(state.plugin.as_deref(), "pgoutput"));
    }
    if state.database.as_deref() != Some(options.endpoint.dbname()) {
        let found = state.database.as_deref().map(|database| format!("database {database}"));
        return Err(of_another(found.as_deref(), &format!("database {}", options.endpoint.dbname())));
    }
    if let Some(reason) = state.invalidated() {
        return Err(Error::SlotInvalidated { slot: slot(), reason });
    }
    match (resume, state.confirmed_flush) {
        (Some(resume), Some(confirmed_flush)) if confirmed_flush > resume => {
            Err(Error::SlotAhead { slot: slot(), confirmed_flush, resume })
        }
        (Some(resume), Some(_)) => Ok(resume),
        (None, Some(confirmed_flush)) => Ok(confirmed_flush),
        // Its creation has not come to an end.
        (_, None) => Err(Error::SlotInvalidated { slot: slot(), reason: "half made".to_owned() }),
    }
}

/// In milliseconds; 0 is off. A role's or a database's own may be shorter than we can promise to answer in.
async fn sender_timeout(connection: &mut RawConnection) -> Result<Option<Duration>, Error> {
    let sql = "SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'";
    let rows = connection.simple_query(sql).await.map_err(Error::wire("read wal_sender_timeout"))?;
    let ms: Option<u64> = text(rows.first(), 0).and_then(|text| text.parse().ok());
    let ms = ms.ok_or(Error::Malformed { what: "wal_sender_timeout is no number" })?;
    let timeout = (ms > 0).then(|| Duration::from_millis(ms));
    if timeout.is_some_and(|timeout| timeout < SENDER_TIMEOUT_MIN) {
        let sql = format!("SET wal_sender_timeout = {}", SENDER_TIMEOUT_MIN.as_millis());
        connection.simple_query(&sql).await.map_err(Error::wire("raise wal_sender_timeout"))?;
        return Ok(Some(SENDER_TIMEOUT_MIN));
    }
    Ok(timeout)
}

/// The newest each server knows ("Logical Streaming Replication Parameters"): 2 streams transactions that are in
/// progress, 3 knows two-phase commit, 4 adds what only parallel appliers ask for.
fn proto_version(server_version_num: u32) -> u32 {
    match server_version_num {
        ..140_000 => 1,
        140_000..150_000 => 2,
        150_000..160_000 => 3,
        160_000.. => 4,
    }
}

/// In what form changes come.
#[derive(Clone, Copy, Debug)]
struct Form {
    streaming: bool,
    binary: bool,
}

/// What the plug-in is given.
fn parameters(options: &Options, server_version_num: u32, form: Form) -> Vec<(&'static str, String)> {
    let publications: Vec<String> = options.publications.iter().map(|name| quote_identifier(name)).collect();
    let mut parameters = vec![
        ("proto_version", proto_version(server_version_num).to_string()),
        ("publication_names", publications.join(",")),
    ];
    if server_version_num >= 140_000 {
        parameters.push(("messages", "true".to_owned()));
    }
    if form.binary {
        parameters.push(("binary", "true".to_owned()));
    }
    if form.streaming {
        parameters.push(("streaming", "on".to_owned()));
    }
    if server_version_num >= 160_000 {
        parameters.push(("origin", "any".to_owned()));
    }
    parameters
}

fn start_command(slot: &str, start: Lsn, parameters: &[(&str, String)]) -> String {
    // The replication grammar knows only doubled quotes, no E'' strings (repl_scanner.l).
    let written: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{name} '{}'", value.replace('\'', "''"))).collect();
    let slot = quote_identifier(slot);
    format!("START_REPLICATION SLOT {slot} LOGICAL {start} ({})", written.join(", "))
}

/// As SQL literals, one after the other.
fn literals(parameters: &[(&str, String)]) -> String {
    let pairs: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{}, {}", quote_literal(name), quote_literal(value))).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SourceIdentity;
    use crate::wire::Endpoint;

    fn options() -> Options {
        Options {
            endpoint: Endpoint::parse("postgres://mover@blue/shop").unwrap(),
            slot: "s".to_owned(),
            publications: vec!["it's \"p\"".to_owned(), "q".to_owned()],
            expected: None,
            streaming: true,
            binary: true,
            bulk_bytes: 0,
            held_max: Duration::from_secs(1),
            status_interval: Duration::from_secs(1),
        }
    }

    fn lsn(raw: u64) -> Lsn {
        Lsn::new(raw).unwrap()
    }

    fn healthy() -> SlotState {
        SlotState {
            plugin: Some("pgoutput".to_owned()),
            database: Some("shop".to_owned()),
            active_pid: None,
            restart_lsn: Some(lsn(50)),
            confirmed_flush: Some(lsn(100)),
            wal_status: Some("reserved".to_owned()),
            invalidation_reason: None,
            two_phase: false,
            retained_bytes: 0,
            wal_end: None,
        }
    }

    #[test]
    fn the_command_asks_for_what_the_version_has() {
        let command = |version, form| start_command("s", lsn(0x10), &parameters(&options(), version, form));
        let (streamed, in_binary) = (Form { streaming: true, binary: false }, Form { streaming: false, binary: true });
        let names = r#"publication_names '"it''s ""p""","q"'"#;
        assert_eq!(
            command(130_010, Form { streaming: false, binary: false }),
            format!(r#"START_REPLICATION SLOT "s" LOGICAL 0/10 (proto_version '1', {names})"#)
        );
        assert!(
            command(140_000, streamed)
                .ends_with(&format!("(proto_version '2', {names}, messages 'true', streaming 'on')"))
        );
        assert!(
            command(150_000, in_binary)
                .ends_with(&format!("(proto_version '3', {names}, messages 'true', binary 'true')"))
        );
        assert!(command(180_000, streamed).ends_with("messages 'true', streaming 'on', origin 'any')"));
    }

    #[test]
    fn the_stream_begins_where_we_are_and_never_before_the_slot() {
        let check = |resume| check_slot(&options(), &healthy(), resume);
        assert_eq!(check(None).unwrap(), lsn(100));
        assert_eq!(check(Some(lsn(100))).unwrap(), lsn(100));
        assert_eq!(check(Some(lsn(120))).unwrap(), lsn(120));
        assert!(matches!(check(Some(lsn(99))), Err(Error::SlotAhead { .. })));
    }

    #[test]
    fn a_slot_that_cannot_give_everything_is_refused() {
        let check = |change: fn(&mut SlotState)| {
            let mut state = healthy();
            change(&mut state);
            check_slot(&options(), &state, Some(lsn(100))).unwrap_err()
        };
        let lost = check(|state| state.wal_status = Some("lost".to_owned()));
        assert!(matches!(lost, Error::SlotInvalidated { .. }));
        let invalidated = check(|state| state.invalidation_reason = Some("idle_timeout".to_owned()));
        assert!(invalidated.to_string().contains("idle_timeout"));
        assert!(matches!(check(|state| state.confirmed_flush = None), Error::SlotInvalidated { .. }));
        assert!(matches!(check(|state| state.plugin = None), Error::SlotOfAnother { .. }));
        assert!(matches!(check(|state| state.plugin = Some("wal2json".to_owned())), Error::SlotOfAnother { .. }));
        assert!(matches!(check(|state| state.database = Some("other".to_owned())), Error::SlotOfAnother { .. }));
    }

    #[test]
    fn another_source_is_refused() {
        let ours = SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 };
        let options = Options { expected: Some(ours.clone()), ..options() };
        let found = |system: &str, timeline| Identified {
            identity: SourceIdentity { system_identifier: system.to_owned(), timeline },
            wal_flush: lsn(1),
            server_version_num: 150_000,
        };
        assert!(check_identity(&options, &found("7", 1)).is_ok());
        for other in [found("8", 1), found("7", 2)] {
            assert!(matches!(check_identity(&options, &other), Err(Error::OtherSource { .. })));
        }
    }
}
