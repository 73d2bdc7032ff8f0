//! The status as people read it in a terminal.

use crate::config::format_size;
use crate::pipeline::{
    Owner, Phase, SinkStatus, SnapshotStatus, Status, StepStatus, TableState, TableStatus, ThrottleStatus, Trouble,
    WorkUnit,
};
use crate::telemetry::clock;

/// Narrower than this nothing lines up any more.
const COLUMNS_MIN: usize = 60;
/// Wider than this the eye loses the line.
const COLUMNS_MAX: usize = 140;
/// What is under way on the target, where the screen has an end: more than this leaves no room for the tables.
const STEPS_MAX: usize = 8;
const TABLES_MIN: usize = 3;

/// Draws a [`Status`] into lines no wider than `columns`.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    columns: usize,
    /// Tables shown before the rest is only counted; `None` shows all.
    tables_max: Option<usize>,
}

impl Screen {
    pub fn new(columns: usize, tables_max: Option<usize>) -> Self {
        Self { columns: columns.clamp(COLUMNS_MIN, COLUMNS_MAX), tables_max }
    }

    pub fn draw(&self, status: &Status) -> Vec<String> {
        let mut lines = vec![self.headline(status), flow(status)];
        lines.extend(copy(status));
        lines.extend(self.held(&status.throttle));
        let steps = self.steps(status);
        let step_lines = steps.len();
        lines.extend(steps);
        lines.extend(status.sinks.iter().map(sink));
        lines.push(spool(status));
        lines.extend(verification(status));
        lines.extend(resync(status));
        lines.extend(cutover(status));
        for (word, troubles) in
            [("HALTED", &status.halted), ("WARNING", &status.warnings), ("retrying", &status.retrying)]
        {
            lines.extend(troubles.iter().flat_map(|trouble| self.trouble(word, trouble)));
        }
        lines.push(String::new());
        lines.extend(self.tables(status, step_lines));
        lines.into_iter().map(|line| clip(&line, self.columns)).collect()
    }

    fn headline(&self, status: &Status) -> String {
        let owner = match status.owner {
            Owner::Blue => "blue",
            Owner::Green => "green",
        };
        let paused = if status.paused { "  PAUSED" } else { "" };
        let left = format!("{}  {}{paused}", status.migration, status.phase.as_str().replace('_', " "));
        let right = format!("writes: {owner}");
        let gap = self.columns.saturating_sub(width(&left) + width(&right)).max(2);
        format!("{left}{}{right}", " ".repeat(gap))
    }

    fn held(&self, throttle: &ThrottleStatus) -> Vec<String> {
        let Some(since_us) = throttle.held_since_us else { return Vec::new() };
        let for_seconds = clock::unix_us().saturating_sub(since_us) as f64 / 1e6;
        let why = throttle.held.join("; ");
        wrap(&format!("held for {}: {why}", duration_words(for_seconds)), self.columns)
    }

    fn trouble(&self, word: &str, trouble: &Trouble) -> Vec<String> {
        let mut lines = wrap(&format!("{word} {}: {}", trouble.part, trouble.error), self.columns);
        if let Some(hint) = &trouble.hint {
            lines.extend(wrap(&format!("hint: {hint}"), self.columns - 2).into_iter().map(|line| format!("  {line}")));
        }
        lines
    }

    /// Index builds and what else runs on the target, with how far the server says each is.
    fn steps(&self, status: &Status) -> Vec<String> {
        let snapshot = &status.snapshot;
        let word = match status.phase {
            Phase::Copying | Phase::Indexing => "indexes",
            Phase::CatchingUp => "finish",
            Phase::Preparing | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => return Vec::new(),
        };
        if snapshot.indexes_total == 0 {
            return Vec::new();
        }
        let running = match status.steps.len() {
            0 => String::new(),
            count => format!(" · {count} running"),
        };
        let mut lines =
            vec![format!("{word:<8} {} of {} steps done{running}", snapshot.indexes_done, snapshot.indexes_total)];
        let shown = if self.tables_max.is_some() { STEPS_MAX } else { usize::MAX }.min(status.steps.len());
        let steps = &status.steps[..shown];
        let name_width = steps.iter().map(|step| width(&step.step)).max().unwrap_or(0).clamp(5, self.columns / 3);
        lines.extend(steps.iter().map(|step| self.step(step, name_width)));
        if shown < status.steps.len() {
            lines.push(format!("  … and {} more", status.steps.len() - shown));
        }
        lines
    }

