//! From what was typed to what the daemon relies on. Every value is looked at, so that all problems come at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;

use super::checked::{
    Adoptable, Apply, COPY_RATE_MIN, Config, Control, Cutover, Kafka, KafkaFormat, Limits, Log, Snapshot, SnapshotMode,
    Source, Spool, Target, Throttle, Verify,
};
use super::findings::Findings;
use super::raw::{
    Raw, RawApply, RawControl, RawKafka, RawLimits, RawLog, RawSnapshot, RawTables, RawThrottle, RawVerify,
};
use super::routers::check_routers;
use crate::model::{MigrationName, RowFilters, TableFilter, TablePattern};
use crate::telemetry::LogFormat;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// `None` only when `findings` holds a problem.
pub(super) fn check(raw: Raw, findings: &mut Findings<'_>) -> Option<Config> {
    let name = findings.required("migration.name", raw.migration.name);
    let migration = name.and_then(|name| findings.parse("migration.name", name.parse::<MigrationName>()));
    // Checked under any name, so that a missing one does not hide what else is wrong.
    let named = migration.clone().unwrap_or_else(|| "unnamed".parse().expect("it is a valid name"));

    let source_endpoint =
        findings.endpoint(("source.url", raw.source.url), ("source.password_file", raw.source.password_file));
    let target_endpoint =
        findings.endpoint(("target.url", raw.target.url), ("target.password_file", raw.target.password_file));
    let slot = adoptable("source.slot", raw.source.slot, &named, findings);
    let publication = adoptable("source.publication", raw.source.publication, &named, findings);
    let slot_timeout = findings.duration(
        "source.slot_timeout",
        raw.source.slot_timeout,
        Duration::from_secs(1)..=Duration::from_secs(24 * 3600),
        Duration::from_secs(60),
    );
    let bulk_bytes = findings.size("source.bulk", raw.source.bulk, 0..=GIB, 256 * MIB);
    if let (Some(source), Some(target)) = (&source_endpoint, &target_endpoint) {
        let place = |endpoint: &crate::wire::Endpoint| {
            (endpoint.host().to_owned(), endpoint.port(), endpoint.dbname().to_owned())
        };
        if place(source) == place(target) {
            findings.problem("target.url", "is the source itself: name another database or server");
        }
    }

    let routers = check_routers(raw.cutover.router, source_endpoint.as_ref(), target_endpoint.as_ref(), findings);
    let cutover = Cutover {
        max_pause: findings.duration(
            "cutover.max_pause",
            raw.cutover.max_pause,
            Duration::from_millis(50)..=Duration::from_secs(600),
            Duration::from_secs(2),
        ),
        max_lag_bytes: findings.size("cutover.max_lag", raw.cutover.max_lag, 0..=TIB, 16 * MIB),
        sequence_margin: findings.number("cutover.sequence_margin", raw.cutover.sequence_margin, 0..=1 << 40, 1000),
        routers,
    };
    let rows = check_rows(&raw.tables, findings);
    let tables = check_tables(raw.tables, findings);
    let snapshot = check_snapshot(raw.snapshot, findings);
    let kafka = raw.kafka.and_then(|kafka| check_kafka(kafka, &named, findings));
    let verify = check_verify(raw.verify, findings);
    let limits = check_limits(raw.limits, &named, findings);
    let apply = check_apply(raw.apply, findings);
    let control = check_control(raw.control, findings)?;
    let log = check_log(raw.log, findings);

    Some(Config {
        migration: migration?,
        source: Source { endpoint: source_endpoint?, slot, publication, slot_timeout, bulk_bytes },
        target: Target { endpoint: target_endpoint? },
        tables,
        rows,
        snapshot,
        kafka,
        verify,
        limits,
        spool: Spool { release_source_wal: raw.spool.release_source_wal.unwrap_or(false) },
        apply,
        cutover,
        control,
        log,
    })
}

fn adoptable(path: &str, typed: Option<String>, migration: &MigrationName, findings: &mut Findings<'_>) -> Adoptable {
    let Some(name) = typed else { return Adoptable { name: migration.object_name(), adopted: false } };
    if name.is_empty() {
        findings.problem(path, "is empty: leave the key out to have one made");
    }
    // A name of ours is ours: `abort` removes it, and a second run finds it.
    let adopted = name != migration.object_name();
    Adoptable { name, adopted }
}

