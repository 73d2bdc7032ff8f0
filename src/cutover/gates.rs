//! What must hold before anything is touched. Each gate is one small function; all of them are asked and all answers
//! are shown.

use serde::{Deserialize, Serialize};

use super::error::{BLUE, Error, GREEN, query};
use super::ports::{Lacking, Ports};
use super::router::Router;
use crate::model::{MigrationName, TableName};
use crate::telemetry::chain;
use crate::verify::{self, DirtyKeys, Report, Verdict};
use crate::wire::Session;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    pub name: String,
    pub open: bool,
    /// What was found.
    pub detail: String,
    /// What opens it, for a closed gate.
    pub remedy: Option<String>,
}

impl Gate {
    fn open(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), open: true, detail: detail.into(), remedy: None }
    }

    fn closed(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.to_owned(), open: false, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

pub(super) fn streaming(ports: &dyn Ports) -> Gate {
    match ports.streaming() {
        Ok(()) => Gate::open("streaming", "the target is the source as of some commit"),
        Err(why) => Gate::closed("streaming", why, "wait until `changeover status` says streaming"),
    }
}

pub(super) fn lag(ports: &dyn Ports, bytes_max: u64) -> Gate {
    let lag = ports.lag();
    let detail = format!("{} bytes, {:.3} s behind (limit {bytes_max} bytes)", lag.bytes, lag.seconds);
    if lag.bytes <= bytes_max {
        Gate::open("lag", detail)
    } else {
        Gate::closed("lag", detail, "wait, or raise cutover.max_lag_bytes")
    }
}

/// Every table was found equal in full since the daemon started.
pub(super) fn verified(dirty: &DirtyKeys) -> Gate {
    let summary = dirty.summary();
    let detail = format!(
        "{} of {} tables found equal, {} keys written since, {} tables to compare whole",
        summary.tables_clean, summary.tables_total, summary.keys, summary.whole_tables
    );
    if summary.tables_clean == summary.tables_total {
        Gate::open("verified", detail)
    } else {
        Gate::closed("verified", detail, "run `changeover verify`, and look at the tables it reports")
    }
}

/// What was written since is equal too.
pub(super) fn still_equal(outcome: &Result<Report, verify::Error>) -> Gate {
    match outcome {
        Ok(report) if report.verdict == Verdict::Equal => {
            let detail = format!("{} rows compared again, equal at {}", report.rows_compared, report.position);
            Gate::open("still_equal", detail)
        }
        Ok(report) => {
            let tables: Vec<&str> =
                report.tables.iter().filter(|table| !table.equal).map(|table| table.table.as_str()).collect();
            let detail = format!("different at {}: {}", report.position, tables.join(", "));
            Gate::closed("still_equal", detail, "find out who writes to the target, then `changeover verify`")
        }
        Err(error) => Gate::closed("still_equal", chain(error), "run `changeover verify`"),
    }
}

/// A transaction that is open for longer than the pause may last would use it up: PAUSE and fence both wait for it.
pub(super) async fn no_long_transactions(blue: &Session, max_pause: std::time::Duration) -> Result<Gate, Error> {
    let statement = "SELECT count(*), coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8, \
           coalesce(string_agg(pid::text, ', '), '') \
         FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
           AND pid <> pg_backend_pid() AND application_name NOT LIKE 'changeover%' \
           AND xact_start < clock_timestamp() - make_interval(secs => $1)";
    let what = "look for long transactions";
    let row = blue.query_one(statement, &[&max_pause.as_secs_f64()]).await.map_err(query(BLUE, what))?;
    let count: i64 = row.try_get(0).map_err(query(BLUE, what))?;
    let oldest: f64 = row.try_get(1).map_err(query(BLUE, what))?;
    let pids: String = row.try_get(2).map_err(query(BLUE, what))?;
    Ok(if count == 0 {
        Gate::open("no_long_transactions", "none on blue")
    } else {
        let detail = format!("{count} on blue, the oldest open for {oldest:.1} s (process {pids})");
        Gate::closed("no_long_transactions", detail, "wait for them, or end them with pg_terminate_backend")
    })
}

/// They hold their locks until somebody ends them.
pub(super) async fn no_prepared_transactions(blue: &Session) -> Result<Gate, Error> {
    let what = "look for prepared transactions";
    let statement = "SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database()";
    let row = blue.query_one(statement, &[]).await.map_err(query(BLUE, what))?;
    let count: i64 = row.try_get(0).map_err(query(BLUE, what))?;
    Ok(if count == 0 {
        Gate::open("no_prepared_transactions", "none on blue")
    } else {
        let remedy = "COMMIT PREPARED or ROLLBACK PREPARED them (pg_prepared_xacts lists them)";
        Gate::closed("no_prepared_transactions", format!("{count} on blue"), remedy)
    })
}

/// A change that was set aside is missing on green, whatever a verdict from before it says.
pub(super) async fn no_dead_letters(green: &Session, migration: &MigrationName) -> Result<Gate, Error> {
    let what = "look for changes that were set aside";
    let statement = "SELECT table_schema, table_name, count(*) FROM changeover.dead_letter WHERE migration = $1 \
         GROUP BY 1, 2 ORDER BY 1, 2";
    let rows = green.query(statement, &[&migration.as_str()]).await.map_err(query(GREEN, what))?;
    let read = |row: &tokio_postgres::Row| {
        let table = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        Ok(format!("{table} ({})", row.try_get::<_, i64>(2)?))
    };
    let found = rows.iter().map(read).collect::<Result<Vec<_>, _>>().map_err(query(GREEN, what))?;
    Ok(if found.is_empty() {
        Gate::open("no_dead_letters", "green has refused no change")
    } else {
        let detail =
            format!("changes that green refused are set aside in changeover.dead_letter: {}", found.join(", "));
        Gate::closed("no_dead_letters", detail, "mend what refused them, then `changeover resync TABLE`")
    })
}

/// The tables that `$1` names, and their partitions.
const NAMED: &str = "WITH named AS (SELECT to_regclass(name)::oid AS oid FROM unnest($1::text[]) AS name), \
     every AS (SELECT oid FROM named UNION SELECT relid FROM named, pg_partition_tree(named.oid)) ";

const UNFINISHED: &str = "SELECT c.relnamespace::regnamespace::text || '.' || c.relname || ' ' || x.what \
     FROM (SELECT conrelid AS relation, 'constraint ' || conname AS what FROM pg_constraint WHERE NOT convalidated \
           UNION ALL \
           SELECT i.indrelid, 'index ' || p.relname FROM pg_index AS i JOIN pg_class AS p ON p.oid = i.indexrelid \
           WHERE NOT i.indisvalid) AS x \
     JOIN pg_class AS c ON c.oid = x.relation WHERE c.oid IN (SELECT oid FROM every) ORDER BY 1";

/// Whatever is invalid on green and not on blue.
pub(super) async fn green_complete(blue: &Session, green: &Session, dirty: &DirtyKeys) -> Result<Gate, Error> {
    let what = "look for constraints and indexes that are not valid";
    let tables = dirty.tables();
    let on_blue: Vec<String> = tables.iter().map(|table| table.source.quoted()).collect();
    let on_green: Vec<String> = tables.iter().map(|table| table.target.quoted()).collect();
    let known = blue.query(&format!("{NAMED}{UNFINISHED}"), &[&on_blue]).await.map_err(query(BLUE, what))?;
    let found = green.query(&format!("{NAMED}{UNFINISHED}"), &[&on_green]).await.map_err(query(GREEN, what))?;
    let names = |rows: &[tokio_postgres::Row]| {
        rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>()
    };
    let known = names(&known).map_err(query(BLUE, what))?;
    let mut found = names(&found).map_err(query(GREEN, what))?;
    found.retain(|one| !known.contains(one));
    Ok(if found.is_empty() {
        Gate::open("green_complete", "every constraint and index that is valid on blue is valid on green")
    } else {
        let remedy = "ALTER TABLE … VALIDATE CONSTRAINT, REINDEX INDEX CONCURRENTLY";
        Gate::closed("green_complete", format!("not valid on green: {}", found.join(", ")), remedy)
    })
}

const LOCK_TIMEOUT_MS: u32 = 2_000;
/// How many of what green lacks are named.
const NAMED_MAX: usize = 10;

/// Blue may have changed since its schema was copied, and nothing streams that.
pub(super) async fn schema_equal(ports: &dyn Ports, blue: &Session, green: &Session) -> Gate {
    let name = "schema_equal";
    let lacking = match lacking(ports, blue, green).await {
        Ok(lacking) => lacking,
        Err(why) => return Gate::closed(name, why, "wait for who holds a lock on a table (pg_locks), then ask again"),
    };
    if lacking.is_empty() {
        return Gate::open(
            name,
            "green lacks no table, column, key or sequence of blue, and no index where we made them",
        );
    }
    let mut named: Vec<&str> = lacking.iter().take(NAMED_MAX).map(|one| one.what.as_str()).collect();
    let more = format!("{} more", lacking.len() - named.len());
    if lacking.len() > named.len() {
        named.push(&more);
    }
    let mut remedies: Vec<&str> = lacking.iter().take(NAMED_MAX).map(|one| one.remedy.as_str()).collect();
    remedies.dedup();
    Gate::closed(name, named.join("; "), remedies.join("\n"))
}

/// What an index or a column says can only be read while nobody has its table for himself, who is not waited for long.
async fn lacking(ports: &dyn Ports, blue: &Session, green: &Session) -> Result<Vec<Lacking>, String> {
    let what = "read both schemas";
    let bound = |milliseconds: u32| format!("SET lock_timeout = {milliseconds}");
    let told = |error: Error| chain(&error);
    for (session, side) in [(blue, BLUE), (green, GREEN)] {
        session.batch_execute(&bound(LOCK_TIMEOUT_MS)).await.map_err(query(side, what)).map_err(told)?;
    }
    let lacking = ports.lacking(blue, green).await.map_err(|error| chain(&*error));
    for (session, side) in [(blue, BLUE), (green, GREEN)] {
        session.batch_execute(&bound(0)).await.map_err(query(side, what)).map_err(told)?;
    }
    lacking
}

/// A partition that came since we started is in no stream, and what is written to it would stay on blue. Asked of tables
/// whose partitions are one table on green; `None` when there are none.
pub(super) async fn partitions_stream(blue: &Session, dirty: &DirtyKeys) -> Result<Option<Gate>, Error> {
    let what = "look for partitions that are not streamed";
    let statement = "SELECT n.nspname::text, c.relname::text FROM unnest($1::text[]) AS root, \
           pg_partition_tree(to_regclass(root)) AS t JOIN pg_class AS c ON c.oid = t.relid \
           JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE t.isleaf ORDER BY 1, 2";
    let gathered = || dirty.tables().iter().filter(|table| !table.leaves.is_empty());
    let roots: Vec<String> = gathered().map(|table| table.source.quoted()).collect();
    if roots.is_empty() {
        return Ok(None);
    }
    let rows = blue.query(statement, &[&roots]).await.map_err(query(BLUE, what))?;
    let name =
        |row: &tokio_postgres::Row| Ok(TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?));
    let mut found = rows.iter().map(name).collect::<Result<Vec<_>, _>>().map_err(query(BLUE, what))?;
    found.retain(|leaf| !gathered().any(|table| table.leaves.contains(leaf)));
    Ok(Some(if found.is_empty() {
        Gate::open("partitions_stream", "every partition of the tables that green partitions otherwise")
    } else {
        let names: Vec<String> = found.iter().map(TableName::to_string).collect();
        let detail = format!("came since the daemon started, and are not streamed: {}", names.join(", "));
        Gate::closed("partitions_stream", detail, "start the daemon again: their tables are copied again with them")
    }))
}

