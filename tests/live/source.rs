//! The replication session against real servers: what it refuses, what it survives, and that nothing holds up its reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use changeover::demo::{PgCluster, PostgresPrograms, StopMode};
use changeover::link;
use changeover::model::{Disposition, FramePayload, Lsn, RowFilters, SourceIdentity, TableName};
use changeover::source::{self, Error, Options, Ports, SessionState, SourceEvent, WhenActive};
use changeover::wire::{self, Endpoint, Session};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{cluster, cluster_of};

const SLOT: &str = "changeover_test";
const PATIENCE: Duration = Duration::from_secs(60);

/// A session under way, and the ends that a decoder and the sinks would hold.
struct Stream {
    tasks: JoinSet<Result<(), Error>>,
    events: link::Receiver<SourceEvent>,
    confirmed: watch::Sender<Option<Lsn>>,
    resume: watch::Sender<Option<Lsn>>,
    state: watch::Receiver<SessionState>,
    ahead: watch::Sender<bool>,
    plain: Arc<AtomicBool>,
    stop: CancellationToken,
}

impl Stream {
    fn start(options: Options, capacity_bytes: usize) -> Self {
        let (sender, events) = link::channel(capacity_bytes, 64);
        let (confirmed, confirmed_seen) = watch::channel(None);
        let (resume, resume_seen) = watch::channel(None);
        let (state_told, state) = watch::channel(SessionState::Connecting);
        let (ahead, ahead_seen) = watch::channel(false);
        let plain = Arc::new(AtomicBool::new(false));
        let stop = CancellationToken::new();
        let ports = Ports {
            events: sender,
            confirmed: confirmed_seen,
            resume: resume_seen,
            state: state_told,
            ahead: ahead_seen,
            plain: Arc::clone(&plain),
            stop: stop.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(source::run(options, ports));
        Self { tasks, events, confirmed, resume, state, ahead, plain, stop }
    }

    async fn next(&mut self) -> SourceEvent {
        let next = timeout(PATIENCE, self.events.recv()).await.expect("an event comes");
        next.expect("the session goes on").item
    }

    async fn begun(&mut self) -> Lsn {
        loop {
            if let SourceEvent::Session { start, .. } = self.next().await {
                return start;
            }
        }
    }

    /// pgoutput messages up to the one that ends transaction number `count`, and where that ends.
    async fn transactions(&mut self, count: usize) -> (Vec<Vec<u8>>, Lsn) {
        let (mut messages, mut ended) = (Vec::new(), 0);
        loop {
            let SourceEvent::Frames(batch) = self.next().await else { continue };
            for frame in batch.frames {
                let FramePayload::XLogData { message, .. } = frame.payload else { continue };
                messages.push(message.to_vec());
                if message[0] == b'C' {
                    ended += 1;
                    if ended == count {
                        let end = u64::from_be_bytes(*message[10..].first_chunk().unwrap());
                        return (messages, Lsn::new(end).unwrap());
                    }
                }
            }
        }
    }

    /// What the session ends with.
    async fn end(mut self) -> Result<(), Error> {
        timeout(PATIENCE, self.tasks.join_next()).await.expect("it ends").unwrap().unwrap()
    }

    async fn halted(self) -> Error {
        let error = self.end().await.unwrap_err();
        assert!(matches!(error.disposition(), Disposition::Halt { .. }), "{error:?}");
        error
    }
}

fn endpoint(server: &PgCluster) -> Endpoint {
    Endpoint::parse(&server.url("postgres")).unwrap()
}

fn options(server: &PgCluster) -> Options {
    Options {
        endpoint: endpoint(server),
        slot: SLOT.to_owned(),
        publications: vec!["p".to_owned()],
        expected: None,
        streaming: false,
        binary: false,
        bulk_bytes: 0,
        held_max: PATIENCE,
        status_interval: Duration::from_secs(1),
    }
}

/// A table `t`, published, and a slot.
async fn prepared(server: &PgCluster) -> Session {
    let session = wire::connect(&endpoint(server), "test").await.unwrap();
    session.batch_execute("CREATE TABLE public.t (n bigint PRIMARY KEY, v text)").await.unwrap();
    source::create_publication(&session, "p", &[TableName::new("public", "t")], &RowFilters::default()).await.unwrap();
    source::create_slot(&endpoint(server), SLOT, PATIENCE).await.unwrap();
    session
}

/// Asks again and again until `sql` says true.
async fn until(session: &Session, sql: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !session.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(Instant::now() < deadline, "{sql} never came true");
    }
}

