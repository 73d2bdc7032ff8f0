//! What a target's cluster lacks, what a role may not do, and what belongs to extensions: copied as far as it goes, the
//! rest said.

use changeover::demo::{ClusterOptions, PgCluster, PostgresPrograms};

use crate::support::{Daemon, Db, Pair, TestConfig, source_and_target};

fn everything(name: &str, pair: &Pair) -> TestConfig {
    TestConfig { include: vec!["*.*".to_owned()], ..TestConfig::new(name, pair) }
}

fn started(major: u32, with: impl FnOnce(ClusterOptions) -> ClusterOptions) -> PgCluster {
    PgCluster::start(with(ClusterOptions::fast(PostgresPrograms::of_major(major).unwrap()))).unwrap()
}

/// What `check` says of one thing: verdict, message, remedy.
fn said(daemon: &Daemon, check: &str) -> (String, String, String) {
    let output = daemon.command(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let found = report["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {report}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("message"), text("remedy"))
}

/// Runs `copy`, which must succeed; what it logged.
fn copy(daemon: &Daemon) -> String {
    let output = daemon.command(&["copy"]);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    log
}

const SPACES: &str = "SELECT c.relname || ' ' || coalesce(t.spcname, 'default') FROM pg_class c
    LEFT JOIN pg_tablespace t ON t.oid = reltablespace WHERE relnamespace = 'public'::regnamespace ORDER BY 1";

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_the_target_lacks_is_said_and_the_others_are_kept() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    for (db, names) in [(&blue, &["\"of; both\"", "\"only here\""][..]), (&green, &["\"of; both\""][..])] {
        db.exec("SET allow_in_place_tablespaces = on").await;
        for name in names {
            db.exec(&format!("CREATE TABLESPACE {name} LOCATION ''")).await;
        }
    }
    blue.exec(
        "CREATE TABLE a (id integer PRIMARY KEY USING INDEX TABLESPACE \"only here\") TABLESPACE \"of; both\";
         CREATE TABLE b (id integer PRIMARY KEY USING INDEX TABLESPACE \"of; both\") TABLESPACE \"only here\";
         CREATE INDEX b_i ON b (id) TABLESPACE \"only here\";
         CREATE MATERIALIZED VIEW m TABLESPACE \"of; both\" AS SELECT * FROM b;
         CREATE TABLE p (id integer) PARTITION BY LIST (id) TABLESPACE \"only here\";
         CREATE TABLE p_1 PARTITION OF p FOR VALUES IN (1);
         INSERT INTO b VALUES (1)",
    )
    .await;
    let daemon = Daemon::prepare(&everything("spaces", &pair));
    let (verdict, message, remedy) = said(&daemon, "target.tablespaces");
    assert_eq!(verdict, "warn");
    assert!(message.ends_with(": only here"), "{message}");
    assert_eq!(remedy, "CREATE TABLESPACE \"only here\" LOCATION '…';");
    let log = copy(&daemon);
    assert!(log.contains("tablespaces that the target lacks") && log.contains("only here"), "{log}");
    assert_eq!(
        green.query_text(SPACES).await,
        [
            "a of; both",
            "a_pkey default",
            "b default",
            "b_i default",
            "b_pkey of; both",
            "m of; both",
            "p default",
            "p_1 default"
        ]
    );
}

/// No provider is loaded on either side; the label is there because a superuser wrote the catalog.
#[tokio::test(flavor = "multi_thread")]
async fn a_label_whose_provider_the_target_lacks_is_said_and_stops_nothing() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec("CREATE TABLE a (id integer PRIMARY KEY); CREATE PUBLICATION theirs FOR TABLE a").await;
    blue.exec(
        "SET allow_system_table_mods = on;
         INSERT INTO pg_seclabel SELECT oid, 'pg_class'::regclass, 0, 'nobody', 'secret' FROM pg_class WHERE relname = 'a';
         INSERT INTO pg_seclabel SELECT oid, 'pg_publication'::regclass, 0, 'nobody', 'x' FROM pg_publication",
    )
    .await;
    let daemon = Daemon::prepare(&everything("labels", &pair));
    let (verdict, message, _) = said(&daemon, "target.labels");
    assert_eq!((verdict.as_str(), message.ends_with(": nobody")), ("warn", true), "{message}");
    assert!(copy(&daemon).contains("security labels left out"));
    assert_eq!(green.scalar("SELECT count(*) FROM pg_publication_rel").await, "1");
}

/// Of the servers that the set-up installs, the distribution's has LZ4 and the others have not.
#[tokio::test(flavor = "multi_thread")]
async fn a_column_compressed_as_the_target_cannot_is_said_and_arrives() {
    let pair = Pair::of(15, 18);
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    let can = "SELECT 'lz4' = ANY (enumvals) FROM pg_settings WHERE name = 'default_toast_compression'";
    if blue.scalar(can).await != "t" {
        // Nothing can be compressed so on this machine.
        return;
    }
    blue.exec("CREATE TABLE a (id integer PRIMARY KEY, v text COMPRESSION lz4, w text COMPRESSION pglz)").await;
    blue.exec("INSERT INTO a VALUES (1, repeat('ab', 10000), 'w')").await;
    let daemon = Daemon::prepare(&everything("squeezed", &pair));
    let has = green.scalar(can).await == "t";
    let log = copy(&daemon);
    assert_eq!(log.contains("compression with LZ4 left out"), !has, "{log}");
    assert_eq!(blue.rows("a").await, green.rows("a").await);
    let kept = "SELECT attname || attcompression::text FROM pg_attribute WHERE attrelid = 'a'::regclass AND attcompression <> ''";
    assert_eq!(green.query_text(kept).await, if has { vec!["vl", "wp"] } else { vec!["wp"] });
}

/// `extension_control_path` is new in 18: a test cannot install an extension for the servers before.
#[tokio::test(flavor = "multi_thread")]
async fn what_users_put_into_an_extensions_own_tables_arrives() {
    let directory = std::env::temp_dir().join(format!("changeover-extension-{}", std::process::id()));
    let inside = directory.join("extension");
    std::fs::create_dir_all(&inside).unwrap();
    std::fs::write(inside.join("settings.control"), "default_version = '1.0'\nrelocatable = false\n").unwrap();
    let script = "CREATE TABLE @extschema@.kinds (id integer PRIMARY KEY, v text, shipped boolean DEFAULT false, \
                      twice integer GENERATED ALWAYS AS (id * 2) STORED);
                  INSERT INTO @extschema@.kinds VALUES (1, 'shipped', true);
                  CREATE TABLE @extschema@.\"all; of it\" (\"v'\" text);
                  CREATE TABLE @extschema@.not_ours (v text);
                  INSERT INTO @extschema@.not_ours VALUES ('shipped');
                  CREATE SEQUENCE @extschema@.counter;
                  SELECT pg_catalog.pg_extension_config_dump('@extschema@.kinds', 'WHERE NOT shipped');
                  SELECT pg_catalog.pg_extension_config_dump('@extschema@.\"all; of it\"', '');
                  SELECT pg_catalog.pg_extension_config_dump('@extschema@.counter', '');";
    std::fs::write(inside.join("settings--1.0.sql"), script).unwrap();
    let path = format!("$system:{}", directory.display());
    let cluster = |_| started(18, |options| options.setting("extension_control_path", &path));
    let pair = Pair { source: cluster(0).into(), target: cluster(1).into() };
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(
        "CREATE TABLE t (id integer PRIMARY KEY); CREATE SCHEMA s; CREATE EXTENSION settings SCHEMA s;
         INSERT INTO s.kinds VALUES (7, 'mine'), (8, E'tab\\t\\\\.');
         INSERT INTO s.\"all; of it\" VALUES ('a'), (NULL);
         INSERT INTO s.not_ours VALUES ('stays here');
         SELECT setval('s.counter', 77)",
    )
    .await;
    let daemon = Daemon::prepare(&everything("extension", &pair));
    let (verdict, message, _) = said(&daemon, "source.extension_rows");
    assert_eq!(verdict, "warn");
    assert!(message.contains("s.kinds (settings), s.all; of it (settings)"), "{message}");
    copy(&daemon);
    for table in ["s.kinds", "s.\"all; of it\""] {
        assert_eq!(blue.rows(table).await, green.rows(table).await, "{table}");
    }
    assert_eq!(green.rows("s.not_ours").await, ["(shipped)"]);
    assert_eq!(green.scalar("SELECT nextval('s.counter')").await, "78");
    std::fs::remove_dir_all(directory).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_on_the_target_stays_and_what_differs_is_said() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec("CREATE ROLE of_both LOGIN NOINHERIT; CREATE ROLE same LOGIN; CREATE TABLE t (id integer PRIMARY KEY)")
        .await;
    blue.exec("ALTER TABLE t OWNER TO of_both").await;
    green.exec("CREATE ROLE of_both CREATEDB; CREATE ROLE same LOGIN").await;
    let daemon = Daemon::prepare(&everything("roles", &pair));
    let (verdict, message, remedy) = said(&daemon, "target.present_roles");
    assert_eq!(verdict, "warn");
    assert!(message.ends_with(": of_both (LOGIN NOINHERIT NOCREATEDB on the source)"), "{message}");
    copy(&daemon);
    let attributes = "SELECT rolcanlogin, rolinherit, rolcreatedb FROM pg_roles WHERE rolname = 'of_both'";
    assert_eq!(green.query_text(attributes).await, ["f|t|t"]);
    green.exec(&remedy).await;
    assert_eq!(green.query_text(attributes).await, blue.query_text(attributes).await);
    assert_eq!(green.scalar("SELECT relowner::regrole FROM pg_class WHERE relname = 't'").await, "of_both");
}

const FOR_MOVERS: &str = "
    CREATE ROLE boss NOLOGIN; CREATE ROLE clerk LOGIN PASSWORD 'c'; CREATE ROLE team NOLOGIN;
    GRANT team TO clerk;
    CREATE SCHEMA s AUTHORIZATION boss;
    CREATE TABLE s.t (id serial PRIMARY KEY, v text); ALTER TABLE s.t OWNER TO boss;
    GRANT SELECT ON s.t TO team WITH GRANT OPTION;
    GRANT USAGE ON SCHEMA s TO team;
    SET ROLE team; GRANT SELECT ON s.t TO PUBLIC; RESET ROLE;
    COMMENT ON TABLE s.t IS 'of the boss';
    INSERT INTO s.t (v) VALUES ('x');
    CREATE ROLE mover LOGIN REPLICATION; GRANT boss, team TO mover; GRANT USAGE ON SCHEMA s TO mover";

/// As on a managed service: no superuser on either side.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_is_no_superuser_copies_all_but_passwords_and_says_so() {
    for (source, target) in [(15, 15), (13, 18)] {
        let mut pair = Pair::of(source, target);
        let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
        blue.exec(FOR_MOVERS).await;
        green.exec("CREATE ROLE mover LOGIN CREATEROLE CREATEDB").await;
        green.exec("CREATE DATABASE shop OWNER mover").await;
        let as_mover = |url: &str| url.replace("postgres://postgres@", "postgres://mover@");
        let shop = pair.target.cluster().url("shop");
        let config =
            TestConfig { source: as_mover(pair.source.url()), target: as_mover(&shop), ..everything("managed", &pair) };
        let daemon = Daemon::prepare(&config);
        let (verdict, message, remedy) = said(&daemon, "source.passwords");
        assert_eq!((verdict.as_str(), message.contains("clerk")), ("warn", true), "{message}");
        assert!(remedy.contains("ALTER ROLE \"clerk\" PASSWORD"), "{remedy}");
        let (verdict, message, _) = said(&daemon, "target.roles");
        assert_eq!((verdict.as_str(), message.as_str()), ("pass", "will be created: boss, clerk, team"));
        // Who may not become a table's owner cannot give it to him.
        blue.exec("CREATE TABLE of_postgres (id integer PRIMARY KEY)").await;
        let (verdict, message, remedy) = said(&daemon, "target.owners");
        assert_eq!((verdict.as_str(), message.ends_with(": postgres")), ("fail", true), "{message}");
        assert!(remedy.starts_with("GRANT \"postgres\" TO mover;"), "{remedy}");
        blue.exec("DROP TABLE of_postgres").await;
        let log = copy(&daemon);
        assert!(log.contains("created without its password"), "{log}");
        let there = Db::connect(&shop).await;
        assert_eq!(there.rows("s.t").await, ["(1,x)"]);
        let owner = "SELECT relowner::regrole::text || ' ' || relacl::text FROM pg_class WHERE oid = 's.t'::regclass";
        // The owner's own privileges are what the version says they are.
        let granted = |acl: String| acl.replace("Dxt", "xt").replace("xtm", "xt");
        assert_eq!(granted(blue.scalar(owner).await), granted(there.scalar(owner).await));
        assert_eq!(there.scalar("SELECT pg_has_role('clerk', 'team', 'MEMBER')").await, "t");
        assert_eq!(there.scalar("SELECT obj_description('s.t'::regclass)").await, "of the boss");
    }
}

