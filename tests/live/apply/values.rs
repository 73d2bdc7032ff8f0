//! Values arrive byte-equal in their text form, whatever way they take.

use changeover::demo::PostgresPrograms;
use changeover::model::binary;

use super::world::World;
use crate::support::{Db, Server, cluster_of, server};

type Type = (&'static str, &'static [&'static str]);

/// A type and values of it, as SQL literals.
const TYPES: &[Type] = &[
    ("boolean", &["true", "false"]),
    ("smallint", &["'-32768'", "32767"]),
    ("integer", &["'-2147483648'"]),
    ("bigint", &["'-9223372036854775808'"]),
    ("numeric", &["'NaN'", "1.0", "1.00", "1e-30", "'123456789012345678901234567890.5'", "'Infinity'", "'-Infinity'"]),
    ("numeric(8,3)", &["12345.678", "0.100"]),
    ("real", &["'NaN'", "'-Infinity'", "'-0'", "0.1", "1e38", "1.17549435e-38"]),
    ("double precision", &["'NaN'", "'Infinity'", "'-0'", "0.1", "1e308", "5e-324", "0.30000000000000004"]),
    ("money", &["'-92233720368547758.08'", "'12.34'"]),
    ("text", &["''", "'é\u{1F600}\t\n\\N\\\\'", "'NULL'", "'\"q\"{,}'", "E'\\\\.'"]),
    ("varchar(5)", &["'ab   '", "'é'"]),
    ("char(5)", &["'ab'", "''", "'é'"]),
    ("bpchar", &["'ab   '"]),
    ("\"char\"", &["'x'", "''"]),
    ("name", &["'n a m e'"]),
    ("bytea", &["'\\x'", "'\\x00ff5c0a'"]),
    ("date", &["'infinity'", "'-infinity'", "'4713-01-01 BC'", "'5874897-12-31'"]),
    ("time", &["'24:00:00'", "'00:00:00.000001'"]),
    ("timetz", &["'24:00:00+15:59:59'", "'12:00:00-08'"]),
    ("timestamp", &["'infinity'", "'-infinity'", "'4713-11-24 00:00:00 BC'", "'294276-12-31 23:59:59.999999'"]),
    ("timestamptz", &["'infinity'", "'-infinity'", "'2024-03-10 02:30:00.5+00'", "'0044-03-15 12:00:00 BC'"]),
    ("interval", &["'-1 mons +2 days -03:04:05.000006'", "'178000000 years'", "'1 day'", "'24:00:00'"]),
    ("uuid", &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    ("json", &["'{\"a\": 1,  \"a\":2}'", "'null'", "' [1]'", "'\"\\u00e9\\n\"'"]),
    ("jsonb", &["'{\"b\": 1.00, \"a\": null}'", "'\"x\\\\y\"'"]),
    ("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    ("xml", &["'<a>1</a>'", "'text<b/>'"]),
    ("bit(3)", &["B'101'"]),
    ("bit varying", &["B''", "B'1010101010'"]),
    ("inet", &["'::1'", "'10.1.2.3/8'"]),
    ("cidr", &["'10.0.0.0/8'"]),
    ("macaddr", &["'08:00:2b:01:02:03'"]),
    ("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    ("point", &["'(1.5,-2)'"]),
    ("line", &["'{1,-1,0}'"]),
    ("lseg", &["'[(0,0),(1,1)]'"]),
    ("box", &["'(1,1),(0,0)'"]),
    ("path", &["'((0,0),(1,1))'", "'[(0,0),(1,1)]'"]),
    ("polygon", &["'((0,0),(1,1),(1,0))'"]),
    ("circle", &["'<(0,0),1.5>'"]),
    ("tsvector", &["'a:1A fat:2,3 ''it''''s'''"]),
    ("tsquery", &["'a & !(b | c:*)'"]),
    ("pg_lsn", &["'16/B374D848'"]),
    ("xid8", &["'18446744073709551615'"]),
    ("oid", &["4294967295"]),
    ("regclass", &["'pg_class'"]),
    ("int4range", &["'empty'", "'[1,10)'", "'(,)'"]),
    ("tstzrange", &["'[2020-01-01 00:00:00+00,infinity)'"]),
    ("int4multirange", &["'{}'", "'{[1,2),[5,)}'"]),
    ("int[]", &["'{}'", "'{1,NULL,3}'", "'[2:3]={1,2}'", "'{{1,2},{3,4}}'"]),
    ("text[]", &["'{\"\",NULL,\"NULL\",\"a,b\",\"q\\\"\\\\\"}'"]),
    ("numeric(6,2)[]", &["'{1.10,NULL}'"]),
    ("mood", &["'sad'", "'very \"happy\"'"]),
    ("mood[]", &["'{sad,NULL}'"]),
    ("pair", &["'(1,\"a,b\")'", "'(,)'", "'(1,\"\")'"]),
    ("pair[]", &["'{\"(1,x)\",NULL}'"]),
    ("moods", &["'[sad,ok]'"]),
    ("positive", &["5"]),
    ("short", &["'abc'"]),
    ("numbers", &["'{1,2}'"]),
    ("odd.\"na me\"", &["'x'"]),
];

const SETUP: &str = "CREATE SCHEMA odd; CREATE TYPE mood AS ENUM ('sad', 'ok', 'very \"happy\"');
     CREATE TYPE pair AS (a int, b text); CREATE TYPE moods AS RANGE (subtype = mood);
     CREATE DOMAIN positive AS int CHECK (value > 0); CREATE DOMAIN short AS varchar(3); CREATE DOMAIN numbers AS int[];
     CREATE TYPE odd.\"na me\" AS ENUM ('x');";

fn schema(types: &[Type]) -> String {
    let columns: Vec<String> = types.iter().enumerate().map(|(at, (name, _))| format!("c{at} {name}")).collect();
    let columns = columns.join(", ");
    format!(
        "{SETUP} CREATE TABLE keyed (id int PRIMARY KEY, {columns}); CREATE TABLE bare (id int, {columns}); \
         ALTER TABLE bare REPLICA IDENTITY FULL"
    )
}

/// Row `row` of a table: each type's value of that number, or its last one.
fn values(types: &[Type], row: usize) -> String {
    let value =
        |(name, values): &Type| format!("{}::{name}", values.get(row).or(values.last()).expect("a type has a value"));
    types.iter().map(value).collect::<Vec<_>>().join(", ")
}

/// Those of [`TYPES`] and their values that a server of this major version has.
fn types_of(major: u32) -> Vec<Type> {
    let known = |(name, values): &Type| match *name {
        // Infinities came with 14, and so did the others.
        "numeric" if major < 14 => Some(("numeric", &values[..values.len() - 2])),
        "int4multirange" if major < 14 => None,
        name => Some((name, *values)),
    };
    TYPES.iter().filter_map(known).collect()
}

/// Each installed version, and the newest of them.
fn upgrades() -> (Vec<u32>, u32) {
    let majors: Vec<u32> = PostgresPrograms::find().unwrap().iter().map(|programs| programs.major).collect();
    let newest = *majors.iter().max().unwrap();
    (majors, newest)
}

#[tokio::test]
async fn every_type_arrives_byte_equal_by_copy_by_array_and_by_update() {
    let (majors, newest) = upgrades();
    for source in majors {
        println!("{source} to {newest}");
        let types = types_of(source);
        // Types of the target get other OIDs.
        arrives(&mut World::across(source, newest, &schema(&types)).await, &types).await;
    }
    let types = types_of(13);
    println!("{newest} to 13");
    arrives(&mut World::across(newest, 13, &schema(&types)).await, &types).await;
}

/// Those that have a form we know.
async fn binary_types(db: &Db) -> Vec<Type> {
    let mut types = Vec::new();
    for known in types_of(db.major_version().await) {
        let oid = db.scalar(&format!("SELECT COALESCE(to_regtype('{}')::oid, 0)", known.0.replace('\'', "''"))).await;
        if binary::is_known(oid.parse().unwrap()) {
            types.push(known);
        }
    }
    types
}

#[tokio::test]
async fn every_type_of_known_binary_form_arrives_byte_equal() {
    let (majors, newest) = upgrades();
    for source in majors {
        let types = binary_types(&Server::from(cluster_of(source)).connect().await).await;
        assert!(types.len() > 20, "{types:?}");
        println!("{source} to {newest}");
        let world = World::across(source, newest, &schema(&types)).await;
        arrives(&mut world.with_binaries(&["keyed", "bare"]).await, &types).await;
    }
}

/// The target's own types: nothing may be taken as it is.
#[tokio::test]
async fn what_comes_in_binary_form_becomes_the_type_of_the_target() {
    let wider = "CREATE TABLE w (id int PRIMARY KEY, a int, b timestamp, c varchar(9))";
    let mut world = World::binary(wider, 1 << 20, &["w"]).await;
    world.target.exec("ALTER TABLE w ALTER a TYPE bigint, ALTER b TYPE text, ALTER c TYPE text").await;
    world.follow("INSERT INTO w SELECT i, -i, '2020-02-29'::timestamp + i * interval '1 s', i FROM generate_series(1, 200) i").await.unwrap();
    world.follow("UPDATE w SET a = a * 3, b = b + '1 day', c = 'c' || c WHERE id < 150").await.unwrap();
    world
        .follow("DELETE FROM w WHERE id % 3 = 0; UPDATE w SET id = id + 1000, b = NULL WHERE id % 3 = 1")
        .await
        .unwrap();
    world.assert_same(&["w"]).await;
}

/// Rows are found by values that travel in their binary form.
#[tokio::test]
async fn a_key_of_many_types_finds_its_rows_in_binary_form() {
    let schema = "CREATE DOMAIN number AS int; CREATE TABLE k (u uuid, n numeric(8, 3), d date, at timestamptz, b bigint, i int, s smallint,
        f float8, y bytea, o oid, t bool, c char(4), v int, w time, PRIMARY KEY (u, n, d, at, b, i, s, f, y, o, t, c))";
    let mut world = World::binary(schema, 1 << 20, &["k"]).await;
    // Another type takes the text, a domain what its base type takes.
    world.target.exec("ALTER TABLE k ALTER b TYPE numeric, ALTER i TYPE number").await;
    let insert =
        "INSERT INTO k SELECT md5(i::text)::uuid, i * 0.125, '2020-02-29'::date + i, 'infinity', -i, i, i, i / 3.0,
        decode(md5(i::text), 'hex'), i, i % 2 = 0, i, i, NULL FROM generate_series(1, 200) i";
    for sql in [
        insert,
        "UPDATE k SET v = v + 1, w = CASE WHEN i % 2 = 0 THEN '24:00:00'::time END WHERE i < 150",
        "UPDATE k SET n = n + 1000, at = '-infinity', f = 'NaN', s = -s WHERE i % 5 = 0",
        "UPDATE k SET v = NULL WHERE i % 10 = 0; DELETE FROM k WHERE i % 3 = 0",
    ] {
        world.follow(sql).await.unwrap();
        world.assert_same(&["k"]).await;
    }
}

/// By COPY, by arrays, found by key and by all values.
async fn arrives(world: &mut World, types: &[Type]) {
    let rows = types.iter().map(|(_, values)| values.len()).max().unwrap();
    for row in 0..rows {
        let values = values(types, row);
        let sql = format!("INSERT INTO keyed SELECT {row}, {values}; INSERT INTO bare SELECT {row}, {values}");
        world.follow(&sql).await.unwrap();
    }
    world.assert_same(&["keyed", "bare"]).await;
    let many: Vec<String> =
        (0..100).map(|id| format!("INSERT INTO keyed SELECT {}, {};", 1000 + id, values(types, id % rows))).collect();
    world.follow(&format!("BEGIN; {} COMMIT", many.join(""))).await.unwrap();
    world.assert_same(&["keyed"]).await;
    let columns: Vec<String> = (0..types.len()).map(|at| format!("c{at}")).collect();
    let columns = columns.join(", ");
    for row in 0..rows {
        let from = format!("SELECT {columns} FROM keyed WHERE id = {row}");
        let sql = format!(
            "UPDATE keyed SET ({columns}) = ({from}) WHERE id BETWEEN 1000 AND {}; UPDATE bare SET id = id + 100 WHERE id = {row}",
            1010 + row
        );
        world.follow(&sql).await.unwrap();
    }
    world.assert_same(&["keyed", "bare"]).await;
    world.follow("DELETE FROM bare WHERE id % 2 = 0; DELETE FROM keyed WHERE id > 1050").await.unwrap();
    world.assert_same(&["keyed", "bare"]).await;
}

/// Types without equality, or whose values are too coarse to be told apart.
const NO_KEYS: [&str; 10] = ["json", "xml", "point", "line", "lseg", "box", "path", "polygon", "circle", "jsonpath"];

#[tokio::test]
async fn every_type_that_can_be_a_key_finds_its_row() {
    let types = types_of(server().connect().await.major_version().await);
    let keys = || types.iter().enumerate().filter(|(_, (name, _))| !NO_KEYS.contains(name));
    let tables: Vec<String> = keys().map(|(at, _)| format!("k{at}")).collect();
    let create: String =
        keys().map(|(at, (name, _))| format!("CREATE TABLE k{at} (k {name} PRIMARY KEY, v int);")).collect();
    let mut world = World::new(&format!("{SETUP}{create}")).await;
    for (at, (name, values)) in keys() {
        for value in *values {
            world.source.exec(&format!("INSERT INTO k{at} VALUES ({value}::{name}, 1) ON CONFLICT DO NOTHING")).await;
        }
    }
    let inserted = world.decoded().await;
    world.apply(inserted).await.unwrap();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    world.assert_same(&tables).await;
    for table in &tables {
        let sql = format!("UPDATE {table} SET v = 2; DELETE FROM {table} WHERE ctid = (SELECT max(ctid) FROM {table})");
        world.follow(&sql).await.unwrap_or_else(|error| panic!("{table}: {error:?}"));
    }
    world.assert_same(&tables).await;
}

#[tokio::test]
async fn names_that_need_quoting_are_quoted() {
    let mut world = World::new(
        "CREATE SCHEMA \"Sch \"\"ema\"; CREATE TABLE \"Sch \"\"ema\".\"ta.b'le\" (\"I d\" int PRIMARY KEY, \"select\" text, \"ü\"\"\" int)",
    )
    .await;
    world
        .follow(
            "INSERT INTO \"Sch \"\"ema\".\"ta.b'le\" SELECT i, 'x', i FROM generate_series(1, 100) i;
             INSERT INTO \"Sch \"\"ema\".\"ta.b'le\" VALUES (0, 'x', 1);
             UPDATE \"Sch \"\"ema\".\"ta.b'le\" SET \"select\" = 'y'; DELETE FROM \"Sch \"\"ema\".\"ta.b'le\" WHERE \"I d\" = 5",
        )
        .await
        .unwrap();
    world.assert_same(&["\"Sch \"\"ema\".\"ta.b'le\""]).await;
}

#[tokio::test]
async fn the_widest_table_and_the_narrowest_arrive() {
    let columns: Vec<String> = (0..1_599).map(|at| format!("c{at} \"char\"")).collect();
    let wide = format!("CREATE TABLE wide (id int PRIMARY KEY, {}); CREATE TABLE none ()", columns.join(", "));
    let mut world = World::new(&wide).await;
    world
        .follow(
            "INSERT INTO wide (id, c0, c1598) VALUES (1, 'a', 'b'); INSERT INTO none DEFAULT VALUES;
             INSERT INTO wide (id) SELECT i FROM generate_series(2, 100) i; UPDATE wide SET c7 = 'x' WHERE id < 5;
             INSERT INTO none SELECT FROM generate_series(1, 100); DELETE FROM wide WHERE id = 50",
        )
        .await
        .unwrap();
    world.assert_same(&["wide"]).await;
    assert_eq!(world.target.scalar("SELECT count(*) FROM none").await, "101");
}
