//! A durable log over crashes: at every named point, torn at every byte, damaged, moved, or somebody else's. What was
//! confirmed is there again or the start is refused; nothing is skipped.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::model::{Batch, Disposition, Lsn, Part, SinkName, SourceIdentity};

use super::directory::Directory;
use super::points::Point;
use super::recovery;
use super::state::StateFile;
use super::testing::{TempDir, batch, lsn, part, part_after, parts_at_random, state, through};
use super::{Cursor, Error, Options, Resumed, Spool, Standing};

const BOTH: [SinkName; 2] = [SinkName::Target, SinkName::Kafka];

fn options(dir: &Path, disk_bytes: u64) -> Options {
    Options { dir: dir.to_owned(), memory_bytes: 64 << 10, disk_bytes, sinks: BOTH.to_vec() }
}

/// As the daemon would start: the slot stands at `slot`, the target at `target`, Kafka does not answer yet.
fn standing(slot: Lsn, target: Lsn) -> Standing {
    Standing {
        migration: "shop".parse().unwrap(),
        source: SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 },
        consistent_point: lsn(50),
        epoch: 2,
        slot,
        settled: vec![(SinkName::Target, Some(target)), (SinkName::Kafka, None)],
    }
}

fn resume(dir: &Path, slot: Lsn, target: Lsn) -> Result<(Spool, Resumed), Error> {
    Spool::resume(&options(dir, 1 << 20), &standing(slot, target), true)
}

fn fresh(dir: &Path) -> Spool {
    let (spool, resumed) = resume(dir, lsn(50), lsn(50)).unwrap();
    assert_eq!((resumed.stream, resumed.next_seq, resumed.durable), (lsn(50), 0, Some(lsn(50))));
    spool
}

fn sync_all(spool: &Spool) -> Option<Lsn> {
    let mut synced = None;
    while let Some(through) = spool.sync().unwrap() {
        synced = Some(through);
    }
    synced
}