#[tokio::test]
async fn a_slot_is_made_seen_and_dropped() {
    let server = cluster(|options| options);
    let identified = source::identify(&endpoint(&server)).await.unwrap();
    assert_eq!(identified.identity.timeline, 1);
    assert!(identified.server_version_num >= 130_000);
    let session = prepared(&server).await;
    let state = source::slot_state(&session, SLOT).await.unwrap().unwrap();
    assert_eq!((state.plugin.as_deref(), state.database.as_deref()), (Some("pgoutput"), Some("postgres")));
    assert_eq!((state.active_pid, state.invalidated(), state.two_phase), (None, None, false));
    assert!(state.confirmed_flush >= state.restart_lsn);
    let again = source::create_slot(&endpoint(&server), SLOT, PATIENCE).await.unwrap_err();
    assert!(matches!(again, Error::SlotExists { .. }), "{again:?}");
    assert!(source::drop_slot(&session, SLOT, WhenActive::Refuse).await.unwrap());
    assert!(!source::drop_slot(&session, SLOT, WhenActive::Refuse).await.unwrap());
    assert_eq!(source::slot_state(&session, SLOT).await.unwrap(), None);
}

#[tokio::test]
async fn every_installed_version_streams_as_far_as_it_can() {
    for programs in PostgresPrograms::find().unwrap() {
        let (server, major) = (cluster_of(programs.major), programs.major);
        let session = prepared(&server).await;
        let mut stream = Stream::start(Options { streaming: true, ..options(&server) }, 1 << 20);
        let SourceEvent::Session { proto_version, streaming, start, .. } = stream.next().await else {
            panic!("a session begins")
        };
        assert_eq!((proto_version, streaming), (major.clamp(13, 16) - 12, major >= 14));
        session.batch_execute("INSERT INTO public.t VALUES (1, 'hello')").await.unwrap();
        let (messages, end) = stream.transactions(1).await;
        assert!(messages.iter().any(|message| message.windows(5).any(|part| part == b"hello")), "{major}");
        stream.confirmed.send_replace(Some(end));
        until(&session, &format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots")).await;
        let state = source::slot_state(&session, SLOT).await.unwrap().unwrap();
        assert!(state.active_pid.is_some() && state.invalidated().is_none() && state.confirmed_flush > Some(start));
        stream.stop.cancel();
        stream.end().await.unwrap();
        assert!(source::drop_slot(&session, SLOT, WhenActive::Terminate).await.unwrap());
        assert!(!server.log().contains("ERROR"), "{major}: {}", server.log());
    }
}

#[tokio::test]
async fn a_slot_that_waits_for_a_writer_names_it_and_leaves_nothing() {
    let server = cluster(|options| options);
    let session = wire::connect(&endpoint(&server), "test").await.unwrap();
    let writer = wire::connect(&endpoint(&server), "forgotten").await.unwrap();
    session.batch_execute("CREATE TABLE public.t (n int)").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO public.t VALUES (4711)").await.unwrap();
    let error = source::create_slot(&endpoint(&server), SLOT, Duration::from_secs(1)).await.unwrap_err();
    let Error::SlotNotCreated { blockers, .. } = &error else { panic!("{error:?}") };
    assert_eq!(blockers.0[0].pid, Some(writer.backend_pid()));
    let said = error.to_string();
    assert!(said.contains("changeover forgotten") && said.contains("postgres") && !said.contains("4711"), "{said}");
    assert_eq!(source::slot_state(&session, SLOT).await.unwrap(), None);
    writer.batch_execute("COMMIT").await.unwrap();
    source::create_slot(&endpoint(&server), SLOT, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn a_publication_holds_the_tables_it_was_made_for() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let tables = [TableName::new("public", "t")];
    assert_eq!(source::publication_tables(&session, "p").await.unwrap(), Some(tables.to_vec()));
    assert_eq!(source::publication_tables(&session, "q").await.unwrap(), None);
    source::create_publication(&session, "p", &tables, &RowFilters::default()).await.unwrap();
    let other = source::create_publication(&session, "p", &[], &RowFilters::default()).await.unwrap_err();
    assert!(matches!(other, Error::PublicationExists { .. }), "{other:?}");
    source::drop_publication(&session, "p").await.unwrap();
    source::drop_publication(&session, "p").await.unwrap();
    assert_eq!(source::publication_tables(&session, "p").await.unwrap(), None);
}

#[tokio::test]
async fn transactions_that_were_running_are_waited_out() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let writer = wire::connect(&endpoint(&server), "writer").await.unwrap();
    writer.batch_execute("BEGIN; INSERT INTO public.t VALUES (1)").await.unwrap();
    let error = source::wait_out_running_transactions(&session, Duration::from_millis(200)).await.unwrap_err();
    let Error::TransactionsOpen { blockers, .. } = &error else { panic!("{error:?}") };
    assert_eq!(blockers.0.iter().map(|blocker| blocker.pid).collect::<Vec<_>>(), [Some(writer.backend_pid())]);
    let (waited, committed) = tokio::join!(
        source::wait_out_running_transactions(&session, PATIENCE),
        writer.batch_execute("SELECT pg_sleep(0.2); COMMIT")
    );
    waited.unwrap();
    committed.unwrap();
    // One that begins later is nobody's to wait for.
    writer.batch_execute("BEGIN; INSERT INTO public.t VALUES (2)").await.unwrap();
    let later = wire::connect(&endpoint(&server), "later").await.unwrap();
    let pid = later.backend_pid();
    let asking = format!("SELECT query LIKE '%pg_snapshot_xmin%' FROM pg_stat_activity WHERE pid = {pid}");
    let (waited, ()) = tokio::join!(source::wait_out_running_transactions(&later, PATIENCE), async {
        until(&session, &asking).await;
        session.batch_execute("BEGIN; INSERT INTO public.t VALUES (3)").await.unwrap();
        writer.batch_execute("COMMIT").await.unwrap();
    });
    waited.unwrap();
}

#[tokio::test]
async fn what_is_confirmed_moves_the_slot_and_stopping_ends_the_walsender() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let mut stream = Stream::start(options(&server), 1 << 20);
    stream.begun().await;
    session.batch_execute("INSERT INTO public.t VALUES (1, 'hello')").await.unwrap();
    let (messages, end) = stream.transactions(1).await;
    assert!(messages.iter().any(|message| message.windows(5).any(|part| part == b"hello")));
    assert!(matches!(*stream.state.borrow_and_update(), SessionState::Streaming { received } if received >= end));
    stream.confirmed.send_replace(Some(end));
    let confirmed = format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots");
    until(&session, &confirmed).await;
    stream.stop.cancel();
    let state = stream.state.clone();
    stream.end().await.unwrap();
    assert_eq!(*state.borrow(), SessionState::Stopped);
    until(&session, "SELECT NOT active FROM pg_replication_slots").await;
    assert!(!server.log().contains("unexpected EOF"), "{}", server.log());
}

