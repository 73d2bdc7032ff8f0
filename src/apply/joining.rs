//! The main lane's part in what is applied ahead: it tells how far it has come, and says when the commit joins its own.

use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::link::{self, Receiver};
use crate::model::{AheadCommit, Lsn};
use crate::telemetry::Point;

use super::ahead::{Due, Ended, Runner, Told};
use super::driver::Driver;
use super::error::Error;
use super::group::{Counts, Group};
use super::lanes::{Division, Lane};
use super::options::{AheadPort, Options};
use super::session::{Claim, Target};

pub(super) struct Joining {
    told: watch::Sender<Told>,
    due: Receiver<Due>,
    /// The target holds everything up to here.
    passed: Option<Lsn>,
    stage: Stage,
    /// Ends with us.
    runner: JoinSet<()>,
}

enum Stage {
    /// Nothing has come to its end.
    Idle,
    /// A transaction waits for those before it.
    Waiting(Due),
    /// Its commit is under way. Nothing else is sent, and no command is obeyed.
    Committing { commit: AheadCommit, counts: Counts, reply: oneshot::Sender<()>, ended: oneshot::Receiver<Ended> },
}

pub(super) enum Event {
    Due(Due),
    /// `None`: whoever knew is gone.
    Ended(Option<Ended>),
}

impl Joining {
    /// `None` where nothing can be applied ahead: tables whose order of writes matters for more than their own rows, or
    /// that another lane applies.
    pub(super) fn begin(
        options: &Options,
        port: AheadPort,
        target: &Target,
        claim: &Claim,
        division: &Division,
        start: Option<Lsn>,
    ) -> Option<Self> {
        let able = options.lane == Lane::Main && target.replica && division.is_whole();
        port.able.send_replace(able);
        if !able {
            return None;
        }
        let handed_over = options.handovers.iter().map(|handover| handover.until).max();
        let (told, hears) = watch::channel(Told::default());
        let (asks, due) = link::channel(1, 1);
        let runner = Runner {
            options: options.clone(),
            claim: claim.clone(),
            division: division.clone(),
            floor: start.max(handed_over).max(division.newest_after()),
            needs_origin: target.has_origin,
            input: port.input,
            told: hears,
            due: asks,
            open: None,
            input_ended: false,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(runner.run());
        Some(Self { told, due, passed: start, stage: Stage::Idle, runner: tasks })
    }

    /// The next thing that it has to say. Cancel-safe.
    pub(super) async fn next(joining: &mut Option<Self>) -> Event {
        let Some(Self { due, stage, runner, .. }) = joining else { return std::future::pending().await };
        let due = async {
            match stage {
                Stage::Committing { ended, .. } => Event::Ended(ended.await.ok()),
                Stage::Idle | Stage::Waiting(_) => match due.recv().await {
                    Some(parcel) => Event::Due(parcel.item),
                    None => std::future::pending().await,
                },
            }
        };
        tokio::select! {
            event = due => event,
            Some(Err(failure)) = runner.join_next() => std::panic::resume_unwind(failure.into_panic()),
        }
    }

    pub(super) fn is_committing(&self) -> bool {
        matches!(self.stage, Stage::Committing { .. })
    }

    pub(super) fn pass(&mut self, through: Option<Lsn>) {
        self.passed = self.passed.max(through);
    }
}

impl Driver {
    pub(super) fn is_joining(&self) -> bool {
        self.joining.as_ref().is_some_and(Joining::is_committing)
    }

    /// Tells how far the target has come, and lets a transaction that was applied ahead commit when nothing is before it.
    pub(super) fn tell_ahead(&mut self) {
        let quiet = self.is_quiet();
        let (flows, reached) = (self.state.flows() && !self.stopping, self.reached);
        let Some(joining) = &mut self.joining else { return };
        if quiet {
            joining.pass(reached);
        }
        let told = Told { passed: joining.passed, flows };
        joining.told.send_if_modified(|known| std::mem::replace(known, told) != told);
        joining.stage = match std::mem::replace(&mut joining.stage, Stage::Idle) {
            // Its end is seen by whoever waits for us.
            Stage::Waiting(_) if !flows => Stage::Idle,
            Stage::Waiting(due) if quiet && joining.passed >= Some(due.commit.after) => {
                let Due { commit, counts, reply, go, ended } = due;
                // Whoever asks for these keys is not answered before they are there. All rows of a table, because the
                // rows themselves are long gone.
                if let Some(touched) = &self.ports.touched {
                    counts.values().for_each(|(table, _)| touched.table(&table.member));
                }
                match go.send(()) {
                    Ok(()) => Stage::Committing { commit, counts, reply, ended },
                    Err(()) => Stage::Idle,
                }
            }
            stage @ (Stage::Idle | Stage::Waiting(_) | Stage::Committing { .. }) => stage,
        };
    }

    pub(super) fn on_joining(&mut self, event: Event) -> Result<(), Error> {
        let Some(joining) = &mut self.joining else { return Ok(()) };
        match event {
            Event::Due(due) => joining.stage = Stage::Waiting(due),
            Event::Ended(ended) => {
                let stage = std::mem::replace(&mut joining.stage, Stage::Idle);
                let Stage::Committing { commit, counts, reply, .. } = stage else {
                    unreachable!("only what is being committed ends")
                };
                match ended {
                    Some(Ended::Committed) => self.joined(commit, counts, reply),
                    Some(Ended::GivenUp) => {}
                    Some(Ended::Unknown(error)) => return Err(error),
                    None => unreachable!("it says how it ended, or takes us with it"),
                }
            }
        }
        Ok(())
    }

    /// The target holds it durably.
    fn joined(&mut self, commit: AheadCommit, mut counts: Counts, reply: oneshot::Sender<()>) {
        let AheadCommit { xid, end, committed_at_us, .. } = commit;
        self.applied_ahead(xid, end);
        for (_, counts) in counts.values_mut() {
            counts.committed_at_us = committed_at_us;
        }
        let group = Group { counts, through: Some(end), committed_at_us: vec![committed_at_us], ..Group::default() };
        self.done(group, true);
        // Whoever waits for it may have gone: then it comes again, and is known to be here.
        let _gone = reply.send(());
        Point::AheadTold.reach();
    }
}
