//! Rows whose keys are neighbours are found in one pass over the index, and it makes no difference but in what it costs.

use changeover::apply::Error;

use super::world::World;

const TABLES: [&str; 6] = ["short", "middle", "long", "named", "parted", "whole"];
const SCHEMA: &str = "CREATE DOMAIN number AS int;
    CREATE TABLE short (id smallint PRIMARY KEY, v int, note text);
    CREATE TABLE middle (id int PRIMARY KEY, v int, note text);
    CREATE TABLE long (v int, id bigint PRIMARY KEY, note text);
    CREATE TABLE named (id number PRIMARY KEY, v int, note text);
    CREATE TABLE parted (id int PRIMARY KEY, v int, note text) PARTITION BY RANGE (id);
    CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (0);
    CREATE TABLE parted_high PARTITION OF parted FOR VALUES FROM (0) TO (MAXVALUE);
    CREATE TABLE whole (id int PRIMARY KEY, v int, note text);
    ALTER TABLE whole REPLICA IDENTITY FULL";

/// How often an index was gone down, by all sessions that have ended.
async fn descents(world: &World, index: &str) -> i64 {
    world.alone().await;
    let sql = format!("SELECT idx_scan::text FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
    world.target.scalar(&sql).await.parse().unwrap()
}

/// Before 15 what a session counted arrives a moment after its end.
async fn until_gone_down(world: &World, index: &str, times: i64) {
    let sql = format!("SELECT idx_scan >= {times} FROM pg_stat_user_indexes WHERE indexrelname = '{index}'");
    world.target.until(&sql, "t").await;
}

async fn follows(mut world: World, tables: &[&str]) {
    for (sql, in_one_pass) in [
        ("INSERT INTO {} (id, v, note) SELECT i, i, 'x' FROM generate_series(-500, 499) i", true),
        ("UPDATE {} SET v = v + 1, note = CASE WHEN id % 3 = 0 THEN NULL ELSE note || id END", true),
        ("UPDATE {} SET v = NULL WHERE id % 2 = 0", true),
        ("DELETE FROM {} WHERE id % 2 = 0 AND id < 200", true),
        // Too far from each other.
        ("UPDATE {} SET v = 7 WHERE id = 499 OR id < -200; DELETE FROM {} WHERE id % 3 = 0", false),
    ] {
        let before = descents(&world, "middle_pkey").await;
        for table in tables {
            world.follow(&sql.replace("{}", table)).await.unwrap();
        }
        world.assert_same(tables).await;
        if in_one_pass {
            let descents = descents(&world, "middle_pkey").await - before;
            assert!(descents <= 10, "{sql}: {descents}");
        } else {
            until_gone_down(&world, "middle_pkey", before + 300).await;
        }
    }
    assert_eq!(world.target.scalar("SELECT count(*)::text FROM middle WHERE v = 7").await, "101");
}

#[tokio::test]
async fn neighbours_are_found_in_one_pass_whatever_holds_them() {
    follows(World::new(SCHEMA).await, &TABLES).await;
    // Values of a domain never come in binary form.
    let published = TABLES.into_iter().filter(|table| *table != "named").collect::<Vec<_>>();
    let world = World::binary(SCHEMA, 1 << 20, &published).await;
    world.target.exec("ALTER TABLE middle ALTER v TYPE bigint; ALTER TABLE short ALTER id TYPE int").await;
    // Another type of the key, and no index on it: the usual way.
    world.target.exec("ALTER TABLE long ALTER id TYPE numeric").await;
    follows(world, &published).await;
}

#[tokio::test]
async fn a_neighbour_that_is_missing_or_refused_is_named_and_what_follows_is_found_by_descents_again() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, v int)").await;
    world.follow("INSERT INTO t SELECT i, 0 FROM generate_series(1, 20000) i").await.unwrap();
    world.target.exec("DELETE FROM t WHERE id = 400; ALTER TABLE t ADD CHECK (v <> 9)").await;
    world.source.exec("UPDATE t SET v = 1 WHERE id <= 500").await;
    let error = {
        let batches = world.decoded().await;
        world.apply(batches.clone()).await.unwrap_err()
    };
    let Error::RowMissing { key, ordinal: 399, .. } = &error else { panic!("{error}") };
    assert_eq!(key, "key (\"id\")");
    assert_eq!(world.target.scalar("SELECT count(*)::text FROM t WHERE v <> 0").await, "0", "half of it stayed");

    world.options.dead_letters = true;
    let before = descents(&world, "t_pkey").await;
    world
        .follow(
            "UPDATE t SET v = 9 WHERE id = 700; UPDATE t SET v = 2 WHERE id BETWEEN 600 AND 1000 AND id <> 700;
             UPDATE t SET v = 3 WHERE id % 50 = 0",
        )
        .await
        .unwrap();
    // What was refused, one by one in order; the 399 more, if at all, with it.
    until_gone_down(&world, "t_pkey", before + 300).await;
    let letters =
        "SELECT concat_ws(' ', sqlstate, new->>'id') FROM changeover.dead_letter ORDER BY commit_end, ordinal";
    assert_eq!(world.target.query_text(letters).await, ["23514 700", "22012 400"]);
    // The next group begins in the usual way.
    let before = descents(&world, "t_pkey").await;
    world.follow("UPDATE t SET v = 4 WHERE id % 50 = 1").await.unwrap();
    until_gone_down(&world, "t_pkey", before + 400).await;
    let differing = "SELECT id::text FROM t WHERE v <> CASE WHEN id % 50 = 1 THEN 4 WHEN id % 50 = 0 THEN 3 WHEN id BETWEEN 600 AND 1000 THEN 2 ELSE 0 END";
    assert_eq!(world.target.query_text(differing).await, Vec::<String>::new());
}