/// `public` belongs to whoever owns the database, in `s` a grant allows it, in `late` nothing does any more.
const OF_MANY: &str = "
    CREATE TABLE public.t (id integer PRIMARY KEY);
    CREATE FUNCTION public.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    CREATE SCHEMA s; GRANT ALL ON SCHEMA s TO worker; CREATE SCHEMA late; GRANT ALL ON SCHEMA late TO worker;
    SET ROLE worker;
    CREATE TABLE s.t (id integer PRIMARY KEY, v text); CREATE TYPE s.kind AS ENUM ('a');
    CREATE TABLE late.t (id serial PRIMARY KEY);
    RESET ROLE; REVOKE ALL ON SCHEMA late FROM worker; GRANT USAGE ON SCHEMA late, s TO mover;
    INSERT INTO s.t VALUES (1, 'x')";

/// Who is no superuser gives things away only to whom may create where they are.
#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_many_arrives_as_theirs() {
    for (source, target) in [(15, 15), (15, 18), (13, 13)] {
        let mut pair = Pair::of(source, target);
        let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
        blue.exec("CREATE ROLE app LOGIN; CREATE ROLE worker; GRANT worker TO app; CREATE ROLE mover LOGIN REPLICATION; GRANT app TO mover").await;
        blue.exec("CREATE DATABASE shop OWNER app").await;
        green
            .exec("CREATE ROLE app LOGIN; CREATE ROLE worker; CREATE ROLE mover LOGIN; GRANT app, worker TO mover")
            .await;
        green.exec("CREATE DATABASE shop OWNER mover").await;
        let (source_shop, target_shop) = (pair.source.cluster(), pair.target.cluster());
        let as_app = Db::connect(&source_shop.url_as("app", "shop")).await;
        as_app.exec(OF_MANY).await;
        let (source, target_url) = (source_shop.url_as("mover", "shop"), target_shop.url_as("mover", "shop"));
        let there = Db::connect(&target_shop.url("shop")).await;
        let config = TestConfig { source, target: target_url, ..everything("many", &pair) };
        let daemon = Daemon::prepare(&config);
        let (verdict, message, remedy) = said(&daemon, "target.owners");
        assert_eq!(verdict, "fail", "{message}");
        let mut lacking = Vec::new();
        for remedy in remedy.lines() {
            let (side, statement) = remedy.split_once(": ").unwrap();
            lacking.push(statement);
            let db = if side == "on the target" { &there } else { &as_app };
            db.exec(statement).await;
        }
        let in_late = "GRANT CREATE ON SCHEMA \"late\" TO \"worker\";";
        let in_public = "GRANT CREATE ON SCHEMA \"public\" TO \"app\";";
        // Up to 14 everybody may create in `public`.
        assert_eq!(lacking, if target < 15 { vec![in_late] } else { vec![in_late, in_public] });
        let (verdict, message, _) = said(&daemon, "target.owners");
        assert_eq!(verdict, "pass", "{message}");
        copy(&daemon);
        assert_eq!(there.rows("s.t").await, ["(1,x)"]);
        let owners = "SELECT format('%s %s', oid::regclass, relowner::regrole) FROM pg_class WHERE relkind IN ('r', 'S')
                      AND relnamespace IN ('public'::regnamespace, 's'::regnamespace, 'late'::regnamespace)
                      UNION ALL SELECT format('%s %s', oid::regprocedure, proowner::regrole) FROM pg_proc WHERE proname = 'f'
                      UNION ALL SELECT format('%s %s %s', nspname, nspowner::regrole, nspacl) FROM pg_namespace
                                WHERE nspname IN ('s', 'late') ORDER BY 1";
        assert_eq!(there.query_text(owners).await, as_app.query_text(owners).await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_filter_leaves_out_may_be_named_in_any_way() {
    let odd = r##""n!""#$%&'()*+,-./:;<=>?@[\]^_`{|}~""##;
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(&format!(
        "CREATE SCHEMA {odd}; CREATE TABLE {odd}.{odd} (id serial PRIMARY KEY); CREATE TABLE public.kept (id serial PRIMARY KEY);
         CREATE TABLE {odd}.\"n\" (id integer PRIMARY KEY); CREATE VIEW public.over AS SELECT * FROM {odd}.{odd};
         INSERT INTO public.kept DEFAULT VALUES"
    ))
    .await;
    let config = TestConfig { include: vec!["public.*".to_owned()], ..everything("odd", &pair) };
    copy(&Daemon::prepare(&config));
    let names = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'v', 'S') AND relnamespace >= 16384 OR relnamespace = 'public'::regnamespace ORDER BY 1";
    assert_eq!(green.query_text(names).await, ["kept", "kept_id_seq", "kept_pkey"]);
}

/// A policy, a rule, a trigger and functions that need a table which is not migrated would stop everything else.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_table_that_is_left_out_stays_out_and_says_so() {
    let pair = source_and_target().await;
    let (blue, green) = (pair.source.connect().await, pair.target.connect().await);
    blue.exec(
        "CREATE SCHEMA other; CREATE TABLE other.gone (id integer PRIMARY KEY); CREATE TABLE kept (id integer PRIMARY KEY);
         CREATE FUNCTION of_gone(other.gone) RETURNS integer LANGUAGE sql AS 'SELECT $1.id';
         CREATE FUNCTION all_gone() RETURNS SETOF other.gone LANGUAGE sql AS 'SELECT * FROM other.gone';
         CREATE FUNCTION text_only() RETURNS bigint LANGUAGE sql AS 'SELECT count(*) FROM other.gone';
         CREATE VIEW over_function AS SELECT * FROM all_gone();
         COMMENT ON FUNCTION all_gone() IS 'c'; REVOKE ALL ON FUNCTION all_gone() FROM PUBLIC;
         CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         ALTER TABLE kept ENABLE ROW LEVEL SECURITY;
         CREATE POLICY needs_it ON kept USING (EXISTS (SELECT FROM other.gone g WHERE g.id = kept.id));
         CREATE POLICY stays ON kept USING (id > 0);
         CREATE RULE needs_it AS ON INSERT TO kept DO ALSO INSERT INTO other.gone VALUES (NEW.id);
         CREATE RULE stays AS ON DELETE TO kept DO INSTEAD NOTHING;
         CREATE CONSTRAINT TRIGGER needs_it AFTER INSERT ON kept FROM other.gone FOR EACH ROW EXECUTE FUNCTION fires();
         CREATE TRIGGER stays AFTER INSERT ON kept FOR EACH ROW EXECUTE FUNCTION fires();
         COMMENT ON POLICY needs_it ON kept IS 'c'; COMMENT ON RULE needs_it ON kept IS 'c';
         COMMENT ON TRIGGER needs_it ON kept IS 'c'; COMMENT ON TRIGGER stays ON kept IS 'stays'",
    )
    .await;
    let config = TestConfig { include: vec!["public.*".to_owned()], ..everything("needs", &pair) };
    let log = copy(&Daemon::prepare(&config));
    for said in
        ["FUNCTION public.of_gone", "public.over_function", "POLICY public.kept needs_it", "RULE public.kept needs_it"]
    {
        assert!(log.contains(said), "{said}: {log}");
    }
    for (sql, expected) in [
        ("SELECT polname FROM pg_policy", "stays"),
        ("SELECT rulename FROM pg_rewrite WHERE ev_class = 'kept'::regclass", "stays"),
        ("SELECT tgname || obj_description(oid) FROM pg_trigger WHERE NOT tgisinternal", "staysstays"),
        (
            "SELECT string_agg(proname, ' ' ORDER BY proname) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
            "fires text_only",
        ),
        ("SELECT count(*) FROM pg_views WHERE schemaname = 'public'", "0"),
    ] {
        assert_eq!(green.query_text(sql).await, [expected], "{sql}");
    }
}
