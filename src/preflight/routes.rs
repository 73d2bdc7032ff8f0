//! What stands around both databases: the broker, and what sends the clients to one side.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use tokio::fs;
use tokio_postgres::SimpleQueryMessage;

use super::finding::Finding;
use crate::config::{Kafka, PgBouncer, Router};
use crate::telemetry;
use crate::wire;

/// Long enough for a first connection with TLS and SASL.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn kafka(kafka: &Kafka) -> Finding {
    let check = "kafka.reach";
    let mut options = ClientConfig::new();
    options.set("bootstrap.servers", &kafka.bootstrap_servers);
    for (name, value) in &kafka.properties {
        options.set(name, value);
    }
    // librdkafka blocks its caller.
    let asked = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = options.create()?;
        let metadata = consumer.fetch_metadata(None, KAFKA_TIMEOUT)?;
        Ok::<_, rdkafka::error::KafkaError>(metadata.brokers().len())
    });
    match asked.await {
        Ok(Ok(brokers)) => Finding::pass(check, format!("{brokers} brokers at {}", kafka.bootstrap_servers)),
        Ok(Err(error)) => Finding::fail(
            check,
            format!("{} does not answer: {error}", kafka.bootstrap_servers),
            "see that the broker runs and that kafka.bootstrap_servers and kafka.properties are right",
        ),
        Err(error) => Finding::fail(check, format!("ask the broker: {error}"), "check again"),
    }
}

/// What can be asked without changing anything.
pub(super) async fn router(router: &Router) -> Vec<Finding> {
    match router {
        Router::PgBouncer(pgbouncer) => vec![admin(pgbouncer).await, databases_file(pgbouncer).await],
        Router::Command(command) => {
            let check = "router.command";
            let shown = command.program.display();
            vec![match fs::metadata(&command.program).await {
                Ok(found) if found.is_file() => Finding::pass(check, shown.to_string()),
                Ok(_) => Finding::fail(check, format!("{shown} is no file"), "name the program by its whole path"),
                Err(error) => Finding::fail(check, format!("{shown}: {error}"), "name the program by its whole path"),
            }]
        }
        Router::Http(http) => vec![Finding::pass("router.http", format!("{} is asked at the cutover", http.url))],
    }
}

async fn admin(pgbouncer: &PgBouncer) -> Finding {
    let check = "router.admin";
    let remedy = "see that PgBouncer runs there and that the user is in its admin_users";
    let asked = async {
        let session = wire::connect_plain(&pgbouncer.admin, "check").await.map_err(|error| telemetry::chain(&error))?;
        // The console speaks only the simple protocol.
        session.simple_query("SHOW DATABASES").await.map_err(|error| telemetry::chain(&error))
    };
    let databases = match asked.await {
        Ok(databases) => databases,
        Err(error) => return Finding::fail(check, error, remedy),
    };
    let named = |message: &SimpleQueryMessage| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some(pgbouncer.database.as_str()));
    if databases.iter().any(named) {
        return Finding::pass(check, format!("{} knows {}", pgbouncer.admin, pgbouncer.database));
    }
    let message = format!("{} does not know the database {}", pgbouncer.admin, pgbouncer.database);
    Finding::fail(check, message, "set cutover.router.database to the name that clients of the pooler use")
}

async fn databases_file(pgbouncer: &PgBouncer) -> Finding {
    let check = "router.databases_file";
    let file = &pgbouncer.databases_file;
    let shown = file.display();
    let text = match fs::read_to_string(file).await {
        Ok(text) => text,
        Err(error) => {
            return Finding::fail(check, format!("{shown}: {error}"), "name the fragment that pgbouncer.ini includes");
        }
    };
    let names_it =
        |line: &str| line.split('=').next().is_some_and(|name| name.trim().trim_matches('"') == pgbouncer.database);
    if !text.lines().any(names_it) {
        let message = format!("{shown} has no line for {}", pgbouncer.database);
        let remedy = format!(
            "move the line `{} = host=… port=… dbname=…` from pgbouncer.ini into it and put `%include {shown}` there",
            pgbouncer.database
        );
        return Finding::fail(check, message, remedy);
    }
    match fs::OpenOptions::new().write(true).open(file).await {
        Ok(_) => Finding::pass(check, shown.to_string()),
        Err(error) => {
            Finding::fail(check, format!("{shown} cannot be written: {error}"), format!("chown $(id -u) {shown}"))
        }
    }
}
