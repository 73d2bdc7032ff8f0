//! What the demo found.

use serde::Serialize;

/// The result, printed by `changeover demo --json` exactly as it is here.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DemoReport {
    /// The longest time between two commits of one client during the cutover: what clients saw of it.
    pub pause_ms: f64,
    /// What the daemon expected the pause to be, before it began.
    pub forecast_ms: Option<f64>,
    pub clients: usize,
    /// Transactions that clients were told were committed, on either side.
    pub transactions: u64,
    pub failed_transactions: u64,
    /// Writes that clients were told were committed and that green (or Kafka) does not hold.
    pub lost_writes: u64,
    /// Writes that green (or Kafka) holds more than once.
    pub duplicated_writes: u64,
    pub tables_verified: u64,
    pub rows_verified: u64,
    /// Of the exact comparison of both sides at one position.
    pub verdict: Verdict,
    /// From commit on blue to visible on green.
    pub lag_p50_ms: Option<f64>,
    pub lag_p99_ms: Option<f64>,
    /// For readers at a terminal; not part of the JSON.
    #[serde(skip)]
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Equal,
    Different,
}

impl DemoReport {
    /// Nothing lost, nothing twice, nothing failed, both sides equal.
    pub fn is_well(&self) -> bool {
        self.verdict == Verdict::Equal
            && self.transactions > 0
            && [self.failed_transactions, self.lost_writes, self.duplicated_writes] == [0; 3]
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Equal => "equal",
            Verdict::Different => "DIFFERENT",
        };
        let mut lines = vec![
            format!(
                "{} clients committed {} transactions, {} failed",
                self.clients, self.transactions, self.failed_transactions
            ),
            format!("writes lost: {}, duplicated: {}", self.lost_writes, self.duplicated_writes),
            format!("{} tables with {} rows verified: {verdict}", self.tables_verified, self.rows_verified),
            format!("pause as clients saw it: {:.0} ms (forecast {})", self.pause_ms, millis(self.forecast_ms)),
            format!(
                "lag from commit on blue to visible on green: p50 {}, p99 {}",
                millis(self.lag_p50_ms),
                millis(self.lag_p99_ms)
            ),
        ];
        lines.extend(self.notes.iter().cloned());
        lines.push(if self.is_well() { "all is well".to_owned() } else { "NOT all is well".to_owned() });
        lines.join("\n")
    }
}

fn millis(value: Option<f64>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |value| format!("{value:.0} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> DemoReport {
        DemoReport {
            pause_ms: 40.0,
            forecast_ms: Some(60.0),
            clients: 8,
            transactions: 1,
            failed_transactions: 0,
            lost_writes: 0,
            duplicated_writes: 0,
            tables_verified: 15,
            rows_verified: 1,
            verdict: Verdict::Equal,
            lag_p50_ms: Some(1.0),
            lag_p99_ms: None,
            notes: vec!["a note".to_owned()],
        }
    }

    #[test]
    fn the_json_holds_exactly_what_is_promised() {
        let json = serde_json::to_value(well()).unwrap();
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let mut promised = [
            "pause_ms",
            "forecast_ms",
            "clients",
            "transactions",
            "failed_transactions",
            "lost_writes",
            "duplicated_writes",
            "tables_verified",
            "rows_verified",
            "verdict",
            "lag_p50_ms",
            "lag_p99_ms",
        ];
        promised.sort_unstable();
        assert_eq!(keys, promised);
        assert_eq!(json["verdict"], "equal");
    }

    #[test]
    fn one_fault_of_any_kind_is_not_well() {
        assert!(well().is_well());
        let faults: [fn(&mut DemoReport); 5] = [
            |report| report.failed_transactions = 1,
            |report| report.lost_writes = 1,
            |report| report.duplicated_writes = 1,
            |report| report.verdict = Verdict::Different,
            |report| report.transactions = 0,
        ];
        for fault in faults {
            let mut report = well();
            fault(&mut report);
            assert!(!report.is_well(), "{report:?}");
        }
    }
}
