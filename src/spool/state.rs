//! Whose spool a directory is and where it begins: what has to be known besides the segments when they are the only copy.
//!
//! One file of two slots that are written in turn, in place: noting a new beginning needs no room on a full disk (room
//! comes back only after it), and a torn write leaves the slot before it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::model::{Lsn, SinkName, SourceIdentity};

use super::Error;
use super::directory::Directory;

/// One page: larger than any state, written by most disks as one.
const SLOT_BYTES: usize = 4096;
const SLOTS: usize = 2;
/// ```text
/// magic [4]  version u32  generation u64  length u32  crc u32 (of generation, length and the JSON)   little-endian
/// ```
const HEADER_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"coss";
const VERSION: u32 = 1;

/// A place between two batches: `seq` of the one after it, and what has come through before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Mark {
    pub(super) seq: u64,
    pub(super) through: Lsn,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) migration: String,
    pub(super) source: SourceIdentity,
    /// Where the migration's slot began: tells two runs of one name apart.
    pub(super) consistent_point: Lsn,
    /// Of the daemon that wrote it last.
    pub(super) epoch: i64,
    /// Every sink holds everything before it durably.
    pub(super) begin: Mark,
    /// From where on each sink was owed the stream when it was first known.
    pub(super) joined: BTreeMap<SinkName, Lsn>,
}

#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    file: File,
    generation: u64,
    state: State,
}

impl StateFile {
    /// Durable when it returns, name included.
    pub(super) fn create(directory: &Directory, state: State) -> Result<Self, Error> {
        let path = directory.state();
        let failed = |source| Error::write(&path, source);
        let draft = path.with_extension("new");
        let mut content = vec![0; SLOT_BYTES * SLOTS];
        content[..SLOT_BYTES].copy_from_slice(&slot(0, &state));
        fs::write(&draft, content).map_err(failed)?;
        let file = File::options().read(true).write(true).open(&draft).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        directory.sync()?;
        Ok(Self { path, file, generation: 0, state })
    }

    /// `None` when there is none.
    pub(super) fn open(directory: &Directory) -> Result<Option<Self>, Error> {
        let path = directory.state();
        let failed = |source| Error::Read { path: path.clone(), source };
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let content = fs::read(&path).map_err(failed)?;
        let newest = content.chunks(SLOT_BYTES).filter_map(parse).max_by_key(|(generation, _)| *generation);
        match newest {
            Some((generation, state)) => Ok(Some(Self { path, file, generation, state })),
            None => Err(damaged(&path)),
        }
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Every sink holds everything before `begin`; what is noted already never goes back.
    pub(super) fn advance(&mut self, begin: Mark) -> Result<(), Error> {
        if begin.seq <= self.state.begin.seq {
            return Ok(());
        }
        self.write(State { begin, ..self.state.clone() })
    }

    pub(super) fn write(&mut self, state: State) -> Result<(), Error> {
        let generation = self.generation + 1;
        let offset = (generation % SLOTS as u64) * SLOT_BYTES as u64;
        let written = self.file.write_all_at(&slot(generation, &state), offset).and_then(|()| self.file.sync_data());
        written.map_err(|source| Error::write(&self.path, source))?;
        (self.generation, self.state) = (generation, state);
        Ok(())
    }
}

fn damaged(path: &Path) -> Error {
    Error::Corrupt { path: path.to_owned(), offset: 0, what: "neither of its two slots is whole", only_copy: true }
}

fn slot(generation: u64, state: &State) -> Vec<u8> {
    let json = serde_json::to_vec(state).expect("text and numbers always become JSON");
    let length = u32::try_from(json.len()).expect("a state is a few hundred bytes");
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&generation.to_le_bytes());
    slot.extend_from_slice(&length.to_le_bytes());
    slot.extend_from_slice(&checksum(generation, &json).to_le_bytes());
    slot.extend_from_slice(&json);
    assert!(slot.len() <= SLOT_BYTES, "names are short, so a state fits its slot");
    slot.resize(SLOT_BYTES, 0);
    slot
}

fn parse(slot: &[u8]) -> Option<(u64, State)> {
    let (header, rest) = slot.split_first_chunk::<HEADER_BYTES>()?;
    let number = |at: usize| Some(u32::from_le_bytes(*header[at..].first_chunk()?));
    let generation = u64::from_le_bytes(*header[8..].first_chunk()?);
    let json = rest.get(..number(16)? as usize)?;
    let ours = header[..4] == MAGIC && number(4)? == VERSION && number(20)? == checksum(generation, json);
    if ours { Some((generation, serde_json::from_slice(json).ok()?)) } else { None }
}

fn checksum(generation: u64, json: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&generation.to_le_bytes());
    hasher.update(&(json.len() as u64).to_le_bytes());
    hasher.update(json);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TempDir, state};
    use super::*;

    fn mark(seq: u64) -> Mark {
        Mark { seq, through: Lsn::new(seq * 100).unwrap() }
    }

    #[test]
    fn a_state_is_read_back_and_its_beginning_never_goes_back() {
        let dir = TempDir::new();
        let directory = Directory::lock(dir.path()).unwrap();
        assert!(StateFile::open(&directory).unwrap().is_none());
        let mut file = StateFile::create(&directory, state(mark(1))).unwrap();
        for seq in [5, 3, 9, 9] {
            file.advance(mark(seq)).unwrap();
        }
        assert_eq!(StateFile::open(&directory).unwrap().unwrap().state(), &state(mark(9)));
    }

    #[test]
    fn a_write_torn_anywhere_leaves_the_state_before_it() {
        let dir = TempDir::new();
        let directory = Directory::lock(dir.path()).unwrap();
        let mut file = StateFile::create(&directory, state(mark(1))).unwrap();
        file.advance(mark(2)).unwrap();
        let before = fs::read(directory.state()).unwrap();
        file.advance(mark(3)).unwrap();
        let after = fs::read(directory.state()).unwrap();
        let used = HEADER_BYTES + serde_json::to_vec(&state(mark(3))).unwrap().len();
        for torn in 0..=used {
            // The third write goes to the first slot again.
            let mut content = before.clone();
            content[..torn].copy_from_slice(&after[..torn]);
            fs::write(directory.state(), &content).unwrap();
            let found = StateFile::open(&directory).unwrap().unwrap().state().begin.seq;
            assert!(found == 2 || (found == 3 && content[..used] == after[..used]), "torn at {torn}: {found}");
        }
    }

    #[test]
    fn a_damaged_state_is_refused() {
        let dir = TempDir::new();
        let directory = Directory::lock(dir.path()).unwrap();
        StateFile::create(&directory, state(mark(1))).unwrap();
        let good = fs::read(directory.state()).unwrap();
        for byte in 0..HEADER_BYTES + 20 {
            let mut content = good.clone();
            content[byte] ^= 4;
            fs::write(directory.state(), &content).unwrap();
            let refused = StateFile::open(&directory);
            assert!(matches!(refused, Err(Error::Corrupt { only_copy: true, .. })), "byte {byte}");
        }
    }
}
