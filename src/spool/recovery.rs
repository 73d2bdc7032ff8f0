//! What a crash left of a durable log: the whole records from its beginning on, up to the last whole transaction.
//!
//! Each segment was durable before the next was begun, so only the last one may end inside a record. Of the others the
//! headers are read (a header says what a restart has to know), of the last one everything; a batch that was damaged
//! later is found when a sink comes to read it.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _};
use std::path::{Path, PathBuf};

use crate::model::Lsn;

use super::Error;
use super::directory::{self, Directory};
use super::machine::{Contents, PLACE_INTERVAL_BYTES, Segment};
use super::record::{HEADER_BYTES, Header};
use super::state::Mark;

/// Larger than most batches, so that most records are one read.
const READ_BYTES: usize = 512 << 10;
/// How much of the log one sample of the backlog stands for.
const SAMPLE_BYTES: u64 = 1 << 20;

/// The usable part of the log, and what is behind it.
#[derive(Debug)]
pub(super) struct Found {
    /// Every sink holds everything before it.
    pub(super) begin: Mark,
    pub(super) contents: Contents,
    /// End of the last transaction.
    pub(super) last_transaction: Option<Lsn>,
    /// Ends of transactions, each with the commit time of an early one before it: what the lag is read from.
    pub(super) backlog: Vec<(Lsn, i64)>,
    /// Why it ends where it ends, when that is not the end of the last file.
    pub(super) stopped: Option<Stopped>,
}

/// Where a record should begin and does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) path: PathBuf,
    pub(super) offset: u64,
    pub(super) what: &'static str,
}

/// Reads the log of a state that begins at `begin`. `settled`: what each sink holds, where that is known. Changes
/// nothing.
pub(super) fn scan(directory: &Directory, begin: Mark, settled: &[Option<Lsn>]) -> Result<Found, Error> {
    let mut live = directory.segments()?;
    // Before the beginning stands what an interrupted removal left.
    live.retain(|number| *number >= begin.seq);
    let mut walk = Walk::new(begin, settled);
    for (index, number) in live.iter().enumerate() {
        let path = directory.segment(*number);
        if *number != walk.next {
            walk.stopped = Some(Stopped { path, offset: 0, what: "the segment before it is missing" });
            break;
        }
        walk.segments.push_back(Segment {
            number: *number,
            end: Mark { seq: *number, through: walk.whole.through },
            bytes: 0,
            places: vec![(*number, 0)],
            closed: true,
        });
        let next = live.get(index + 1).copied();
        walk.stopped = walk.segment(&path, next).map_err(|source| Error::Read { path, source })?;
        if walk.stopped.is_some() {
            break;
        }
    }
    Ok(walk.end())
}

impl Found {
    /// Removes what is behind the usable part, and before its beginning; what is left is durable then.
    pub(super) fn tidy(&self, directory: &Directory) -> Result<(), Error> {
        let kept = &self.contents.segments;
        let others: Vec<u64> =
            directory.segments()?.into_iter().filter(|number| !kept.iter().any(|it| it.number == *number)).collect();
        // From the end, so that a crash in between leaves no gap.
        others.iter().rev().try_for_each(|number| directory::remove(&directory.segment(*number)))?;
        if let Some(last) = kept.back() {
            let path = directory.segment(last.number);
            let cut = OpenOptions::new().write(true).open(&path).and_then(|file| {
                file.set_len(last.bytes)?;
                // What a killed process wrote is in the kernel's memory, and not yet on the disk.
                file.sync_all()
            });
            cut.map_err(|source| Error::write(&path, source))?;
        }
        directory.sync()
    }
}

struct Walk<'a> {
    settled: &'a [Option<Lsn>],
    begin: Mark,
    /// The records at the head belong to a transaction whose beginning is gone, because every sink holds it.
    leading: bool,
    next: u64,
    segments: VecDeque<Segment>,
    /// Behind the last whole transaction; where that is in the segment, and the size of everything before it.
    whole: Mark,
    whole_bytes: u64,
    size_bytes: u64,
    starts: Vec<(u64, u64)>,
    last_transaction: Option<Lsn>,
    backlog: Vec<(Lsn, i64)>,
    sampled_bytes: u64,
    open: Unfinished,
    stopped: Option<Stopped>,
}

/// Read since the last whole transaction.
#[derive(Default)]
struct Unfinished {
    size_bytes: u64,
    first_committed_at_us: Option<i64>,
}

