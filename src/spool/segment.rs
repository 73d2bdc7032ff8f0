//! Segment files: written in large appends, read in large pieces.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::Batch;

use super::Error;
use super::record::{self, HEADER_BYTES, Header};
use super::state::Mark;

/// How much a cursor that is behind reads at once: enough that the disk reads in sequence, small beside the memory
/// budget. One record that is larger is read alone.
const READ_BYTES: usize = 1 << 20;

/// Several batches encoded for one write.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) bytes: Vec<u8>,
    /// Behind each batch, and where its record ends in `bytes`.
    pub(super) ends: Vec<(Mark, usize)>,
}

/// The file that is being written.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) number: u64,
    path: PathBuf,
    file: File,
}

/// What a cursor reads next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ReadPlan {
    pub(super) path: PathBuf,
    pub(super) segment: u64,
    /// The first batch wanted.
    pub(super) seq: u64,
    /// Where a record begins that is this one or an earlier one.
    pub(super) offset: u64,
    /// How far the file holds whole records.
    pub(super) length: u64,
    /// What is in it may be nowhere else.
    pub(super) only_copy: bool,
}

/// What was read, and where the record after it begins.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) batches: Vec<Batch>,
    pub(super) next: Spot,
}

/// Where the record of batch `seq` begins, if it is in this segment at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) segment: u64,
    pub(super) seq: u64,
    pub(super) offset: u64,
}

impl Run {
    pub(super) fn encode<'a>(batches: impl Iterator<Item = &'a Arc<Batch>>) -> Result<Self, Error> {
        let mut run = Self::default();
        for batch in batches {
            record::encode(batch, &mut run.bytes).map_err(|what| Error::Encode { seq: batch.seq, what })?;
            run.ends.push((Mark { seq: batch.seq + 1, through: batch.through }, run.bytes.len()));
        }
        Ok(run)
    }

    /// Whether at least its first record fits into `room` bytes.
    pub(super) fn fits_one(&self, room: u64) -> bool {
        self.ends.first().is_some_and(|(_, end)| *end as u64 <= room)
    }

    /// Leaves the batches whose records fit into `room` bytes.
    pub(super) fn cut_to(&mut self, room: u64) {
        let fits = self.ends.iter().take_while(|(_, end)| *end as u64 <= room).count();
        self.ends.truncate(fits);
        self.bytes.truncate(self.ends.last().map_or(0, |(_, end)| *end));
    }

    pub(super) fn first_seq(&self) -> Option<u64> {
        self.ends.first().map(|(end, _)| end.seq - 1)
    }

    /// Behind the last batch.
    pub(super) fn end(&self) -> Option<Mark> {
        self.ends.last().map(|(end, _)| *end)
    }
}

impl Writer {
    /// What a failed write left under this number goes.
    pub(super) fn create(number: u64, path: PathBuf) -> Result<Self, Error> {
        match File::options().write(true).create(true).truncate(true).open(&path) {
            Ok(file) => Ok(Self { number, path, file }),
            Err(source) => Err(Error::write(&path, source)),
        }
    }

    pub(super) fn append(&mut self, run: &Run) -> Result<(), Error> {
        self.file.write_all(&run.bytes).map_err(|source| Error::write(&self.path, source))
    }

    /// Everything appended survives a power loss from here on. After an error nothing may be believed of what was
    /// appended since the last time: the kernel forgets a failed write-back once it has told of it.
    pub(super) fn sync(&self) -> Result<(), Error> {
        self.file.sync_data().map_err(|source| Error::write(&self.path, source))
    }
}

/// Reads the next piece of a segment. Blocks on the disk.
pub(super) fn read(plan: &ReadPlan) -> Result<Piece, Error> {
    let failed = |source| Error::Read { path: plan.path.clone(), source };
    let file = File::open(&plan.path).map_err(failed)?;
    let mut piece =
        Piece { batches: Vec::new(), next: Spot { segment: plan.segment, seq: plan.seq, offset: plan.offset } };
    let mut wanted = READ_BYTES;
    while piece.batches.is_empty() && piece.next.offset < plan.length {
        let left = plan.length - piece.next.offset;
        let mut bytes = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(wanted)];
        file.read_exact_at(&mut bytes, piece.next.offset).map_err(failed)?;
        let read = take_records(plan, &bytes, &mut piece)?;
        // Not even one record fitted: the next read takes it whole.
        wanted = if read == 0 { first_record_bytes(plan, &bytes, piece.next.offset)? } else { READ_BYTES };
    }
    match piece.batches.first() {
        Some(_) => Ok(piece),
        None => Err(damaged(plan, piece.next.offset, "the batch that should be here is missing")),
    }
}

