//! What is said to somebody who typed something wrong, and that the examples are right.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use super::keys::{KEYS, Key, Kind};
use super::*;

const SMALLEST: &str = r#"
[migration]
name = "shop"
[source]
url = "postgres://mover@blue:5432/shop"
[target]
url = "postgres://mover@green:5432/shop"
"#;

fn check(text: &str, environment: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let environment = environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
    parse(text, &environment).map_err(|problems| problems.iter().map(Problem::to_string).collect())
}

fn problems(text: &str) -> Vec<String> {
    check(text, &[]).expect_err("something is wrong with it")
}

#[test]
fn three_tables_are_enough() {
    let config = check(SMALLEST, &[]).unwrap();
    assert_eq!(config.source.slot, Adoptable { name: "changeover_shop".into(), adopted: false });
    assert!(config.tables.matches(&crate::model::TableName::new("any", "table")));
    assert_eq!(config.snapshot.mode, SnapshotMode::Full);
    assert_eq!(config.limits.spool_dir, Path::new("/var/lib/changeover/shop"));
    assert_eq!(config.cutover.max_pause, Duration::from_secs(2));
    assert!(config.kafka.is_none());
}

#[test]
fn all_problems_come_at_once_each_with_its_line_and_key() {
    let text = r#"
[migration]
name = "Shop"
[source]
url = "mysql://mover@blue/shop"
slto = "mine"
[target]
[tables]
include = ["orders"]
[snapshot]
mode = "everything"
workers = "four"
[limits]
memory = "256 megabytes"
spool = "1MiB"
[cutover]
max_pause = "2"
[[cutover.router]]
kind = "haproxy"
[[cutover.router]]
kind = "pgbouncer"
command = ["x"]
[control]
listen = "9187"
"#;
    let found = problems(text);
    for (number, expected) in [
        "line 3: migration.name: \"Shop\" is no name for a migration",
        "line 5: source.url: read the connection's URL",
        "line 6: source.slto: unknown key; did you mean `slot`?",
        "line 7: target.url: is required",
        "line 9: tables.include: \"orders\" is no table pattern",
        "line 11: snapshot.mode: \"everything\" is not one of full, data, none",
        "line 12: snapshot.workers: expected a whole number, found string",
        "line 14: limits.memory: read \"256 megabytes\" as a size",
        "line 15: limits.spool: \"1MiB\" is not between 64 MiB and",
        "line 17: cutover.max_pause: read \"2\" as a time",
        "line 19: cutover.router[0].kind: \"haproxy\" is not one of pgbouncer, command, http",
        "line 20: cutover.router[1].admin_url: is required",
        "line 20: cutover.router[1].databases_file: is required",
        "line 22: cutover.router[1].command: belongs to kind = \"command\"",
        "line 24: control.listen: \"9187\": write an address and a port",
    ]
    .iter()
    .enumerate()
    {
        let given = found.get(number).map_or("nothing", String::as_str);
        assert!(given.starts_with(expected), "expected {expected:?}, found {given:?} in {found:#?}");
    }
    assert_eq!(found.len(), 15, "{found:#?}");
}

#[test]
fn the_source_keeps_its_log_unless_told_otherwise() {
    assert!(!check(SMALLEST, &[]).unwrap().spool.release_source_wal);
    let asked = format!("{SMALLEST}[spool]\nrelease_source_wal = true\n");
    assert!(check(&asked, &[]).unwrap().spool.release_source_wal);
    assert!(check(SMALLEST, &[("CHANGEOVER_SPOOL_RELEASE_SOURCE_WAL", "true")]).unwrap().spool.release_source_wal);
    let variable = [("CHANGEOVER_SPOOL_RELEASE_SOURCE_WAL", "yes")];
    let found = check(SMALLEST, &variable).expect_err("yes is no choice");
    assert!(found[0].contains("expected true or false"), "{found:#?}");
    let found = problems(&format!("{SMALLEST}[spool]\nrelease_source_wal = \"true\"\n"));
    assert!(found[0].contains("expected true or false, found string"), "{found:#?}");
}

#[test]
fn broken_toml_is_reported_with_its_line_and_nothing_is_guessed_from_it() {
    let found = problems("[migration]\nname = shop\n[source]\nurl = \"x");
    assert!(found.iter().all(|problem| problem.contains("not TOML")), "{found:#?}");
    assert!(found[0].starts_with("line 2: "), "{found:#?}");
}

