//! What must not be done silently.

use changeover::apply::{self, Error};
use changeover::model::{Disposition, TableName};
use changeover::wire;

use super::world::World;

fn halts(error: &Error) -> String {
    match error.disposition() {
        Disposition::Halt { hint } => hint,
        Disposition::Retry => panic!("{error} is to be tried again"),
    }
}

#[tokio::test]
async fn a_row_that_is_not_there_stops_the_group_and_is_named() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    world.follow("INSERT INTO t SELECT i, 'secret' FROM generate_series(1, 3) i").await.unwrap();
    world.target.exec("DELETE FROM t WHERE id = 2").await;
    for sql in ["UPDATE t SET v = 'w' WHERE id IN (1, 2)", "DELETE FROM t WHERE id IN (1, 2)"] {
        world.source.exec(sql).await;
        let batches = world.decoded().await;
        let error = world.apply(batches).await.unwrap_err();
        let Error::RowMissing { table, key, ordinal, .. } = &error else { panic!("{error}") };
        assert_eq!((table.name.as_str(), key.as_str(), *ordinal), ("t", "key (\"id\")", 1));
        assert!(halts(&error).contains("resync") && !error.to_string().contains("secret"));
        assert_eq!(world.target.rows("t").await, ["(1,secret)", "(3,secret)"], "half of a group stayed");
    }
}

#[tokio::test]
async fn a_row_that_is_there_already_stops_the_group() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    world.target.exec("INSERT INTO t VALUES (2, 'foreign')").await;
    let error = world.follow("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await.unwrap_err();
    let Error::Row { table, ordinal: 1, source, .. } = &error else { panic!("{error}") };
    assert_eq!((table.name.as_str(), source.sqlstate()), ("t", "23505"));
    assert_eq!(world.target.rows("t").await, ["(2,foreign)"]);
}

#[tokio::test]
async fn a_narrower_target_column_refuses_and_never_cuts() {
    for (wide, narrow, value) in [
        ("varchar(9)", "varchar(3)", "'abcdef'"),
        ("char(9)", "char(3)", "'abcdef'"),
        ("varbit(9)", "varbit(3)", "B'101010'"),
        ("bit(6)", "bit(3)", "B'101010'"),
        ("bigint", "int", "9999999999"),
        ("numeric(12,2)", "numeric(4,2)", "1234567.89"),
    ] {
        let mut world = World::new(&format!("CREATE TABLE t (id int PRIMARY KEY, v {wide})")).await;
        world.follow("INSERT INTO t VALUES (1, NULL)").await.unwrap();
        world.target.exec(&format!("ALTER TABLE t ALTER v TYPE {narrow}")).await;
        let error = world.follow(&format!("UPDATE t SET v = {value}")).await.unwrap_err();
        assert!(matches!(error, Error::Row { .. }), "{wide}: {error}");
        assert_eq!(world.target.rows("t").await, ["(1,)"], "{wide}");
    }
}

#[tokio::test]
async fn refused_rows_are_set_aside_with_all_that_is_known_and_the_rest_goes_on() {
    let mut world = World::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text, big text);
         CREATE TABLE other (id int PRIMARY KEY, v int); ALTER TABLE other REPLICA IDENTITY FULL;
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL",
    )
    .await;
    world.options.dead_letters = true;
    // Each row is a change of its own, and there are more than one pipeline holds.
    world.follow("INSERT INTO t SELECT i, 'v' || i, repeat('x', 3000) FROM generate_series(1, 3) i").await.unwrap();
    world
        .target
        .exec("ALTER TABLE t ADD CHECK (v <> 'bad'); DELETE FROM t WHERE id = 2; INSERT INTO t VALUES (900, '', '')")
        .await;
    world
        .follow(
            "BEGIN; INSERT INTO t SELECT i, 'n', NULL FROM generate_series(10, 1200) i; UPDATE t SET v = 'bad' WHERE id = 1;
             UPDATE t SET v = 'w' WHERE id = 2; DELETE FROM t WHERE id = 900; INSERT INTO other VALUES (1, 1); COMMIT;
             DELETE FROM t WHERE id = 3; INSERT INTO t VALUES (5000, 'bad', NULL), (5001, E'\\u00e9\"\\\\', NULL)",
        )
        .await
        .unwrap();
    world.assert_same(&["other"]).await;
    let letters = world.target.query_text(
        "SELECT concat_ws(' ', table_schema, table_name, op, sqlstate, ordinal, old, new - 'big') FROM changeover.dead_letter ORDER BY commit_end, ordinal",
    );
    assert_eq!(
        letters.await,
        [
            r#"public t insert 23505 890 {"v": "n", "id": "900"}"#,
            r#"public t update 23514 1191 {"v": "bad", "id": "1"}"#,
            r#"public t update 22012 1192 {"v": "w", "id": "2"}"#,
            r#"public t insert 23514 1 {"v": "bad", "id": "5000"}"#,
        ]
    );
    // A value that the stream did not carry is missing, a NULL is null.
    let big = "SELECT string_agg(coalesce(new->>'big', CASE WHEN new ? 'big' THEN 'null' ELSE 'missing' END), ' ' ORDER BY commit_end, ordinal) FROM changeover.dead_letter";
    assert_eq!(world.target.scalar(big).await, "null missing missing null");
    // Exactly what was set aside is missing: 900 was the stranger's and went with the source's DELETE.
    let missing = "SELECT string_agg(id::text, ' ' ORDER BY id) FROM unnest(ARRAY[2, 5000, 5001, 900, 10, 1200, 3]) id WHERE NOT EXISTS (SELECT FROM t WHERE t.id = id.id)";
    assert_eq!(world.target.scalar(missing).await, "2 3 900 5000");
    assert_eq!(world.target.scalar("SELECT count(*)::text FROM t").await, "1192");
}