#[tokio::test]
async fn a_backlog_read_lazily_is_the_backlog() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let load = "DO $$ BEGIN FOR i IN 1..20000 LOOP INSERT INTO public.t VALUES (i, repeat('x', i % 300)); COMMIT; END LOOP; END $$";
    session.batch_execute(load).await.unwrap();
    let sql = format!(
        "SELECT data FROM pg_logical_slot_peek_binary_changes('{SLOT}', NULL, NULL, 'proto_version', '1',
         'publication_names', 'p')"
    );
    let expected: Vec<Vec<u8>> = session.query(&sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    let mut stream = Stream::start(options(&server), 64 << 20);
    let began = Instant::now();
    let (messages, _) = stream.transactions(20_000).await;
    eprintln!("{} messages in {:?}", messages.len(), began.elapsed());
    assert_eq!(messages.len(), expected.len());
    assert!(messages == expected);
}

/// The socket's window is small on one machine. Where a row fills it, either side might wait for a timer of the other:
/// these 80 MB then take minutes.
#[tokio::test]
async fn rows_larger_than_the_sockets_window_do_not_stand_still() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let load = "DO $$ BEGIN FOR i IN 1..800 LOOP INSERT INTO public.t VALUES (i, repeat('x', i * 7919 % 200000)); COMMIT; END LOOP; END $$";
    session.batch_execute(load).await.unwrap();
    let mut stream = Stream::start(options(&server), 64 << 20);
    let (messages, _) = timeout(Duration::from_secs(60), stream.transactions(800)).await.expect("it flows");
    assert!(messages.iter().map(Vec::len).sum::<usize>() > 70_000_000);
    // And not behind: each as it comes.
    for _ in 0..2 {
        session.batch_execute(&load.replace("1..800", "801..900")).await.unwrap();
        timeout(Duration::from_secs(20), stream.transactions(100)).await.expect("it flows");
        session.batch_execute("DELETE FROM public.t WHERE n > 800").await.unwrap();
        stream.transactions(1).await;
    }
}

