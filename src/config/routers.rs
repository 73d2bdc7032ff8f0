//! The routers of a cutover: each kind has keys of its own.

use std::path::PathBuf;
use std::time::Duration;

use super::checked::{CommandRouter, HttpRouter, PgBouncer, Router};
use super::findings::Findings;
use super::raw::RawRouter;
use crate::wire::Endpoint;

#[derive(Clone, Copy, PartialEq, Eq)]
enum RouterKind {
    PgBouncer,
    Command,
    Http,
}

const KINDS: [(&str, RouterKind); 3] =
    [("pgbouncer", RouterKind::PgBouncer), ("command", RouterKind::Command), ("http", RouterKind::Http)];

/// Routers are asked in the order of the file.
pub(super) fn check_routers(
    raw: Vec<RawRouter>,
    source: Option<&Endpoint>,
    target: Option<&Endpoint>,
    findings: &mut Findings<'_>,
) -> Vec<Router> {
    let mut routers = Vec::with_capacity(raw.len());
    for (number, router) in raw.into_iter().enumerate() {
        let table = format!("cutover.router[{number}]");
        routers.extend(check_router(&table, router, source, target, findings));
    }
    routers
}

fn check_router(
    table: &str,
    raw: RawRouter,
    source: Option<&Endpoint>,
    target: Option<&Endpoint>,
    findings: &mut Findings<'_>,
) -> Option<Router> {
    let kind_path = format!("{table}.kind");
    findings.required(&kind_path, raw.kind.clone())?;
    let problems_before = findings.problems.len();
    let kind = findings.choice(&kind_path, raw.kind.clone(), &KINDS, RouterKind::PgBouncer);
    if findings.problems.len() > problems_before {
        return None;
    }
    refuse_foreign_keys(table, kind, &raw, findings);
    match kind {
        RouterKind::PgBouncer => {
            pgbouncer(table, raw, source, target, findings).map(|router| Router::PgBouncer(Box::new(router)))
        }
        RouterKind::Command => command(table, raw, findings).map(Router::Command),
        RouterKind::Http => http(table, raw, findings).map(Router::Http),
    }
}

fn refuse_foreign_keys(table: &str, kind: RouterKind, raw: &RawRouter, findings: &mut Findings<'_>) {
    let given = [
        ("admin_url", raw.admin_url.is_some(), RouterKind::PgBouncer),
        ("password_file", raw.password_file.is_some(), RouterKind::PgBouncer),
        ("databases_file", raw.databases_file.is_some(), RouterKind::PgBouncer),
        ("database", raw.database.is_some(), RouterKind::PgBouncer),
        ("green", raw.green.is_some(), RouterKind::PgBouncer),
        ("command", raw.command.is_some(), RouterKind::Command),
        ("url", raw.url.is_some(), RouterKind::Http),
    ];
    for (key, _, owner) in given.into_iter().filter(|(_, is_given, owner)| *is_given && *owner != kind) {
        let word = KINDS.iter().find(|(_, known)| *known == owner).map_or("", |(word, _)| word);
        findings.problem(&format!("{table}.{key}"), format!("belongs to kind = {word:?}"));
    }
}

fn pgbouncer(
    table: &str,
    raw: RawRouter,
    source: Option<&Endpoint>,
    target: Option<&Endpoint>,
    findings: &mut Findings<'_>,
) -> Option<PgBouncer> {
    let (url_path, file_path) = (format!("{table}.admin_url"), format!("{table}.password_file"));
    let admin = findings.endpoint((&url_path, raw.admin_url), (&file_path, raw.password_file));
    let databases_file = findings.required(&format!("{table}.databases_file"), raw.databases_file);
    let database = raw.database.or_else(|| source.map(|source| source.dbname().to_owned()));
    let green = raw.green.or_else(|| target.map(route_to));
    Some(PgBouncer {
        admin: admin?,
        databases_file: PathBuf::from(databases_file?),
        database: database?,
        green: green?,
    })
}

/// Where PgBouncer finds the target: the same place as ours.
fn route_to(target: &Endpoint) -> String {
    format!("host={} port={} dbname={}", target.host(), target.port(), target.dbname())
}

fn command(table: &str, raw: RawRouter, findings: &mut Findings<'_>) -> Option<CommandRouter> {
    let timeout = timeout(table, raw.timeout, findings);
    let mut words = raw.command.unwrap_or_default().into_iter();
    match words.next() {
        Some(program) if !program.is_empty() => {
            Some(CommandRouter { program: PathBuf::from(program), arguments: words.collect(), timeout })
        }
        Some(_) | None => {
            findings.problem(&format!("{table}.command"), "is required: a list, the program first");
            None
        }
    }
}

fn http(table: &str, raw: RawRouter, findings: &mut Findings<'_>) -> Option<HttpRouter> {
    let timeout = timeout(table, raw.timeout, findings);
    let path = format!("{table}.url");
    let url = findings.required(&path, raw.url)?;
    if !url.starts_with("http://") {
        findings.problem(&path, "write a URL that begins with http://");
        return None;
    }
    Some(HttpRouter { url, timeout })
}

fn timeout(table: &str, typed: Option<String>, findings: &mut Findings<'_>) -> Duration {
    let allowed = Duration::from_millis(10)..=Duration::from_secs(60);
    findings.duration(&format!("{table}.timeout"), typed, allowed, Duration::from_secs(1))
}