fn check_tables(raw: RawTables, findings: &mut Findings<'_>) -> TableFilter {
    let mut patterns = |path: &str, typed: Vec<String>| {
        let mut checked = Vec::with_capacity(typed.len());
        for pattern in typed {
            checked.extend(findings.parse(path, TablePattern::parse(&pattern)));
        }
        checked
    };
    let include = raw.include.unwrap_or_else(|| vec!["*.*".to_owned()]);
    let nothing = include.is_empty();
    let filter = TableFilter {
        include: patterns("tables.include", include),
        exclude: patterns("tables.exclude", raw.exclude.unwrap_or_default()),
    };
    if nothing {
        findings.problem("tables.include", "is empty: leave the key out to take every table");
    }
    filter
}

/// What a condition means is for the server to say: `changeover check` asks it.
fn check_rows(raw: &RawTables, findings: &mut Findings<'_>) -> RowFilters {
    let mut filters = Vec::with_capacity(raw.rows.len());
    for (name, condition) in &raw.rows {
        let path = "tables.rows";
        let Some(pattern) = findings.parse(path, TablePattern::parse(name)) else { continue };
        match pattern.exact() {
            None => findings.problem(path, format!("{name:?}: name one table, without *")),
            Some(_) if condition.trim().is_empty() => {
                findings.problem(
                    path,
                    format!("the condition for {name:?} is empty: leave the table out to take every row"),
                );
            }
            Some(table) => filters.push((table, condition.trim().to_owned())),
        }
    }
    filters.into_iter().collect()
}

fn check_snapshot(raw: RawSnapshot, findings: &mut Findings<'_>) -> Snapshot {
    let modes = [("full", SnapshotMode::Full), ("data", SnapshotMode::Data), ("none", SnapshotMode::None)];
    let mem = "snapshot.maintenance_work_mem";
    Snapshot {
        mode: findings.choice("snapshot.mode", raw.mode, &modes, SnapshotMode::Full),
        workers: findings.number("snapshot.workers", raw.workers, 1..=64, 4) as usize,
        split_bytes: findings.size("snapshot.split", raw.split, MIB..=TIB, 128 * MIB),
        snapshot_age_max: findings.duration(
            "snapshot.max_snapshot_age",
            raw.max_snapshot_age,
            Duration::from_secs(1)..=Duration::from_secs(24 * 3600),
            Duration::from_secs(3600),
        ),
        index_workers: findings.number("snapshot.index_workers", raw.index_workers, 1..=64, 2) as usize,
        index_parallel_workers: raw
            .index_parallel_workers
            .map(|count| findings.number("snapshot.index_parallel_workers", Some(count), 0..=64, 0) as u32),
        maintenance_work_mem_bytes: findings.size_if_given(mem, raw.maintenance_work_mem, MIB..=TIB),
        pg_dump: raw.pg_dump.map(PathBuf::from),
        throttle: check_throttle(raw.throttle, findings),
    }
}

fn check_throttle(raw: RawThrottle, findings: &mut Findings<'_>) -> Throttle {
    let path = |name: &str| format!("snapshot.throttle.{name}");
    let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
    let sessions = raw.max_active_sessions;
    let hold_query = raw.hold_query.map(|query| query.trim().trim_end_matches(';').trim_end().to_owned());
    if hold_query.as_deref() == Some("") {
        findings.problem(&path("hold_query"), "is empty: leave the key out to ask nothing");
    }
    Throttle {
        rate_max: findings.size_if_given(&path("max_rate"), raw.max_rate, COPY_RATE_MIN..=TIB),
        standby_lag_bytes: findings.size_if_given(&path("max_standby_lag"), raw.max_standby_lag, MIB..=TIB),
        standby_delay: findings.duration_if_given(&path("max_standby_delay"), raw.max_standby_delay, second..=hour),
        active_sessions: sessions
            .map(|count| findings.number(&path("max_active_sessions"), Some(count), 0..=100_000, 0)),
        hold_query,
        query_timeout: findings.duration(
            &path("query_timeout"),
            raw.query_timeout,
            Duration::from_millis(10)..=Duration::from_secs(60),
            second,
        ),
        interval: findings.duration(&path("interval"), raw.interval, Duration::from_millis(100)..=hour, second),
        hold_max: findings.duration(
            &path("max_hold"),
            raw.max_hold,
            Duration::ZERO..=Duration::from_secs(24 * 3600),
            Duration::from_secs(300),
        ),
    }
}