#[tokio::test]
async fn a_transaction_is_streamed_before_it_commits_where_that_is_asked_for() {
    let server = cluster(|options| options.setting("logical_decoding_work_mem", "64kB"));
    let session = prepared(&server).await;
    let mut stream = Stream::start(Options { streaming: true, ..options(&server) }, 64 << 20);
    let SourceEvent::Session { streaming: true, proto_version: 2.., .. } = stream.next().await else {
        panic!("14 and later stream transactions")
    };
    session.batch_execute("BEGIN; INSERT INTO public.t SELECT n, 'x' FROM generate_series(1, 5000) n").await.unwrap();
    // A stream begins (`S`) while the transaction is open.
    loop {
        let SourceEvent::Frames(batch) = stream.next().await else { continue };
        let is_start =
            |payload: &FramePayload| matches!(payload, FramePayload::XLogData { message, .. } if message[0] == b'S');
        if batch.frames.iter().any(|frame| is_start(&frame.payload)) {
            break;
        }
    }
    session.batch_execute("ROLLBACK").await.unwrap();
    stream.stop.cancel();
    stream.end().await.unwrap();
}

/// Six small transactions in more log than counts as a backlog.
async fn write_backlog(session: &tokio_postgres::Client) {
    for n in 0..6 {
        // A switch leaves the rest of its segment out: 80 MB of log that nobody has to read.
        session.batch_execute(&format!("INSERT INTO public.t VALUES ({n}, 'x')")).await.unwrap();
        session.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    }
}

#[tokio::test]
async fn a_backlog_comes_at_its_commits_and_then_a_new_session_streams() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    write_backlog(&session).await;
    let mut stream = Stream::start(Options { streaming: true, ..options(&server) }, 64 << 20);
    let SourceEvent::Session { streaming: false, .. } = stream.next().await else { panic!("a backlog comes whole") };
    let (messages, _) = stream.transactions(6).await;
    assert_eq!(messages.iter().filter(|message| message[0] == b'I').count(), 6);
    // Read to its end and not yet confirmed, it would be decoded once more for the next session.
    until(&session, "SELECT bool_and(sent_lsn >= pg_current_wal_flush_lsn()) FROM pg_stat_replication").await;
    let reader = "SELECT pid FROM pg_stat_replication";
    let before: i32 = session.query_one(reader, &[]).await.unwrap().get(0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(before, session.query_one(reader, &[]).await.unwrap().get::<_, i32>(0));
    let end: String = session.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    stream.confirmed.send_replace(Some(end.parse().unwrap()));
    loop {
        if let SourceEvent::Session { streaming, .. } = stream.next().await {
            assert!(streaming);
            break;
        }
    }
    session.batch_execute("INSERT INTO public.t VALUES (7, 'x')").await.unwrap();
    let (messages, _) = stream.transactions(1).await;
    assert_eq!(
        messages.iter().filter(|message| message[0] == b'I').count(),
        1,
        "what was confirmed does not come again"
    );
    stream.stop.cancel();
    stream.end().await.unwrap();
}

