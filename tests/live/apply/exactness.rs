//! Each change once, in order, in the transaction that holds the position.

use std::sync::Arc;
use std::time::Duration;

use changeover::apply::{Error, read_position};
use changeover::model::{Batch, Lsn, TableHandover, TableName};
use changeover::wire;

use super::world::{World, end_of};
use crate::support::Db;

const ACCOUNTS: &str =
    "CREATE TABLE a (id int PRIMARY KEY, v int, note text); CREATE TABLE b (id int PRIMARY KEY, v int)";

#[tokio::test]
async fn every_kind_of_change_arrives() {
    let mut world = World::new(ACCOUNTS).await;
    world
        .follow(
            "INSERT INTO a SELECT i, i, 'x' FROM generate_series(1, 200) i;
             UPDATE a SET v = v + 1 WHERE id % 2 = 0;
             UPDATE a SET id = id + 1000 WHERE id % 5 = 0;
             DELETE FROM a WHERE id % 7 = 0;
             BEGIN; INSERT INTO b VALUES (1, 1); UPDATE b SET v = 2; DELETE FROM b; INSERT INTO b VALUES (1, 3); COMMIT;
             INSERT INTO a VALUES (-1, NULL, NULL); UPDATE a SET note = NULL, v = NULL WHERE id = 2",
        )
        .await
        .unwrap();
    world.assert_same(&["a", "b"]).await;
    world.follow("UPDATE b SET id = 9, v = 9; INSERT INTO b VALUES (1, 7); DELETE FROM b WHERE id = 9").await.unwrap();
    world.assert_same(&["b"]).await;
}

#[tokio::test]
async fn what_was_applied_is_skipped_by_position() {
    let mut world = World::new(ACCOUNTS).await;
    world.source.exec("INSERT INTO a VALUES (1, 1, 'x'); UPDATE a SET v = v + 1").await;
    let first = world.decoded().await;
    world.apply(first.clone()).await.unwrap();
    world.source.exec("UPDATE a SET v = v + 1").await;
    let second = world.decoded().await;
    world.apply([first, second.clone()].concat()).await.unwrap();
    assert_eq!(world.target.rows("a").await, ["(1,3,x)"]);
    let session = wire::connect(&world.options.endpoint, "test").await.unwrap();
    let position = read_position(&session, &world.options.migration).await.unwrap();
    assert!(position >= Some(end_of(&second)));
}

#[tokio::test]
async fn a_key_change_keeps_a_toasted_value_that_was_not_sent() {
    let big = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 400) i)";
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, big text, v int)").await;
    world.source.exec("ALTER TABLE t ALTER big SET STORAGE EXTERNAL").await;
    world.follow(&format!("INSERT INTO t SELECT i, {big}, i FROM generate_series(1, 3) i")).await.unwrap();
    world
        .follow("UPDATE t SET v = v + 10; UPDATE t SET id = id + 100; UPDATE t SET id = 7, v = 0 WHERE id = 101; UPDATE t SET v = 5 WHERE id = 7")
        .await
        .unwrap();
    world.assert_same(&["t"]).await;
    assert_eq!(world.target.scalar("SELECT min(length(big)) FROM t").await, (400 * 32).to_string());
}

#[tokio::test]
async fn keys_may_move_in_chains_and_be_taken_again() {
    let mut world = World::new(ACCOUNTS).await;
    world.follow("INSERT INTO a SELECT i, i, 'x' FROM generate_series(1, 5) i").await.unwrap();
    let chain =
        "BEGIN; UPDATE a SET id = 6 WHERE id = 5; UPDATE a SET id = 5 WHERE id = 4; UPDATE a SET id = 4 WHERE id = 3;
                 UPDATE a SET v = 30 WHERE id = 4; DELETE FROM a WHERE id = 1; UPDATE a SET id = 1 WHERE id = 6;
                 INSERT INTO a VALUES (6, 6, 'new'), (3, 3, 'new'); COMMIT";
    world.follow(chain).await.unwrap();
    world.assert_same(&["a"]).await;
}