/// Without statistics the first plans on green are bad ones. -1 is "never analysed" from PostgreSQL 14 on, 0 pages
/// before.
pub(super) async fn green_analyzed(green: &Session, dirty: &DirtyKeys) -> Result<Gate, Error> {
    let what = "look for tables without statistics";
    let statement = "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.oid IN (SELECT oid FROM every) \
           AND pg_relation_size(c.oid) > 0 AND (c.reltuples < 0 OR (c.reltuples = 0 AND c.relpages = 0)) ORDER BY 1";
    let names: Vec<String> = dirty.tables().iter().map(|table| table.target.quoted()).collect();
    let rows = green.query(&format!("{NAMED}{statement}"), &[&names]).await.map_err(query(GREEN, what))?;
    let tables = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>();
    let tables = tables.map_err(query(GREEN, what))?;
    Ok(if tables.is_empty() {
        Gate::open("green_analyzed", "every table on green has statistics")
    } else {
        Gate::closed("green_analyzed", format!("without statistics: {}", tables.join(", ")), "run ANALYZE on green")
    })
}

/// Making a trigger takes the TRIGGER right, removing it ownership.
pub(super) async fn fence_allowed(blue: &Session, dirty: &DirtyKeys) -> Result<Gate, Error> {
    let what = "look for tables that may not be fenced";
    let statement = "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.oid IN (SELECT oid FROM every) \
           AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1";
    let names: Vec<String> = dirty.tables().iter().map(|table| table.source.quoted()).collect();
    let rows = blue.query(&format!("{NAMED}{statement}"), &[&names]).await.map_err(query(BLUE, what))?;
    let tables = rows.iter().map(|row| row.try_get::<_, String>(0)).collect::<Result<Vec<_>, _>>();
    let tables = tables.map_err(query(BLUE, what))?;
    Ok(if tables.is_empty() {
        Gate::open("fence_allowed", "our role owns every table on blue")
    } else {
        let detail = format!("not ours: {}", tables.join(", "));
        Gate::closed("fence_allowed", detail, "grant the tables' owner to the migration's role on blue")
    })
}

