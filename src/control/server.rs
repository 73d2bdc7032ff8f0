//! Binds the address and serves until it is told to stop.

use std::net::SocketAddr;

use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::access::Access;
use super::error::Error;
use super::routes::{Shared, router};
use crate::model::Secret;
use crate::pipeline::Handle;

pub struct Options {
    /// What the requests are passed to.
    pub handle: Handle,
    pub metrics: PrometheusHandle,
    /// Whoever sends it may change things; without one, only clients on this machine may.
    pub token: Option<Secret>,
}

/// Takes the address. Done before anything else is started, so that a second daemon fails at once.
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(listen).await.map_err(|source| Error::Listen { listen, source })
}

/// Answers requests until `stop`; those under way are answered to their end.
pub async fn serve(listener: TcpListener, options: Options, stop: CancellationToken) -> Result<(), Error> {
    let serving = |source| Error::Serve { source };
    let listen = listener.local_addr().map_err(serving)?;
    info!(%listen, "control listening");
    if options.token.is_none() {
        warn!(%listen, "no control.token_file: whoever is on this machine may send requests, nobody else may");
    }
    let shared = Shared::new(options.handle, options.metrics);
    let service = router(shared, Access::new(options.token)).into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await.map_err(serving)
}
