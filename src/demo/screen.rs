//! What a person sees while the demo runs, on standard error: one line that changes at a terminal, plain lines elsewhere.

use std::cell::Cell;
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::Instant;

/// How often the changing line is written where lines cannot be taken back.
const PLAIN_PERIOD: Duration = Duration::from_secs(2);

pub(super) struct Screen {
    bar: ProgressBar,
    last_plain: Cell<Option<Instant>>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { bar: ProgressBar::new_spinner(), last_plain: Cell::new(None) }
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}")
        } else {
            self.bar.println(text)
        }
        self.last_plain.set(None);
    }

    /// The line that changes.
    pub(super) fn live(&self, text: String) {
        if !self.bar.is_hidden() {
            self.bar.set_message(text);
            self.bar.tick();
        } else if self.last_plain.get().is_none_or(|last| last.elapsed() >= PLAIN_PERIOD) {
            eprintln!("  {text}");
            self.last_plain.set(Some(Instant::now()));
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
