//! Random workloads: whatever the source did, the target ends with the same rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use changeover::apply;
use changeover::model::Batch;
use futures_util::future::join_all;

use super::world::{Feed, World, alone, apply_to, beside, database, end_of, options_for, target_database};
use crate::support::{Db, Server, from_environment, server};

const SCHEMA: &str = "
CREATE TABLE keyed (id int PRIMARY KEY, v int, note text);
CREATE TABLE plain (id int PRIMARY KEY, v int, note text);
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, w int, UNIQUE (w) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE pair (a int, b text, v int, PRIMARY KEY (b, a));
CREATE TABLE bare (v int, note text); ALTER TABLE bare REPLICA IDENTITY FULL;
CREATE TABLE parted (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (5);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (5) TO (100);
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy'); CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE TYPE spot AS (x int, y text);
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED, moods mood[], s small, spots spot[]);
CREATE TABLE ranges (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, r int4range, twice int GENERATED ALWAYS AS (upper(r) * 2) STORED, EXCLUDE USING gist (r WITH &&));
CREATE TABLE chosen (a int NOT NULL, b int NOT NULL, big text, CONSTRAINT by_b UNIQUE (b)); ALTER TABLE chosen REPLICA IDENTITY USING INDEX by_b;
ALTER TABLE chosen ALTER big SET STORAGE EXTERNAL;
CREATE TABLE nullable (id int PRIMARY KEY, u int UNIQUE, c char(5)); ALTER TABLE nullable REPLICA IDENTITY FULL";

/// Besides what a database may have anyway: a unique index with a condition, which only the target's order can satisfy.
const ON_TARGET: &str = "CREATE UNIQUE INDEX ON keyed (v) WHERE note = 'never'";

const TABLES: [&str; 10] = ["keyed", "plain", "uniq", "pair", "bare", "parted", "tree", "ranges", "chosen", "nullable"];

/// Whose values have a binary form.
const BINARY_TABLES: [&str; 8] = ["keyed", "plain", "uniq", "pair", "bare", "parted", "chosen", "nullable"];

/// Workloads checked at a time.
const LANES: u64 = 6;

struct Random(fastrand::Rng);

impl Random {
    fn key(&mut self) -> u32 {
        self.0.u32(0..12)
    }

    /// One statement; those that the constraints refuse are rolled back to before them.
    fn statement(&mut self) -> String {
        let (key, other, value) = (self.key(), self.key(), self.0.u32(0..1000));
        let statements = [
            format!("INSERT INTO keyed VALUES ({key}, {value}, repeat(md5('{value}'), {}))", self.0.u32(0..200)),
            format!("UPDATE keyed SET v = {value} WHERE id = {key}"),
            format!("UPDATE keyed SET id = {other} WHERE id = {key}"),
            format!(
                "UPDATE keyed SET v = v + 1, note = CASE WHEN v % 3 = 0 THEN NULL ELSE note END WHERE id % 2 = {}",
                key % 2
            ),
            format!("DELETE FROM keyed WHERE id = {key}"),
            format!(
                "INSERT INTO plain VALUES ({value} % 80, {key}, repeat('x', {value})), ({value} % 80 + 80, {other}, 'y')"
            ),
            format!("UPDATE plain SET v = v + 1 WHERE id % 10 = {key} % 10"),
            format!("UPDATE plain SET note = note || '{other}' WHERE id = {value} % 160"),
            format!("UPDATE plain SET id = id + 1 WHERE id = {value} % 160"),
            format!("DELETE FROM plain WHERE id % 40 = {value} % 40"),
            format!("INSERT INTO uniq VALUES ({key}, {other}, {})", self.key()),
            format!("UPDATE uniq SET u = {other} WHERE id = {key}"),
            format!("UPDATE uniq SET w = CASE id WHEN {key} THEN {other} ELSE {key} END WHERE id IN ({key}, {other})"),
            format!("DELETE FROM uniq WHERE id = {key} OR u = {other}"),
            format!("INSERT INTO pair VALUES ({key}, 'k{other}', {value})"),
            format!("UPDATE pair SET b = 'k{other}', v = {value} WHERE a = {key}"),
            format!("DELETE FROM pair WHERE a = {key}"),
            format!("INSERT INTO bare VALUES ({}, NULL), ({key}, 'x')", key % 3),
            format!("UPDATE bare SET note = 'y{}' WHERE v = {}", value % 3, key % 4),
            format!("DELETE FROM bare WHERE ctid = (SELECT ctid FROM bare WHERE v = {} LIMIT 1)", key % 4),
            format!("INSERT INTO parted VALUES ({key}, {other}, 'v')"),
            format!("UPDATE parted SET k = {other}, v = '{value}' WHERE id = {key}"),
            format!("DELETE FROM parted WHERE k = {other}"),
            format!(
                "INSERT INTO tree VALUES ({key}, {other}, ARRAY['ok', 'sad']::mood[], {value}, ARRAY[ROW({other}, 'a,\"b')]::spot[])"
            ),
            format!(
                "UPDATE tree SET parent = {other}, moods = moods || 'happy'::mood WHERE id = {key} AND cardinality(moods) < 5"
            ),
            format!(
                "UPDATE tree SET id = {other} WHERE id = {key} AND NOT EXISTS (SELECT FROM tree WHERE parent = {key})"
            ),
            format!("DELETE FROM tree WHERE id = {key}"),
            format!("INSERT INTO ranges (r) VALUES (int4range({key}, {key} + 2)), (NULL)"),
            format!(
                "UPDATE ranges SET r = int4range(lower(r) + {other}, upper(r) + {other}) WHERE lower(r) % 3 = {}",
                key % 3
            ),
            format!("DELETE FROM ranges WHERE r && int4range({key}, {key} + 3) OR r IS NULL"),
            format!("INSERT INTO chosen VALUES ({key}, {other}, repeat('{key}', {}))", self.0.u32(0..3000)),
            format!("UPDATE chosen SET b = b + {other}, a = {key} WHERE a = {}", key % 5),
            format!("UPDATE chosen SET a = {value} WHERE b = {other}"),
            format!("DELETE FROM chosen WHERE b < {key} / 2"),
            format!("INSERT INTO nullable VALUES ({key}, NULLIF({other}, 3), 'c{value}')"),
            format!("UPDATE nullable SET u = CASE WHEN u IS NULL THEN {other} END, id = id WHERE id <= {key}"),
            // Frees a unique value and takes it again in one transaction: the old image holds it only under FULL.
            format!(
                "WITH gone AS (DELETE FROM nullable WHERE u = {other} RETURNING u) INSERT INTO nullable SELECT 100 + {key}, {other} + 50, 'x' FROM gone"
            ),
            format!("UPDATE nullable SET id = id + 20, u = {other} WHERE id = {key}"),
        ];
        if self.0.u32(0..150) == 0 {
            return format!("TRUNCATE {}", TABLES[self.0.usize(..TABLES.len())]);
        }
        if self.0.u32(0..60) == 0 {
            return self.many();
        }
        statements[self.0.usize(..statements.len())].clone()
    }

