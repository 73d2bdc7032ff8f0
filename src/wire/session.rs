//! A connection for SQL.

use std::ops::{Deref, DerefMut};

use super::adopted::Adopted;
use super::raw::{Mode, RawConnection, connect_raw, connect_raw_plain};
use super::{CancelToken, Endpoint, Error};

/// A `tokio_postgres::Client` whose settings are pinned and whose connection is driven until the session is dropped.
pub struct Session {
    client: tokio_postgres::Client,
    cancel_token: CancelToken,
    server_version_num: u32,
    backend_pid: i32,
}

/// Connects and pins what shapes values and waits. `purpose` goes into `application_name`, after "changeover ".
pub async fn connect(endpoint: &Endpoint, purpose: &str) -> Result<Session, Error> {
    Session::adopt(connect_raw(endpoint, Mode::Sql, purpose).await?).await
}

/// Connects and pins nothing, for what only looks like a PostgreSQL server (PgBouncer's console).
pub async fn connect_plain(endpoint: &Endpoint, purpose: &str) -> Result<Session, Error> {
    Session::adopt(connect_raw_plain(endpoint, purpose).await?).await
}

impl Session {
    /// Hands a connection that we opened over to the SQL client.
    async fn adopt(raw: RawConnection) -> Result<Self, Error> {
        let (cancel_token, server_version_num) = (raw.cancel_token(), raw.server_version_num());
        let backend_pid = raw.backend_pid();
        let (messages, endpoint, greeting) = raw.into_parts();
        let mut config = tokio_postgres::Config::new();
        config.user(endpoint.user()).ssl_mode(tokio_postgres::config::SslMode::Disable);
        let adopted = config.connect_raw(Adopted::new(messages, &greeting), tokio_postgres::NoTls).await;
        let (client, connection) =
            adopted.map_err(|source| Error::Client { endpoint: endpoint.to_string(), source })?;
        let drive = async move {
            if let Err(error) = connection.await {
                // Whoever uses the client sees the same error, and knows what it means for them.
                tracing::debug!(%endpoint, %error, "connection ended");
            }
        };
        #[allow(
            clippy::disallowed_methods,
            reason = "it ends when the client is dropped, and only the client needs it"
        )]
        drop(tokio::spawn(drive));
        Ok(Self { client, cancel_token, server_version_num, backend_pid })
    }

    /// As `server_version_num`; 0 when the server does not report its version.
    pub fn server_version_num(&self) -> u32 {
        self.server_version_num
    }

    /// The backend's process on the server.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// What cancels the statement under way. Shadows the client's own, which does not know how we reach the server.
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel_token.clone()
    }
}

impl Deref for Session {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &Self::Target {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.client
    }
}
