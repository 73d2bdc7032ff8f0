//! What is said about a cutover.

use serde::{Deserialize, Serialize};

use super::gates::Gate;
use crate::verify::Verdict;

/// The outcome of one attempt, or of a dry run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub outcome: Outcome,
    /// Which side owns the applications' writes now.
    pub owner: Owner,
    /// Counts the attempts of this migration from 1; 0 for a dry run and where the gates refused.
    pub attempt: i32,
    pub gates: Vec<Gate>,
    /// From before the first router was asked to hold its clients until the last had let them go; `None` when nobody
    /// was held.
    pub pause_ms: Option<f64>,
    /// What the pause was expected to be, made of parts measured beforehand.
    pub forecast_ms: f64,
    pub forecast: Vec<StepTime>,
    /// What each step took, compensations included.
    pub steps: Vec<StepTime>,
    /// Every write to blue came before this position of its log.
    pub fence_position: Option<String>,
    /// Exact for the fence's position.
    pub verdict: Option<Verdict>,
    pub tables_verified: u64,
    pub rows_verified: u64,
    /// Why it did not come about, and what to do.
    pub reason: Option<String>,
    pub hint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Gates and forecast only.
    DryRun,
    /// A gate is closed: nothing was touched.
    Refused,
    /// Undone before the commit point: blue goes on as before.
    Aborted,
    /// Green owns the writes.
    CutOver,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    Blue,
    Green,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    pub step: String,
    pub ms: f64,
}

impl StepTime {
    pub(super) fn new(step: impl Into<String>, took: std::time::Duration) -> Self {
        Self { step: step.into(), ms: ms(took) }
    }
}

pub(super) fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