    /// So many neighbours that they are found in one pass.
    fn many(&mut self) -> String {
        let (key, other) = (self.key(), self.key());
        match self.0.u32(0..3) {
            0 => format!(
                "INSERT INTO plain SELECT i, {other}, 'z' FROM generate_series(200 + {key} * 9, 400 + {key} * 9) i ON CONFLICT DO NOTHING"
            ),
            1 => format!("UPDATE plain SET v = v + {other} WHERE id >= 200 AND id % 13 <> {key}"),
            _ => format!("DELETE FROM plain WHERE id BETWEEN 200 + {key} * 9 AND 350 + {other} * 9"),
        }
    }

    /// A transaction in which a refused statement does no harm.
    fn transaction(&mut self) -> String {
        let mut sql = String::from("BEGIN; DO $$BEGIN ");
        for _ in 0..self.0.u32(1..8) {
            let statement = self.statement();
            sql += &format!(
                "BEGIN {statement}; SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED; \
                 EXCEPTION WHEN integrity_constraint_violation THEN NULL; END; "
            );
        }
        sql + "END$$; COMMIT;"
    }
}

/// One source, whose changes come decoded in three ways, and a target for each of the ways in which they are applied.
struct Lane {
    source: Db,
    texts: Feed,
    binaries: Feed,
    targets: Vec<Target>,
    _servers: [Server; 2],
}

struct Target {
    db: Db,
    decoded: Decoded,
    options: apply::Options,
}

#[derive(Clone, Copy, PartialEq)]
enum Decoded {
    /// Transactions are hardly ever cut into parts.
    Whole,
    Cut,
    /// Without the tables whose types come as text only.
    Binary,
}

/// How a target gets its changes, and how many bytes of them are folded together at most.
const WAYS: [(Decoded, usize); 6] = [
    (Decoded::Whole, 1),
    (Decoded::Whole, 4 << 10),
    (Decoded::Whole, 1 << 20),
    // Each part by itself, and some of them together.
    (Decoded::Cut, 1),
    (Decoded::Cut, 4 << 10),
    (Decoded::Binary, 64 << 10),
];

impl Decoded {
    fn tables(self) -> &'static [&'static str] {
        if self == Self::Binary { &BINARY_TABLES } else { &TABLES }
    }
}

/// What the source committed and what it held then.
struct Round {
    /// By [`Decoded`].
    batches: [Vec<Arc<Batch>>; 3],
    rows: BTreeMap<&'static str, Vec<String>>,
}