    fn step(&self, step: &StepStatus, name_width: usize) -> String {
        let running = duration_words(step.running_seconds);
        let drawn = match (&step.waits_for, step.total) {
            (Some(holder), _) => format!("waits for {holder}"),
            (None, 0) => match &step.phase {
                Some(phase) => format!("{phase} · {running}"),
                None => running,
            },
            (None, total) => {
                let share = (step.done as f64 / total as f64).min(1.0);
                let unit = step.unit.map_or("", unit);
                format!(
                    "{}  {:>3.0}%  {running:>6}  {} · {} of {} {unit}",
                    bar(share, if self.columns < 110 { 8 } else { 16 }),
                    (share * 100.0).floor(),
                    step.phase.as_deref().unwrap_or_default().trim_start_matches("building index: "),
                    count(step.done),
                    count(total),
                )
            }
        };
        format!("  {}  {drawn}", padded(&step.step, name_width))
    }

    fn tables(&self, status: &Status, step_lines: usize) -> Vec<String> {
        let tables = &status.tables;
        let tables_max = self.tables_max.map(|max| max.saturating_sub(step_lines).max(TABLES_MIN.min(max)));
        let shown = tables_max.unwrap_or(usize::MAX).min(tables.len());
        // Those in work first, then in the daemon's order, so that a long list shows what moves.
        let mut order: Vec<&TableStatus> = tables.iter().collect();
        order.sort_by_key(|table| rank(table.state));
        let name_width = order.iter().take(shown).map(|table| width(&table.table)).max().unwrap_or(0).clamp(5, 32);
        let columns = Columns::of(status.phase, self.columns);
        let bar_width = self.bar_width(name_width, columns);
        let mut lines = Vec::with_capacity(shown + 2);
        if shown > 0 {
            lines.push(format!("{:name_width$}  {:bar_width$}  {:>4}{}  state", "table", "", "", columns.titles()));
        }
        lines.extend(order.iter().take(shown).map(|table| {
            format!(
                "{}  {}  {:>3.0}%{}  {}",
                padded(&table.table, name_width),
                bar(table.progress_ratio, bar_width),
                (table.progress_ratio * 100.0).floor(),
                columns.values(table),
                state(table),
            )
        }));
        if shown < tables.len() {
            lines.push(format!("… and {} more tables", tables.len() - shown));
        }
        lines
    }

    /// What the other columns leave, within reason.
    fn bar_width(&self, name_width: usize, columns: Columns) -> usize {
        /// Two blanks, two, and the longest state.
        const OTHERS: usize = 2 + 2 + 4 + 2 + 16;
        self.columns.saturating_sub(name_width + OTHERS + width(&columns.titles())).clamp(6, 40)
    }
}

/// Between the bar and the state: what matters in the phase.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// Rows, bytes and rates of the copy.
    Copy,
    /// The same where there is no room for rates.
    CopyNarrow,
    Stream,
}

impl Columns {
    fn of(phase: Phase, columns: usize) -> Self {
        match phase {
            Phase::Preparing | Phase::Copying | Phase::Indexing if columns < 90 => Self::CopyNarrow,
            Phase::Preparing | Phase::Copying | Phase::Indexing => Self::Copy,
            Phase::CatchingUp | Phase::Streaming | Phase::CuttingOver | Phase::CutOver => Self::Stream,
        }
    }

    fn titles(self) -> String {
        match self {
            Self::Copy => format!("  {:>7}  {:>9}  {:>11}", "rows", "bytes", "rate"),
            Self::CopyNarrow => format!("  {:>7}  {:>9}", "rows", "bytes"),
            Self::Stream => format!("  {:>9}  {:>8}", "rows", "changes"),
        }
    }