/// What a cursor still gives. Nothing can be appended afterwards.
fn rest(spool: &Spool, cursor: &mut Cursor) -> Vec<Batch> {
    spool.close();
    std::iter::from_fn(|| cursor.next_blocking().unwrap()).map(|batch| (*batch).clone()).collect()
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn segment_paths(dir: &Path) -> Vec<std::path::PathBuf> {
    files(dir).iter().filter(|(name, _)| name.contains("segment")).map(|(name, _)| dir.join(name)).collect()
}

#[test]
fn what_was_synced_is_there_after_a_restart_for_each_sink_from_its_own_place() {
    let dir = TempDir::new();
    let spool = fresh(dir.path());
    for seq in 0..30 {
        spool.append(batch(seq, 1000)).unwrap();
    }
    assert_eq!(sync_all(&spool), Some(through(29)));
    // Not synced, so it may be lost, and comes again.
    spool.append(batch(30, 1000)).unwrap();
    drop(spool);
    let (spool, resumed) = resume(dir.path(), through(29), through(11)).unwrap();
    assert_eq!((resumed.stream, resumed.next_seq, resumed.oldest), (through(29), 30, lsn(50)));
    assert_eq!(resumed.last_transaction, Some(through(29)));
    assert_eq!(resumed.backlog, [(through(29), 0)]);
    let (mut target, mut kafka) = (spool.cursor(SinkName::Target), spool.cursor(SinkName::Kafka));
    spool.append(batch(30, 1000)).unwrap();
    assert!(rest(&spool, &mut target).into_iter().eq((12..31).map(|seq| batch(seq, 1000))));
    assert!(rest(&spool, &mut kafka).into_iter().eq((0..31).map(|seq| batch(seq, 1000))));
}

#[test]
fn segments_go_once_every_sink_is_past_them_and_the_beginning_is_remembered() {
    let dir = TempDir::new();
    let (spool, _) = Spool::resume(&options(dir.path(), 80_000), &standing(lsn(50), lsn(50)), true).unwrap();
    let (mut target, mut kafka) = (spool.cursor(SinkName::Target), spool.cursor(SinkName::Kafka));
    for seq in 0..200 {
        spool.append(batch(seq, 1000)).unwrap();
        sync_all(&spool);
        for cursor in [&mut target, &mut kafka] {
            assert_eq!(cursor.next_blocking().unwrap().unwrap().seq, seq);
            cursor.release(through(seq));
        }
        assert!(dir.file_count() <= 2, "batch {seq}");
    }
    drop((target, kafka, spool));
    let (spool, resumed) = resume(dir.path(), through(199), through(199)).unwrap();
    assert_eq!((resumed.stream, resumed.next_seq), (through(199), 200));
    assert!(resumed.oldest > through(150));
    spool.tidy().unwrap();
    assert!(dir.file_count() > 0, "Kafka has not said that it holds the rest");
    let mut kafka = spool.cursor(SinkName::Kafka);
    rest(&spool, &mut kafka);
    kafka.release(through(199));
    spool.tidy().unwrap();
    assert_eq!(dir.file_count(), 0);
    drop((kafka, spool));
    let (_, resumed) = resume(dir.path(), through(199), through(199)).unwrap();
    assert_eq!((resumed.stream, resumed.oldest), (through(199), through(199)));
}

#[test]
fn cursors_that_end_with_the_daemon_take_nothing_with_them() {
    let dir = TempDir::new();
    let (spool, _) = Spool::resume(&options(dir.path(), 40_000), &standing(lsn(50), lsn(50)), true).unwrap();
    let cursors = BOTH.map(|sink| spool.cursor(sink));
    for seq in 0..20 {
        spool.append(batch(seq, 1000)).unwrap();
        sync_all(&spool);
    }
    spool.close();
    drop(cursors);
    spool.tidy().unwrap();
    drop(spool);
    let (spool, resumed) = resume(dir.path(), through(19), lsn(50)).unwrap();
    assert_eq!((resumed.oldest, resumed.stream), (lsn(50), through(19)));
    for sink in BOTH {
        assert_eq!(rest(&spool, &mut spool.cursor(sink)).len(), 20);
    }
}

/// The directory as a crash may leave it, and what was promised by then.
struct Snapshot {
    at: Point,
    files: Vec<(String, Vec<u8>)>,
    confirmed: Lsn,
    target: Lsn,
    kafka: Lsn,
}

/// What has been promised to the source and by the sinks.
#[derive(Clone, Copy)]
struct Promised {
    confirmed: Lsn,
    target: Lsn,
    kafka: Lsn,
}

/// Runs two sinks over a log with small segments; every named point leaves a snapshot.
fn run_with_snapshots(seed: u64, batches: &[Batch]) -> Vec<Snapshot> {
    let dir = TempDir::new();
    let mut dice = fastrand::Rng::with_seed(seed);
    let (spool, _) = Spool::resume(&options(dir.path(), 24_000), &standing(lsn(50), lsn(50)), true).unwrap();
    let promised = Arc::new(Mutex::new(Promised { confirmed: lsn(50), target: lsn(50), kafka: lsn(50) }));
    let snapshots = Arc::new(Mutex::new(Vec::new()));
    let (seen, taken, place) = (Arc::clone(&promised), Arc::clone(&snapshots), dir.path().to_owned());
    let hook = move |at| {
        let Promised { confirmed, target, kafka } = *seen.lock().unwrap();
        taken.lock().unwrap().push(Snapshot { at, files: files(&place), confirmed, target, kafka });
    };
    assert!(spool.shared().points.hook.set(Arc::new(hook)).is_ok());
    let mut cursors = BOTH.map(|sink| spool.cursor(sink));
    let mut settled = [0; 2];
    for batch in batches {
        spool.append(batch.clone()).unwrap();
        if dice.bool() {
            while let Some(through) = spool.sync().unwrap() {
                promised.lock().unwrap().confirmed = through;
            }
        }
        for (cursor, settled) in cursors.iter_mut().zip(&mut settled) {
            let read = cursor.next_blocking().unwrap().unwrap();
            assert_eq!(read.seq, batch.seq);
            if !read.transactions[0].part.ends() || dice.u8(0..4) == 0 {
                continue;
            }
            *settled = read.through.get();
        }
        for (index, settled) in settled.into_iter().enumerate() {
            let Some(settled) = Lsn::new(settled) else { continue };
            // A sink's position is durable before it is told of.
            let mut promised = promised.lock().unwrap();
            match BOTH[index] {
                SinkName::Target => promised.target = settled,
                SinkName::Kafka => promised.kafka = settled,
                SinkName::Resync => unreachable!("not one of both"),
            }
            drop(promised);
            cursors[index].release(settled);
        }
    }
    drop(cursors);
    drop(spool);
    let hooked = std::mem::take(&mut *snapshots.lock().unwrap());
    hooked
}

#[test]
fn a_crash_at_any_point_between_write_sync_confirm_and_removal_loses_nothing_and_repeats_nothing() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    crash_everywhere(seed);
}

