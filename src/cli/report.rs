//! Results as people read them.

use std::fmt::Write;

use serde_json::Value;

use super::exit::{Exit, Failure};
use crate::pipeline::Removed;
use crate::verify::{Report, TableVerdict, Verdict};

pub(super) fn read_verification(answer: &Value) -> Result<Report, Failure> {
    serde_json::from_value(answer.clone()).map_err(|error| {
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
        line(format!("             {} {:?}", key.key, key.kind));
    }
}

pub(super) fn removed(removed: &Removed) -> String {
    let mut lines: Vec<String> = removed.removed.iter().map(|what| format!("removed {what}")).collect();
    lines.extend(removed.left.iter().map(|what| format!("left    {what}")));
    if lines.is_empty() {
        lines.push(format!("nothing of the migration {} was there", removed.migration));
    }
    lines.join("\n")
}