    fn values(self, table: &TableStatus) -> String {
        let copied = || (count(table.rows_copied), format_size(table.bytes_copied));
        match self {
            Self::Copy => {
                let (rows, bytes) = copied();
                let copying = table.state == TableState::Copying && table.bytes_per_second > 0.0;
                let rate = if copying { per_second(table.bytes_per_second) } else { String::new() };
                format!("  {rows:>7}  {bytes:>9}  {rate:>11}")
            }
            Self::CopyNarrow => {
                let (rows, bytes) = copied();
                format!("  {rows:>7}  {bytes:>9}")
            }
            Self::Stream => format!(
                "  {:>9}  {:>8}",
                count(table.rows),
                count(table.inserts + table.updates + table.deletes + table.truncates)
            ),
        }
    }
}

fn unit(unit: WorkUnit) -> &'static str {
    match unit {
        WorkUnit::Blocks => "blocks",
        WorkUnit::Tuples => "tuples",
    }
}

fn per_second(bytes: f64) -> String {
    format!("{}/s", format_size(bytes as u64))
}

fn padded(text: &str, columns: usize) -> String {
    let text = clip(text, columns);
    let padding = columns.saturating_sub(width(&text));
    format!("{text}{}", " ".repeat(padding))
}

fn flow(status: &Status) -> String {
    let connection = if status.source.connected { "connected" } else { "NOT CONNECTED" };
    let retained = status.source.slot_retained_bytes.map(|bytes| format!(" · slot keeps {}", format_size(bytes)));
    let latency = match (status.latency.p50_ms, status.latency.p99_ms) {
        (Some(p50), Some(p99)) => format!(" · p50/p99 {p50:.0}/{p99:.0} ms"),
        (Some(_) | None, _) => String::new(),
    };
    format!(
        "source   {connection} · lag {}, {}{latency}{}",
        format_size(status.lag_bytes),
        seconds(status.lag_seconds),
        retained.unwrap_or_default(),
    )
}

fn copy(status: &Status) -> Option<String> {
    let snapshot = &status.snapshot;
    let limit = status.throttle.max_rate_bytes.map(|rate| format!(" (limit {}/s)", format_size(rate)));
    match status.phase {
        Phase::Copying => Some(format!(
            "copy     {} of {} tables · {} of about {} ({:.0}%){}",
            snapshot.tables_done,
            snapshot.tables_total,
            format_size(snapshot.bytes_copied),
            format_size(snapshot.bytes_total),
            (snapshot.progress_ratio * 100.0).floor(),
            time_left(snapshot, &limit.unwrap_or_default()),
        )),
        Phase::Preparing
        | Phase::Indexing
        | Phase::CatchingUp
        | Phase::Streaming
        | Phase::CuttingOver
        | Phase::CutOver => None,
    }
}

fn time_left(snapshot: &SnapshotStatus, limit: &str) -> String {
    if snapshot.bytes_per_second <= 0.0 {
        return limit.to_owned();
    }
    let left = match snapshot.eta_seconds {
        Some(eta) => format!("{} left", duration_words(eta)),
        None => "time left unknown".to_owned(),
    };
    format!(" · {}{limit} · {left}", per_second(snapshot.bytes_per_second))
}

fn sink(sink: &SinkStatus) -> String {
    format!(
        "{:<8} {} behind, {} · {} rows in {} commits · at {}",
        sink.sink.as_str(),
        format_size(sink.lag_bytes),
        seconds(sink.lag_seconds),
        count(sink.rows_total),
        count(sink.transactions_total),
        sink.through.as_deref().unwrap_or("-"),
    )
}

fn spool(status: &Status) -> String {
    let spool = &status.spool;
    let full = if spool.full { " · FULL: the stream waits for the slowest sink, blue keeps its log" } else { "" };
    let released = if spool.releases_source_wal {
        format!(" · holds {} that blue need not keep", format_size(spool.released_bytes))
    } else {
        String::new()
    };
    format!(
        "spool    {} in memory · {} of {} on disk{released}{full}",
        format_size(spool.memory_bytes),
        format_size(spool.disk_bytes),
        format_size(spool.disk_capacity_bytes),
    )
}