impl Lane {
    async fn new() -> Self {
        // Decoders read all that the source's server logs.
        let servers = [server(), server()];
        let source = database(&servers[0], "source", SCHEMA).await;
        let mut targets = Vec::new();
        for (number, (decoded, group_bytes)) in WAYS.into_iter().enumerate() {
            let name = format!("target_{number}");
            let db = target_database(&servers[1], &name, SCHEMA).await;
            db.exec(ON_TARGET).await;
            let options = apply::Options { group_bytes, ..options_for(&servers[1], &name) };
            targets.push(Target { db, decoded, options });
        }
        let texts = Feed::texts(&source, &[1 << 20, 600]).await;
        let binaries = Feed::binaries(&source, 1 << 20, &BINARY_TABLES).await;
        Self { source, texts, binaries, targets, _servers: servers }
    }

    async fn round(&mut self, sql: &str) -> Round {
        self.source.exec(sql).await;
        let [whole, cut] = self.texts.decoded(&self.source).await.try_into().expect("two decoders");
        let [binary] = self.binaries.decoded(&self.source).await.try_into().expect("one decoder");
        let mut rows = BTreeMap::new();
        for table in TABLES {
            rows.insert(table, self.source.rows(table).await);
        }
        Round { batches: [whole, cut, binary], rows }
    }

    /// Begins with empty tables.
    async fn check(&mut self, seed: u64) {
        println!("CHANGEOVER_SEED={seed}");
        let mut random = Random(fastrand::Rng::with_seed(seed));
        let emptied = self.round(&format!("TRUNCATE {} RESTART IDENTITY", TABLES.join(", "))).await;
        for target in &mut self.targets {
            target.options.sessions = 1 + usize::try_from(seed % 4).unwrap();
            alone(&target.db).await;
            apply_to(&target.options, emptied.batches[target.decoded as usize].clone()).await.unwrap();
        }
        // Two lives of each applier, of three rounds each.
        for _ in 0..2 {
            let mut rounds = Vec::new();
            for _ in 0..3 {
                let transactions: String = (0..60).map(|_| random.transaction()).collect();
                rounds.push(self.round(&transactions).await);
            }
            for target in &self.targets {
                target.follow(&rounds, seed).await;
            }
        }
    }
}

impl Target {
    async fn follow(&self, rounds: &[Round], seed: u64) {
        let group_bytes = self.options.group_bytes;
        alone(&self.db).await;
        let applied = beside(&self.options, async |running| {
            for round in rounds {
                let batches = round.batches[self.decoded as usize].clone();
                let end = end_of(&batches);
                running.send(batches).await;
                running.settled(end).await;
                for table in self.decoded.tables() {
                    assert_eq!(
                        self.db.rows(table).await,
                        round.rows[table],
                        "seed {seed}, group_bytes {group_bytes}: {table}"
                    );
                }
            }
        });
        applied.await.unwrap_or_else(|error| panic!("seed {seed}, group_bytes {group_bytes}: {error:?}"));
    }
}

/// `CHANGEOVER_SEEDS` of them (1), from `CHANGEOVER_SEED` on (a random one): `make campaign-apply`.
#[tokio::test]
async fn a_random_workload_ends_equal() {
    let first = from_environment("CHANGEOVER_SEED").unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    let seeds = from_environment("CHANGEOVER_SEEDS").unwrap_or(1);
    // An applier that is waited for leaves the processors to the others.
    let lanes = (0..seeds.min(LANES)).map(|lane| check_all((first + lane..first + seeds).step_by(LANES as usize)));
    join_all(lanes).await;
}

async fn check_all(seeds: impl Iterator<Item = u64>) {
    let mut lane = Lane::new().await;
    for seed in seeds {
        lane.check(seed).await;
    }
}

/// A reader of the target adds up accounts that only transfers change.
#[tokio::test]
async fn a_reader_of_the_target_never_sees_half_a_transfer() {
    let mut world = World::new("CREATE TABLE acc (id int PRIMARY KEY, v int)").await;
    world.follow("INSERT INTO acc SELECT i, 100 FROM generate_series(1, 20) i").await.unwrap();
    let mut batches = Vec::new();
    for _ in 0..20 {
        let mut sql = String::new();
        for _ in 0..20 {
            let (from, to, sum) = (fastrand::u32(1..=20), fastrand::u32(1..=20), fastrand::u32(1..50));
            sql += &format!(
                "BEGIN; UPDATE acc SET v = v - {sum} WHERE id = {from}; UPDATE acc SET v = v + {sum} WHERE id = {to}; COMMIT;"
            );
        }
        world.source.exec(&sql).await;
        batches.push(world.decoded().await);
    }
    let url = world.target_url();
    let end = end_of(batches.last().unwrap());
    let applied = world.beside(async |running| {
        let reader = Db::connect(&url).await;
        let mut sums = std::collections::BTreeSet::new();
        for batch in batches {
            running.send(batch).await;
            sums.insert(reader.scalar("SELECT sum(v) FROM acc").await);
        }
        running.settled(end).await;
        assert_eq!(sums.into_iter().collect::<Vec<_>>(), ["2000"]);
    });
    applied.await.unwrap();
    world.assert_same(&["acc"]).await;
}
