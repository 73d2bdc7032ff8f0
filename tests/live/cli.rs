//! The program as users start it: what it prints, and how it exits.

use std::fs;
use std::process::{Command, Output, Stdio};

use changeover::demo::Workspace;

use crate::support::{Daemon, TestConfig, source_and_target};

fn changeover(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_changeover"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Its exit code, standard output and standard error.
fn outcome(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn wrong_usage_exits_2() {
    for arguments in
        [&["frobnicate"][..], &["cutover", "--max-pause", "2"], &["status", "--watch", "--json"], &["throttle"], &[]]
    {
        let (code, _, complaint) = outcome(&changeover(arguments));
        assert_eq!(code, 2, "{arguments:?}: {complaint}");
    }
    let (code, help, _) = outcome(&changeover(&["--help"]));
    assert_eq!(code, 0);
    for command in [
        "demo", "init", "inspect", "check", "copy", "run", "status", "verify", "pause", "resume", "throttle",
        "cutover", "complete", "abort",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
    }
}

#[test]
fn a_wrong_configuration_exits_2_with_every_problem() {
    let workspace = Workspace::create_as_self("cli").unwrap();
    let path = workspace.write("wrong.toml", "[migration]\nnmae = \"shop\"\n[source]\nurl = \"x\"\n").unwrap();
    let (code, output, complaint) = outcome(&changeover(&["check", "--config", path.to_str().unwrap()]));
    assert_eq!((code, output.as_str()), (2, ""));
    for words in
        ["line 2: migration.nmae: unknown key; did you mean `name`?", "line 4: source.url", "target.url: is required"]
    {
        assert!(complaint.contains(words), "{words} in {complaint}");
    }
    let (code, _, complaint) = outcome(&changeover(&["run", "--config", "/nowhere/changeover.toml"]));
    assert_eq!(code, 2);
    assert!(complaint.contains("changeover init"), "{complaint}");
}

#[tokio::test]
async fn init_writes_a_configuration_that_check_accepts() {
    let pair = source_and_target().await;
    pair.source.connect().await.exec("CREATE TABLE t (id int PRIMARY KEY)").await;
    let workspace = Workspace::create_as_self("cli").unwrap();
    let path = workspace.dir().join("made.toml");
    let file = path.to_str().unwrap();
    let arguments = ["init", "--source", pair.source.url(), "--target", pair.target.url(), "-o", file];
    let (code, _, complaint) = outcome(&changeover(&arguments));
    assert_eq!(code, 0, "{complaint}");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("#   public.t "), "{text}");
    fs::write(&path, text.replace("/var/lib/changeover", workspace.dir().to_str().unwrap())).unwrap();
    let (code, report, complaint) = outcome(&changeover(&["check", "--config", file]));
    assert_eq!(code, 0, "{report}{complaint}");
    assert!(report.contains("PASS  source.wal_level"), "{report}");
    // What is there is not overwritten without a word.
    let (code, _, complaint) = outcome(&changeover(&arguments));
    assert_eq!(code, 1);
    assert!(complaint.contains("--force"), "{complaint}");
    let (code, _, complaint) = outcome(&changeover(&["init", "--source", "postgres://nobody@127.0.0.1:1/none"]));
    assert_eq!(code, 3, "{complaint}");
}

#[tokio::test]
async fn check_exits_1_when_something_fails_and_says_it_in_json_too() {
    let pair = source_and_target().await;
    pair.source.connect().await.exec("CREATE TABLE t (v text)").await;
    let daemon = Daemon::prepare(&TestConfig::new("shop", &pair));
    let (code, report, _) = outcome(&daemon.command(&["check"]));
    assert_eq!(code, 1, "{report}");
    assert!(report.contains("→ ALTER TABLE \"public\".\"t\" REPLICA IDENTITY FULL;"), "{report}");
    let (code, report, _) = outcome(&daemon.command(&["check", "--json"]));
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    let failed = |finding: &&serde_json::Value| finding["verdict"] == "fail";
    let failed: Vec<&serde_json::Value> = report["findings"].as_array().unwrap().iter().filter(failed).collect();
    assert_eq!(failed.len(), 1, "{report}");
    assert_eq!(failed[0]["check"], "source.replica_identity");
}

#[tokio::test]
async fn commands_to_a_daemon_that_does_not_run_exit_3_and_say_how_to_start_it() {
    let pair = source_and_target().await;
    let daemon = Daemon::prepare(&TestConfig::new("shop", &pair));
    for arguments in
        [&["status"][..], &["verify"], &["pause"], &["resume"], &["throttle", "--off"], &["cutover", "--yes"]]
    {
        let (code, output, complaint) = outcome(&daemon.command(arguments));
        assert_eq!((code, output.as_str()), (3, ""), "{arguments:?}: {complaint}");
        assert!(complaint.contains("no daemon answers") && complaint.contains("changeover run"), "{complaint}");
    }
    let (code, _, complaint) = outcome(&daemon.command(&["cutover"]));
    assert_eq!(code, 2, "{complaint}");
}

#[tokio::test]
async fn a_running_daemon_is_asked_and_told_through_the_same_program() {
    let pair = source_and_target().await;
    let (source, target) = (pair.source.connect().await, pair.target.connect().await);
    source
        .exec("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT n, 'v' FROM generate_series(1, 100) n")
        .await;
    let mut daemon = Daemon::start(&TestConfig::new("shop", &pair));
    daemon.wait_for_phase("streaming");
    let (code, screen, _) = outcome(&daemon.command(&["status"]));
    assert_eq!(code, 0);
    assert!(screen.starts_with("shop  streaming") && screen.contains("\npublic.t "), "{screen}");

    // A second daemon finds the port taken, and on another port the migration.
    let (code, _, complaint) = outcome(&daemon.command(&["run"]));
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("perhaps another daemon"), "{complaint}");
    let mut second = Command::new(env!("CARGO_BIN_EXE_changeover"));
    second.args(["run", "--config"]).arg(daemon.config_path()).env("CHANGEOVER_CONTROL_LISTEN", "127.0.0.1:0");
    let (code, _, complaint) = outcome(&second.stdin(Stdio::null()).output().unwrap());
    assert_eq!(code, 1, "{complaint}");
    assert!(complaint.contains("is led by") && complaint.contains("hint: stop that daemon first"), "{complaint}");

    assert_eq!(daemon.json(&["pause"])["paused"], true);
    assert_eq!(daemon.status().unwrap()["paused"], true);
    assert_eq!(outcome(&daemon.command(&["resume"])).0, 0);

    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    target.exec("UPDATE t SET v = 'somebody else' WHERE id = 7").await;
    let (code, report, _) = outcome(&daemon.command(&["verify", "--table", "public.t"]));
    assert_eq!(code, 1, "{report}");
    assert!(report.contains("(7): other values"), "{report}");
    let (code, _, complaint) = outcome(&daemon.command(&["verify", "--table", "public.nothing"]));
    assert_eq!(code, 1);
    assert!(complaint.contains("no table of the migration matches"), "{complaint}");
    // What was found different lets no cutover through, whatever an earlier pass found; and no abort while it runs.
    let (code, gates, _) = outcome(&daemon.command(&["cutover", "--dry-run"]));
    assert_eq!(code, 1, "{gates}");
    let (code, _, complaint) = outcome(&daemon.command(&["abort"]));
    assert_eq!(code, 1, "{complaint}");

    daemon.terminate();
    // As if an older version had made it.
    target.exec("DROP TABLE changeover.gathered, changeover.member").await;
    let (code, report, complaint) = outcome(&daemon.command(&["abort"]));
    assert_eq!(code, 0, "{complaint}");
    assert!(report.contains("removed slot changeover_shop"), "{report}");
    assert_eq!(target.scalar("SELECT to_regnamespace('changeover') IS NULL").await, "t");
    assert_eq!(source.scalar("SELECT count(*) FROM pg_replication_slots").await, "0");
}