#[test]
fn one_seed_of_the_crashes() {
    crash_everywhere(42);
}

fn crash_everywhere(seed: u64) {
    let batches = parts_at_random(&mut fastrand::Rng::with_seed(seed), 40, 1500);
    let snapshots = run_with_snapshots(seed, &batches);
    for point in [Point::Created, Point::Written, Point::Synced, Point::Noted, Point::Removed] {
        assert!(snapshots.iter().any(|snapshot| snapshot.at == point), "no crash at {point:?}");
    }
    let mut before: Vec<(String, Vec<u8>)> = Vec::new();
    for (number, snapshot) in snapshots.iter().enumerate() {
        let context = format!("seed {seed}, crash {number} at {:?}", snapshot.at);
        comes_back(&snapshot.files, snapshot, &batches, &context);
        if snapshot.at == Point::Written {
            // A power loss leaves any part of what was not synced: none of it, or some.
            let mut torn = snapshot.files.clone();
            for (name, content) in &mut torn {
                let safe = before.iter().find(|(known, _)| known == name).map_or(0, |(_, content)| content.len());
                if name.contains("segment") && content.len() > safe {
                    content.truncate(safe + (content.len() - safe) * 2 / 3);
                }
            }
            comes_back(&torn, snapshot, &batches, &format!("{context}, torn"));
        } else {
            before.clone_from(&snapshot.files);
        }
    }
}

/// A start from `files` holds what was confirmed, and gives each sink exactly what it lacks.
fn comes_back(files: &[(String, Vec<u8>)], snapshot: &Snapshot, batches: &[Batch], context: &str) {
    let dir = TempDir::new();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let (spool, resumed) = resume(dir.path(), snapshot.confirmed, snapshot.target).unwrap_or_else(|error| {
        panic!("{context}: {error}");
    });
    assert!(resumed.stream >= snapshot.confirmed, "{context}: {} is confirmed, {resumed:?}", snapshot.confirmed);
    assert!(resumed.oldest <= snapshot.kafka, "{context}: Kafka is at {}, {resumed:?}", snapshot.kafka);
    let end = resumed.next_seq as usize;
    // Inside a transaction only when it is one that everybody holds: the source sends it again, and it is skipped.
    let inside_of = batches[..end].last().filter(|last| inside(last));
    let held = inside_of.is_none_or(|last| ends_at(batches, last) <= snapshot.target.min(snapshot.kafka));
    assert!(held, "{context}: ends inside a transaction");
    for (sink, settled) in [(SinkName::Target, snapshot.target), (SinkName::Kafka, snapshot.kafka)] {
        let found = rest(&spool, &mut spool.cursor(sink));
        // What a sink holds it skips; what it lacks has to be there, in order, up to where the stream goes on.
        let lacks: Vec<&Batch> = batches[..end].iter().filter(|batch| ends_at(batches, batch) > settled).collect();
        let given: Vec<&Batch> = found.iter().filter(|batch| ends_at(batches, batch) > settled).collect();
        assert_eq!(given, lacks, "{context}: the {sink} is at {settled}");
    }
}

fn inside(batch: &Batch) -> bool {
    !batch.transactions[0].part.ends()
}

/// Where the transaction that a batch is of ends.
fn ends_at(batches: &[Batch], of: &Batch) -> Lsn {
    batches[of.seq as usize..].iter().find(|batch| !inside(batch)).expect("the last one ends").through
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_to_whole_transactions() {
    let dir = TempDir::new();
    let spool = fresh(dir.path());
    let kinds = [Part::Whole, Part::First, Part::Last, Part::Whole];
    let mut batches: Vec<Batch> = kinds.iter().enumerate().map(|(seq, kind)| part(seq as u64, 20, *kind)).collect();
    batches[1] = part_after(1, 20, Part::First, through(0));
    let mut ends = vec![0];
    for batch in &batches {
        spool.append(batch.clone()).unwrap();
        sync_all(&spool);
        ends.push(fs::metadata(&segment_paths(dir.path())[0]).unwrap().len());
    }
    drop(spool);
    let path = segment_paths(dir.path()).remove(0);
    let whole = fs::read(&path).unwrap();
    let directory = Directory::lock(dir.path()).unwrap();
    let begin = StateFile::open(&directory).unwrap().unwrap().state().begin;
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let records = ends.iter().filter(|end| **end <= length as u64).count() - 1;
        // Two records are one whole transaction and the beginning of another.
        let usable = if records == 2 { 1 } else { records };
        let found = recovery::scan(&directory, begin, &[None]).unwrap();
        assert_eq!(found.contents.end.seq, usable as u64, "torn at {length}");
        assert_eq!(found.stopped.is_some(), ends[records] != length as u64, "torn at {length}");
        found.tidy(&directory).unwrap();
        let left = fs::metadata(&path).map_or(0, |file| file.len());
        assert_eq!(left, ends[usable], "torn at {length}");
    }
    // Garbage instead of nothing, as some file systems leave it.
    for garbage in [vec![0; 300], vec![0xff; 300], whole[..ends[1] as usize].to_vec()] {
        fs::write(&path, [&whole[..], &garbage].concat()).unwrap();
        assert_eq!(recovery::scan(&directory, begin, &[None]).unwrap().contents.end.seq, 4);
    }
}