impl<'a> Walk<'a> {
    fn new(begin: Mark, settled: &'a [Option<Lsn>]) -> Self {
        Self {
            settled,
            begin,
            leading: true,
            next: begin.seq,
            segments: VecDeque::new(),
            whole: begin,
            whole_bytes: 0,
            size_bytes: 0,
            starts: vec![(begin.seq, 0); settled.len()],
            last_transaction: None,
            backlog: Vec::new(),
            sampled_bytes: 0,
            open: Unfinished::default(),
            stopped: None,
        }
    }

    /// Reads a segment, up to the record `next` when there is a segment of that number: what is behind that was written
    /// again there after a failed write.
    fn segment(&mut self, path: &Path, next: Option<u64>) -> io::Result<Option<Stopped>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut reader = BufReader::with_capacity(READ_BYTES, file);
        let mut offset = 0;
        let stopped = |offset, what| Ok(Some(Stopped { path: path.to_owned(), offset, what }));
        while Some(self.next) != next {
            if offset == length {
                return next.map_or(Ok(None), |_| stopped(offset, "the segment after it is missing"));
            }
            if length - offset < HEADER_BYTES as u64 {
                return stopped(offset, "it ends too early");
            }
            let mut head = [0; HEADER_BYTES];
            reader.read_exact(&mut head)?;
            let header = match Header::read(&head) {
                Ok(header) if header.seq == self.next => header,
                Ok(_) => return stopped(offset, "another batch than the next one"),
                Err(what) => return stopped(offset, what),
            };
            if header.through < self.whole.through {
                return stopped(offset, "a batch that goes back");
            }
            if length - offset < header.record_bytes() {
                return stopped(offset, "it ends inside a record");
            }
            if next.is_some() {
                reader.seek_relative(i64::from(header.length))?;
            } else {
                let mut body = vec![0; header.length as usize];
                reader.read_exact(&mut body)?;
                if let Err(what) = header.check(&body) {
                    return stopped(offset, what);
                }
            }
            self.record(&header, offset);
            offset += header.record_bytes();
        }
        Ok(None)
    }

    fn record(&mut self, header: &Header, offset: u64) {
        self.next = header.seq + 1;
        let segment = self.segments.back_mut().expect("a record is read from a segment");
        if segment.places.last().is_none_or(|(_, place)| offset - place >= PLACE_INTERVAL_BYTES) {
            segment.places.push((header.seq, offset));
        }
        let end = Mark { seq: self.next, through: header.through };
        segment.end = end;
        segment.bytes = offset + header.record_bytes();
        let bytes = segment.bytes;
        self.leading &= header.continues;
        if self.leading {
            if !header.inside {
                self.leading = false;
                (self.begin, self.whole, self.whole_bytes) = (end, end, bytes);
                self.starts.fill((end.seq, 0));
            }
            return;
        }
        self.open.size_bytes += header.size_bytes;
        self.open.first_committed_at_us = self.open.first_committed_at_us.or(header.committed_at_us);
        if !header.inside {
            self.whole_bytes = bytes;
            self.complete(end);
        }
    }

    fn complete(&mut self, end: Mark) {
        let Unfinished { size_bytes, first_committed_at_us } = std::mem::take(&mut self.open);
        self.whole = end;
        self.size_bytes += size_bytes;
        for (start, settled) in self.starts.iter_mut().zip(self.settled) {
            if *settled >= Some(end.through) {
                *start = (end.seq, self.size_bytes);
            }
        }
        let Some(committed_at_us) = first_committed_at_us else { return };
        self.last_transaction = Some(end.through);
        match self.backlog.last_mut() {
            Some((through, _)) if self.size_bytes - self.sampled_bytes < SAMPLE_BYTES => *through = end.through,
            Some(_) | None => {
                self.sampled_bytes = self.size_bytes;
                self.backlog.push((end.through, committed_at_us));
            }
        }
    }

    fn end(mut self) -> Found {
        // What is behind the last whole transaction goes: the source sends that one again from its beginning.
        while let Some(last) = self.segments.back()
            && last.number >= self.whole.seq
        {
            self.segments.pop_back();
        }
        if let Some(last) = self.segments.back_mut() {
            (last.end, last.bytes) = (self.whole, self.whole_bytes);
            last.places.retain(|(seq, _)| *seq < self.whole.seq);
        }
        Found {
            begin: self.begin,
            contents: Contents {
                segments: self.segments,
                end: self.whole,
                size_bytes: self.size_bytes,
                starts: self.starts,
            },
            last_transaction: self.last_transaction,
            backlog: self.backlog,
            stopped: self.stopped,
        }
    }
}