#[tokio::test]
async fn swapped_and_freed_unique_values_end_where_the_source_has_them() {
    let mut world = World::new(
        "CREATE TABLE u (id int PRIMARY KEY, email text UNIQUE, n int, UNIQUE (n) DEFERRABLE, EXCLUDE (n WITH =));
         CREATE UNIQUE INDEX ON u (lower(email)) WHERE n > 0",
    )
    .await;
    world.follow("INSERT INTO u SELECT i, 'e' || i, i FROM generate_series(1, 6) i").await.unwrap();
    for sql in [
        "BEGIN; UPDATE u SET email = 'tmp' WHERE id = 1; UPDATE u SET email = 'e1' WHERE id = 2; UPDATE u SET email = 'e2' WHERE id = 1; COMMIT",
        "DELETE FROM u WHERE id = 3; INSERT INTO u VALUES (30, 'e3', 3); UPDATE u SET email = 'free' WHERE id = 4; INSERT INTO u VALUES (40, 'e4', 40)",
        "INSERT INTO u VALUES (50, 'e50', 50); UPDATE u SET email = 'e51' WHERE id = 50; UPDATE u SET email = 'e50' WHERE id = 5; UPDATE u SET email = 'e5' WHERE id = 50",
        "UPDATE u SET n = n + 100; UPDATE u SET n = n - 100",
    ] {
        world.follow(sql).await.unwrap();
        world.assert_same(&["u"]).await;
    }
}

#[tokio::test]
async fn without_a_key_each_event_is_one_row_among_duplicates() {
    let mut world = World::new(
        "CREATE TABLE f (n numeric, c char(5), j json, p point, note text); ALTER TABLE f REPLICA IDENTITY FULL;
         CREATE INDEX ON f (n);
         CREATE TABLE fk (id int PRIMARY KEY, v text); ALTER TABLE fk REPLICA IDENTITY FULL",
    )
    .await;
    world
        .follow(
            r#"INSERT INTO f VALUES (1.0, 'a', '{"a": 1}', '(1,2)', NULL), (1.0, 'a', '{"a": 1}', '(1,2)', NULL),
                   (1.00, 'a', '{"a":1}', '(1,2)', 'x'), (NULL, NULL, NULL, NULL, NULL), (NULL, NULL, NULL, NULL, NULL);
               INSERT INTO fk SELECT i, 'v' FROM generate_series(1, 9) i"#,
        )
        .await
        .unwrap();
    world
        .follow(
            "DELETE FROM f WHERE ctid = (SELECT ctid FROM f WHERE n::text = '1.0' LIMIT 1);
             UPDATE f SET note = 'one' WHERE ctid = (SELECT ctid FROM f WHERE n IS NULL LIMIT 1);
             UPDATE f SET n = 1.000 WHERE n::text = '1.00';
             DELETE FROM f WHERE note = 'one';
             UPDATE fk SET v = 'w' WHERE id < 5; UPDATE fk SET id = 20 WHERE id = 1; DELETE FROM fk WHERE id = 9",
        )
        .await
        .unwrap();
    world.assert_same(&["f", "fk"]).await;
}

#[tokio::test]
async fn the_columns_of_an_identity_index_find_the_row() {
    let mut world = World::new(
        "CREATE TABLE i (id int PRIMARY KEY, code text NOT NULL, v int); CREATE UNIQUE INDEX i_code ON i (code);
         ALTER TABLE i REPLICA IDENTITY USING INDEX i_code",
    )
    .await;
    world.follow("INSERT INTO i SELECT i, 'c' || i, i FROM generate_series(1, 5) i").await.unwrap();
    world
        .follow("UPDATE i SET v = 0; UPDATE i SET id = id + 10; UPDATE i SET code = 'd1' WHERE code = 'c1'; DELETE FROM i WHERE id = 13")
        .await
        .unwrap();
    world.assert_same(&["i"]).await;
}

