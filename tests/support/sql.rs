//! Plain SQL for tests, over tokio-postgres and nothing of ours.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{Client, Connection, NoTls, SimpleQueryMessage, Socket};

const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// A session. Dereferences to [`Client`].
pub struct Db {
    client: Client,
    /// Drives the connection; ends with the session.
    _connection: JoinSet<()>,
}

impl Db {
    /// More log than counts as a backlog, most of it empty: a switch leaves the rest of its segment out.
    pub async fn fill_log(&self, change: &str) {
        for _ in 0..6 {
            self.exec(change).await;
            self.exec("SELECT pg_switch_wal()").await;
        }
    }

    /// Panics with the reason when there is no way in.
    pub async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap_or_else(|error| {
            panic!("connect to {url}: {error:?}");
        });
        Self::from_parts(client, connection)
    }

    /// From what tokio-postgres gives, for who comes in with a password or an option of their own.
    pub fn from_parts<T>(client: Client, connection: Connection<Socket, T>) -> Self
    where
        T: TlsStream + Unpin + Send + 'static,
    {
        let mut connections = JoinSet::new();
        connections.spawn(async move { drop(connection.await) });
        Self { client, _connection: connections }
    }

    /// One or more statements by the simple protocol, as `psql -c` sends them.
    pub async fn exec(&self, sql: &str) {
        if let Err(error) = self.client.batch_execute(sql).await {
            panic!("{error:?}\nin: {}", &sql[..sql.len().min(500)]);
        }
    }

    /// The rows of a query as text: columns joined by `|`, NULL as `∅`.
    pub async fn query_text(&self, sql: &str) -> Vec<String> {
        let messages = self.client.simple_query(sql).await.unwrap_or_else(|error| panic!("{error:?}\nin: {sql}"));
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                let columns: Vec<&str> = (0..row.len()).map(|column| row.get(column).unwrap_or("∅")).collect();
                rows.push(columns.join("|"));
            }
        }
        rows
    }

    /// The first column of the first row as text.
    pub async fn scalar(&self, sql: &str) -> String {
        self.query_text(sql).await.into_iter().next().unwrap_or_else(|| panic!("no row from {sql}"))
    }

    /// The server's: 13, 14, …
    pub async fn major_version(&self) -> u32 {
        self.scalar("SELECT current_setting('server_version_num')::int / 10000").await.parse().unwrap()
    }

    /// Waits until the first column of the first row is `wanted`; how long that took. Panics when it is not after 90 s.
    pub async fn until(&self, sql: &str, wanted: &str) -> Duration {
        self.until_it(sql, |found| found == wanted).await
    }

    /// The same until it is anything but `unwanted`.
    pub async fn until_not(&self, sql: &str, unwanted: &str) -> Duration {
        self.until_it(sql, |found| found != unwanted).await
    }

    async fn until_it(&self, sql: &str, holds: impl Fn(&str) -> bool) -> Duration {
        let began = Instant::now();
        loop {
            let found = self.scalar(sql).await;
            if holds(&found) {
                return began.elapsed();
            }
            assert!(began.elapsed() < PATIENCE, "still {found} after {PATIENCE:?}: {sql}");
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Every row of a table (written as SQL: quote it if it needs it), ordered, in the form `(a,b,"c d")`: what row-by-row
    /// equality of two sides is asserted on.
    pub async fn rows(&self, table: &str) -> Vec<String> {
        self.query_text(&format!(r#"SELECT t::text FROM {table} t ORDER BY t::text COLLATE "C""#)).await
    }
}

impl std::ops::Deref for Db {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