/// A session that the source streams says up to where it may be applied ahead; one that was given up is asked for at its commit
/// until the backlog is done.
#[tokio::test]
async fn a_backlog_is_streamed_where_the_target_takes_it_ahead() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    write_backlog(&session).await;
    let mut stream = Stream::start(Options { streaming: true, ..options(&server) }, 64 << 20);
    let SourceEvent::Session { streaming: false, ahead_until: None, .. } = stream.next().await else {
        panic!("a backlog comes whole where the target does not take it ahead")
    };
    stream.ahead.send_replace(true);
    let break_off = "SELECT pg_terminate_backend(pid) FROM pg_stat_replication";
    for given_up in [false, true] {
        stream.plain.store(given_up, Ordering::Relaxed);
        session.query_one(break_off, &[]).await.unwrap();
        let (mut broken, mut begun) = (false, None);
        while begun.is_none() {
            match stream.next().await {
                SourceEvent::Broken => broken = true,
                SourceEvent::Session { streaming, ahead_until, .. } => begun = Some((streaming, ahead_until.is_some())),
                SourceEvent::Frames(_) => {}
            }
        }
        assert_eq!(begun, Some((!given_up, !given_up)));
        assert_eq!(broken, given_up, "whoever holds something open is told that it does in vain");
    }
    let end: String = session.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap().get(0);
    stream.confirmed.send_replace(Some(end.parse().unwrap()));
    stream.begun().await;
    assert!(!stream.plain.load(Ordering::Relaxed), "the next backlog may be taken ahead again");
    stream.stop.cancel();
    stream.end().await.unwrap();
}

