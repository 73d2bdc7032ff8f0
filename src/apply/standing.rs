//! Commands and the machine: the driver's part of standing still.

use tokio::sync::oneshot;
use tracing::warn;

use crate::model::{ApplyCommand, Lsn, Transaction};

use super::driver::Driver;
use super::machine::{Effect, Input};
use super::queue::Next;

impl Driver {
    pub(super) fn obey(&mut self, command: ApplyCommand) {
        match command {
            ApplyCommand::Hold { reply } => {
                self.align_reply = None;
                self.hold_reply = Some(reply);
                self.turn(Input::Hold);
            }
            ApplyCommand::AdvanceTo { snapshot, until, reply } => {
                self.align_reply = Some(reply);
                let passed = self.recent.has_hidden_from(&snapshot);
                self.turn(Input::Advance { snapshot, until, passed });
            }
            ApplyCommand::Release => {
                self.hold_reply = None;
                self.align_reply = None;
                self.turn(Input::Release);
            }
        }
    }

    pub(super) fn turn(&mut self, input: Input) {
        let state = std::mem::take(&mut self.state);
        let (next, effect) = state.on(input);
        self.state = next;
        match effect {
            None => {}
            Some(Effect::AnswerHold { applied }) => {
                // Before anything was ever applied we stand at the beginning of the log.
                let position = applied.or(Lsn::new(1)).expect("one is not zero");
                answer(self.hold_reply.take(), position);
            }
            Some(Effect::AnswerAdvance(result)) => answer(self.align_reply.take(), result),
            Some(Effect::ShowHeldBack) => {
                let before = self.reached.map(Next::Through);
                let waiting: Vec<Next> = before.into_iter().chain(self.queue.iter()).collect();
                self.show(waiting);
            }
            Some(Effect::Refuse) => {
                warn!("asked to advance while not held");
                self.align_reply = None;
            }
        }
    }

    /// Shows the machine what is held back.
    pub(super) fn show(&mut self, waiting: Vec<Next>) {
        for next in waiting {
            match next {
                Next::Through(through) => self.turn(Input::Through(through)),
                Next::Transaction(member) if self.holds(member.transaction()) => {}
                Next::Transaction(member) => {
                    let Transaction { xid, end, .. } = *member.transaction();
                    self.turn(Input::Transaction { xid, end });
                }
            }
        }
        if self.queue.size_bytes() >= self.held_bytes {
            self.turn(Input::Full);
        }
    }
}

/// Whoever asked may have gone; then nobody wants to know.
fn answer<T>(reply: Option<oneshot::Sender<T>>, value: T) {
    if let Some(reply) = reply {
        drop(reply.send(value));
    }
}