#[tokio::test]
async fn truncate_takes_its_tables_at_once_and_in_order() {
    let mut world = World::new(
        "CREATE TABLE p (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
         CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)",
    )
    .await;
    world
        .follow(
            "INSERT INTO p (v) VALUES (1), (2); INSERT INTO c VALUES (1, 1); UPDATE p SET v = 3;
             TRUNCATE p RESTART IDENTITY CASCADE; INSERT INTO p (v) VALUES (9); INSERT INTO c VALUES (5, 1)",
        )
        .await
        .unwrap();
    world.assert_same(&["p", "c"]).await;
    assert_eq!(world.target.rows("p").await, ["(1,9)"]);
    world.follow("TRUNCATE c; INSERT INTO c VALUES (1, 1); TRUNCATE c, p").await.unwrap();
    world.assert_same(&["p", "c"]).await;
}

#[tokio::test]
async fn identity_and_generated_columns_take_the_sources_values() {
    let mut world = World::new(
        "CREATE TABLE g (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, twice int GENERATED ALWAYS AS (v * 2) STORED);
         CREATE TABLE n (k int PRIMARY KEY, id bigint GENERATED ALWAYS AS IDENTITY, v int)",
    )
    .await;
    // Few rows go by arrays, many by COPY.
    world
        .follow(
            "INSERT INTO g (v) VALUES (5); INSERT INTO n (k, v) VALUES (1, 1);
             INSERT INTO g (v) SELECT i FROM generate_series(1, 200) i; UPDATE g SET v = v + 1; UPDATE n SET v = 2",
        )
        .await
        .unwrap();
    world.assert_same(&["g", "n"]).await;
    let lost = world.follow("UPDATE n SET id = DEFAULT").await.unwrap_err();
    assert!(matches!(&lost, Error::RowMissing { table, .. } if table.name == "n"), "{lost}");
}

#[tokio::test]
async fn only_what_the_copy_has_not_seen_is_applied() {
    let mut world = World::new(ACCOUNTS).await;
    world.source.exec("INSERT INTO a VALUES (1, 1, 'copied'); INSERT INTO b VALUES (1, 1)").await;
    let snapshot = world.source.scalar("SELECT pg_current_snapshot()").await;
    let until = world.source.scalar("SELECT pg_current_wal_insert_lsn()").await;
    world.target.exec("INSERT INTO a VALUES (1, 1, 'copied')").await;
    world.source.exec("UPDATE a SET note = 'streamed'").await;
    world.options.handovers = vec![TableHandover {
        table: TableName::new("public", "a"),
        snapshot: snapshot.parse().unwrap(),
        until: until.parse().unwrap(),
    }];
    let batches = world.decoded().await;
    world.apply(batches).await.unwrap();
    world.assert_same(&["a", "b"]).await;
}

#[tokio::test]
async fn a_large_transaction_is_seen_whole_or_not_at_all() {
    let mut world = World::cut_at(ACCOUNTS, 16 << 10).await;
    world.options.group_bytes = 32 << 10;
    world
        .source
        .exec(
            "INSERT INTO b VALUES (1, 1);
             BEGIN; INSERT INTO a SELECT i, i, 'x' FROM generate_series(1, 5000) i; UPDATE a SET v = 0; DELETE FROM a WHERE id > 4000; COMMIT;
             INSERT INTO b VALUES (2, 2)",
        )
        .await;
    let batches = world.decoded().await;
    assert!(batches.len() > 10, "the transaction has to come in parts");
    let (url, end) = (world.target_url(), end_of(&batches));
    let seen = world.beside(async |running| {
        let reader = crate::support::Db::connect(&url).await;
        let watching = async {
            let mut counts = std::collections::BTreeSet::new();
            while counts.last() != Some(&4000) {
                counts.insert(reader.scalar("SELECT count(*) FROM a").await.parse::<i32>().unwrap());
            }
            counts.into_iter().collect::<Vec<_>>()
        };
        let settled = &mut running.settled;
        let sending = async {
            for batch in batches {
                let size = batch.size_bytes();
                running.input.send(batch, size).await.unwrap();
            }
            settled.wait_for(|settled| settled.through >= Some(end)).await.unwrap();
        };
        let (counts, ()) = tokio::join!(watching, sending);
        assert_eq!(counts, [0, 4000]);
    });
    seen.await.unwrap();
    world.assert_same(&["a", "b"]).await;
}

