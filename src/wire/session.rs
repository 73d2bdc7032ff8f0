//! A connection for SQL.

use std::ops::{Deref, DerefMut};

use super::{Endpoint, Error};

/// A `tokio_postgres::Client` whose settings are pinned and whose connection is driven until it is dropped.
pub struct Session {
    client: tokio_postgres::Client,
}

/// Connects and pins what shapes values and waits. `purpose` goes into `application_name`, after "changeover ".
pub async fn connect(endpoint: &Endpoint, purpose: &str) -> Result<Session, Error> {
    connect_plain(endpoint, purpose).await
}

/// Connects and pins nothing, for what only looks like a PostgreSQL server (PgBouncer's console).
pub async fn connect_plain(endpoint: &Endpoint, purpose: &str) -> Result<Session, Error> {
    let mut config = tokio_postgres::Config::new();
    config.host(endpoint.host().to_string()).port(endpoint.port()).user(endpoint.user()).dbname(endpoint.dbname());
    config.application_name(format!("changeover {purpose}"));
    if let Some(password) = endpoint.password() {
        config.password(password.reveal());
    }
    let failed = |source| Error::Query { endpoint: endpoint.to_string(), source };
    let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(failed)?;
    #[allow(clippy::disallowed_methods, reason = "it ends with the client, and nobody but it waits for it")]
    tokio::spawn(connection);
    Ok(Session { client })
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
