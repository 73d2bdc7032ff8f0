//! Groups that are being executed, in the order of their commits.
//!
//! The first one executes to its commit. Those behind it, each in a session of its own, have executed what may go ahead
//! ([`super::split`]) and wait for their turn. So the target works on several groups at once and shows them one after the
//! other.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use tokio::time::Instant;

use super::error::Error;
use super::group::Group;
use super::session::{Outcome, Sent, Target};
use super::split::Share;
use super::transaction::Step;

pub(super) struct Flight {
    pub(super) group: Group,
    /// `None` after its session was given up: it takes whichever is free when its turn comes.
    pub(super) target: Option<Target>,
    pub(super) course: Course,
    /// Its commit is durable when it is answered.
    pub(super) flushes: bool,
}

pub(super) enum Course {
    /// Executes what may go ahead of the groups before.
    Ahead { sent: Sent<Step>, shares: Vec<Share> },
    /// Has done so, and waits for its turn.
    Waits { shares: Vec<Share> },
    /// What went ahead was refused: it is done again in its turn.
    Refused,
    /// Nothing of it has been sent.
    Unsent,
    /// Executes to its end; only the first in the row.
    Ends { sent: Sent<Step> },
}

/// The sessions that are free, and what is done in the others.
pub(super) struct Flights {
    row: VecDeque<Flight>,
    /// Since when the first of them has been the first.
    pub(super) first_since: Instant,
}

impl Default for Flights {
    fn default() -> Self {
        Self { row: VecDeque::new(), first_since: Instant::now() }
    }
}

impl Flights {
    pub(super) fn is_empty(&self) -> bool {
        self.row.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.row.len()
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = &Group> {
        self.row.iter().map(|flight| &flight.group)
    }

    pub(super) fn push(&mut self, flight: Flight) {
        if self.row.is_empty() {
            self.first_since = Instant::now();
        }
        self.row.push_back(flight);
    }

    /// The session that executes a group to its end. What is written for it now is sent next.
    pub(super) fn executing(&mut self) -> Option<&mut Target> {
        let first = self.row.front_mut().filter(|first| matches!(first.course, Course::Ends { .. }))?;
        first.target.as_mut()
    }

    pub(super) fn pop(&mut self) -> Option<Flight> {
        self.first_since = Instant::now();
        self.row.pop_front()
    }

    pub(super) fn at(&mut self, at: usize) -> &mut Flight {
        &mut self.row[at]
    }

    /// Whether the first one executes to its end.
    pub(super) fn is_ending(&self) -> bool {
        matches!(self.row.front().map(|flight| &flight.course), Some(Course::Ends { .. }))
    }

    /// The servers' processes of the sessions, in the order of the row.
    pub(super) fn processes(&self) -> impl Iterator<Item = i32> {
        self.row.iter().filter_map(|flight| flight.target.as_ref()).map(|target| target.process())
    }

    /// Closes the sessions of all but the first, which undoes what went ahead in them.
    pub(super) fn give_up_ahead(&mut self) {
        for flight in self.row.iter_mut().skip(1) {
            flight.target = None;
            flight.course = Course::Unsent;
        }
    }

    /// The next answer, and whose it is. Waits for ever when nothing executes. Cancel-safe.
    pub(super) async fn answer(&mut self) -> (usize, Result<Outcome<Step>, Error>) {
        type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Outcome<Step>, Error>> + Send + 'a>>;
        let mut waiting: Vec<(usize, Waiting<'_>)> = Vec::with_capacity(self.row.len());
        for (at, flight) in self.row.iter_mut().enumerate() {
            let (Course::Ahead { sent, .. } | Course::Ends { sent, .. }) = &mut flight.course else { continue };
            let target = flight.target.as_mut().expect("what was sent has a session");
            waiting.push((at, Box::pin(target.outcome(sent))));
        }
        std::future::poll_fn(|context| {
            for (at, outcome) in &mut waiting {
                if let Poll::Ready(outcome) = outcome.as_mut().poll(context) {
                    return Poll::Ready((*at, outcome));
                }
            }
            Poll::Pending
        })
        .await
    }
}
