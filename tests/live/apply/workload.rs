//! Random workloads: whatever the source did, the target ends with the same rows.

use super::world::World;

const SCHEMA: &str = "
CREATE TABLE keyed (id int PRIMARY KEY, v int, note text);
CREATE TABLE uniq (id int PRIMARY KEY, u int UNIQUE, w int, UNIQUE (w) DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE pair (a int, b text, v int, PRIMARY KEY (b, a));
CREATE TABLE bare (v int, note text); ALTER TABLE bare REPLICA IDENTITY FULL;
CREATE TABLE parted (id int, k int, v text, PRIMARY KEY (id, k)) PARTITION BY RANGE (k);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (5);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (5) TO (100)";

const TABLES: [&str; 5] = ["keyed", "uniq", "pair", "bare", "parted"];

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
        ];
        if self.0.u32(0..150) == 0 {
            return format!("TRUNCATE {}", TABLES[self.0.usize(..TABLES.len())]);
        }
        statements[self.0.usize(..statements.len())].clone()
    }

    /// A transaction in which a refused statement does no harm.
    fn transaction(&mut self) -> String {
        let mut sql = String::from("DO $$BEGIN ");
        for _ in 0..self.0.u32(1..8) {
            let statement = self.statement();
            sql += &format!(
                "BEGIN {statement}; SET CONSTRAINTS ALL IMMEDIATE; SET CONSTRAINTS ALL DEFERRED; \
                 EXCEPTION WHEN unique_violation THEN NULL; END; "
            );
        }
        sql + "END$$"
    }
}

/// `group_bytes` decides how much is folded together.
async fn check(seed: u64, group_bytes: usize, batch_bytes: usize) {
    println!("seed {seed}, group_bytes {group_bytes}, batch_bytes {batch_bytes}");
    let mut world = World::cut_at(SCHEMA, batch_bytes).await;
    world.options.group_bytes = group_bytes;
    let mut random = Random(fastrand::Rng::with_seed(seed));
    for _ in 0..6 {
        let transactions: Vec<String> = (0..60).map(|_| random.transaction()).collect();
        for transaction in transactions {
            world.source.exec(&transaction).await;
        }
        let batches = world.decoded().await;
        world.apply(batches).await.unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        world.assert_same(&TABLES).await;
    }
}

#[tokio::test]
async fn a_random_workload_ends_equal() {
    let seed = fastrand::u64(..);
    for group_bytes in [1, 4 << 10, 1 << 20] {
        check(seed, group_bytes, 1 << 20).await;
    }
    check(seed, 4 << 10, 600).await;
}

/// Put the seed that a failure printed here.
#[tokio::test]
async fn a_random_workload_of_one_seed_ends_equal() {
    check(1, 1 << 20, 1 << 20).await;
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
    let end = super::world::end_of(batches.last().unwrap());
    let applied = world.beside(async |running| {
        let reader = crate::support::Db::connect(&url).await;
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