pub(super) fn sequences(outcome: &Result<usize, super::ports::PortError>) -> Gate {
    match outcome {
        Ok(count) => Gate::open("sequences", format!("{count} read on blue and set on green")),
        Err(error) => Gate::closed(
            "sequences",
            chain(&**error),
            "create the missing sequences on green: `changeover check` names them",
        ),
    }
}

pub(super) async fn router_answers(router: &dyn Router) -> Gate {
    match router.check().await {
        Ok(()) => Gate::open("router_answers", router.name()),
        Err(error) => {
            let detail = format!("{}: {}", router.name(), chain(&error));
            Gate::closed("router_answers", detail, "see that it runs and that our user may administer it")
        }
    }
}

pub(super) fn forecast(expected_ms: f64, max_pause: std::time::Duration) -> Gate {
    let detail = format!("about {expected_ms:.0} ms (limit {} ms)", max_pause.as_millis());
    if expected_ms <= super::report::ms(max_pause) {
        Gate::open("pause_forecast", detail)
    } else {
        Gate::closed("pause_forecast", detail, "wait for less load or lag, or raise cutover.max_pause")
    }
}

/// What could not even be asked.
pub(super) fn failed(name: &str, error: &Error) -> Gate {
    Gate::closed(name, chain(error), "see the cause")
}
