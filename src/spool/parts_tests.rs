//! A durable log that a crash finds in the middle of a transaction: what shares a batch with its beginning is confirmed no
//! sooner than its end.

use std::path::Path;

use crate::model::{Batch, Lsn, Part, SinkName, SourceIdentity};

use super::testing::{TempDir, batch, lsn, part, part_after, through};
use super::{Error, Options, Resumed, Spool, Standing};

const BEGIN: u64 = 50;

fn resume(dir: &Path, slot: Lsn) -> Result<(Spool, Resumed), Error> {
    let options =
        Options { dir: dir.to_owned(), memory_bytes: 64 << 10, disk_bytes: 1 << 20, sinks: vec![SinkName::Target] };
    let standing = Standing {
        migration: "shop".parse().unwrap(),
        source: SourceIdentity { system_identifier: "7".to_owned(), timeline: 1 },
        consistent_point: lsn(BEGIN),
        epoch: 2,
        slot,
        settled: vec![(SinkName::Target, Some(lsn(BEGIN)))],
    };
    Spool::resume(&options, &standing, true)
}

/// A whole transaction, which ends where the batch comes through, and the beginning of the next one.
fn whole_and_beginning(seq: u64) -> Batch {
    let mut whole = batch(seq, 100);
    whole.transactions.extend(part(seq, 100, Part::First).transactions);
    whole
}

/// Each prefix of the log is what a crash may leave: the slot never stands behind what a restart finds.
#[test]
fn what_shares_a_batch_with_the_beginning_of_a_transaction_is_confirmed_with_its_end() {
    let log = [
        batch(0, 100),
        whole_and_beginning(1),
        part_after(2, 100, Part::Middle, through(1)),
        part(3, 100, Part::Last),
        whole_and_beginning(4),
        part_after(5, 100, Part::Middle, through(4)),
    ];
    let confirmed = [0, 0, 0, 3, 3, 3].map(through);
    for (crash, confirmed) in (1..=log.len()).zip(confirmed) {
        for at_a_time in 1..=crash {
            let dir = TempDir::new();
            let (spool, _) = resume(dir.path(), lsn(BEGIN)).unwrap();
            let mut synced = lsn(BEGIN);
            for batches in log[..crash].chunks(at_a_time) {
                batches.iter().for_each(|batch| spool.append(batch.clone()).unwrap());
                while let Some(through) = spool.sync().unwrap() {
                    synced = through;
                }
            }
            assert_eq!(synced, confirmed, "{crash} batches, {at_a_time} at a time");
            drop(spool);
            let (_, resumed) = resume(dir.path(), synced).unwrap();
            assert_eq!(resumed.stream, synced, "{crash} batches, {at_a_time} at a time");
        }
    }
}
