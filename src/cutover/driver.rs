//! Performs what the machine decides.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::error::{Error, GREEN, query};
use super::machine::{Effect, Input, Machine, Next, State, Why, under_way};
use super::ports::Ports;
use super::report::{Outcome, Owner, Report, StepTime, ms};
use super::router::Router;
use super::stage::{ANSWER_MAX, Stage};
use super::{fence, forecast, journal};
use crate::model::{Disposition, Lsn};
use crate::telemetry::{chain, metrics as names};
use crate::verify::{self, Aligner, DirtyKeys, Verdict};

/// Between tries of a step that must succeed (compensations, and the flip).
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Options {
    /// Names, ends, and how to compare.
    pub verify: verify::Options,
    /// Clients are held no longer than this; then everything is undone.
    pub max_pause: Duration,
    /// A cutover does not start above this.
    pub max_lag_bytes: u64,
    /// Gates and forecast only.
    pub dry_run: bool,
}

/// What a cutover works with.
#[derive(Clone)]
pub struct Parts<'a> {
    pub ports: &'a dyn Ports,
    pub aligner: &'a dyn Aligner,
    pub dirty: &'a DirtyKeys,
    /// Asked in this order, both to hold and to let go.
    pub routers: &'a [Box<dyn Router>],
    /// Calls the attempt off. Past the commit point it is finished all the same, unless a router does not answer:
    /// then [`super::recover`] finishes it.
    pub cancel: CancellationToken,
}

/// One attempt. `Ok` whatever came of it, with the owner of the writes in the report.
///
/// # Errors
/// While nothing has been touched; and [`Error::Undecided`] when it was called off while green did not say whether the
/// commit point was passed. [`super::recover`] then finds out.
pub async fn run(options: &Options, parts: Parts<'_>) -> Result<Report, Error> {
    let mut stage = Box::pin(Stage::open(options, &parts)).await?;
    Box::pin(stage.check_gates()).await;
    let mut attempt = Attempt::new(options, &parts, &mut stage);
    if !options.dry_run {
        Box::pin(attempt.play()).await;
    }
    if matches!(attempt.machine.state(), State::Resolving { .. }) {
        return Err(Error::Undecided);
    }
    let report = attempt.report();
    Box::pin(stage.clean_up(&report)).await;
    let migration = options.verify.migration.as_str().to_owned();
    let ready = if stage.gates.iter().all(|gate| gate.open) { 1.0 } else { 0.0 };
    metrics::gauge!(names::CUTOVER_READY, names::LABEL_MIGRATION => migration.clone()).set(ready);
    if let (Outcome::CutOver, Some(pause_ms)) = (report.outcome, report.pause_ms) {
        metrics::gauge!(names::CUTOVER_PAUSE_SECONDS, names::LABEL_MIGRATION => migration).set(pause_ms / 1000.0);
    }
    Ok(report)
}

struct Attempt<'a, 'p> {
    options: &'a Options,
    parts: &'a Parts<'p>,
    stage: &'a mut Stage<'p>,
    machine: Machine,
    steps: Vec<StepTime>,
    paused_at: Option<Instant>,
    pause: Option<Duration>,
    barrier: Option<Lsn>,
    judged: Option<verify::Report>,
    /// What became of the sequences, which are set while the sinks drain: neither needs the other.
    sequences: Option<Result<usize, Error>>,
    /// The first one decides; those of compensations are in the log.
    error: Option<Error>,
    retry: Duration,
}

impl<'a, 'p> Attempt<'a, 'p> {
    fn new(options: &'a Options, parts: &'a Parts<'p>, stage: &'a mut Stage<'p>) -> Self {
        let (machine, _) = Machine::new(options.max_pause);
        Self {
            options,
            parts,
            stage,
            machine,
            steps: Vec::new(),
            paused_at: None,
            pause: None,
            barrier: None,
            judged: None,
            sequences: None,
            error: None,
            retry: RETRY_FIRST,
        }
    }

    /// From the gates' answer to the end.
    async fn play(&mut self) {
        let open = self.stage.gates.iter().all(|gate| gate.open);
        let mut next = self.machine.on(if open { Input::GatesOpen } else { Input::GateClosed }, Instant::now());
        while let Next::Perform(effect) = next {
            let step = under_way(self.machine.state());
            if effect == Effect::HoldClients {
                self.paused_at = Some(Instant::now());
            }
            let started = Instant::now();
            next = self.perform(effect).await;
            self.steps.push(StepTime::new(step.as_str(), started.elapsed()));
            if matches!(self.machine.state(), State::Done { .. } | State::Aborted { .. }) {
                self.pause = self.paused_at.map(|since| since.elapsed());
            }
            info!(step = step.as_str(), took_ms = ms(started.elapsed()), state = ?self.machine.state(), "cutover");
            if self.gave_up(next) {
                return;
            }
        }
    }

