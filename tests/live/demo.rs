//! `changeover demo` as users start it.

use std::process::{Command, Output};

use serde_json::Value;

use crate::support::bootstrap;

fn demo(arguments: &[&str]) -> Value {
    let output = run(arguments);
    let (printed, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{printed}\n{told}", output.status);
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}\n{printed}"))
}

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_changeover"));
    // Small and slow: a debug build on a shared machine shows whether it is right, not how fast it is.
    command.args(["demo", "--json", "--rows", "20000", "--rate", "150", "--duration", "3s"]).args(arguments);
    command.output().unwrap()
}

#[test]
fn the_demo_loses_nothing_and_says_so() {
    let report = demo(&[]);
    for none in ["failed_transactions", "lost_writes", "duplicated_writes"] {
        assert_eq!(report[none], 0, "{report:#}");
    }
    assert_eq!(report["verdict"], "equal");
    assert!(
        report["rows_verified"].as_u64() > Some(35_000) && report["transactions"].as_u64() > Some(500),
        "{report:#}"
    );
}

#[test]
fn the_demo_publishes_the_stream_and_reads_back_what_blue_committed() {
    let report = demo(&["--kafka", &bootstrap()]);
    assert_eq!([&report["lost_writes"], &report["duplicated_writes"]], [0, 0], "{report:#}");
}

#[test]
fn a_version_that_is_not_there_is_named_with_what_installs_it() {
    let output = run(&["--source-version", "9"]);
    assert_eq!(output.status.code(), Some(3));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("PostgreSQL 9") && told.contains("docker/setup.sh"), "{told}");
}
