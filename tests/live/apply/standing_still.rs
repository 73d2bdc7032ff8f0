//! Hold and advance: what verification compares against.

use changeover::model::{ApplyCommand, Lsn, Misaligned};
use tokio::sync::oneshot;

use super::world::{Running, World, end_of};
use crate::support::Db;

const ACCOUNTS: &str = "CREATE TABLE a (id int PRIMARY KEY, v int)";

async fn ask<T>(running: &Running, command: impl FnOnce(oneshot::Sender<T>) -> ApplyCommand) -> T {
    let (reply, answer) = oneshot::channel();
    running.commands.send(command(reply), 64).await.unwrap();
    answer.await.unwrap()
}

/// A snapshot of the source and the end of its log just after.
async fn snapshot(db: &Db) -> (String, Lsn) {
    let snapshot = db.scalar("SELECT pg_current_snapshot()").await;
    let until = db.scalar("SELECT pg_logical_emit_message(true, 'changeover', 'here')").await;
    (snapshot, until.parse().unwrap())
}

#[tokio::test]
async fn the_target_stands_exactly_where_the_snapshot_is_and_then_goes_on() {
    let mut world = World::new(ACCOUNTS).await;
    world.source.exec("INSERT INTO a VALUES (1, 1)").await;
    let before = world.decoded().await;
    world.source.exec("INSERT INTO a VALUES (2, 2)").await;
    let (set, until) = snapshot(&world.source).await;
    world.source.exec("INSERT INTO a VALUES (3, 3)").await;
    let after = world.decoded().await;
    let (url, first, last) = (world.target_url(), end_of(&before), end_of(&after));
    let stood = world.beside(async |running| {
        let reader = Db::connect(&url).await;
        running.send(before).await;
        running.settled(first).await;
        let held = ask(running, |reply| ApplyCommand::Hold { reply }).await;
        assert_eq!(held, first);
        running.send(after).await;
        let aligned =
            ask(running, |reply| ApplyCommand::AdvanceTo { snapshot: set.parse().unwrap(), until, reply }).await;
        assert!(aligned.unwrap().position > first);
        assert_eq!(reader.rows("a").await, ["(1,1)", "(2,2)"]);
        running.commands.send(ApplyCommand::Release, 64).await.unwrap();
        running.settled(last).await;
        assert_eq!(reader.rows("a").await, ["(1,1)", "(2,2)", "(3,3)"]);
    });
    stood.await.unwrap();
}

#[tokio::test]
async fn a_snapshot_that_is_no_prefix_of_the_stream_is_refused_and_the_stream_goes_on() {
    let mut world = World::new(ACCOUNTS).await;
    world.source.exec("INSERT INTO a VALUES (0, 0)").await;
    let before = world.decoded().await;
    let other = Db::connect(&world.source_url()).await;
    world.source.exec("INSERT INTO a VALUES (1, 1)").await;
    let first = world.source.scalar("SELECT xmin FROM a WHERE id = 1").await;
    other.exec("INSERT INTO a VALUES (2, 2)").await;
    let (set, until) = snapshot(&world.source).await;
    // As if the first had not been visible yet: its commit record was written, its session still waited.
    let set = format!("{first}:{}:{first}", set.split(':').nth(1).unwrap());
    let after = world.decoded().await;
    let end = end_of(&after);
    let stood = world.beside(async |running| {
        running.send(before).await;
        ask(running, |reply| ApplyCommand::Hold { reply }).await;
        running.send(after).await;
        let advance = |reply| ApplyCommand::AdvanceTo { snapshot: set.parse().unwrap(), until, reply };
        assert_eq!(ask(running, advance).await, Err(Misaligned::OutOfOrder));
        running.commands.send(ApplyCommand::Release, 64).await.unwrap();
        running.settled(end).await;
        ask(running, |reply| ApplyCommand::Hold { reply }).await;
        let advance = |reply| ApplyCommand::AdvanceTo { snapshot: set.parse().unwrap(), until, reply };
        assert_eq!(ask(running, advance).await, Err(Misaligned::Passed));
    });
    stood.await.unwrap();
    world.assert_same(&["a"]).await;
}

#[tokio::test]
async fn an_idle_stream_settles_its_position_and_a_message_of_ours_at_once() {
    let mut world = World::new(ACCOUNTS).await;
    // 13 sends no messages: there a commit that changed something comes instead.
    let fence = match world.source.major_version().await {
        13 => "INSERT INTO a VALUES (1, 1)",
        _ => "SELECT pg_logical_emit_message(true, 'changeover', 'fence')",
    };
    world.source.exec(fence).await;
    let fence = world.decoded().await;
    let quiet = world.decoded().await;
    let (end, through) = (end_of(&fence), quiet.last().map(|batch| batch.through));
    let settled = world.beside(async |running| {
        running.send(fence).await;
        running.settled(end).await;
        running.send(quiet).await;
        if let Some(through) = through {
            running.settled(through).await;
        }
    });
    settled.await.unwrap();
}
