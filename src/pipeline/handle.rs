//! The one way to talk to a running migration: what the HTTP API offers is this.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::status::Status;
use crate::link;

/// Talks to a running migration. Clones talk to the same one.
#[derive(Clone)]
pub struct Handle {
    requests: link::Sender<Request>,
    board: Arc<dyn Fn() -> Status + Send + Sync>,
}

/// What can be asked. Answers are JSON values made by the room that knows (`verify::Report`, `cutover::Report`).
#[derive(Debug)]
pub(super) enum Request {
    Verify(VerifyRequest, Answer),
    Cutover(CutoverRequest, Answer),
    Resync(ResyncRequest, Answer),
    Pause(Answer),
    Resume(Answer),
    Throttle(ThrottleRequest, Answer),
    Stop(Answer),
}

pub(super) type Answer = oneshot::Sender<Result<serde_json::Value, Refused>>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyRequest {
    /// `schema.table` patterns; empty means all tables.
    pub tables: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CutoverRequest {
    /// Print the gates and the forecast, change nothing.
    pub dry_run: bool,
    /// Longest pause the clients may see, in milliseconds; the configuration's when absent.
    pub max_pause_ms: Option<u64>,
}

/// One of both. The other limits are the configuration's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ThrottleRequest {
    /// What all workers of the copy together may read in a second.
    pub max_rate_bytes: Option<u64>,
    /// No limit to the rate, nor the configuration's.
    pub off: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResyncRequest {
    /// `schema.table` patterns, at least one.
    pub tables: Vec<String>,
}

/// A request that was not carried out. `failed` tells "it was tried and failed" (exit 3) from "it is not possible now"
/// (exit 1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct Refused {
    pub reason: String,
    pub hint: Option<String>,
    pub failed: bool,
}

impl Handle {
    pub(super) fn new(requests: link::Sender<Request>, board: Arc<dyn Fn() -> Status + Send + Sync>) -> Self {
        Self { requests, board }
    }

    /// What is going on now. Cheap: reads what the stages last reported.
    pub fn status(&self) -> Status {
        (self.board)()
    }

    /// Compares tables exactly at an aligned position. Answers with a `verify::Report`.
    pub async fn verify(&self, request: VerifyRequest) -> Result<serde_json::Value, Refused> {
        self.ask(|answer| Request::Verify(request, answer)).await
    }

    /// Gates, pause, fence, drain, verify, flip. Answers with a `cutover::Report`.
    pub async fn cutover(&self, request: CutoverRequest) -> Result<serde_json::Value, Refused> {
        self.ask(|answer| Request::Cutover(request, answer)).await
    }

    /// Copies tables again while the others stream. Answers once that is certain to be done, with `tables` and the
    /// `position` they were set apart at; `Status::resync` tells how far it is.
    pub async fn resync(&self, request: ResyncRequest) -> Result<serde_json::Value, Refused> {
        self.ask(|answer| Request::Resync(request, answer)).await
    }

    /// No part of a table is begun, and the target takes no more changes, until [`Self::resume`].
    pub async fn pause(&self) -> Result<serde_json::Value, Refused> {
        self.ask(Request::Pause).await
    }

    /// Ends a pause, and makes halted parts try again.
    pub async fn resume(&self) -> Result<serde_json::Value, Refused> {
        self.ask(Request::Resume).await
    }

    /// Limits the rate of the copy, or ends the limit, until the daemon ends.
    pub async fn throttle(&self, request: ThrottleRequest) -> Result<serde_json::Value, Refused> {
        self.ask(|answer| Request::Throttle(request, answer)).await
    }

    /// Drains and ends the daemon.
    pub async fn stop(&self) -> Result<serde_json::Value, Refused> {
        self.ask(Request::Stop).await
    }

    async fn ask(&self, request: impl FnOnce(Answer) -> Request) -> Result<serde_json::Value, Refused> {
        /// A request is charged a flat size: they are few and small.
        const REQUEST_BYTES: usize = 1024;
        let stopping = || Refused {
            reason: "the daemon is stopping".to_owned(),
            hint: Some("start it again with `changeover run`".to_owned()),
            failed: false,
        };
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer), REQUEST_BYTES).await.map_err(|_| stopping())?;
        answered.await.unwrap_or_else(|_| Err(stopping()))
    }
}

impl Refused {
    /// Not possible now.
    pub fn now(reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: Some(hint.into()), failed: false }
    }

    /// Tried, and failed on the way.
    pub fn failed(reason: impl Into<String>, hint: Option<String>) -> Self {
        Self { reason: reason.into(), hint, failed: true }
    }
}

/// How long a request may take before its client gives up waiting; the daemon finishes it all the same.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3600);
