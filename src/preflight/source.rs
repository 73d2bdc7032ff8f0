//! Whether the source can be streamed from, and by this user.

use super::Error;
use super::finding::{Finding, listed, statements};
use super::server::user;
use super::sides::{Side, Sides};
use crate::source::SLOTS_TO_CATCH_UP;
use crate::telemetry;
use crate::wire::{self, Mode};

pub(super) async fn wal_level(side: &Side) -> Result<Finding, Error> {
    let check = "source.wal_level";
    let level: String = side.ask("SELECT current_setting('wal_level')").await?;
    if level == "logical" {
        return Ok(Finding::pass(check, level));
    }
    let remedy = "ALTER SYSTEM SET wal_level = 'logical'; then restart the server (on Amazon RDS: set \
                  rds.logical_replication = 1 in the parameter group and reboot)";
    Ok(Finding::fail(check, format!("it is {level}, which holds too little to decode changes from"), remedy))
}

pub(super) async fn free_slots(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.slots";
    let sql = "SELECT current_setting('max_replication_slots')::bigint - (SELECT count(*) FROM pg_replication_slots)";
    let free: i64 = sides.source.ask(sql).await?;
    let there = has_slot(sides).await?;
    let remedy = "SELECT pg_drop_replication_slot('…') for one that nobody uses, or: ALTER SYSTEM SET \
                  max_replication_slots = … (then restart)";
    if free <= 0 && !there {
        return Ok(Finding::fail(check, "every replication slot is taken", remedy));
    }
    let spare = if there { free } else { free - 1 };
    let found = format!("{free} free{}", if there { ", ours is there" } else { "" });
    if spare < SLOTS_TO_CATCH_UP && sides.config.source.bulk_bytes > 0 {
        let what = format!(
            "{found}: with fewer than {SLOTS_TO_CATCH_UP} to spare a backlog comes as a stream, which costs more"
        );
        return Ok(Finding::warn(check, what, remedy));
    }
    Ok(Finding::pass(check, found))
}

