//! Other writers on the target: looked for while streaming, and before every verification and cutover.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::board::Board;
use super::status::Phase;
use super::touched::Listeners;
use super::watchers::wait;
use crate::apply::{self, Stranger, Watched};
use crate::config::Config;
use crate::model::TableName;
use crate::schema::Catalog;
use crate::telemetry::{chain, metrics as names};
use crate::wire::{self, Session};

/// How soon another writer is named.
const INTERVAL: Duration = Duration::from_secs(2);

/// How soon a table that lost its trigger (it was made anew) has one again.
const WATCH_INTERVAL: Duration = Duration::from_secs(60);

/// A table that somebody else wrote to is no longer held equal.
pub(super) struct Strangers {
    config: Arc<Config>,
    board: Board,
    listeners: Arc<Listeners>,
    /// The tables whose rows a statement on each may have written: itself, or every partition below.
    rows_of: BTreeMap<TableName, Vec<TableName>>,
    state: Mutex<State>,
}

/// What the last look has left.
#[derive(Default)]
struct State {
    session: Option<Session>,
    /// On record when we last looked; at first, what an earlier daemon has told of.
    known: Option<Vec<Stranger>>,
    /// When every table was seen to be watched.
    watched: Option<Instant>,
    forbidden: Vec<TableName>,
    /// Partitions that the target has, by the tables of the migration that they are in.
    parts: BTreeMap<TableName, TableName>,
    /// Why we could not look, until we can again.
    told: Option<String>,
}

impl Strangers {
    pub(super) fn new(config: &Arc<Config>, board: &Board, listeners: &Arc<Listeners>, catalog: &Catalog) -> Self {
        let (config, board, listeners) = (Arc::clone(config), board.clone(), Arc::clone(listeners));
        let mut rows_of = BTreeMap::<TableName, Vec<TableName>>::new();
        for table in catalog.row_tables() {
            let mut above = Some(table);
            while let Some(holder) = above {
                rows_of.entry(holder.name.clone()).or_default().push(table.name.clone());
                above = holder.partition.as_ref().and_then(|partition| catalog.table(&partition.parent));
            }
        }
        Self { config, board, listeners, rows_of, state: Mutex::default() }
    }

    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        while wait(&stop, INTERVAL).await {
            if self.board.phase() == Phase::Streaming {
                self.look().await;
            }
        }
    }

    /// Takes note of everybody who has written until now.
    pub(super) async fn look(&self) {
        let mut state = self.state.lock().await;
        if let Err(error) = self.look_with(&mut state).await {
            let error = chain(&error);
            if state.told.as_ref() != Some(&error) {
                warn!(error, "another writer on the target would not be noticed now");
            }
            (state.session, state.told) = (None, Some(error));
        }
    }

    async fn look_with(&self, state: &mut State) -> Result<(), apply::Error> {
        let target = match &state.session {
            Some(session) => session,
            None => {
                let session = wire::connect(&self.config.target.endpoint, "watch").await;
                state.session.insert(session.map_err(apply::Error::Connect)?)
            }
        };
        if state.watched.is_none_or(|at| at.elapsed() >= WATCH_INTERVAL) {
            let tables: Vec<TableName> = self.rows_of.keys().cloned().collect();
            let watched = apply::watch(target, &self.config.migration, &tables).await?;
            state.watched = Some(Instant::now()).filter(|_| watched.busy == 0);
            state.parts = apply::parts_of(target, &tables).await?;
            say_watched(watched, &mut state.forbidden);
        }
        let known = match state.known.take() {
            Some(known) => known,
            None => apply::read_strangers(target, &self.config.migration).await?,
        };
        apply::fold_notes(target, &self.config.migration).await?;
        let found = apply::read_strangers(target, &self.config.migration).await?;
        self.tell(&known, &found, &state.parts);
        state.known = Some(found);
        state.told = None;
        Ok(())
    }

    /// What was written since is compared anew before a cutover, and whoever wrote is named until it was found equal.
    fn tell(&self, known: &[Stranger], found: &[Stranger], parts: &BTreeMap<TableName, TableName>) {
        for stranger in found.iter().filter(|stranger| !known.contains(stranger)) {
            for table in self.rows_of(stranger, parts) {
                self.listeners.all().distrust(&table.to_string());
            }
            let table = stranger.table.to_string();
            warn!(
                table,
                role = stranger.role,
                application = stranger.application,
                address = stranger.address,
                "somebody else writes to the target"
            );
            metrics::counter!(names::FOREIGN_WRITES_TOTAL, names::LABEL_TABLE => table).increment(1);
        }
        let is_equal = |table: &TableName| self.listeners.all().is_held_equal(table);
        let unequal = |stranger: &&Stranger| !self.rows_of(stranger, parts).iter().all(is_equal);
        self.board.strangers(found.iter().filter(unequal).cloned().collect());
    }

    /// A partition that only the target has holds rows of the table that it is in.
    fn rows_of(&self, stranger: &Stranger, parts: &BTreeMap<TableName, TableName>) -> &[TableName] {
        let named = self.rows_of.get(&stranger.table);
        let within = || parts.get(&stranger.table).and_then(|whole| self.rows_of.get(whole));
        named.or_else(within).map_or(&[], Vec::as_slice)
    }
}

fn say_watched(watched: Watched, known: &mut Vec<TableName>) {
    if watched.begun > 0 {
        info!(tables = watched.begun, busy = watched.busy, "watching the target for other writers");
    }
    if let Some(first) = watched.forbidden.first().filter(|_| watched.forbidden != *known) {
        warn!(
            tables = watched.forbidden.len(),
            %first,
            "our role may make no trigger there (GRANT TRIGGER ON TABLE): another writer is not noticed before verification"
        );
    }
    *known = watched.forbidden;
}
