//! Runs every check, in the order in which one would look by hand.

use tracing::debug;

use super::finding::{Finding, Report};
use super::sides::{Side, Sides};
use super::{Error, adopted, contents, here, load, owners, routes, rows, server, source, tables, target};
use crate::config::{Config, SnapshotMode};
use crate::model::Disposition;
use crate::schema;
use crate::telemetry;

/// Looks at both sides, this machine, the broker and the routers. Never fails: what cannot be asked is a FAIL.
pub async fn check(config: &Config) -> Report {
    let mut findings = Findings::default();
    if let Some(sides) = Box::pin(reach(config, &mut findings)).await {
        let (mut of_source, mut of_target) = (Findings::default(), Findings::default());
        let target = async {
            of_target.add("target.replica_role", target::replica_role(&sides).await);
            check_target(&sides, true, &mut of_target).await;
        };
        tokio::join!(Box::pin(check_source(&sides, &mut of_source)), Box::pin(target));
        findings.0.extend(of_source.0.into_iter().chain(of_target.0));
    }
    check_around(config, &mut findings).await;
    Report { findings: findings.0 }
}

/// Before a copy without a stream: what reading takes (who the source is, is asked over a replication connection) and
/// what the target is. Slots, publications and identities are not asked for.
pub async fn check_copy(config: &Config) -> Report {
    let mut findings = Findings::default();
    if let Some(sides) = Box::pin(reach(config, &mut findings)).await {
        let side = &sides.source;
        findings.add("source.version", server::version("source.version", side).await);
        findings.add("source.replication", source::replication_privilege(&sides).await);
        findings.add("source.select", source::select_privilege(side).await);
        findings.add("source.row_security", source::row_security(side).await);
        findings.add("source.tables", Ok(tables::any(side)));
        Box::pin(check_target(&sides, false, &mut findings)).await;
    }
    Report { findings: findings.0 }
}

async fn reach<'a>(config: &'a Config, findings: &mut Findings) -> Option<Sides<'a>> {
    let (source, target) = tokio::join!(Box::pin(Side::source(config)), Box::pin(Side::target(config)));
    let source = findings.reached("source.reach", config.source.endpoint.to_string(), source);
    let target = findings.reached("target.reach", config.target.endpoint.to_string(), target);
    match Sides::new(config, source?, target?).await {
        Ok(sides) => Some(sides),
        Err(error) => {
            findings.add("target.state", Err(error));
            None
        }
    }
}

async fn check_source(sides: &Sides<'_>, findings: &mut Findings) {
    let side = &sides.source;
    findings.add("source.version", server::version("source.version", side).await);
    findings.add("source.known_bugs", server::known_bugs(side).await);
    findings.add("source.primary", server::primary("source.primary", side).await);
    findings.add("source.wal_level", source::wal_level(side).await);
    findings.add("source.slots", source::free_slots(sides).await);
    findings.add("source.senders", source::free_senders(sides).await);
    findings.add("source.connections", server::free_connections("source.connections", side, sides.config).await);
    findings.add("source.replication", source::replication_privilege(sides).await);
    findings.add("source.select", source::select_privilege(side).await);
    findings.add("source.row_security", source::row_security(side).await);
    findings.add("source.slot_retention", source::slot_retention(side).await);
    findings.add("source.prepared", source::prepared_transactions(sides).await);
    findings.add("source.long_transactions", source::long_transactions(side).await);
    findings.add("source.slot", adopted::slot(sides).await);
    findings.add("source.publication", adopted::publication(sides).await);
    findings.add("source.tables", Ok(tables::any(side)));
    if !sides.config.rows.is_empty() {
        findings.add("source.row_filters", rows::filters(sides).await);
        findings.add("source.filtered_parents", rows::filtered_parents(sides).await);
    }
    match load::limits(sides).await {
        Ok(None) => {}
        Ok(Some(finding)) => findings.add(finding.check, Ok(finding)),
        Err(error) => findings.add("source.throttle", Err(error)),
    }
    findings.add("source.replica_identity", Ok(tables::replica_identity(side)));
    findings.add("source.without_key", Ok(tables::without_key(side)));
    findings.add("source.not_streamed", Ok(tables::not_streamed(side)));
    findings.add("source.sequences", Ok(tables::sequences(side)));
    findings.add("source.large_objects", Ok(tables::large_objects(side)));
}

/// `streams`: changes will follow the rows.
async fn check_target(sides: &Sides<'_>, streams: bool, findings: &mut Findings) {
    let side = &sides.target;
    findings.add("target.version", target::version(sides).await);
    findings.add("target.primary", server::primary("target.primary", side).await);
    findings.add("target.connections", server::free_connections("target.connections", side, sides.config).await);
    findings.add("target.encoding", Ok(target::encoding(sides)));
    findings.add("target.collation", Ok(target::collation(sides)));
    findings.add("target.money", target::money(sides).await);
    findings.add("target.create", target::create_privilege(side).await);
    findings.add("target.other_daemon", target::other_daemon(sides).await);
    findings.add("target.started", Ok(contents::started(sides)));
    match sides.config.snapshot.mode {
        SnapshotMode::Full => {
            findings.add("target.empty", contents::empty_database(sides).await);
            findings.add("target.extensions", contents::extensions(sides).await);
            findings.add("target.owners", owners::owners(sides).await);
            findings.add("source.extension_rows", contents::extension_rows(sides).await);
            match schema::missing_roles(&sides.source.session, &sides.target.session).await {
                Ok(missing) => findings.0.extend([contents::roles(&missing), contents::passwords(&missing)]),
                Err(error) => findings.0.push(unasked("target.roles", &error.into())),
            }
            findings.add("target.present_roles", contents::present_roles(sides).await);
            findings.add_all("target.tablespaces", contents::lacks(sides).await);
            findings.add("here.pg_dump", here::pg_dump(sides).await);
        }
        SnapshotMode::Data => {
            findings.add_all("target.schema", contents::schema(sides, streams).await);
            findings.add("target.empty", contents::empty_tables(sides).await);
        }
        SnapshotMode::None => findings.add_all("target.schema", contents::schema(sides, streams).await),
    }
}

async fn check_around(config: &Config, findings: &mut Findings) {
    findings.add("here.spool_dir", Ok(here::spool_dir(config).await));
    if let Some(kafka) = &config.kafka {
        findings.add("kafka.reach", Ok(routes::kafka(kafka).await));
    }
    for router in &config.cutover.routers {
        findings.0.extend(routes::router(router).await);
    }
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, check: &'static str, answer: Result<Finding, Error>) {
        match answer {
            Ok(finding) => self.0.push(finding),
            Err(error) => self.0.push(unasked(check, &error)),
        }
    }

    fn add_all(&mut self, check: &'static str, answer: Result<Vec<Finding>, Error>) {
        match answer {
            Ok(findings) => self.0.extend(findings),
            Err(error) => self.0.push(unasked(check, &error)),
        }
    }

    fn reached(&mut self, check: &'static str, place: String, side: Result<Side, Error>) -> Option<Side> {
        match side {
            Ok(side) => {
                self.0.push(Finding::pass(check, place));
                Some(side)
            }
            Err(error) => {
                debug!(check, "side not reached");
                self.0.push(unasked(check, &error));
                None
            }
        }
    }
}

fn unasked(check: &'static str, error: &Error) -> Finding {
    let remedy = match error.disposition() {
        Disposition::Halt { hint } => hint,
        Disposition::Retry => {
            "see that the server runs, listens there and lets this user in, then check again".to_owned()
        }
    };
    Finding::fail(check, telemetry::chain(error), remedy)
}