    /// Called off, and what must still be done fails: the next start of the daemon does it.
    fn gave_up(&self, next: Next) -> bool {
        self.parts.cancel.is_cancelled()
            && self.retry > RETRY_FIRST
            && matches!(
                next,
                Next::Perform(Effect::Flip | Effect::Resolve | Effect::LowerFence | Effect::ReleaseClients)
            )
    }

    /// Performs one step to its end, or until the machine drops it for the clock or the operator.
    async fn perform(&mut self, effect: Effect) -> Next {
        let deadline = self.machine.deadline();
        let mut machine = self.machine;
        let cancel = self.parts.cancel.clone();
        let (mut called_off, mut overdue) = (false, false);
        let next = {
            let step = self.step(effect);
            tokio::pin!(step);
            loop {
                let input = tokio::select! { biased;
                    // What is done is done, also in the last moment.
                    input = &mut step => break machine.on(input, Instant::now()),
                    () = cancel.cancelled(), if !called_off => {
                        called_off = true;
                        Input::Cancel
                    }
                    () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && !overdue => {
                        overdue = true;
                        Input::Tick
                    }
                };
                let next = machine.on(input, Instant::now());
                if next != Next::Stay {
                    break next;
                }
            }
        };
        self.machine = machine;
        next
    }

    async fn step(&mut self, effect: Effect) -> Input {
        let outcome = match effect {
            Effect::CheckGates => unreachable!("the gates are checked before the first step"),
            Effect::HoldClients => self.each_router("hold", |router| router.hold()).await.map(|()| Input::Held),
            Effect::RaiseFence => self.raise().await,
            Effect::AwaitDrain { barrier } => self.drain(barrier).await,
            Effect::Judge { barrier } => self.judge(barrier).await,
            Effect::SetSequences => self.set_sequences().await,
            Effect::Commit { barrier } => return self.commit(barrier).await,
            Effect::Resolve => self.stage.resolve().await.map(|committed| match committed {
                Some(_) => Input::Committed,
                None => Input::CommitRefused,
            }),
            Effect::Flip => self.each_router("flip", |router| router.flip()).await.map(|()| Input::Flipped),
            Effect::LowerFence => self.stage.lower_fence().await.map(|()| Input::Unfenced),
            Effect::ReleaseClients => {
                self.each_router("release", |router| router.release()).await.map(|()| Input::Released)
            }
        };
        match outcome {
            Ok(input) => {
                self.retry = RETRY_FIRST;
                input
            }
            Err(error) => self.failed(effect, error).await,
        }
    }

    /// What must succeed is tried again, less and less often.
    async fn failed(&mut self, effect: Effect, error: Error) -> Input {
        warn!(
            step = under_way(self.machine.state()).as_str(),
            error = chain(&error),
            "this step of the cutover failed"
        );
        if self.error.is_none() {
            self.error = Some(error);
        }
        if matches!(effect, Effect::Resolve | Effect::Flip | Effect::LowerFence | Effect::ReleaseClients) {
            sleep(self.retry).await;
            self.retry = (self.retry * 2).min(RETRY_MAX);
        }
        Input::Failed
    }