#[test]
fn a_key_in_the_wrong_place_is_shown_its_right_one() {
    let found = problems(&format!("workers = 3\n[sources]\n{SMALLEST}"));
    assert_eq!(found[0], "line 1: workers: unknown key; did you mean `snapshot.workers`?");
    assert_eq!(found[1], "line 2: sources: unknown key; did you mean `source`?");
}

#[test]
fn a_password_in_a_bad_url_is_not_repeated() {
    for url in ["postgres://mover:hunter2@blue:port/shop", "x://a:hunter2@b"] {
        let text = SMALLEST.replace("postgres://mover@blue:5432/shop", url);
        let found = problems(&text).join("\n");
        assert!(!found.contains("hunter2"), "{found}");
    }
    let config = check(&SMALLEST.replace("mover@blue", "mover:hunter2@blue"), &[]).unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}

#[test]
fn one_database_is_not_both_sides() {
    let found = problems(&SMALLEST.replace("@green", "@blue"));
    assert_eq!(found, ["line 7: target.url: is the source itself: name another database or server"]);
}

#[test]
fn the_environment_overrides_the_file() {
    let config = check(
        "[migration]\nname = \"shop\"\n",
        &[
            ("CHANGEOVER_SOURCE_URL", "postgres://mover@blue/shop"),
            ("CHANGEOVER_TARGET_URL", "postgres://mover@green/shop"),
            ("CHANGEOVER_SNAPSHOT_WORKERS", "9"),
            ("CHANGEOVER_CUTOVER_MAX_PAUSE", "300ms"),
            ("CHANGEOVER_PORT", "tcp://10.0.0.1:80"),
        ],
    )
    .unwrap();
    assert_eq!(config.snapshot.workers, 9);
    assert_eq!(config.cutover.max_pause, Duration::from_millis(300));
    assert_eq!(config.source.endpoint.host().to_string(), "blue");
}

#[test]
fn a_wrong_variable_is_named_as_a_variable() {
    let wrong =
        [("CHANGEOVER_SNAPSHOT_WORKERS", "many"), ("CHANGEOVER_SOURCE_URI", "x"), ("CHANGEOVER_LOG_LEVEL", "loud")];
    let found = check(SMALLEST, &wrong).unwrap_err();
    assert_eq!(
        found,
        [
            "CHANGEOVER_LOG_LEVEL: \"loud\" is not one of error, warn, info, debug, trace",
            "CHANGEOVER_SNAPSHOT_WORKERS: expected a whole number, found \"many\"",
            "CHANGEOVER_SOURCE_URI: unknown variable; did you mean CHANGEOVER_SOURCE_URL?",
        ]
    );
}

