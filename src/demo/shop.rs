//! The database that the demo moves: Chinook, and tables that the clients write to.

use std::collections::HashMap;
use std::fmt::Write as _;

use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::Error;
use super::ledger::{Held, OPENING_CENTS};

/// Its name on both sides and at the pooler.
pub(super) const DATABASE: &str = "shop";

const CHINOOK: &str = include_str!("../../tests/fixtures/chinook.sql");

/// Types that a copy or a stream could get wrong stand in `event`; the clients write to the other three.
const TABLES: &str = "
CREATE TYPE event_kind AS ENUM ('seen', 'clicked', 'bought');
CREATE TABLE account (
    id         bigint PRIMARY KEY,
    owner      uuid NOT NULL DEFAULT gen_random_uuid(),
    cents      bigint NOT NULL CHECK (cents > -1000000000),
    changed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE orders (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    client    integer NOT NULL,
    n         bigint NOT NULL,
    version   bigint NOT NULL DEFAULT 1,
    total     numeric(12, 2) NOT NULL,
    items     jsonb NOT NULL,
    tags      text[] NOT NULL DEFAULT '{}',
    placed_at timestamptz NOT NULL DEFAULT now(),
    note      text
);
CREATE INDEX orders_by_client ON orders (client, n);
CREATE TABLE write_log (
    id     bigserial PRIMARY KEY,
    client integer NOT NULL,
    n      bigint NOT NULL,
    at     timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE event (
    id      uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    kind    event_kind NOT NULL,
    at      timestamptz NOT NULL,
    day     date NOT NULL,
    took    interval,
    body    jsonb NOT NULL,
    amounts numeric[] NOT NULL,
    ratio   double precision,
    raw     bytea,
    address inet
);";

/// A session that drives its own connection.
pub(super) struct Session {
    client: Client,
    _connection: JoinSet<()>,
}

impl Session {
    pub(super) async fn open(url: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
        let mut connections = JoinSet::new();
        // How a connection ended is told to whoever waits for an answer on it.
        connections.spawn(async move { drop(connection.await) });
        Ok(Self { client, _connection: connections })
    }

    async fn run(&self, what: &'static str, sql: &str) -> Result<(), Error> {
        self.client.batch_execute(sql).await.map_err(Error::sql(what))
    }

    /// Rows of numbers.
    async fn numbers<const N: usize>(&self, what: &'static str, sql: &str) -> Result<Vec<[i64; N]>, Error> {
        let messages = self.client.simple_query(sql).await.map_err(Error::sql(what))?;
        let mut rows = Vec::new();
        for message in messages {
            if let SimpleQueryMessage::Row(row) = message {
                let number = |column| row.get(column).and_then(|text| text.parse().ok());
                let values: Option<Vec<i64>> = (0..N).map(number).collect();
                let values = values.and_then(|values| values.try_into().ok());
                rows.push(values.ok_or(Error::Unreadable { what })?);
            }
        }
        Ok(rows)
    }
}

impl std::ops::Deref for Session {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// Makes the empty database.
pub(super) async fn create_database(admin_url: &str) -> Result<(), Error> {
    let session = Session::open(admin_url).await.map_err(Error::sql("connect to a new cluster"))?;
    session.run("create the database", &format!("CREATE DATABASE {DATABASE}")).await
}

/// Fills it with Chinook and about `rows` generated rows. Returns the number of accounts.
pub(super) async fn fill(url: &str, rows: u64) -> Result<i64, Error> {
    let session = Session::open(url).await.map_err(Error::sql("connect to blue"))?;
    session.run("load the Chinook database", &chinook()).await?;
    session.run("create the demo's tables", TABLES).await?;
    let accounts = (rows / 20).clamp(100, 100_000);
    session.run("generate rows", &generated(rows, accounts)).await?;
    Ok(accounts.cast_signed())
}

/// The script makes a database of its own and goes there by psql's `\c`; we are where it should go already.
fn chinook() -> String {
    let ours = |line: &&str| !["DROP DATABASE", "CREATE DATABASE", "\\c"].iter().any(|start| line.starts_with(start));
    CHINOOK.lines().filter(ours).fold(String::with_capacity(CHINOOK.len()), |mut script, line| {
        script.push_str(line);
        script.push('\n');
        script
    })
}

/// Orders of client 0, who is nobody, and events; each value follows from the row's number.
fn generated(rows: u64, accounts: u64) -> String {
    let orders = rows / 4;
    let events = rows.saturating_sub(orders + accounts);
    let mut sql = String::new();
    write!(
        sql,
        "INSERT INTO account (id, cents) SELECT i, {OPENING_CENTS} FROM generate_series(1, {accounts}) i;
         INSERT INTO orders (client, n, total, items, tags, note)
           SELECT 0, i, i * 0.01, jsonb_build_array(jsonb_build_object('sku', 'S' || i, 'count', i % 7)),
                  ARRAY['demo', NULL, 'tag ' || i % 13], CASE WHEN i % 5 = 0 THEN NULL ELSE 'note ''' || i || E'''\\n' END
           FROM generate_series(1, {orders}) i;
         INSERT INTO event (kind, at, day, took, body, amounts, ratio, raw, address)
           SELECT (ARRAY['seen', 'clicked', 'bought'])[1 + i % 3]::event_kind,
                  timestamptz '2020-02-29 23:59:59.999999+00' + i * interval '11 minutes 0.000123 seconds',
                  date '1999-12-31' + i % 20000, i * interval '1 month 3 days 00:00:00.5',
                  jsonb_build_object('n', i, 'text', repeat('x', i % 90)), ARRAY[i / 7.0, NULL, -i],
                  CASE WHEN i % 1000 = 0 THEN 'NaN' ELSE sqrt(i) END, decode(md5(i::text), 'hex'),
                  ('10.' || i % 200 || '.0.0/16')::inet
           FROM generate_series(1, {events}) i;
         ANALYZE;"
    )
    .expect("writing to a string cannot fail");
    sql
}

/// The statements of one transaction, each sent when the one before is answered.
pub(super) fn statements(client: usize, n: u64, effect: super::ledger::Effect) -> Vec<String> {
    use super::ledger::Effect;
    let log = format!("INSERT INTO write_log (client, n) VALUES ({client}, {n})");
    let pay = |account: i64, cents: i64| {
        format!("UPDATE account SET cents = cents + {cents}, changed_at = now() WHERE id = {account}")
    };
    match effect {
        // In the order of their ids, so that two transfers never wait for each other.
        Effect::Transfer { from, to, cents } if from < to => vec![pay(from, -cents), pay(to, cents), log],
        Effect::Transfer { from, to, cents } => vec![pay(to, cents), pay(from, -cents), log],
        Effect::Place => vec![
            format!(
                "INSERT INTO orders (client, n, total, items, note) \
                 VALUES ({client}, {n}, {n} * 1.01, '[{{\"sku\": \"A{n}\"}}]', repeat('order ', {}))",
                n % 50
            ),
            log,
        ],
        Effect::Revise { order } => {
            vec![format!("UPDATE orders SET version = version + 1 WHERE client = {client} AND n = {order}"), log]
        }
        Effect::Cancel { order } => vec![format!("DELETE FROM orders WHERE client = {client} AND n = {order}"), log],
    }
}

/// Everything that the clients wrote, as the database at `url` holds it.
pub(super) async fn held(url: &str) -> Result<Held, Error> {
    let session = Session::open(url).await.map_err(Error::sql("connect to green"))?;
    let orders = "SELECT client, n, version FROM orders WHERE client > 0";
    let balances = session.numbers::<2>("read the accounts", "SELECT id, cents FROM account").await?;
    let orders = session.numbers::<3>("read the orders", orders).await?;
    Ok(Held {
        log: log(&session).await?,
        orders: orders.into_iter().map(|[client, n, version]| (key(client, n), version.cast_unsigned())).collect(),
        balances: balances.into_iter().map(|[account, cents]| (account, cents)).collect(),
    })
}

/// The write log of the database at `url`: how often each `(client, n)` stands in it.
pub(super) async fn held_log(url: &str) -> Result<HashMap<(usize, u64), u64>, Error> {
    log(&Session::open(url).await.map_err(Error::sql("connect to blue"))?).await
}

async fn log(session: &Session) -> Result<HashMap<(usize, u64), u64>, Error> {
    let sql = "SELECT client, n, count(*) FROM write_log GROUP BY client, n";
    let rows = session.numbers::<3>("read the write log", sql).await?;
    Ok(rows.into_iter().map(|[client, n, count]| (key(client, n), count.cast_unsigned())).collect())
}

fn key(client: i64, n: i64) -> (usize, u64) {
    (usize::try_from(client).unwrap_or_default(), n.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinook_is_loaded_without_the_lines_that_only_psql_understands() {
        let script = chinook();
        assert!(script.contains("CREATE TABLE album") && script.contains("INSERT INTO genre"));
        assert!(!script.contains("DATABASE chinook") && !script.contains("\\c chinook"));
    }
}