#[tokio::test]
async fn what_is_no_matter_of_a_row_is_never_set_aside() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    world.options.dead_letters = true;
    world.follow("INSERT INTO t VALUES (1)").await.unwrap();
    world.target.exec("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM nowhere.f(); RETURN NEW; END';
         CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE t ENABLE ALWAYS TRIGGER tr").await;
    let error = world.follow("INSERT INTO t VALUES (2)").await.unwrap_err();
    assert!(matches!(&error, Error::Row { source, .. } if source.sqlstate() == "3F000"), "{error}");
    assert_eq!(world.target.scalar("SELECT count(*)::text FROM changeover.dead_letter").await, "0");
    assert_eq!(world.target.rows("t").await, ["(1)"]);
}

#[tokio::test]
async fn our_own_writes_are_no_strangers_under_any_name_and_role() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    let watching = wire::connect(&world.options.endpoint, "test").await.unwrap();
    let watched = apply::watch(&watching, &world.options.migration, &[TableName::new("public", "t")]).await.unwrap();
    assert_eq!((watched.begun, watched.busy), (1, 0));
    // One that may not act as a replica, and that the URL gives a name of its own.
    world
        .target
        .exec(
            "CREATE ROLE mover LOGIN; GRANT USAGE ON SCHEMA changeover TO mover;
             GRANT ALL ON ALL TABLES IN SCHEMA public, changeover TO mover",
        )
        .await;
    let url = world.target_url().replace("postgres@", "mover@") + "?application_name=billing";
    world.options.endpoint = wire::Endpoint::parse(&url).unwrap();
    world.follow("INSERT INTO t VALUES (1, 'a'); UPDATE t SET v = 'b'").await.unwrap();
    world.assert_same(&["t"]).await;
    let noted = "SELECT count(*) FROM changeover.stranger_note";
    assert_eq!(world.target.scalar(noted).await, "0");
    let stranger = crate::support::Db::connect(&url).await;
    stranger.exec("UPDATE t SET v = 'c'").await;
    assert_eq!(world.target.scalar(noted).await, "1");
}

#[tokio::test]
async fn what_the_target_lacks_is_named() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    world.target.exec("ALTER TABLE t DROP v").await;
    let error = world.follow("INSERT INTO t VALUES (1, 'a')").await.unwrap_err();
    assert!(matches!(&error, Error::MissingColumn { column, .. } if column == "v"), "{error}");
    assert!(halts(&error).contains("add the column"));
    world.target.exec("DROP TABLE t").await;
    let error = world.follow("INSERT INTO t VALUES (2, 'b')").await.unwrap_err();
    assert!(matches!(&error, Error::MissingTable { .. }), "{error}");
}

#[tokio::test]
async fn a_daemon_that_was_taken_over_writes_nothing() {
    let mut world = World::new("CREATE TABLE t (id int PRIMARY KEY)").await;
    world.source.exec("INSERT INTO t VALUES (1)").await;
    let first = world.decoded().await;
    world.source.exec("INSERT INTO t VALUES (2)").await;
    let second = world.decoded().await;
    let (url, end) = (world.target_url(), super::world::end_of(&first));
    let taken_over = world.beside(async |running| {
        running.send(first).await;
        running.settled(end).await;
        let other = crate::support::Db::connect(&url).await;
        other.exec("UPDATE changeover.position SET epoch = epoch + 1").await;
        running.send(second).await;
    });
    let error = taken_over.await.unwrap_err();
    assert!(matches!(error, Error::Superseded { epoch: 1, .. }), "{error}");
    assert_eq!(world.target.rows("t").await, ["(1)"]);
    let again = world.apply(Vec::new()).await.unwrap_err();
    assert!(matches!(again, Error::Superseded { .. }), "{again}");
}

#[tokio::test]
async fn a_role_that_may_not_silence_triggers_keeps_the_order_of_tables() {
    let mut world = World::new(
        "CREATE TABLE p (id int PRIMARY KEY, v int); CREATE TABLE c (id int PRIMARY KEY, p int REFERENCES p);
         CREATE TABLE k (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE)",
    )
    .await;
    world
        .target
        .exec(
            "CREATE ROLE mover LOGIN; GRANT USAGE ON SCHEMA changeover TO mover;
             GRANT ALL ON ALL TABLES IN SCHEMA public, changeover TO mover",
        )
        .await;
    let url = world.target_url().replace("postgres@", "mover@").replace("user=postgres", "user=mover");
    world.options.endpoint = changeover::wire::Endpoint::parse(&url).unwrap();
    assert_eq!(world.options.endpoint.user(), "mover");
    world
        .follow(
            "BEGIN; INSERT INTO p VALUES (1, 1); INSERT INTO c VALUES (1, 1); INSERT INTO p VALUES (2, 2); INSERT INTO c VALUES (2, 2);
             UPDATE c SET p = 2; DELETE FROM p WHERE id = 1; COMMIT; DELETE FROM c; DELETE FROM p WHERE id = 2; INSERT INTO p VALUES (3, 3)",
        )
        .await
        .unwrap();
    world.assert_same(&["p", "c"]).await;
    let error = world.follow("INSERT INTO k VALUES (1, 3)").await.unwrap_err();
    assert!(matches!(error, Error::ActingConstraint { .. }), "{error}");
}
