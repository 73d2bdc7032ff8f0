//! Cancelling a command from another connection ("Canceling Requests in Progress" in the documentation).

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::startup::open_for_cancel;
use super::{Endpoint, Error};

/// What cancels the command that is under way on a connection.
#[derive(Clone, Debug)]
pub struct CancelToken {
    endpoint: Endpoint,
    backend_pid: i32,
    cancel_key: i32,
}

impl CancelToken {
    pub(super) fn new(endpoint: Endpoint, backend_pid: i32, cancel_key: i32) -> Self {
        Self { endpoint, backend_pid, cancel_key }
    }

    /// Asks the server to cancel, and returns once it has taken the request. Whether there was anything to cancel is
    /// seen on the connection itself.
    pub async fn cancel(&self) -> Result<(), Error> {
        let lost = |source| Error::Connection { endpoint: self.endpoint.to_string(), source };
        let mut stream = open_for_cancel(&self.endpoint).await?;
        let mut request = BytesMut::new();
        frontend::cancel_request(self.backend_pid, self.cancel_key, &mut request);
        stream.write_all(&request).await.map_err(lost)?;
        stream.flush().await.map_err(lost)?;
        // The server closes without a word once it has signalled; a reset says the same.
        let closed = stream.read(&mut [0]).await;
        tracing::trace!(?closed, "cancel request taken");
        Ok(())
    }
}
