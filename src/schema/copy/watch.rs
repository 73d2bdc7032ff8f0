//! Asks the target how far the statements under way are, for `status`.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tracing::debug;

use super::steps::{ServerWork, Steps, WorkUnit};
use crate::schema::Error;
use crate::wire::{self, Endpoint, Session};

/// How often, while there is something to ask about: as often as a person looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Does `work`, and asks about its steps meanwhile.
pub(super) async fn watched<T>(target: &Endpoint, steps: &Steps, work: impl Future<Output = T>) -> T {
    tokio::select! {
        outcome = work => outcome,
        never = watch(target, steps) => match never {},
    }
}

/// Nothing rests on the answer, so a session that breaks is no error: the steps have one of their own.
async fn watch(target: &Endpoint, steps: &Steps) -> std::convert::Infallible {
    let mut session: Option<Session> = None;
    loop {
        tokio::time::sleep(INTERVAL).await;
        let backends = steps.backends();
        if backends.is_empty() {
            continue;
        }
        let asked = match &session {
            Some(open) => ask(open, &backends).await,
            None => match wire::connect(target, "progress").await {
                Ok(open) => ask(session.insert(open), &backends).await,
                Err(error) => Err(Error::Connect(error)),
            },
        };
        match asked {
            Ok(answers) => steps.report(answers),
            Err(error) => {
                debug!(%error, "the target does not say how far it is");
                session = None;
            }
        }
    }
}

async fn ask(session: &Session, backends: &[i32]) -> Result<BTreeMap<i32, ServerWork>, Error> {
    let sql = "SELECT pid, phase, blocks_total, blocks_done, tuples_total, tuples_done
               FROM pg_catalog.pg_stat_progress_create_index WHERE pid = ANY ($1)
               UNION ALL
               SELECT pid, phase, sample_blks_total, sample_blks_scanned, 0, 0
               FROM pg_catalog.pg_stat_progress_analyze WHERE pid = ANY ($1)";
    let rows = session.query(sql, &[&backends]).await.map_err(Error::query("ask how far the indexes are"))?;
    let answer = |row: &tokio_postgres::Row| {
        let counts = [2, 3, 4, 5].map(|column| row.get::<_, Option<i64>>(column).unwrap_or_default().unsigned_abs());
        (row.get(0), server_work(row.get(1), counts))
    };
    Ok(rows.iter().map(answer).collect())
}

/// A build counts the table's blocks while it reads them, then tuples while it writes them; the server resets the one
/// before it begins with the other (`_bt_spools_heapscan`), unless several processes read. Sorting is counted by neither.
fn server_work(phase: String, [blocks_total, blocks_done, tuples_total, tuples_done]: [u64; 4]) -> ServerWork {
    if phase.contains("sorting") {
        return ServerWork { phase, unit: WorkUnit::Tuples, done: 0, total: 0 };
    }
    if tuples_total > 0 {
        return ServerWork { phase, unit: WorkUnit::Tuples, done: tuples_done, total: tuples_total };
    }
    ServerWork { phase, unit: WorkUnit::Blocks, done: blocks_done, total: blocks_total }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_until_there_are_tuples() {
        let work = |counts| {
            let work = server_work("building index: scanning table".to_owned(), counts);
            (work.unit, work.done, work.total)
        };
        let sorting = server_work("building index: sorting live tuples".to_owned(), [10, 10, 0, 0]);
        assert_eq!(sorting.total, 0, "what was read is no share of the sort");
        assert_eq!(work([10, 4, 0, 0]), (WorkUnit::Blocks, 4, 10));
        assert_eq!(work([0, 0, 500, 0]), (WorkUnit::Tuples, 0, 500));
        assert_eq!(work([0, 0, 0, 0]), (WorkUnit::Blocks, 0, 0));
    }
}
