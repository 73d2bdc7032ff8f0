//! The paths. Every answer that is not a page or a metric is JSON; a refusal is `{"reason", "hint", "failed"}`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::de::DeserializeOwned;

use super::access::{Access, guard};
use super::gauges;
use crate::pipeline::{Handle, Phase, Refused, Status};

/// One page, no files beside it: it must also work where nothing can be fetched from elsewhere.
const PAGE: &str = include_str!("page.html");

#[derive(Clone)]
pub(super) struct Shared(Arc<Inner>);

struct Inner {
    handle: Handle,
    metrics: PrometheusHandle,
}

impl Shared {
    pub(super) fn new(handle: Handle, metrics: PrometheusHandle) -> Self {
        Self(Arc::new(Inner { handle, metrics }))
    }
}

pub(super) fn router(shared: Shared, access: Access) -> Router {
    let changing = Router::new()
        .route("/api/v1/verify", post(verify))
        .route("/api/v1/cutover", post(cutover))
        .route("/api/v1/resync", post(resync))
        .route("/api/v1/pause", post(pause))
        .route("/api/v1/resume", post(resume))
        .route("/api/v1/throttle", post(throttle))
        .route("/api/v1/stop", post(stop))
        .route_layer(from_fn_with_state(access, guard));
    Router::new()
        .route("/", get(page))
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(status))
        .merge(changing)
        .fallback(nothing_here)
        .with_state(shared)
}

async fn page() -> Response {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
    let headers = [(CONTENT_TYPE, "text/html; charset=utf-8"), (CONTENT_SECURITY_POLICY, policy)];
    (headers, PAGE).into_response()
}

/// Ready means that what a reader of the target sees is the source as of some commit.
async fn ready(State(shared): State<Shared>) -> Response {
    let status = shared.0.handle.status();
    let code = if is_ready(&status) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let halted: Vec<&str> = status.halted.iter().map(|trouble| trouble.part.as_str()).collect();
    let suffix = if halted.is_empty() { String::new() } else { format!(", halted: {}", halted.join(", ")) };
    (code, format!("{}{suffix}\n", status.phase.as_str())).into_response()
}

fn is_ready(status: &Status) -> bool {
    match status.phase {
        Phase::Streaming | Phase::CuttingOver | Phase::CutOver => status.halted.is_empty(),
        Phase::Preparing | Phase::Copying | Phase::Indexing | Phase::CatchingUp => false,
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    gauges::set(&shared.0.handle.status());
    shared.0.metrics.run_upkeep();
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], shared.0.metrics.render()).into_response()
}

async fn status(State(shared): State<Shared>) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(shared.0.handle.status())).into_response()
}

async fn verify(State(shared): State<Shared>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => answer(shared.0.handle.verify(request).await),
        Err(response) => response,
    }
}

async fn cutover(State(shared): State<Shared>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => answer(shared.0.handle.cutover(request).await),
        Err(response) => response,
    }
}

async fn resync(State(shared): State<Shared>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => answer(shared.0.handle.resync(request).await),
        Err(response) => response,
    }
}

async fn pause(State(shared): State<Shared>) -> Response {
    answer(shared.0.handle.pause().await)
}

async fn resume(State(shared): State<Shared>) -> Response {
    answer(shared.0.handle.resume().await)
}

async fn throttle(State(shared): State<Shared>, body: Bytes) -> Response {
    match read(&body) {
        Ok(request) => answer(shared.0.handle.throttle(request).await),
        Err(response) => response,
    }
}

async fn stop(State(shared): State<Shared>) -> Response {
    answer(shared.0.handle.stop().await)
}

async fn nothing_here() -> Response {
    let refused = Refused::now("there is nothing at this path", "GET /api/v1/status shows what is going on");
    (StatusCode::NOT_FOUND, refusal(&refused)).into_response()
}

/// No body asks for the defaults. Read whatever its content type says, so that plain `curl -d` works.
#[allow(clippy::result_large_err, reason = "the error is the answer, made once a request")]
fn read<T: DeserializeOwned + Default>(body: &Bytes) -> Result<T, Response> {
    if body.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| {
        let refused =
            Refused::now(format!("read the request: {error}"), "send a JSON object, or no body for the defaults");
        (StatusCode::BAD_REQUEST, refusal(&refused)).into_response()
    })
}

fn answer(result: Result<serde_json::Value, Refused>) -> Response {
    match result {
        Ok(value) => Json(value).into_response(),
        Err(refused) if refused.failed => (StatusCode::INTERNAL_SERVER_ERROR, refusal(&refused)).into_response(),
        Err(refused) => (StatusCode::CONFLICT, refusal(&refused)).into_response(),
    }
}

pub(super) fn refusal(refused: &Refused) -> Json<Refused> {
    Json(refused.clone())
}