/// A log of several segments, all of it confirmed.
fn several_segments(dir: &TempDir) -> Vec<std::path::PathBuf> {
    let (spool, _) = Spool::resume(&options(dir.path(), 40_000), &standing(lsn(50), lsn(50)), true).unwrap();
    for seq in 0..20 {
        spool.append(batch(seq, 1000)).unwrap();
        sync_all(&spool);
    }
    drop(spool);
    let paths = segment_paths(dir.path());
    assert!(paths.len() > 3, "{paths:?}");
    paths
}

fn flip(path: &Path, byte: usize) {
    let mut content = fs::read(path).unwrap();
    content[byte] ^= 8;
    fs::write(path, content).unwrap();
}

#[test]
fn a_damaged_middle_is_refused_when_it_is_needed_and_says_where() {
    let dir = TempDir::new();
    let paths = several_segments(&dir);
    flip(&paths[1], 20);
    let error = resume(dir.path(), through(19), lsn(50)).unwrap_err();
    let Error::Lost { sink: SinkName::Target, held, slot, why } = &error else { panic!("{error:?}") };
    assert_eq!((*held, *slot), (lsn(50), through(19)));
    assert!(why.contains(paths[1].to_str().unwrap()) && why.contains("byte 0"), "{why}");
    assert!(matches!(error.disposition(), Disposition::Halt { hint } if hint.contains("changeover abort")));
    // Refused, not changed: with the file put back it goes on.
    flip(&paths[1], 20);
    assert_eq!(resume(dir.path(), through(19), lsn(50)).unwrap().1.stream, through(19));
}

#[test]
fn a_batch_damaged_in_the_middle_stops_the_sink_that_needs_it() {
    let dir = TempDir::new();
    let paths = several_segments(&dir);
    flip(&paths[1], 500);
    let (spool, _) = resume(dir.path(), through(19), lsn(50)).unwrap();
    let mut target = spool.cursor(SinkName::Target);
    let error = std::iter::repeat_with(|| target.next_blocking()).find_map(Result::err).unwrap();
    assert!(matches!(error, Error::Corrupt { only_copy: true, .. }), "{error:?}");
    assert!(matches!(error.disposition(), Disposition::Halt { hint } if hint.contains("changeover abort")));
}

#[test]
fn a_confirmed_tail_that_is_damaged_or_short_is_refused() {
    for damage in [
        |path: &Path| flip(path, 200),
        |path: &Path| fs::write(path, []).unwrap(),
        |path: &Path| {
            fs::remove_file(path).unwrap();
        },
    ] {
        let dir = TempDir::new();
        let paths = several_segments(&dir);
        damage(paths.last().unwrap());
        let refused = resume(dir.path(), through(19), through(3));
        assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
    }
    let dir = TempDir::new();
    let paths = several_segments(&dir);
    fs::remove_file(&paths[1]).unwrap();
    let error = resume(dir.path(), through(19), through(3)).unwrap_err();
    assert!(matches!(&error, Error::Lost { why, .. } if why.contains("is missing")), "{error:?}");
}

#[test]
fn a_spool_that_nobody_needs_is_begun_anew_whatever_became_of_it() {
    for damage in [
        |dir: &Path| fs::remove_dir_all(dir).unwrap(),
        |dir: &Path| flip(&segment_paths(dir)[1], 20),
        |dir: &Path| segment_paths(dir).iter().for_each(|path| fs::remove_file(path).unwrap()),
    ] {
        let dir = TempDir::new();
        let inner = dir.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let (spool, _) = Spool::resume(&options(&inner, 40_000), &standing(lsn(50), lsn(50)), true).unwrap();
        for seq in 0..20 {
            spool.append(batch(seq, 1000)).unwrap();
            sync_all(&spool);
        }
        drop(spool);
        damage(&inner);
        let mut all_there = standing(through(19), through(19));
        all_there.settled[1].1 = Some(through(19));
        let (_, resumed) = Spool::resume(&options(&inner, 1 << 20), &all_there, true).unwrap();
        assert_eq!((resumed.stream, resumed.oldest, resumed.next_seq), (through(19), through(19), 0));
    }
}

