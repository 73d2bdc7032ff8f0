//! As on a managed service: no superuser on either side, from the copy to the end.

use crate::support::{Daemon, Db, Pair, TestConfig};

/// Made by `app`, who owns the database.
const SCHEMA: &str = "
    CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, who text, total numeric);
    CREATE TABLE lines (order_id bigint, n int, what text, PRIMARY KEY (order_id, n));
    CREATE TABLE log (what text); ALTER TABLE log REPLICA IDENTITY FULL;
    INSERT INTO orders (who, total) SELECT 'c' || i % 10, i / 7.0 FROM generate_series(1, 500) i;
    INSERT INTO lines SELECT i, j, md5(i::text) FROM generate_series(1, 500) i, generate_series(1, 2) j";

/// What fires on the target unless it is kept from that.
const WHAT_FIRES: &str = "
    ALTER TABLE lines ADD FOREIGN KEY (order_id) REFERENCES orders;
    CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.who := upper(NEW.who); RETURN NEW; END';
    CREATE TRIGGER shout BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION shout()";

const CHANGES: &str = "
    INSERT INTO orders (who, total) VALUES ('new', 1), ('newer', 2); INSERT INTO lines SELECT max(id), 1, 'x' FROM orders;
    UPDATE orders SET total = 0 WHERE id < 50; DELETE FROM lines WHERE order_id = 5; DELETE FROM orders WHERE id = 5;
    INSERT INTO log SELECT 'said' FROM generate_series(1, 3); DELETE FROM log WHERE ctid = (SELECT min(ctid) FROM log)";

const TABLES: [&str; 3] = ["orders", "lines", "log"];

/// What we make, wherever it is, in this database or for all of the server.
const OURS: &str = "
    SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'changeover'
    UNION ALL SELECT 'publication ' || pubname FROM pg_publication
    UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots
    UNION ALL SELECT 'origin ' || roname FROM pg_replication_origin
    UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger WHERE tgname ~ 'changeover'";

struct Shops {
    _pair: Pair,
    /// As `app`.
    blue: Db,
    green: Db,
    config: TestConfig,
}

/// `may_silence`: triggers of the target may be kept from firing, which others than superusers can be allowed from 15 on.
async fn shops(source: u32, target: u32, may_silence: bool) -> Shops {
    let mut pair = Pair::of(source, target);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    for db in [&blue, &green] {
        db.exec("CREATE ROLE app LOGIN; CREATE ROLE mover LOGIN; GRANT app TO mover").await;
    }
    blue.exec("ALTER ROLE mover REPLICATION").await;
    blue.exec("CREATE DATABASE shop OWNER app").await;
    green.exec("CREATE DATABASE shop OWNER app").await;
    green.exec("GRANT CREATE ON DATABASE shop TO mover").await;
    if may_silence {
        green.exec("GRANT SET ON PARAMETER session_replication_role TO mover").await;
    }
    let mut urls_of = |role| (pair.source.cluster().url_as(role, "shop"), pair.target.cluster().url_as(role, "shop"));
    let ((source, target), (blue, green)) = (urls_of("mover"), urls_of("app"));
    let config = TestConfig { source, target, ..TestConfig::new("shop", &pair) };
    let (blue, green) = (Db::connect(&blue).await, Db::connect(&green).await);
    blue.exec(SCHEMA).await;
    if may_silence {
        blue.exec(WHAT_FIRES).await;
    }
    Shops { _pair: pair, blue, green, config }
}

async fn assert_same(shops: &Shops) {
    for table in TABLES {
        assert_eq!(shops.green.rows(table).await, shops.blue.rows(table).await, "{table}");
    }
}

async fn follows(daemon: &mut Daemon, shops: &Shops) {
    daemon.wait_for_phase("streaming");
    shops.blue.exec(CHANGES).await;
    shops.green.until("SELECT count(*)::text FROM log", &shops.blue.scalar("SELECT count(*) FROM log").await).await;
    assert_same(shops).await;
}

async fn assert_nothing_is_left(db: &Db) {
    assert_eq!(db.query_text(OURS).await, Vec::<String>::new());
}

fn succeeds(daemon: &Daemon, arguments: &[&str]) {
    let (code, said) = daemon.said(arguments);
    assert_eq!(code, 0, "{arguments:?}: {said}");
}

async fn goes_from_copy_to_complete(source: u32, target: u32, may_silence: bool) {
    let shops = shops(source, target, may_silence).await;
    // The first time it is thought better of.
    let mut daemon = Daemon::start(&shops.config);
    follows(&mut daemon, &shops).await;
    daemon.terminate();
    succeeds(&daemon, &["abort"]);
    assert_nothing_is_left(&shops.blue).await;
    assert_nothing_is_left(&shops.green).await;
    let drop = "DROP TABLE lines, orders, log; DROP FUNCTION IF EXISTS shout()";
    shops.green.exec(drop).await;

    daemon.start_again();
    follows(&mut daemon, &shops).await;
    assert_eq!(daemon.json(&["verify"])["verdict"], "equal");
    succeeds(&daemon, &["cutover", "--yes"]);
    assert!(shops.blue.batch_execute("INSERT INTO log VALUES ('late')").await.is_err());
    assert_same(&shops).await;
    shops.green.exec("INSERT INTO orders (who, total) VALUES ('green', 1)").await;
    let who = if may_silence { "GREEN" } else { "green" };
    assert_eq!(shops.green.scalar("SELECT who FROM orders ORDER BY id DESC LIMIT 1").await, who);
    daemon.terminate();
    succeeds(&daemon, &["complete"]);
    let blue = Db::connect(&shops.config.source).await;
    assert_nothing_is_left(&blue).await;
    assert_nothing_is_left(&shops.green).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_silence_triggers_goes_from_copy_to_complete() {
    goes_from_copy_to_complete(15, 15, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_goes_there_from_13_to_14() {
    goes_from_copy_to_complete(13, 14, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_from_16_to_18() {
    goes_from_copy_to_complete(16, 18, true).await;
}
