//! What verification says.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::dirty::{Check, Dirty};
use super::table::Table;
use crate::model::Lsn;

/// The outcome of one verification. Exact for `position`; when anything went wrong there is no report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub verdict: Verdict,
    /// The source's position that all verdicts hold for: the end of the last transaction both sides contain.
    #[serde(with = "lsn_text")]
    pub position: Lsn,
    pub tables: Vec<TableVerdict>,
    /// Tables that were not compared, because they are being copied while the others stream.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Rows of the source that were found equal on the target, whether in this pass or unchanged since an earlier one.
    pub rows_verified: u64,
    /// Rows whose content this pass looked at.
    pub rows_compared: u64,
    /// How long the applier was made to stand still, all in all, in milliseconds.
    pub held_ms: f64,
    pub duration_ms: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Equal,
    Different,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableVerdict {
    /// Name on the source.
    pub table: String,
    pub equal: bool,
    /// Where its rows were last compared in full: at most the report's position. Since then only changed keys were.
    #[serde(with = "lsn_text")]
    pub full_at: Lsn,
    /// Counted at `full_at`.
    pub rows_source: u64,
    pub rows_target: u64,
    pub differing_rows: u64,
    /// `None` for equal tables and for verdicts inside the cutover's pause, which has no time to look for rows.
    pub differences: Option<Differences>,
    pub duration_ms: f64,
}

/// How two different tables differ.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differences {
    pub missing_on_target: u64,
    pub extra_on_target: u64,
    /// Same key, other values. Always 0 for tables without a key, where such a row is one missing and one extra.
    pub different: u64,
    /// False when there were too many to list: the counts are then at least these.
    pub exact: bool,
    /// Keys are data: listed only as far as the operator asked for them.
    pub keys: Vec<DifferingKey>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferingKey {
    /// The key columns as PostgreSQL writes a row: `(1,"a b")`.
    pub key: String,
    pub kind: DifferingKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DifferingKind {
    MissingOnTarget,
    ExtraOnTarget,
    Different,
}

impl Differences {
    pub fn row_count(&self) -> u64 {
        self.missing_on_target + self.extra_on_target + self.different
    }
}

impl TableVerdict {
    pub(super) fn new(table: &Table, digests: [Digest; 2], at: Lsn, took: Duration) -> Self {
        let [source, target] = digests;
        let equal = source == target;
        Self {
            table: table.source.to_string(),
            equal,
            full_at: at,
            rows_source: source.row_count,
            rows_target: target.row_count,
            // At least one, until `found` says more exactly.
            differing_rows: if equal { 0 } else { source.row_count.abs_diff(target.row_count).max(1) },
            differences: None,
            duration_ms: ms(took),
        }
    }

    /// The verdict at a later position: equal if what changed since, and was compared now, is equal.
    pub(super) fn after(mut self, check: &Check, digests: &[Digest; 2], at: Lsn) -> Self {
        let [source, target] = digests;
        self.equal = source == target;
        self.differing_rows = if self.equal { 0 } else { source.row_count.abs_diff(target.row_count).max(1) };
        if *check.what == Dirty::Whole {
            self.full_at = at;
            self.rows_source = source.row_count;
            self.rows_target = target.row_count;
        }
        self
    }

    pub(super) fn found(&mut self, differences: Differences) {
        self.differing_rows = differences.row_count().max(1);
        self.differences = Some(differences);
    }
}

impl Report {
    pub(super) fn new(
        position: Lsn,
        tables: Vec<TableVerdict>,
        rows_compared: u64,
        held: Duration,
        took: Duration,
    ) -> Self {
        let equal = tables.iter().all(|table| table.equal);
        Self {
            verdict: if equal { Verdict::Equal } else { Verdict::Different },
            position,
            rows_verified: tables.iter().filter(|table| table.equal).map(|table| table.rows_source).sum(),
            rows_compared,
            tables,
            left_out: Vec::new(),
            held_ms: ms(held),
            duration_ms: ms(took),
        }
    }
}

pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Positions in reports are written as PostgreSQL writes them.
pub(crate) mod lsn_text {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use crate::model::Lsn;

    pub(crate) fn serialize<S: Serializer>(lsn: &Lsn, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(lsn)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