#[test]
fn a_missing_directory_is_refused_when_the_source_has_forgotten_what_a_sink_lacks() {
    let dir = TempDir::new();
    let error = resume(&dir.path().join("not there"), lsn(200), lsn(100)).unwrap_err();
    assert!(matches!(&error, Error::Lost { why, .. } if why.contains("no durable spool")), "{error:?}");
    // The same without the option: the source does not have it either.
    let refused = Spool::resume(&options(dir.path(), 1 << 20), &standing(lsn(200), lsn(100)), false);
    assert!(matches!(refused, Err(Error::Lost { .. })));
    // What Kafka held cannot be told by a spool that is gone, so it must not be less than all.
    let (_, resumed) = resume(dir.path(), lsn(200), lsn(200)).unwrap();
    assert_eq!((resumed.oldest, resumed.owed[&SinkName::Kafka]), (lsn(200), lsn(50)));
}

#[test]
fn a_spool_of_another_migration_source_or_run_is_refused_and_left_alone() {
    let dir = TempDir::new();
    several_segments(&dir);
    let before = files(dir.path());
    let others: [fn(&mut Standing); 5] = [
        |it| it.migration = "other".parse().unwrap(),
        |it| it.source.system_identifier = "8".to_owned(),
        |it| it.source.timeline = 2,
        |it| it.consistent_point = lsn(51),
        |it| it.epoch = 1,
    ];
    for other in others {
        for durable in [true, false] {
            // Even when nobody would need it.
            let mut standing = standing(lsn(50), lsn(50));
            other(&mut standing);
            let refused = Spool::resume(&options(dir.path(), 1 << 20), &standing, durable);
            assert!(matches!(refused, Err(Error::Foreign { .. } | Error::SetBack { .. })), "{standing:?}: {refused:?}");
            assert!(files(dir.path()) == before, "{standing:?}");
        }
    }
}

#[test]
fn the_option_is_taken_back_only_when_nothing_rests_on_it() {
    let dir = TempDir::new();
    several_segments(&dir);
    let cache = |slot, target| Spool::resume(&options(dir.path(), 1 << 20), &standing(slot, target), false);
    let error = cache(through(19), through(3)).unwrap_err();
    assert!(matches!(&error, Error::StillNeeded { sink: SinkName::Kafka, .. }), "{error:?}");
    assert!(matches!(error.disposition(), Disposition::Halt { hint } if hint.contains("release_source_wal")));
    let (spool, resumed) = cache(lsn(50), through(3)).unwrap();
    assert_eq!((resumed.durable, dir.file_count()), (None, 0));
    assert_eq!(spool.sync().unwrap(), None);
}

#[test]
fn a_sink_that_joins_later_begins_where_the_spool_begins() {
    let dir = TempDir::new();
    let alone = Options { sinks: vec![SinkName::Target], ..options(dir.path(), 1 << 20) };
    let mut only_target = standing(lsn(50), lsn(50));
    only_target.settled.pop();
    let (spool, _) = Spool::resume(&alone, &only_target, true).unwrap();
    let mut target = spool.cursor(SinkName::Target);
    for seq in 0..5 {
        spool.append(batch(seq, 100)).unwrap();
        sync_all(&spool);
        target.next_blocking().unwrap();
    }
    target.release(through(4));
    spool.tidy().unwrap();
    drop((target, spool));
    for _ in 0..2 {
        let (_, resumed) = resume(dir.path(), through(4), through(4)).unwrap();
        assert_eq!(resumed.owed, [(SinkName::Target, lsn(50)), (SinkName::Kafka, through(4))].into());
    }
}