/// Takes whole records from `bytes` and returns how many bytes they were.
fn take_records(plan: &ReadPlan, bytes: &[u8], piece: &mut Piece) -> Result<usize, Error> {
    let mut at = 0;
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<HEADER_BYTES>() {
        let header = Header::read(head).map_err(|what| damaged(plan, piece.next.offset, what))?;
        let Some(body) = rest.get(..header.length as usize) else { break };
        if header.seq > piece.next.seq {
            return Err(damaged(plan, piece.next.offset, "a batch is missing before this one"));
        }
        // Records before the wanted one are passed over: the plan's offset is only near it.
        if header.seq == piece.next.seq {
            piece.batches.push(header.batch(body).map_err(|what| damaged(plan, piece.next.offset, what))?);
            piece.next.seq += 1;
        }
        at += HEADER_BYTES + body.len();
        piece.next.offset += (HEADER_BYTES + body.len()) as u64;
    }
    Ok(at)
}

fn first_record_bytes(plan: &ReadPlan, bytes: &[u8], offset: u64) -> Result<usize, Error> {
    let torn = || damaged(plan, offset, "it ends inside a record");
    let header = Header::read(bytes.first_chunk().ok_or_else(torn)?).map_err(|what| damaged(plan, offset, what))?;
    let size = HEADER_BYTES + header.length as usize;
    if size as u64 > plan.length - offset { Err(torn()) } else { Ok(size) }
}

fn damaged(plan: &ReadPlan, offset: u64, what: &'static str) -> Error {
    Error::Corrupt { path: plan.path.clone(), offset, what, only_copy: plan.only_copy }
}

/// Cuts what a failed write left behind the last whole record. Readers never go there; this only gives the space back.
pub(super) fn cut(path: &Path, length: u64) {
    let cut = File::options().write(true).open(path).and_then(|file| file.set_len(length));
    if let Err(error) = cut {
        tracing::debug!(path = %path.display(), %error, "could not cut a spool file to its whole records");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::testing::{TempDir, batch};

    #[test]
    fn a_record_larger_than_one_read_and_many_small_ones_come_back_in_order() {
        let dir = TempDir::new();
        let path = dir.path().join("segment");
        let sizes = [10, 3 * READ_BYTES, 10, 700_000, 700_000, 10];
        let batches: Vec<_> = sizes.iter().enumerate().map(|(n, size)| Arc::new(batch(n as u64, *size))).collect();
        let run = Run::encode(batches.iter()).unwrap();
        Writer::create(1, path.clone()).unwrap().append(&run).unwrap();
        for start in 0..sizes.len() {
            let mut plan = ReadPlan {
                path: path.clone(),
                segment: 1,
                seq: start as u64,
                offset: 0,
                length: run.bytes.len() as u64,
                only_copy: false,
            };
            let mut found = Vec::new();
            while plan.offset < plan.length {
                let piece = read(&plan).unwrap();
                found.extend(piece.batches);
                (plan.seq, plan.offset) = (piece.next.seq, piece.next.offset);
            }
            assert!(found.iter().eq(batches[start..].iter().map(|batch| &**batch)), "from {start}");
        }
    }

    #[test]
    fn a_torn_or_damaged_segment_is_an_error_that_says_where() {
        let dir = TempDir::new();
        let path = dir.path().join("segment");
        let run = Run::encode([Arc::new(batch(0, 100)), Arc::new(batch(1, 100))].iter()).unwrap();
        let second = run.ends[0].1 as u64;
        let mut bytes = run.bytes.clone();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let plan = ReadPlan {
            path: path.clone(),
            segment: 1,
            seq: 1,
            offset: second,
            length: bytes.len() as u64,
            only_copy: true,
        };
        assert!(matches!(read(&plan), Err(Error::Corrupt { offset, .. }) if offset == second));
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(matches!(read(&plan), Err(Error::Read { .. })));
        let missing = ReadPlan { seq: 7, offset: 0, ..plan };
        std::fs::write(&path, &run.bytes).unwrap();
        assert!(matches!(read(&missing), Err(Error::Corrupt { .. })));
    }
}
