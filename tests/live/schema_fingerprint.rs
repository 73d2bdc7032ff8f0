//! What two databases are, line by line: every definition, owner, privilege, comment and setting that the catalogs hold.

use std::collections::BTreeSet;

use crate::support::Db;

const SQL: &str = include_str!("../fixtures/fingerprint.sql");

/// Differences shown before a test gives up describing them.
const SHOWN_MAX: usize = 40;

/// Panics with every line that only one of both sides has. Rows are no part of it.
pub(crate) async fn assert_same(source: &Db, target: &Db) {
    let major = source.major_version().await.min(target.major_version().await);
    let (here, there) = (lines(source, major).await, lines(target, major).await);
    assert!(here.len() > 500, "only {} lines: that is not everything", here.len());
    let mut missing: Vec<&String> = here.difference(&there).collect();
    let mut extra: Vec<&String> = there.difference(&here).collect();
    if !missing.is_empty() {
        let spelled = spelled_by(target, &missing).await;
        let known: BTreeSet<&String> = spelled.iter().flatten().collect();
        let before = extra.len();
        extra.retain(|line| !known.contains(line));
        assert_eq!(before - extra.len(), known.len(), "a view of the target is not what the source's text means there");
        let of_views: Vec<bool> = spelled.iter().map(Option::is_some).collect();
        let mut of_views = of_views.iter();
        missing.retain(|_| !of_views.next().expect("one for each line"));
    }
    if missing.is_empty() && extra.is_empty() {
        return;
    }
    let show = |lines: &[&String], mark: char| {
        let shown = lines.iter().take(SHOWN_MAX).map(|line| format!("{mark} {line}\n"));
        shown.collect::<String>()
    };
    panic!(
        "{} lines are on the source only, {} on the target only\n{}{}",
        missing.len(),
        extra.len(),
        show(&missing, '-'),
        show(&extra, '+')
    );
}

async fn lines(db: &Db, major: u32) -> BTreeSet<String> {
    let (helpers, query) = SQL.split_once("--- the lines").unwrap();
    db.exec(&format!("SET search_path = ''; SET fingerprint.major = {major}; {helpers}")).await;
    let lines = db.query_text(query).await;
    let names = "SELECT DISTINCT oid::regprocedure FROM pg_proc WHERE pronamespace = pg_my_temp_schema()";
    for name in db.query_text(names).await {
        db.exec(&format!("DROP FUNCTION {name}")).await;
    }
    db.exec("RESET search_path").await;
    let count = lines.len();
    let distinct: BTreeSet<String> = lines.into_iter().collect();
    assert_eq!(distinct.len(), count, "two facts share a line");
    distinct
}

/// Servers of two versions print one view in two ways. The target is asked how it prints what the source's text says;
/// `None` for what is no view.
async fn spelled_by(target: &Db, lines: &[&String]) -> Vec<Option<String>> {
    let mut spelled = Vec::new();
    for line in lines {
        let definition = line.strip_prefix("view ").and_then(|rest| rest.split_once("  ").or(rest.split_once(" ")));
        let Some((name, definition)) = definition else {
            spelled.push(None);
            continue;
        };
        let definition = definition.trim().trim_end_matches(';');
        target.exec(&format!("SET search_path = ''; CREATE TEMP VIEW spelled AS {definition}")).await;
        let printed = target.scalar("SELECT pg_catalog.pg_get_viewdef('pg_temp.spelled'::regclass)").await;
        target.exec("DROP VIEW pg_temp.spelled; RESET search_path").await;
        spelled.push(Some(format!("view {name} {printed}")));
    }
    spelled
}

/// Every row of every table and materialised view that can hold some, byte for byte in text.
pub(crate) async fn assert_same_rows(source: &Db, target: &Db) {
    let sql = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE relkind IN ('r', 'p', 'm') AND relpersistence = 'p' AND relispopulated
                 AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'changeover') ORDER BY 1";
    let names = source.query_text(sql).await;
    assert_eq!(names, target.query_text(sql).await);
    for name in names {
        let (here, there) = (source.rows(&name).await, target.rows(&name).await);
        let different = here.iter().zip(&there).filter(|(left, right)| left != right).count();
        assert_eq!((here.len(), different), (there.len(), 0), "rows of {name}");
    }
}