#[tokio::test]
async fn the_position_goes_on_behind_a_large_transaction_that_nothing_follows() {
    let mut world = World::cut_at("CREATE TABLE a (id int PRIMARY KEY)", 16 << 10).await;
    world.options.group_bytes = 32 << 10;
    world.source.exec("INSERT INTO a SELECT generate_series(1, 5000)").await;
    // Somebody else's log: it belongs to no transaction of ours.
    world.source.exec("SELECT pg_switch_wal()").await;
    let batches = world.decoded().await;
    assert!(batches.len() > 5, "the transaction has to come in parts");
    let through = batches.last().unwrap().through;
    assert!(through > end_of(&batches), "something has to follow it");
    let applied = world.beside(async |running| {
        running.send(batches).await;
        let settled = tokio::time::timeout(std::time::Duration::from_secs(20), running.settled(through));
        settled.await.expect("the position stays behind");
    });
    applied.await.unwrap();
}

/// Found by `blows::`: the first piece writes the position, and knows only where the commit record begins. A crash before
/// the next position applied the transaction again.
#[tokio::test]
async fn the_position_of_a_transaction_in_pieces_is_its_end() {
    let mut world = World::cut_at("CREATE TABLE a (id int PRIMARY KEY)", 16 << 10).await;
    world.options.group_bytes = 32 << 10;
    world.source.exec("INSERT INTO a SELECT generate_series(1, 5000)").await;
    let batches = world.decoded().await;
    assert!(batches.len() > 5, "the transaction has to come in parts");
    let (end, target) = (end_of(&batches), crate::support::Db::connect(&world.target_url()).await);
    let applied = world.beside(async |running| {
        running.send(batches).await;
        running.settled(end).await;
        assert_eq!(target.scalar("SELECT commit_end FROM changeover.position").await, end.to_string());
    });
    applied.await.unwrap();
}

#[tokio::test]
async fn a_piece_of_a_large_transaction_that_needs_its_order_is_applied_in_order() {
    let mut world = World::cut_at("CREATE TABLE a (id int PRIMARY KEY, v int UNIQUE)", 8 << 10).await;
    world.options.group_bytes = 16 << 10;
    world.follow("INSERT INTO a SELECT i, i FROM generate_series(1, 1000) i").await.unwrap();
    world
        .follow(
            "BEGIN; UPDATE a SET v = -v; DO $$BEGIN FOR i IN 1..500 LOOP
                 UPDATE a SET v = 5000 WHERE id = i; UPDATE a SET v = -i WHERE id = 1001 - i; UPDATE a SET v = i - 1001 WHERE id = i;
             END LOOP; END$$; COMMIT",
        )
        .await
        .unwrap();
    world.assert_same(&["a"]).await;
}

#[tokio::test]
async fn a_killed_target_goes_on_from_its_position() {
    let mut world = World::new(ACCOUNTS).await;
    // What is committed must survive the kill.
    world.target.exec("ALTER SYSTEM SET fsync = on").await;
    world.server.cluster().restart(changeover::demo::StopMode::Fast).unwrap();
    let reconnect = async |world: &World| crate::support::Db::connect(&world.target_url()).await;
    let source_url = world.source_url();
    world.source = crate::support::Db::connect(&source_url).await;
    let mut all = Vec::new();
    for round in 0..5 {
        world
            .source
            .exec(&format!("INSERT INTO a VALUES ({round}, 0, 'x'); UPDATE a SET v = v + 1; UPDATE a SET v = v + 1 WHERE id % 2 = 0"))
            .await;
        all.extend(world.decoded().await);
        // Everything from the beginning again: it is the position that decides.
        let failed = world.apply(all.clone()).await;
        assert!(failed.is_ok(), "{failed:?}");
        world.server.cluster().restart(changeover::demo::StopMode::Kill).unwrap();
        world.source = crate::support::Db::connect(&source_url).await;
        world.target = reconnect(&world).await;
        world.assert_same(&["a"]).await;
    }
}