async fn has_slot(sides: &Sides<'_>) -> Result<bool, Error> {
    let sql = "SELECT count(*) > 0 FROM pg_replication_slots WHERE slot_name = $1";
    let row = sides.source.session.query_one(sql, &[&sides.config.source.slot.name]).await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn free_senders(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.senders";
    let sql = "SELECT current_setting('max_wal_senders')::bigint
                      - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walsender')";
    let free: i64 = sides.source.ask(sql).await?;
    if free > 0 || sides.started.is_some() {
        return Ok(Finding::pass(check, format!("{free} free")));
    }
    let remedy = "ALTER SYSTEM SET max_wal_senders = … (then restart)";
    Ok(Finding::fail(check, "every walsender is taken", remedy))
}

/// Asked by doing it: besides the role's attribute, `pg_hba.conf` and a managed service's own role decide.
pub(super) async fn replication_privilege(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.replication";
    let endpoint = &sides.config.source.endpoint;
    let opened = async {
        let mut connection = wire::connect_raw(endpoint, Mode::Replication, "check").await?;
        connection.simple_query("IDENTIFY_SYSTEM").await
    };
    match opened.await {
        Ok(_) => Ok(Finding::pass(check, "a replication connection was opened")),
        Err(error) => {
            let user = user(&sides.source).await?;
            let remedy = format!(
                "ALTER ROLE {user} REPLICATION (on Amazon RDS: GRANT rds_replication TO {user}), and a line for {user} \
                 and this machine in pg_hba.conf"
            );
            Ok(Finding::fail(check, telemetry::chain(&error), remedy))
        }
    }
}

pub(super) async fn select_privilege(side: &Side) -> Result<Finding, Error> {
    let check = "source.select";
    let refused = |name: &str| format!("NOT has_{name}_privilege");
    let oids: Vec<u32> = side.catalog.tables.iter().map(|table| table.oid).collect();
    let sql = format!(
        "SELECT c.oid, n.nspname, {}(n.oid, 'USAGE') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = ANY($1) AND ({}(c.oid, 'SELECT') OR {}(n.oid, 'USAGE')) ORDER BY 2, c.relname",
        refused("schema"),
        refused("table"),
        refused("schema"),
    );
    let rows = side.session.query(&sql, &[&oids]).await?;
    if rows.is_empty() {
        return Ok(Finding::pass(check, format!("every one of {} tables is readable", oids.len())));
    }
    let denied: Vec<u32> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let tables: Vec<_> = side.catalog.tables.iter().filter(|table| denied.contains(&table.oid)).collect();
    let names: Vec<_> = tables.iter().map(|table| &table.name).collect();
    let mut schemas: Vec<String> = rows.iter().map(|row| row.try_get(1)).collect::<Result<_, _>>()?;
    schemas.dedup();
    let user = user(side).await?;
    let remedy = statements(&schemas, |schema| {
        let schema = crate::model::quote_identifier(schema);
        format!("GRANT USAGE ON SCHEMA {schema} TO {user}; GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {user};")
    });
    Ok(Finding::fail(check, format!("may not be read: {}", listed(&names)), remedy))
}

/// Rows that a policy hides would be missing on the target, without an error anywhere.
pub(super) async fn row_security(side: &Side) -> Result<Finding, Error> {
    let check = "source.row_security";
    let oids: Vec<u32> = side.catalog.tables.iter().filter(|table| table.row_security).map(|table| table.oid).collect();
    let sql = "SELECT oid FROM unnest($1::oid[]) oid WHERE row_security_active(oid)";
    let rows = side.session.query(sql, &[&oids]).await?;
    let hidden: Vec<u32> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    if hidden.is_empty() {
        return Ok(Finding::pass(check, "no policy hides rows from this user"));
    }
    let named = side.catalog.tables.iter().filter(|table| hidden.contains(&table.oid));
    let names: Vec<_> = named.map(|table| &table.name).collect();
    let remedy = format!("ALTER ROLE {} BYPASSRLS", user(side).await?);
    Ok(Finding::fail(check, format!("row policies may hide rows of {}", listed(&names)), remedy))
}

/// A slot that falls behind by more than the server keeps is lost, and with it the migration.
pub(super) async fn slot_retention(side: &Side) -> Result<Finding, Error> {
    let check = "source.slot_retention";
    let size = side.setting("max_slot_wal_keep_size").await?.filter(|size| size != "-1");
    // PostgreSQL 18: a stopped daemon counts as idle.
    let idle = side.setting("idle_replication_slot_timeout").await?.filter(|idle| idle != "0");
    let limits: Vec<String> = [
        size.map(|size| format!("is further behind than max_slot_wal_keep_size = {size}")),
        idle.map(|idle| format!("is unused for idle_replication_slot_timeout = {idle}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    if limits.is_empty() {
        return Ok(Finding::pass(check, "the server keeps log for a slot without limit"));
    }
    let message = format!("the server gives a slot up that {}", limits.join(" or "));
    let remedy = "see that it is enough for the initial copy and for the longest outage of the target; \
                  ALTER SYSTEM SET … and SELECT pg_reload_conf() change it";
    Ok(Finding::warn(check, message, remedy))
}

/// Making a slot waits for every transaction that is running in the cluster, prepared ones included.
pub(super) async fn prepared_transactions(sides: &Sides<'_>) -> Result<Finding, Error> {
    let check = "source.prepared";
    let sql = "SELECT quote_literal(gid) FROM pg_prepared_xacts ORDER BY prepared";
    let gids = sides.source.list(sql).await?;
    if gids.is_empty() {
        return Ok(Finding::pass(check, "no prepared transactions"));
    }
    let message = format!("prepared transactions are open: {}", listed(&gids));
    let remedy = statements(&gids, |gid| format!("COMMIT PREPARED {gid}; or ROLLBACK PREPARED {gid};"));
    let needs_slot = !sides.config.source.slot.adopted && sides.started.is_none();
    Ok(if needs_slot {
        Finding::fail(check, format!("{message}; making the slot would wait for them"), remedy)
    } else {
        Finding::warn(check, format!("{message}; a cutover will wait for them"), remedy)
    })
}

pub(super) async fn long_transactions(side: &Side) -> Result<Finding, Error> {
    let check = "source.long_transactions";
    let sql = "SELECT format('%s (%s, %s, for %s)', pid, usename, coalesce(nullif(application_name, ''), 'unnamed'),
                             date_trunc('second', now() - xact_start))
               FROM pg_stat_activity
               WHERE xact_start < now() - interval '1 minute' AND pid <> pg_backend_pid()
                 AND backend_type = 'client backend'
               ORDER BY xact_start";
    let open = side.list(sql).await?;
    if open.is_empty() {
        return Ok(Finding::pass(check, "none is older than a minute"));
    }
    let remedy = statements(&open, |open| {
        format!("SELECT pg_terminate_backend({});", open.split(' ').next().unwrap_or_default())
    });
    let message = format!("making the slot waits for them if they write: {}", listed(&open));
    Ok(Finding::warn(check, message, remedy))
}
