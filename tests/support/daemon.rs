//! The real daemon: the program as users start it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use changeover::demo::{Workspace, free_port};
use changeover::telemetry::Point;
use serde_json::Value;
use tokio::time::Instant;

use super::TestConfig;
use super::config::binary;

const PATIENCE: Duration = Duration::from_secs(90);

/// A `changeover run` with a configuration, a spool directory and a control port of its own. Its log goes to a file that is
/// printed when the test fails. Dropping it kills it, and fails the test if it logged an ERROR that was not expected.
pub struct Daemon {
    workspace: Workspace,
    config: PathBuf,
    expected_errors: Vec<String>,
}

impl Daemon {
    pub fn start(config: &TestConfig) -> Self {
        let mut daemon = Self::prepare(config);
        daemon.start_again();
        daemon
    }

    /// Writes the configuration and starts nothing: for the commands that need no daemon (`check`, `copy`, `abort`).
    pub fn prepare(config: &TestConfig) -> Self {
        let workspace = Workspace::create_as_self("daemon").unwrap();
        let spool = workspace.dir().join("spool");
        let text = config.text(&spool, free_port().unwrap());
        let config = workspace.write("changeover.toml", text).unwrap();
        fs::create_dir(workspace.dir().join("points")).unwrap();
        Self { workspace, config, expected_errors: Vec::new() }
    }

    /// Starts it after [`kill`](Self::kill) or [`terminate`](Self::terminate), with the same configuration and spool.
    pub fn start_again(&mut self) {
        let command = self.workspace.command(binary());
        self.launch(command);
    }

    /// Starts it so that none of its files can grow beyond so many bytes, until `prlimit` says otherwise.
    pub fn start_limited(&mut self, file_bytes_max: u64) {
        let mut command = self.workspace.command("prlimit");
        // Ignored, the signal leaves the error to be seen.
        let run = "trap '' XFSZ; exec \"$0\" \"$@\"";
        command.arg(format!("--fsize={file_bytes_max}:")).args(["sh", "-c", run]).arg(binary());
        self.launch(command);
    }

    fn launch(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        command.arg("run").arg("--config").arg(&self.config).stderr(log);
        forget_settings(&mut command);
        command.env("CHANGEOVER_POINTS", self.points_dir());
        self.workspace.start(&mut command).unwrap();
    }

    /// Whoever reaches `point` next stands still there.
    pub fn hold_at(&self, point: Point) {
        fs::write(self.points_dir().join(point.name()), "").unwrap();
    }

    /// Whether somebody stands still at `point`.
    pub fn is_held_at(&self, point: Point) -> bool {
        self.points_dir().join(format!("{}.held", point.name())).exists()
    }

    pub fn wait_until_held_at(&mut self, point: Point) {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_held_at(point) {
            let goes_on = self.is_running() && Instant::now() < deadline;
            assert!(goes_on, "{}\nnobody reached {}", self.log(), point.name());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// How many lines of the log hold `text`.
    pub fn count(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// Waits until so many do.
    pub fn wait_until_logged(&mut self, text: &str, times: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(text) < times {
            let goes_on = self.is_running() && Instant::now() < deadline;
            assert!(goes_on, "{}\nnot logged: {text}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Lets go of whoever stands still, now or later.
    pub fn let_go(&self) {
        let first = || fs::read_dir(self.points_dir()).unwrap().next();
        while let Some(file) = first() {
            // It may have been taken in this moment, and has another name now.
            drop(fs::remove_file(file.unwrap().path()));
        }
    }

    fn points_dir(&self) -> PathBuf {
        self.workspace.dir().join("points")
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.workspace.kill();
    }

    /// SIGTERM, then waits for the end of the drain.
    pub fn terminate(&mut self) {
        self.workspace.stop("TERM", PATIENCE);
    }

    /// Sends a signal and does not wait.
    pub fn signal(&mut self, signal: &str) {
        self.workspace.signal(signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.workspace.pid().is_some()
    }

    pub fn pid(&mut self) -> Option<u32> {
        self.workspace.pid()
    }

    pub fn config_path(&self) -> &std::path::Path {
        &self.config
    }

    pub fn spool_dir(&self) -> PathBuf {
        self.workspace.dir().join("spool")
    }

    /// Errors whose log line contains `fragment` do not fail the test.
    pub fn expect_error(&mut self, fragment: &str) {
        self.expected_errors.push(fragment.to_owned());
    }

    /// Everything it has logged, over all its starts.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Another subcommand with the same configuration, to its end: `daemon.command(&["cutover", "--yes"])`.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let (subcommand, rest) = arguments.split_first().expect("a subcommand");
        let mut command = Command::new(binary());
        command.arg(subcommand).arg("--config").arg(&self.config).args(rest).stdin(Stdio::null());
        forget_settings(&mut command);
        command.output().unwrap()
    }

    /// The same: its exit code and all that it says.
    pub fn said(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
    }

    /// The same, which must exit 0; what it printed as JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(&[arguments, &["--json"]].concat());
        let printed = String::from_utf8_lossy(&output.stdout);
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} failed with {}\n{printed}{complaint}", output.status);
        serde_json::from_str(&printed)
            .unwrap_or_else(|error| panic!("{arguments:?} printed no JSON: {error}\n{printed}"))
    }

    /// `status --json`, `None` while it does not answer.
    pub fn status(&self) -> Option<Value> {
        let output = self.command(&["status", "--json"]);
        serde_json::from_slice(&output.stdout).ok()
    }

    /// `/metrics` over the socket itself: what a collector sees.
    pub fn metrics(&self) -> String {
        let text = fs::read_to_string(self.config_path()).unwrap();
        let listen = text.lines().find_map(|line| line.strip_prefix("listen = ")).unwrap().trim_matches('"').to_owned();
        let mut socket = TcpStream::connect(listen).unwrap();
        socket.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits until `status --json` says `phase`.
    pub fn wait_for_phase(&mut self, phase: &str) -> Value {
        self.wait_for(&format!("phase {phase}"), |status| status["phase"] == phase)
    }

    /// Waits until `status --json` satisfies `holds`. Fails with the log when the daemon ends, or after 90 s.
    pub fn wait_for(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut last = None;
        while Instant::now() < deadline {
            let status = self.status();
            match &status {
                Some(status) if holds(status) => return status.clone(),
                Some(_) => last = status,
                None => assert!(self.is_running(), "{}\nthe daemon ended before {what}", self.log()),
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{}\nno {what} within {PATIENCE:?}; last status {last:?}", self.log());
    }

    fn log_path(&self) -> PathBuf {
        self.workspace.dir().join("daemon.log")
    }

    fn unexpected_errors(&self) -> Vec<String> {
        let log = self.log();
        let errors = log.lines().filter(|line| line.contains(" ERROR ") || line.contains("panicked at"));
        let unexpected = errors.filter(|line| !self.expected_errors.iter().any(|expected| line.contains(expected)));
        unexpected.map(str::to_owned).collect()
    }
}

/// Settings of whoever runs the tests would override the test's configuration.
fn forget_settings(command: &mut Command) {
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CHANGEOVER_") && !name.ends_with("_TOOLS")) {
        command.env_remove(name);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- log of the daemon of the test that failed\n{}", self.log());
            return;
        }
        let unexpected = self.unexpected_errors();
        assert!(
            unexpected.is_empty(),
            "{}\nthe daemon logged errors nobody expected:\n{}",
            self.log(),
            unexpected.join("\n")
        );
    }
}
