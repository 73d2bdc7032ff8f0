//! Configuration files for the daemon under test.

use std::path::{Path, PathBuf};

use super::Pair;

/// The text of a migration's configuration (DESIGN 10) with what a test leaves out filled in.
pub struct TestConfig {
    pub name: String,
    pub source: String,
    pub target: String,
    /// More TOML, appended as it is: whole tables such as `[verify]` or `[[cutover.router]]`.
    pub more: String,
    pub include: Vec<String>,
    pub memory: String,
    pub spool: String,
    pub snapshot: String,
    /// `source.bulk`.
    pub bulk: String,
}

impl TestConfig {
    pub fn new(name: &str, pair: &Pair) -> Self {
        Self {
            name: name.to_owned(),
            source: pair.source.url().to_owned(),
            target: pair.target.url().to_owned(),
            more: String::new(),
            include: vec!["public.*".to_owned()],
            memory: "64MiB".to_owned(),
            spool: "2GiB".to_owned(),
            snapshot: "mode = \"full\"\nworkers = 2".to_owned(),
            bulk: "256MiB".to_owned(),
        }
    }

    /// More TOML behind the rest.
    #[must_use]
    pub fn with(mut self, more: &str) -> Self {
        self.more.push_str(more);
        self.more.push('\n');
        self
    }

    pub(super) fn text(&self, spool_dir: &Path, control_port: u16) -> String {
        let Self { name, source, target, more, include, memory, spool, snapshot, bulk } = self;
        format!(
            "[migration]\nname = {name:?}\n[source]\nurl = {source:?}\nbulk = {bulk:?}\n[target]\nurl = {target:?}\n\
             [tables]\ninclude = {include:?}\n[snapshot]\n{snapshot}\n\
             [limits]\nmemory = {memory:?}\nspool = {spool:?}\nspool_dir = {spool_dir:?}\n\
             [control]\nlisten = \"127.0.0.1:{control_port}\"\n{more}"
        )
    }
}

pub(super) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_changeover").into()
}
