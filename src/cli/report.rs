//! Results as people read them.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::exit::{Exit, Failure};
use crate::cutover::{self, Outcome};
use crate::pipeline::Removed;
use crate::verify::{DifferingKind, Report, TableVerdict, Verdict};

/// A report of the daemon, which may be of another version than this program.
pub(super) fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Failure> {
    T::deserialize(answer).map_err(|error| {
        let hint = "the daemon is of another version than this program: use the same for both".to_owned();
        Failure::new(Exit::Failed, format!("understand the daemon's report: {error}"), Some(hint))
    })
}

pub(super) fn verification_exit(report: &Report) -> Exit {
    match report.verdict {
        Verdict::Equal => Exit::Done,
        Verdict::Different => Exit::Refused,
    }
}

pub(super) fn verification(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: String| writeln!(text, "{words}").expect("writing to a String cannot fail");
    for table in &report.tables {
        verdict(table, &mut line);
    }
    for table in &report.left_out {
        line(format!("left out   {table}  it is being copied"));
    }
    let word = match report.verdict {
        Verdict::Equal => "equal",
        Verdict::Different => "DIFFERENT",
    };
    line(format!(
        "{word} at {}: {} tables, {} rows, in {:.1} s (apply stood still for {:.0} ms)",
        report.position,
        report.tables.len(),
        report.rows_verified,
        report.duration_ms / 1000.0,
        report.held_ms
    ));
    text
}

fn verdict(table: &TableVerdict, line: &mut impl FnMut(String)) {
    if table.equal {
        return line(format!("equal      {}  {} rows", table.table, table.rows_source));
    }
    line(format!(
        "DIFFERENT  {}  {} rows differ ({} on the source, {} on the target)",
        table.table, table.differing_rows, table.rows_source, table.rows_target
    ));
    let Some(differences) = &table.differences else { return };
    line(format!(
        "             missing on the target {}, only there {}, other values {}{}",
        differences.missing_on_target,
        differences.extra_on_target,
        differences.different,
        if differences.exact { "" } else { " (at least)" }
    ));
    for key in &differences.keys {
        let word = match key.kind {
            DifferingKind::MissingOnTarget => "missing on the target",
            DifferingKind::ExtraOnTarget => "only on the target",
            DifferingKind::Different => "other values",
        };
        line(format!("             {}: {word}", key.key));
    }
}

/// An attempt that was undone is a failure on the way; a closed gate is a refusal, in a dry run too.
pub(super) fn cutover_exit(report: &cutover::Report) -> Exit {
    match report.outcome {
        Outcome::CutOver => Exit::Done,
        Outcome::DryRun if report.gates.iter().all(|gate| gate.open) => Exit::Done,
        Outcome::DryRun | Outcome::Refused => Exit::Refused,
        Outcome::Aborted => Exit::Failed,
    }
}

pub(super) fn cutover(report: &cutover::Report) -> String {
    let mut text = String::new();
    let mut line = |words: String| writeln!(text, "{words}").expect("writing to a String cannot fail");
    for gate in &report.gates {
        line(format!("{}  {:<24}  {}", if gate.open { "open  " } else { "CLOSED" }, gate.name, gate.detail));
        for remedy in gate.remedy.iter().flat_map(|remedy| remedy.lines()) {
            line(format!("        → {remedy}"));
        }
    }
    for step in &report.steps {
        line(format!("{:>8.1} ms  {}", step.ms, step.step));
    }
    let pause = report.pause_ms.map(|pause| format!("; clients were held for {pause:.0} ms")).unwrap_or_default();
    let forecast = format!("forecast {:.0} ms", report.forecast_ms);
    line(match report.outcome {
        Outcome::DryRun => format!("nothing was changed; {forecast} of pause"),
        Outcome::Refused => "not begun: a gate is closed, nothing was touched".to_owned(),
        Outcome::Aborted => format!("undone: blue goes on as before{pause} ({forecast})"),
        Outcome::CutOver => format!(
            "green owns the writes{pause} ({forecast}); {} tables with {} rows verified at {}",
            report.tables_verified,
            report.rows_verified,
            report.fence_position.as_deref().unwrap_or("the fence"),
        ),
    });
    report.reason.iter().for_each(|reason| line(format!("why: {reason}")));
    report.hint.iter().for_each(|hint| line(format!("hint: {hint}")));
    text
}

pub(super) fn removed(removed: &Removed) -> String {
    let mut lines: Vec<String> = removed.removed.iter().map(|what| format!("removed {what}")).collect();
    lines.extend(removed.left.iter().map(|what| format!("left    {what}")));
    if lines.is_empty() {
        lines.push(format!("nothing of the migration {} was there", removed.migration));
    }
    lines.join("\n")
}
