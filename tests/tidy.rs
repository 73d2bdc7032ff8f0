//! The shape of the repository: what machines can hold of the house style.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every room in the order of the flow, and the rooms it may use. A new line here is argued for in its commit.
const ROOMS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("link", &[]),
    ("telemetry", &["model"]),
    ("wire", &["model", "telemetry"]),
    ("source", &["model", "link", "telemetry", "wire"]),
    ("decode", &["model"]),
    ("schema", &["model", "telemetry", "wire"]),
    ("snapshot", &["model", "link", "schema", "telemetry", "wire"]),
    ("transform", &["model"]),
    // `decode` states what it wants of a place to put large transactions; `spool` is that place.
    ("spool", &["model", "link", "telemetry", "decode"]),
    // `transform` holds the plan that says which tables and columns a change goes to.
    ("apply", &["model", "link", "telemetry", "wire", "transform"]),
    ("publish", &["model", "link", "telemetry"]),
    ("progress", &["model", "link", "telemetry"]),
    ("verify", &["model", "schema", "transform", "telemetry", "wire"]),
    ("cutover", &["model", "verify", "progress", "telemetry", "wire"]),
    (
        "pipeline",
        &[
            "model",
            "link",
            "telemetry",
            "wire",
            "source",
            "decode",
            "schema",
            "snapshot",
            "transform",
            "spool",
            "apply",
            "publish",
            "progress",
            "verify",
            "cutover",
            // The checked configuration is what a daemon is made from, and a new migration is checked before it is begun.
            "config",
            "preflight",
        ],
    ),
    // What it checks is a configuration against two servers.
    ("preflight", &["model", "schema", "telemetry", "wire", "source", "config"]),
    // The only reader of files and environment; it fills each room's `Options`.
    (
        "config",
        &[
            "model",
            "telemetry",
            "wire",
            "source",
            "decode",
            "schema",
            "snapshot",
            "transform",
            "spool",
            "apply",
            "publish",
            "progress",
            "verify",
            "cutover",
            "pipeline",
            "preflight",
        ],
    ),
    ("control", &["model", "telemetry", "pipeline", "cutover", "progress", "verify", "config"]),
    // Throw-away servers, a load, and the daemon driven from outside, over HTTP: it knows no room of the flow.
    ("demo", &["model", "telemetry", "wire", "control", "pipeline"]),
    (
        "cli",
        &[
            "model",
            "link",
            "telemetry",
            "wire",
            "source",
            "decode",
            "schema",
            "snapshot",
            "transform",
            "spool",
            "apply",
            "publish",
            "progress",
            "verify",
            "cutover",
            "pipeline",
            "preflight",
            "config",
            "control",
            "demo",
        ],
    ),
];

/// What stands at the top level, hidden files aside.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "benches",
    "config",
    "docker",
    "schemas",
    "src",
    "target",
    "tests",
];

/// Why: beyond this a file holds more than one thing.
const LINES_MAX: usize = 600;

struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Its path below the repository, with `/`.
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// The room it belongs to; `None` for `lib.rs` and `main.rs`.
    fn room(&self) -> Option<String> {
        let below = self.path.strip_prefix(root().join("src")).ok()?;
        (below.components().count() > 1).then(|| below.iter().next().unwrap().to_str().unwrap().to_owned())
    }

    /// Its lines with comments left out, up to its tests, which may use anything.
    fn code(&self) -> String {
        let lines = self.text.lines().take_while(|line| line.trim() != "#[cfg(test)]");
        let code = lines.map(|line| line.split("//").next().unwrap_or_default());
        code.collect::<Vec<_>>().join("\n")
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` whose name ends in one of `endings` (all for none), `target` and git's own aside.
fn files(dir: &Path, endings: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if (endings.is_empty() || endings.iter().any(|ending| name.ends_with(ending)))
            && let Ok(text) = fs::read_to_string(&path)
        {
            found.push(Source { path, text });
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn sources() -> Vec<Source> {
    files(&root().join("src"), &[".rs"])
}

fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The first path segment behind each `crate::`, groups in braces included.
fn rooms_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(group) => used.extend(group_heads(group)),
            None => used.extend(identifier(after)),
        }
    }
    used
}

/// `model::{A, B}, link}` gives `model` and `link`.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_head) = (1, Vec::new(), true);
    for (at, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => at_head = true,
            other if at_head && !other.is_whitespace() => {
                heads.extend(identifier(&group[at..]));
                at_head = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn identifier(text: &str) -> Option<String> {
    let end = text.find(|character: char| !character.is_alphanumeric() && character != '_').unwrap_or(text.len());
    (end > 0).then(|| text[..end].to_owned())
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    let mut complaints = Vec::new();
    for source in sources() {
        let Some(room) = source.room() else { continue };
        let Some((_, may_use)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            complaints.push(format!("{}: the room {room} is not in ROOMS", source.name()));
            continue;
        };
        for used in rooms_used(&source.code()) {
            let is_room = ROOMS.iter().any(|(name, _)| *name == used);
            if is_room && used != room && !may_use.contains(&used.as_str()) {
                complaints.push(format!("{}: {room} may not use {used}", source.name()));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn uses_are_read_out_of_groups_and_paths() {
    let used = rooms_used("use crate::{model::{Lsn, Batch}, link};\nlet x = crate::wire::connect();");
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["link", "model", "wire"]);
}

#[test]
fn a_mod_rs_is_only_a_door() {
    let doors = sources().into_iter().filter(|source| source.path.ends_with("mod.rs"));
    let with_code = |source: &Source| {
        source.code().lines().any(|line| {
            let line = line.trim();
            // A trait may stand in a door: its functions have no bodies.
            let is_declared_only = line.ends_with(';');
            let starts = ["fn ", "pub fn ", "async fn ", "pub async fn ", "impl ", "impl<"];
            !is_declared_only && starts.iter().any(|start| line.starts_with(start))
        })
    };
    assert_none(doors.filter(with_code).map(|source| format!("{}: code in a door", source.name())).collect());
}

#[test]
fn every_door_says_what_its_room_is_for() {
    let doors = sources().into_iter().filter(|source| source.path.ends_with("mod.rs"));
    let silent = doors.filter(|door| !door.text.starts_with("//!"));
    assert_none(silent.map(|door| format!("{}: no module doc", door.name())).collect());
}

#[test]
fn no_file_becomes_the_system() {
    let rust = ["src", "tests", "benches"].into_iter().flat_map(|dir| files(&root().join(dir), &[".rs"]));
    let long = rust.filter(|source| source.text.lines().count() > LINES_MAX);
    assert_none(long.map(|source| format!("{}: more than {LINES_MAX} lines", source.name())).collect());
}

#[test]
fn nothing_is_left_to_do_in_code() {
    let unfinished = ["todo!(", "unimplemented!(", "dbg!("];
    let left = sources().into_iter().filter(|source| unfinished.iter().any(|mark| source.code().contains(mark)));
    assert_none(left.map(|source| format!("{}: unfinished", source.name())).collect());
}

#[test]
fn every_decision_over_time_is_pure() {
    let machines = sources().into_iter().filter(|source| source.path.ends_with("machine.rs"));
    let impure = ["async fn", ".await;", ".await?", "Instant::now", "unix_us()", "std::fs", "tokio_postgres"];
    let mut complaints = Vec::new();
    for machine in machines {
        let code = machine.code();
        complaints.extend(
            impure.iter().filter(|mark| code.contains(**mark)).map(|mark| format!("{}: {mark}", machine.name())),
        );
    }
    assert_none(complaints);
}

#[test]
fn each_metric_is_named_once_and_with_our_prefix() {
    let names = metric_names();
    assert!(!names.is_empty());
    let strange = names.iter().filter(|name| !name.starts_with("changeover_"));
    assert_none(strange.map(|name| format!("{name}: no prefix")).collect());
    let mut complaints = Vec::new();
    for source in sources().into_iter().filter(|source| !source.path.ends_with("telemetry/metrics.rs")) {
        let code = source.code();
        let again = names.iter().filter(|name| code.contains(&format!("\"{name}\"")));
        complaints.extend(again.map(|name| format!("{}: {name} is a constant of telemetry::metrics", source.name())));
        for macro_name in ["counter!(\"", "gauge!(\"", "histogram!(\""] {
            if code.contains(macro_name) {
                complaints.push(format!("{}: a metric named in place", source.name()));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn dashboards_and_alerts_use_metrics_that_exist() {
    let names = metric_names();
    let mut complaints = Vec::new();
    for file in files(&root().join("docker"), &[".json", ".yml", ".yaml"]) {
        for after in file.text.split("changeover_").skip(1) {
            let name = format!("changeover_{}", identifier(after).unwrap_or_default());
            // Histograms and summaries are read through these.
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            if !names.iter().any(|known| *known == name || Some(known.as_str()) == base) {
                complaints.push(format!("{}: {name} is no metric of ours", file.name()));
            }
        }
    }
    assert_none(complaints);
}

/// The values of the constants in `telemetry/metrics.rs`, labels aside.
fn metric_names() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/telemetry/metrics.rs")).unwrap();
    let constants = text.lines().filter(|line| line.starts_with("pub const ") && !line.starts_with("pub const LABEL"));
    constants.filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

#[test]
fn links_in_our_pages_lead_somewhere() {
    let mut complaints = Vec::new();
    for page in files(root(), &[".md"]) {
        for after in page.text.split("](").skip(1) {
            let target = after.split([')', '#', ' ']).next().unwrap_or_default();
            let is_file = !target.is_empty() && !target.contains("://");
            if is_file && !page.path.parent().unwrap().join(target).exists() {
                complaints.push(format!("{}: no {target}", page.name()));
            }
        }
    }
    assert_none(complaints);
}

#[test]
fn the_top_level_stays_as_it_is() {
    let entries = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange = entries.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()));
    assert_none(strange.map(|name| format!("{name}: belongs below a directory that is there")).collect());
}

#[test]
fn no_file_names_the_place_it_was_written_at() {
    // In pieces, so that this file does not name them.
    let places = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("registry.npm", "js"),
        concat!("files.python", "hosted"),
        concat!("repo1.ma", "ven"),
        concat!("deb.deb", "ian"),
    ];
    let mut complaints = Vec::new();
    for file in files(root(), &[]).into_iter().filter(|file| !file.path.ends_with("Cargo.lock")) {
        let named = places.iter().filter(|place| file.text.contains(**place));
        complaints.extend(named.map(|place| format!("{}: {place}", file.name())));
    }
    assert_none(complaints);
}

#[test]
fn the_composed_migration_is_one_the_daemon_takes() {
    let secret = std::env::temp_dir().join(format!("changeover-tidy-{}", std::process::id()));
    fs::write(&secret, "secret\n").unwrap();
    let text = fs::read_to_string(root().join("docker/changeover.toml")).unwrap();
    let here = ["/run/secrets/db_password", "/run/secrets/token"]
        .iter()
        .fold(text, |text, place| text.replace(place, secret.to_str().unwrap()));
    let config = changeover::config::parse(&here, &changeover::config::Environment::new());
    fs::remove_file(&secret).unwrap();
    let problems = config.err().unwrap_or_default();
    assert_none(problems.iter().map(|problem| format!("docker/changeover.toml: {problem:?}")).collect());
}