fn check_kafka(raw: RawKafka, migration: &MigrationName, findings: &mut Findings<'_>) -> Option<Kafka> {
    let partitions = findings.number("kafka.partitions", raw.partitions, 1..=10_000, 1);
    let transaction = findings.duration(
        "kafka.transaction",
        raw.transaction,
        Duration::from_millis(1)..=Duration::from_secs(60),
        Duration::from_millis(100),
    );
    let replication_factor =
        raw.replication_factor.map(|factor| findings.number("kafka.replication_factor", Some(factor), 1..=100, 1));
    let topic_prefix = raw.topic_prefix.unwrap_or_else(|| migration.to_string());
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if topic_prefix.is_empty() || !topic_prefix.chars().all(legal) {
        findings.problem("kafka.topic_prefix", format!("{topic_prefix:?}: use letters, digits, '.', '_' and '-'"));
    }
    let format = findings.choice("kafka.format", raw.format, &[("json", KafkaFormat::Json)], KafkaFormat::Json);
    let properties = check_properties(raw.properties, raw.property_files, findings);
    Some(Kafka {
        bootstrap_servers: findings.required("kafka.bootstrap_servers", raw.bootstrap_servers)?,
        topic_prefix,
        format,
        partitions: partitions as u32,
        replication_factor: replication_factor.map(|factor| factor as u16),
        transaction_ms: transaction.as_millis() as u64,
        properties,
    })
}

/// What exactly-once delivery and our memory bound rest on; another value would break them silently.
const KAFKA_PROPERTIES_OURS: &[&str] =
    &["bootstrap.servers", "transactional.id", "enable.idempotence", "acks", "partitioner", "isolation.level"];

fn check_properties(
    mut properties: BTreeMap<String, String>,
    files: BTreeMap<String, String>,
    findings: &mut Findings<'_>,
) -> BTreeMap<String, String> {
    for (name, file) in files {
        if let Some(secret) = findings.secret("kafka.property_files", &file) {
            properties.insert(name, secret.reveal().to_owned());
        }
    }
    for name in properties.keys().filter(|name| KAFKA_PROPERTIES_OURS.contains(&name.as_str())) {
        findings.problem("kafka.properties", format!("{name} is set by changeover and cannot be changed"));
    }
    properties
}

fn check_verify(raw: RawVerify, findings: &mut Findings<'_>) -> Verify {
    Verify {
        workers: findings.number("verify.workers", raw.workers, 1..=64, 2) as usize,
        keys_listed: findings.number("verify.keys_listed", raw.keys_listed, 1..=10_000, 20) as usize,
    }
}

fn check_limits(raw: RawLimits, migration: &MigrationName, findings: &mut Findings<'_>) -> Limits {
    let directory = raw.spool_dir.unwrap_or_else(|| "/var/lib/changeover".to_owned());
    if directory.is_empty() {
        findings.problem("limits.spool_dir", "is empty: name a directory");
    }
    Limits {
        memory_bytes: findings.size("limits.memory", raw.memory, 16 * MIB..=64 * GIB, 256 * MIB) as usize,
        spool_bytes: findings.size("limits.spool", raw.spool, 64 * MIB..=1024 * TIB, 20 * GIB),
        spool_dir: PathBuf::from(directory).join(migration.as_str()),
    }
}

fn check_apply(raw: RawApply, findings: &mut Findings<'_>) -> Apply {
    Apply {
        group_bytes: findings.size("apply.group", raw.group, 64 * 1024..=GIB, 16 * MIB) as usize,
        group_delay: findings.duration(
            "apply.group_delay",
            raw.group_delay,
            Duration::ZERO..=Duration::from_secs(10),
            Duration::from_millis(5),
        ),
        sessions: findings.number("apply.sessions", raw.sessions, 1..=16, 2) as usize,
        dead_letters: findings.choice(
            "apply.refused_rows",
            raw.refused_rows,
            &[("stop", false), ("dead-letter", true)],
            false,
        ),
    }
}

fn check_control(raw: RawControl, findings: &mut Findings<'_>) -> Option<Control> {
    let token = raw.token_file.and_then(|file| findings.secret("control.token_file", &file));
    let listen = raw.listen.unwrap_or_else(|| "127.0.0.1:9187".to_owned());
    match listen.parse::<SocketAddr>() {
        Ok(listen) => Some(Control { listen, token }),
        Err(_) => {
            findings
                .problem("control.listen", format!("{listen:?}: write an address and a port, such as 127.0.0.1:9187"));
            None
        }
    }
}

fn check_log(raw: RawLog, findings: &mut Findings<'_>) -> Log {
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let levels = [
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    Log {
        format: findings.choice("log.format", raw.format, &formats, LogFormat::Text),
        level: findings.choice("log.level", raw.level, &levels, LevelFilter::INFO),
    }
}