#[tokio::test]
async fn truncate_stops_at_a_table_that_only_the_target_has() {
    let mut world = World::new("CREATE TABLE p (id int PRIMARY KEY)").await;
    world.target.exec("CREATE TABLE own (id int PRIMARY KEY, p int REFERENCES p)").await;
    world.follow("INSERT INTO p VALUES (1)").await.unwrap();
    world.target.exec("INSERT INTO own VALUES (1, 1)").await;
    let error = world.follow("TRUNCATE p CASCADE").await.unwrap_err();
    assert!(matches!(&error, Error::Row { table, .. } if table.name == "p"), "{error}");
    assert_eq!(world.target.rows("own").await, ["(1,1)"]);
}

#[tokio::test]
async fn truncate_spares_the_table_whose_copy_has_seen_it() {
    let mut world = World::new(
        "CREATE TABLE p (id int PRIMARY KEY, v int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p)",
    )
    .await;
    world.follow("INSERT INTO p VALUES (1, 1); INSERT INTO c VALUES (1, 1)").await.unwrap();
    world.source.exec("TRUNCATE p, c; INSERT INTO p VALUES (2, 2); INSERT INTO c VALUES (2, 2)").await;
    let snapshot = world.source.scalar("SELECT pg_current_snapshot()").await.parse().unwrap();
    let until = world.source.scalar("SELECT pg_current_wal_insert_lsn()").await.parse().unwrap();
    world.target.exec("DELETE FROM c; INSERT INTO c VALUES (2, NULL); UPDATE c SET p = NULL").await;
    world.source.exec("UPDATE c SET p = NULL").await;
    world.options.handovers = vec![TableHandover { table: TableName::new("public", "c"), snapshot, until }];
    let batches = world.decoded().await;
    world.apply(batches).await.unwrap();
    world.assert_same(&["p", "c"]).await;
}

/// Positions go on between the parts of a transaction; alone they must not commit what is open. (A crash test found that one
/// did: it was gathered while a part was being answered.)
#[tokio::test]
async fn a_position_between_the_parts_of_a_transaction_commits_none_of_it() {
    for first_parts in [1, 2] {
        stalls_after(first_parts).await;
    }
}

async fn stalls_after(first_parts: usize) {
    let mut world = World::cut_at("CREATE TABLE t (id int PRIMARY KEY, v text)", 600).await;
    // Each part is a group, written out while the one before is executed.
    world.options.group_bytes = 1;
    world.source.exec("INSERT INTO t VALUES (0, 'before')").await;
    world.source.exec("INSERT INTO t SELECT n, repeat('x', 300) FROM generate_series(1, 20) n").await;
    let mut batches = world.decoded().await;
    // The source has told of log without changes before it: a position that no transaction has brought yet.
    for batch in &mut batches {
        let last = batch.transactions.last().filter(|it| !it.part.ends()).map(|it| it.commit.get() - 1);
        if let Some(before) = last {
            Arc::make_mut(batch).through = Lsn::new(before).unwrap();
        }
    }
    let is_part = |batch: &Arc<Batch>| batch.transactions.iter().any(|it| !it.part.begins() && !it.part.ends());
    let middle = batches.iter().position(is_part).expect("it comes in parts");
    // What follows comes late: nothing is gathered with the position.
    let rest = batches.split_off(middle + first_parts - 1);
    assert!(rest.len() > 2, "{} batches are left", rest.len());
    let (url, end) = (world.target_url(), end_of(&rest));
    let applied = world.beside(async |running| {
        let reader = Db::connect(&url).await;
        running.send(batches).await;
        // Longer than any position waits for company.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(reader.scalar("SELECT count(*) FROM t").await, "1", "a part of the transaction is seen");
        running.send(rest).await;
        running.settled(end).await;
    });
    applied.await.unwrap();
    world.assert_same(&["t"]).await;
}