#[test]
fn a_full_disk_holds_the_stream_and_it_goes_on_by_itself() {
    let dir = TempDir::new();
    let spool = fresh(dir.path());
    let directory = dir.path().join(format!("changeover-segment-{:016x}.spool", 0));
    std::os::unix::fs::symlink("/dev/full", &directory).unwrap();
    spool.append(batch(0, 1000)).unwrap();
    let error = spool.sync().unwrap_err();
    assert!(matches!(error, Error::NoRoom { .. }), "{error:?}");
    assert_eq!(error.disposition(), Disposition::Retry);
    assert_eq!(spool.usage().disk_bytes, 0);
    thread::scope(|scope| {
        // Memory takes what it can, then the stream waits.
        let appender = scope.spawn(|| (1..200).for_each(|seq| spool.append(batch(seq, 1000)).unwrap()));
        while !spool.shared().lock().is_crowded() || spool.usage().memory_bytes + 2000 < 64 << 10 {
            thread::yield_now();
        }
        assert!(!appender.is_finished());
        fs::remove_file(&directory).unwrap();
        while !appender.is_finished() {
            spool.sync().unwrap();
        }
        appender.join().unwrap();
    });
    assert_eq!(sync_all(&spool).or(Some(through(199))), Some(through(199)));
    let mut target = spool.cursor(SinkName::Target);
    assert!(rest(&spool, &mut target).into_iter().eq((0..200).map(|seq| batch(seq, 1000))));
}

#[test]
fn without_any_reader_memory_stays_bounded_and_the_bound_of_the_disk_stops_the_stream() {
    let dir = TempDir::new();
    let (spool, _) = Spool::resume(&options(dir.path(), 400_000), &standing(lsn(50), lsn(50)), true).unwrap();
    let mut cursors = BOTH.map(|sink| spool.cursor(sink));
    let seen = Mutex::new(0);
    thread::scope(|scope| {
        let _appender = scope.spawn(|| {
            for seq in 0.. {
                if spool.append(batch(seq, 1000)).is_err() {
                    break;
                }
                *seen.lock().unwrap() = seq;
                assert!(spool.usage().memory_bytes <= 64 << 10);
            }
        });
        let syncer = scope.spawn(|| {
            while spool.shared().lock().is_open() {
                spool.sync().unwrap();
                thread::yield_now();
            }
        });
        while !spool.usage().full() {
            thread::yield_now();
        }
        assert!(spool.usage().disk_bytes <= 400_000);
        assert!(spool.usage().disk_bytes > 390_000);
        let confirmed = spool.shared().lock().durable_end().unwrap().through;
        // Both sinks come back, and the stream goes on past where it stood.
        while spool.shared().lock().durable_end().unwrap().through < Lsn::new(confirmed.get() + 20_000).unwrap() {
            for cursor in &mut cursors {
                let batch = cursor.next_blocking().unwrap().unwrap();
                cursor.release(batch.through);
            }
        }
        assert!(spool.usage().disk_bytes <= 400_000);
        spool.abandon();
        syncer.join().unwrap();
    });
    assert!(*seen.lock().unwrap() > 400, "{seen:?}");
}

#[test]
fn a_transaction_larger_than_the_spool_is_refused_and_stays_with_the_source() {
    let dir = TempDir::new();
    let (spool, _) = Spool::resume(&options(dir.path(), 30_000), &standing(lsn(50), lsn(50)), true).unwrap();
    let mut cursors = BOTH.map(|sink| spool.cursor(sink));
    thread::scope(|scope| {
        scope.spawn(|| {
            let refused = (0..).find(|seq| {
                let kind = if *seq == 0 { Part::First } else { Part::Middle };
                spool.append(part_after(*seq, 1000, kind, lsn(50))).is_err()
            });
            assert!(refused > Some(30));
        });
        let error = std::iter::repeat_with(|| spool.sync()).find_map(Result::err).unwrap();
        for cursor in &mut cursors {
            assert_eq!(cursor.next_blocking().unwrap().unwrap().seq, 0);
        }
        assert!(matches!(error, Error::TransactionTooLarge { .. }), "{error:?}");
        assert!(matches!(error.disposition(), Disposition::Halt { hint } if hint.contains("limits.spool")));
        // Nothing of it was confirmed.
        assert_eq!(spool.shared().lock().durable_end().unwrap().through, lsn(50));
        spool.abandon();
    });
}

#[test]
fn a_state_is_made_once_and_only_its_beginning_moves() {
    let dir = TempDir::new();
    let spool = fresh(dir.path());
    drop(spool);
    let directory = Directory::lock(dir.path()).unwrap();
    let file = StateFile::open(&directory).unwrap().unwrap();
    let expected = state(super::state::Mark { seq: 0, through: lsn(50) });
    assert_eq!(file.state().consistent_point, expected.consistent_point);
    assert_eq!(file.state().epoch, 2);
}