#[tokio::test]
async fn reports_go_on_while_nobody_takes_what_was_read() {
    let server = cluster(|options| options.setting("wal_sender_timeout", "2s"));
    let session = prepared(&server).await;
    let load = "INSERT INTO public.t SELECT n, repeat('x', 1000) FROM generate_series(1, 30000) n";
    session.batch_execute(load).await.unwrap();
    let mut stream = Stream::start(options(&server), 64 << 10);
    stream.begun().await;
    until(&session, "SELECT count(*) > 0 FROM pg_stat_replication").await;
    let before: i32 = session.query_one("SELECT pid FROM pg_stat_replication", &[]).await.unwrap().get(0);
    // Three times the server's patience, by the server's clock.
    session.batch_execute("SELECT pg_sleep(6)").await.unwrap();
    let after: i32 = session.query_one("SELECT pid FROM pg_stat_replication", &[]).await.unwrap().get(0);
    assert_eq!(before, after, "the same session goes on");
    assert!(!server.log().contains("due to replication timeout"), "{}", server.log());
    let (messages, _) = stream.transactions(1).await;
    assert_eq!(messages.iter().filter(|message| message[0] == b'I').count(), 30_000);
    assert!(matches!(*stream.state.borrow_and_update(), SessionState::Streaming { .. }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_source_is_survived() {
    let mut server = cluster(|options| options);
    drop(prepared(&server).await);
    let mut stream = Stream::start(options(&server), 1 << 20);
    stream.begun().await;
    for (round, mode) in [StopMode::Fast, StopMode::Immediate, StopMode::Kill].into_iter().enumerate() {
        let writer = wire::connect(&endpoint(&server), "test").await.unwrap();
        writer.batch_execute(&format!("INSERT INTO public.t VALUES ({round})")).await.unwrap();
        let (_, end) = stream.transactions(1).await;
        stream.resume.send_replace(Some(end));
        stream.confirmed.send_replace(Some(end));
        server.restart(mode).unwrap();
        assert!(stream.begun().await >= end, "{mode:?}");
    }
    stream.stop.cancel();
    stream.end().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_stops_does_not_wait_for_a_dead_sink() {
    let mut server = cluster(|options| options);
    let session = prepared(&server).await;
    let mut stream = Stream::start(options(&server), 1 << 20);
    let start = stream.begun().await;
    stream.confirmed.send_replace(Some(start));
    session.batch_execute("INSERT INTO public.t VALUES (1)").await.unwrap();
    let _ = stream.transactions(1).await;
    let began = Instant::now();
    server.stop(StopMode::Fast);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(server.log().contains("database system is shut down"), "{}", server.log());
}

#[tokio::test]
async fn what_does_not_belong_to_us_is_refused() {
    let server = cluster(|options| options);
    let session = prepared(&server).await;
    let (fresh, whole) = (|| options(&server), 1 << 20);

    let expected = Some(SourceIdentity { system_identifier: "1".to_owned(), timeline: 1 });
    let other = Stream::start(Options { expected, ..fresh() }, whole).halted().await;
    assert!(matches!(other, Error::OtherSource { .. }), "{other:?}");

    let missing = Stream::start(Options { slot: "none".to_owned(), ..fresh() }, whole).halted().await;
    assert!(matches!(missing, Error::SlotMissing { .. }), "{missing:?}");

    let missing = Stream::start(Options { publications: vec!["none".to_owned()], ..fresh() }, whole).halted().await;
    assert!(matches!(missing, Error::PublicationMissing { .. }), "{missing:?}");

    session.batch_execute("SELECT pg_create_logical_replication_slot('theirs', 'test_decoding')").await.unwrap();
    let theirs = Stream::start(Options { slot: "theirs".to_owned(), ..fresh() }, whole).halted().await;
    assert!(matches!(theirs, Error::SlotOfAnother { .. }), "{theirs:?}");

    let ahead = Stream::start(fresh(), whole);
    ahead.resume.send_replace(Lsn::new(1));
    let ahead = ahead.halted().await;
    assert!(matches!(ahead, Error::SlotAhead { .. }), "{ahead:?}");

    let mut first = Stream::start(fresh(), whole);
    first.begun().await;
    // It may be the session of a daemon that was killed, which passes.
    let mut second = Stream::start(fresh(), whole);
    let named =
        |state: &SessionState| matches!(state, SessionState::Waiting { error, .. } if error.contains("reads from it"));
    timeout(PATIENCE, second.state.wait_for(named)).await.expect("it waits and says for whom").unwrap();
    first.stop.cancel();
    first.end().await.unwrap();
    second.begun().await;
    // Whoever cleans up may end the reader.
    assert!(source::drop_slot(&session, SLOT, WhenActive::Terminate).await.unwrap());
    assert!(matches!(second.halted().await, Error::SlotMissing { .. }));
}

#[tokio::test]
async fn a_slot_whose_log_is_gone_is_refused_and_not_tried_again() {
    let server = cluster(|options| options.setting("max_slot_wal_keep_size", "1MB").setting("max_wal_size", "32MB"));
    let session = prepared(&server).await;
    let fill = "INSERT INTO public.t SELECT n, repeat('x', 900) FROM generate_series(1, 1000) n";
    session.batch_execute(fill).await.unwrap();
    for _ in 0..4 {
        session.batch_execute("SELECT pg_switch_wal(); DELETE FROM public.t WHERE n = 0").await.unwrap();
        session.batch_execute("UPDATE public.t SET v = v || 'y'; CHECKPOINT").await.unwrap();
    }
    let error = Stream::start(options(&server), 1 << 20).halted().await;
    assert!(matches!(error, Error::SlotInvalidated { .. }), "{error:?}");
}