    async fn each_router<'r>(
        &self,
        step: &'static str,
        ask: impl Fn(&'r dyn Router) -> super::RouterFuture<'r>,
    ) -> Result<(), Error>
    where
        'p: 'r,
    {
        let routers: &'p [Box<dyn Router>] = self.parts.routers;
        for router in routers {
            let failed = |source| Error::Router { router: router.name(), step, source: Box::new(source) };
            ask(&**router).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn raise(&mut self) -> Result<Input, Error> {
        let barrier = self.stage.raise_fence().await?;
        self.barrier = Some(barrier);
        info!(%barrier, "blue takes no more writes");
        Ok(Input::Fenced { barrier })
    }

    async fn drain(&mut self, barrier: Lsn) -> Result<Input, Error> {
        let what = "wait until every sink is durable past the fence";
        let drained = self.parts.ports.drained(barrier);
        let (drained, sequences) = tokio::join!(drained, self.stage.set_sequences());
        self.sequences = Some(sequences);
        drained.map_err(|source| Error::Port { what, source })?;
        Ok(Input::Drained)
    }

    async fn set_sequences(&mut self) -> Result<Input, Error> {
        match self.sequences.take() {
            Some(outcome) => outcome?,
            None => self.stage.set_sequences().await?,
        };
        Ok(Input::SequencesSet)
    }

    async fn judge(&mut self, barrier: Lsn) -> Result<Input, Error> {
        let report = self.stage.judge(barrier).await?;
        let equal = report.verdict == Verdict::Equal;
        self.judged = Some(report);
        Ok(Input::Judged { equal })
    }

    /// Whatever goes wrong here leaves open whether the record was written.
    async fn commit(&mut self, barrier: Lsn) -> Input {
        let what = "record that green owns the writes";
        let statement = journal::commit_statement(&self.options.verify.migration, self.stage.attempt, barrier);
        let error = match timeout(ANSWER_MAX, self.stage.green.simple_query(&statement)).await {
            Ok(Ok(messages)) if journal::committed(&messages) => return Input::Committed,
            Ok(Ok(_)) => return Input::CommitRefused,
            Ok(Err(error)) => query(GREEN, what)(error),
            Err(_) => Error::NoAnswer { side: GREEN, what, seconds: ANSWER_MAX.as_secs() },
        };
        warn!(error = chain(&error), "whether green owns the writes has to be looked up");
        self.error = Some(error);
        Input::CommitUnknown
    }

    fn report(self) -> Report {
        let (outcome, owner, why) = match self.machine.state() {
            State::Gates => (Outcome::DryRun, Owner::Blue, None),
            State::Refused => (Outcome::Refused, Owner::Blue, None),
            State::Done { .. } | State::Flipping { .. } => (Outcome::CutOver, Owner::Green, None),
            State::Aborted { why } | State::Unfencing { why } | State::Releasing { why } => {
                (Outcome::Aborted, Owner::Blue, Some(why))
            }
            state @ (State::HoldingClients
            | State::Fencing { .. }
            | State::Draining { .. }
            | State::Verifying { .. }
            | State::SettingSequences { .. }
            | State::Committing { .. }
            | State::Resolving { .. }) => (Outcome::Aborted, Owner::Blue, Some(Why::Failed(under_way(state)))),
        };
        let closed = self.stage.gates.iter().filter(|gate| !gate.open).map(|gate| gate.name.as_str());
        let closed: Vec<&str> = closed.collect();
        let cause = self.error.as_ref().map(|error| chain(error));
        let reason = match (outcome, why) {
            (Outcome::Refused, _) => Some(format!("closed gates: {}", closed.join(", "))),
            (_, Some(why)) => Some(cause.map_or_else(|| why.to_string(), |cause| format!("{why}: {cause}"))),
            (Outcome::CutOver, None) if self.pause.is_none() => cause,
            (Outcome::CutOver | Outcome::DryRun | Outcome::Aborted, None) => None,
        };
        let hint = reason.is_some().then(|| self.error.as_ref().map(Error::disposition)).flatten();
        let forecast = self.stage.measured.steps();
        Report {
            outcome,
            owner,
            attempt: self.stage.attempt,
            gates: self.stage.gates.clone(),
            pause_ms: self.pause.map(ms),
            forecast_ms: forecast::total(&forecast),
            forecast,
            steps: self.steps,
            fence_position: self.barrier.map(|barrier| barrier.to_string()),
            verdict: self.judged.as_ref().map(|judged| judged.verdict),
            tables_verified: self
                .judged
                .as_ref()
                .map_or(0, |judged| judged.tables.iter().filter(|table| table.equal).count() as u64),
            rows_verified: self.judged.as_ref().map_or(0, |judged| judged.rows_verified),
            reason,
            hint: hint.and_then(|disposition| match disposition {
                Disposition::Halt { hint } => Some(hint),
                Disposition::Retry => None,
            }),
        }
    }
}

impl Stage<'_> {
    /// After the last client was let go. Nothing here decides anything, so a failure is only told.
    async fn clean_up(&mut self, report: &Report) {
        let migration = &self.options.verify.migration;
        let done = match report.outcome {
            Outcome::CutOver if report.pause_ms.is_some() => {
                journal::note(&self.green, migration, self.attempt, "flipped").await
            }
            // Not finished: `recover` does it at the next start.
            Outcome::CutOver => Ok(()),
            Outcome::Aborted if report.pause_ms.is_none() => Ok(()),
            Outcome::Aborted | Outcome::Refused | Outcome::DryRun => self.forget().await,
        };
        if let Err(error) = done {
            warn!(error = chain(&error), "the next start of the daemon will tidy up after this cutover");
        }
    }

    async fn forget(&self) -> Result<(), Error> {
        fence::remove_fence(&self.blue, &self.options.verify.migration).await?;
        if self.attempt > 0 {
            journal::note(&self.green, &self.options.verify.migration, self.attempt, "aborted").await?;
        }
        Ok(())
    }
}