fn verification(status: &Status) -> Option<String> {
    let verification = status.verification.as_ref()?;
    let running =
        if verification.running { format!("{:.0}% compared", verification.ratio * 100.0) } else { String::new() };
    let last = match (verification.equal, &verification.position) {
        (Some(equal), Some(position)) => format!("{} at {position}", if equal { "equal" } else { "DIFFERENT" }),
        (Some(_) | None, _) => String::new(),
    };
    let parts: Vec<String> = [running, last].into_iter().filter(|part| !part.is_empty()).collect();
    Some(format!("verify   {}", parts.join(" · last: ")))
}

fn cutover(status: &Status) -> Option<String> {
    let cutover = status.cutover.as_ref()?;
    let pause = cutover.pause_ms.map(|pause| format!(" · paused {pause:.0} ms")).unwrap_or_default();
    let forecast = cutover.forecast_ms.map(|forecast| format!(" · forecast {forecast:.0} ms")).unwrap_or_default();
    Some(format!("cutover  attempt {}: {}{pause}{forecast}", cutover.attempt, cutover.step))
}

fn resync(status: &Status) -> Option<String> {
    let resync = status.resync.as_ref()?;
    Some(format!(
        "resync   {} · {} tables · {} behind, {}",
        resync.stage.as_str().replace('_', " "),
        resync.tables.len(),
        format_size(resync.lag_bytes),
        seconds(resync.lag_seconds),
    ))
}

fn rank(state: TableState) -> u8 {
    match state {
        TableState::Copying => 0,
        TableState::Indexing => 1,
        TableState::CatchingUp => 2,
        TableState::Copied => 3,
        TableState::Waiting => 4,
        TableState::Indexed => 5,
        TableState::Streaming => 6,
    }
}

fn state(table: &TableStatus) -> String {
    let word = match (table.state, &table.verdict) {
        (TableState::Waiting, _) => "waiting",
        (TableState::Copying, _) => "copying",
        (TableState::Copied, _) => "copied",
        (TableState::Indexing, _) => "indexing",
        (TableState::CatchingUp, _) => "catching up",
        (TableState::Indexed, _) => "indexed",
        (TableState::Streaming, None) => "streaming",
        (TableState::Streaming, Some(verdict)) if verdict.equal => "equal",
        (TableState::Streaming, Some(_)) => "DIFFERENT",
    };
    match table.eta_seconds {
        Some(eta) => format!("{word} {}", duration_words(eta)),
        None => word.to_owned(),
    }
}

fn bar(share: f64, columns: usize) -> String {
    const PARTS: [char; 8] = ['·', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (columns * 8) as f64).floor() as usize;
    let (full, rest) = (eighths / 8, eighths % 8);
    let mut drawn = "█".repeat(full);
    if full < columns {
        drawn.push(PARTS[rest]);
        drawn.push_str(&"·".repeat(columns - full - 1));
    }
    drawn
}

/// `999`, `12.3k`, `4.56M`: never more than six characters.
fn count(number: u64) -> String {
    const STEPS: [(u64, &str); 4] = [(1_000_000_000_000, "T"), (1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")];
    if number < 100_000 {
        return number.to_string();
    }
    let (step, unit) = STEPS.into_iter().find(|(step, _)| number >= *step).unwrap_or((1, ""));
    let value = number as f64 / step as f64;
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}{unit}")
}

fn seconds(value: f64) -> String {
    if value < 60.0 { format!("{value:.1} s") } else { duration_words(value) }
}

/// `42s`, `3m 20s`, `2h 5m`, `4d 1h`.
pub fn duration_words(value: f64) -> String {
    let total = value.max(0.0).ceil() as u64;
    match total {
        0..60 => format!("{total}s"),
        60..3600 => format!("{}m {}s", total / 60, total % 60),
        3600..86_400 => format!("{}h {}m", total / 3600, total % 3600 / 60),
        _ => format!("{}d {}h", total / 86_400, total % 86_400 / 3600),
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

fn clip(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.trim_end().to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    format!("{kept}…")
}

fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("the list starts with one line");
        if line.is_empty() {
            line.push_str(word);
        } else if width(line) + 1 + width(word) <= columns {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
