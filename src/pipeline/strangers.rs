//! Other writers on the target: looked for while streaming, and before every verification and cutover.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::board::Board;
use super::status::Phase;
use super::touched::Listeners;
use super::watchers::wait;
use crate::apply::{self, Stranger};
use crate::config::Config;
use crate::model::TableName;
use crate::telemetry::{chain, metrics as names};
use crate::wire::{self, Session};

/// How soon another writer is named.
const INTERVAL: Duration = Duration::from_secs(2);

/// A table that somebody else wrote to is no longer held equal.
pub(super) struct Strangers {
    config: Arc<Config>,
    board: Board,
    listeners: Arc<Listeners>,
    tables: Vec<TableName>,
    state: Mutex<State>,
}

/// What the last look has left.
#[derive(Default)]
struct State {
    session: Option<Session>,
    known: Vec<Stranger>,
    forbidden: Vec<TableName>,
}

impl Strangers {
    pub(super) fn new(config: &Arc<Config>, board: &Board, listeners: &Arc<Listeners>, tables: Vec<TableName>) -> Self {
        let (config, board, listeners) = (Arc::clone(config), board.clone(), Arc::clone(listeners));
        Self { config, board, listeners, tables, state: Mutex::default() }
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
            // The applier reports a target that is gone.
            state.session = None;
            debug!(error = chain(&error), "other writers not looked for");
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
        let watched = apply::watch(target, &self.config.migration, &self.tables).await?;
        let found = apply::read_strangers(target, &self.config.migration).await?;
        if watched.begun > 0 {
            info!(tables = watched.begun, busy = watched.busy, "watching the target for other writers");
        }
        if let Some(first) = watched.forbidden.first().filter(|_| watched.forbidden != state.forbidden) {
            warn!(
                tables = watched.forbidden.len(),
                %first,
                "our role may make no trigger there (GRANT TRIGGER ON TABLE): another writer is not noticed before verification"
            );
        }
        state.forbidden = watched.forbidden;
        self.tell(&state.known, &found);
        state.known = found;
        Ok(())
    }

    /// What was written since is compared anew before a cutover, and whoever wrote is named until it was found equal.
    fn tell(&self, known: &[Stranger], found: &[Stranger]) {
        for stranger in found.iter().filter(|stranger| !known.contains(stranger)) {
            let table = stranger.table.to_string();
            self.listeners.all().distrust(&table);
            warn!(
                table,
                role = stranger.role,
                application = stranger.application,
                address = stranger.address,
                "somebody else writes to the target"
            );
            metrics::counter!(names::FOREIGN_WRITES_TOTAL, names::LABEL_TABLE => table).increment(1);
        }
        let unequal = |stranger: &&Stranger| !self.listeners.all().is_held_equal(&stranger.table.to_string());
        self.board.strangers(found.iter().filter(unequal).cloned().collect());
    }
}