#[test]
fn secrets_come_from_files_and_a_missing_file_is_a_problem() {
    let directory = std::env::temp_dir().join(format!("changeover-secrets-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let (token, empty) = (directory.join("token"), directory.join("empty"));
    std::fs::write(&token, "s3cret\n").unwrap();
    std::fs::write(&empty, "\n").unwrap();
    let with = |path: &Path| format!("{SMALLEST}[control]\ntoken_file = {:?}\n", path.display().to_string());
    let config = check(&with(&token), &[]).unwrap();
    assert_eq!(config.control.token.unwrap().reveal(), "s3cret");
    assert!(problems(&with(&empty))[0].ends_with("is empty"));
    assert!(problems(&with(&directory.join("none")))[0].contains("No such file"));
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn kafka_properties_that_exactly_once_rests_on_are_refused() {
    let kafka = "[kafka]\nbootstrap_servers = \"b:9092\"\nproperties = { acks = \"0\", \"linger.ms\" = \"20\" }\n";
    let found = problems(&format!("{SMALLEST}{kafka}"));
    assert_eq!(found, ["line 10: kafka.properties: acks is set by changeover and cannot be changed"]);
}

#[test]
fn what_spares_the_source_is_off_until_it_is_asked_for() {
    let throttle = check(SMALLEST, &[]).unwrap().snapshot.throttle;
    assert_eq!((throttle.rate_max, throttle.standby_lag_bytes, throttle.standby_delay), (None, None, None));
    assert_eq!(
        (throttle.active_sessions, throttle.hold_query, throttle.hold_max),
        (None, None, Duration::from_secs(300))
    );
    let asked =
        "[snapshot.throttle]\nmax_standby_delay = \"30s\"\nmax_active_sessions = 0\nhold_query = \"SELECT true ; \"\n";
    let rate = [("CHANGEOVER_SNAPSHOT_THROTTLE_MAX_RATE", "50MiB")];
    let throttle = check(&format!("{SMALLEST}{asked}"), &rate).unwrap().snapshot.throttle;
    assert_eq!((throttle.rate_max, throttle.active_sessions), (Some(50 << 20), Some(0)));
    assert_eq!(
        (throttle.standby_delay, throttle.hold_query.as_deref()),
        (Some(Duration::from_secs(30)), Some("SELECT true"))
    );
    let wrong = "[snapshot.throttle]\nmax_rate = \"1KiB\"\nmax_standby_delay = \"1ms\"\nhold_query = \" ;\"\nmax_hodl = \"1s\"\n";
    let found = problems(&format!("{SMALLEST}{wrong}"));
    assert!(
        found[0].starts_with("line 9: snapshot.throttle.max_rate: \"1KiB\" is not between 64 KiB and"),
        "{found:#?}"
    );
    assert!(found[1].starts_with("line 10: snapshot.throttle.max_standby_delay: \"1ms\" is not between"), "{found:#?}");
    assert!(found[2].starts_with("line 11: snapshot.throttle.hold_query: is empty"), "{found:#?}");
    assert!(found[3].ends_with("unknown key; did you mean `max_hold`?"), "{found:#?}");
}

#[test]
fn rows_are_named_by_table_and_never_by_pattern() {
    let with = |rows: &str| format!("{SMALLEST}[tables.rows]\n{rows}\n");
    let config = check(&with(r#""public.orders" = " region = 'eu' ""#), &[]).unwrap();
    assert_eq!(config.rows.of(&crate::model::TableName::new("public", "orders")), Some("region = 'eu'"));
    assert_eq!(
        problems(&with(r#""public.*" = "true""#)),
        ["line 8: tables.rows: \"public.*\": name one table, without *"]
    );
    assert!(problems(&with(r#""public.t" = " ""#))[0].contains("is empty"));
}

#[test]
fn transforms_may_be_named_but_not_yet_given() {
    assert!(check(&format!("{SMALLEST}[transform.\"public.customer\"]\n"), &[]).is_ok());
    let found = problems(&format!("{SMALLEST}[transform.\"public.customer\"]\ndrop = [\"x\"]\n"));
    assert!(found[0].contains("transforms are not offered"), "{found:#?}");
}

#[test]
fn every_example_loads() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        // Secrets stand in files that are not here.
        let text = std::fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> = text.lines().filter(|line| !line.contains("/etc/changeover/")).collect();
        if let Err(problems) = check(&kept.join("\n"), &[]) {
            panic!("{}: {problems:#?}", path.display());
        }
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    assert!(names.len() >= 4, "{names:?}");
}

#[test]
fn the_full_example_explains_every_key() {
    let text = include_str!("../../config/full.toml");
    for key in KEYS {
        let name = key.path.rsplit('.').next().unwrap();
        let explained = name == "*" || text.lines().any(|line| line.trim_start_matches(['#', ' ']).starts_with(name));
        assert!(explained, "config/full.toml says nothing about {}", key.path);
    }
}

/// Paths of the leaves of the schema, as the list of keys writes them.
fn schema_leaves(path: &str, node: &serde_json::Value, leaves: &mut BTreeSet<String>) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if let Some(properties) = node["properties"].as_object() {
        for (name, inner) in properties {
            schema_leaves(&join(name), inner, leaves);
        }
    } else if node["items"]["properties"].is_object() {
        schema_leaves(&format!("{path}[]"), &node["items"], leaves);
    } else if path == "transform" {
        leaves.insert("transform.*".to_owned());
    } else {
        leaves.insert(path.to_owned());
    }
}

#[test]
fn the_schema_and_the_list_of_keys_are_one() {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../../schemas/config.schema.json")).unwrap();
    let mut leaves = BTreeSet::new();
    schema_leaves("", &schema, &mut leaves);
    let known: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(leaves, known);
    for Key { path, kind } in KEYS {
        if let Kind::Choice(words) = kind {
            let pointer =
                format!("/properties/{}", path.replace("[].", "/items/properties/").replace('.', "/properties/"));
            let listed = schema.pointer(&pointer).unwrap_or_else(|| panic!("no {pointer}"));
            assert_eq!(listed["enum"], serde_json::json!(words), "{path}");
        }
    }
}

#[test]
fn every_example_fits_the_schema() {
    let schema: serde_json::Value = serde_json::from_str(include_str!("../../schemas/config.schema.json")).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap() {
        let path = entry.unwrap().path();
        let example: toml::Table = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let example = serde_json::to_value(example).unwrap();
        let errors: Vec<String> = validator.iter_errors(&example).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", path.display());
    }
    let wrong = serde_json::json!({ "migration": { "name": "shop" }, "source": { "url": "x", "slto": "y" } });
    assert!(!validator.is_valid(&wrong));
}
