//! What each part is struggling with now.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::info;

use super::status::Trouble;
use crate::telemetry::{clock, metrics as names};

/// What each part is struggling with now. Clones share it; there is at most one entry a part.
#[derive(Clone, Debug, Default)]
pub(super) struct Troubles {
    parts: Arc<Mutex<BTreeMap<&'static str, (Severity, Trouble)>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Severity {
    Retrying,
    Halted,
}

impl Troubles {
    pub(super) fn retrying(&self, part: &'static str, error: String) {
        self.set(part, Severity::Retrying, error, None);
    }

    pub(super) fn halted(&self, part: &'static str, error: String, hint: String) {
        self.set(part, Severity::Halted, error, Some(hint));
    }

    pub(super) fn clear(&self, part: &'static str) {
        if self.lock().remove(part).is_some() {
            info!(part, "recovered");
        }
    }

    /// What stands still, and what is being retried.
    pub(super) fn read(&self) -> (Vec<Trouble>, Vec<Trouble>) {
        let parts = self.lock();
        let of = |wanted| parts.values().filter(|(it, _)| *it == wanted).map(|(_, trouble)| trouble.clone()).collect();
        (of(Severity::Halted), of(Severity::Retrying))
    }

    fn set(&self, part: &'static str, severity: Severity, error: String, hint: Option<String>) {
        metrics::counter!(names::ERRORS_TOTAL, names::LABEL_STAGE => part).increment(1);
        let mut parts = self.lock();
        let since_us = parts.get(part).map_or_else(clock::unix_us, |(_, trouble)| trouble.since_us);
        parts.insert(part, (severity, Trouble { part: part.to_owned(), error, hint, since_us }));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, (Severity, Trouble)>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
