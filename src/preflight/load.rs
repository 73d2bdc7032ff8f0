//! Whether what the copy will ask about load (`[snapshot.throttle]`) is answered.

use tokio_postgres::types::Type;

use super::Error;
use super::finding::Finding;
use super::server::user;
use super::sides::Sides;
use crate::config::Throttle;

const CHECK: &str = "source.throttle";

/// `None` when it will ask nothing.
pub(super) async fn limits(sides: &Sides<'_>) -> Result<Option<Finding>, Error> {
    let throttle = &sides.config.snapshot.throttle;
    let asks_views =
        throttle.standby_lag_bytes.is_some() || throttle.standby_delay.is_some() || throttle.active_sessions.is_some();
    if asks_views && !sides.source.ask("SELECT pg_has_role('pg_read_all_stats', 'USAGE')").await? {
        let remedy = format!("GRANT pg_read_all_stats TO {};", user(&sides.source).await?);
        let message =
            "this user may not see what others do, so the copy would not know load from rest, and stand still";
        return Ok(Some(Finding::fail(CHECK, message, remedy)));
    }
    match &throttle.hold_query {
        Some(query) => hold_query(sides, throttle, query).await.map(Some),
        None if asks_views => Ok(Some(Finding::pass(CHECK, "load can be asked about"))),
        None => Ok(None),
    }
}

/// The way the copy asks it: one value, read only, and not for long.
async fn hold_query(sides: &Sides<'_>, throttle: &Throttle, query: &str) -> Result<Finding, Error> {
    let session = &sides.source.session;
    let limit = throttle.query_timeout.as_millis();
    session.batch_execute(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {limit}")).await?;
    let answer = session.query_one(&format!("SELECT (\n{query}\n)"), &[]).await;
    session.batch_execute("ROLLBACK").await?;
    let remedy = "correct snapshot.throttle.hold_query: one boolean, tables with their schema, within query_timeout";
    Ok(match answer {
        Ok(row) if *row.columns()[0].type_() == Type::BOOL => {
            let holds = row.get::<_, Option<bool>>(0) == Some(true);
            let now = if holds { "says true: the copy would stand still now" } else { "says that the copy may go on" };
            Finding::pass(CHECK, format!("hold_query {now}"))
        }
        Ok(row) => {
            let message = format!("hold_query returns {} where boolean is expected", row.columns()[0].type_());
            Finding::fail(CHECK, message, remedy)
        }
        Err(error) => match error.as_db_error() {
            Some(said) => Finding::fail(CHECK, format!("hold_query fails: {}", said.message()), remedy),
            None => return Err(error.into()),
        },
    })
}
