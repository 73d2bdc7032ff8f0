//! What a check answers.

use std::fmt;

use serde::Serialize;

/// How many names a message lists before it counts the rest.
const NAMES_MAX: usize = 10;

/// The remedy where another migration has our name.
pub(super) const OWN_NAME: &str = "give this migration a name of its own ([migration] name): it names slots and replication \
     origins, which all databases of a server share";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    /// It can go on, and somebody should know.
    Warn,
    /// It would fail, or lose something.
    Fail,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `source.wal_level`: the side (`source`, `target`, `here`, `kafka`, `router`) and what was looked at.
    pub check: &'static str,
    pub verdict: Verdict,
    pub message: String,
    /// Exact SQL or command; `None` only where nothing can be typed.
    pub remedy: Option<String>,
}

/// Every finding, in the order in which they were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
}

impl Finding {
    pub(super) fn pass(check: &'static str, message: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Pass, message: message.into(), remedy: None }
    }

    pub(super) fn warn(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, message: message.into(), remedy: Some(remedy.into()) }
    }

    pub(super) fn fail(check: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, message: message.into(), remedy: Some(remedy.into()) }
    }
}

impl Report {
    pub fn failed(&self) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count()
    }

    pub fn warned(&self) -> usize {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::Warn).count()
    }

    /// Those that somebody should know of, for whoever goes on.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.verdict == Verdict::Warn)
    }

    /// Those that failed, for whoever refuses to go on.
    pub fn failures(&self) -> Self {
        let failed = self.findings.iter().filter(|finding| finding.verdict == Verdict::Fail);
        Self { findings: failed.cloned().collect() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        write!(f, "{word}  {:<24}  {}", self.check, self.message)?;
        for line in self.remedy.iter().flat_map(|remedy| remedy.lines()) {
            write!(f, "\n      → {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            writeln!(f, "{finding}")?;
        }
        let passed = self.findings.len() - self.failed() - self.warned();
        write!(f, "{passed} passed, {} to be looked at, {} failed", self.warned(), self.failed())
    }
}

/// `a, b and 3 more`.
pub(super) fn listed<T: fmt::Display>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(NAMES_MAX).map(T::to_string).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// One statement a line for each of `names`, the rest counted.
pub(super) fn statements<T>(names: &[T], statement: impl Fn(&T) -> String) -> String {
    let mut lines: Vec<String> = names.iter().take(NAMES_MAX).map(statement).collect();
    if let Some(more) = names.len().checked_sub(NAMES_MAX).filter(|more| *more > 0) {
        lines.push(format!("-- and the same for {more} more"));
    }
    lines.join("\n")
}
