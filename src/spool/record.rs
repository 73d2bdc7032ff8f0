//! One batch as bytes in a segment: a header, then the batch in bincode 2.

use crate::model::{Batch, Lsn};

/// ```text
/// magic [4]  version u16  flags u16  seq u64  through u64  committed_at_us i64  size u64  length u32
/// crc u32 (of the batch)  crc u32 (of the header before it)                        all little-endian
/// ```
///
/// What a restart has to know of a batch stands in the header, so that it need not decode what it keeps.
pub(super) const HEADER_BYTES: usize = 52;
const MAGIC: [u8; 4] = *b"cosp";
const VERSION: u16 = 3;

/// Its first transaction began in an earlier batch.
const CONTINUES: u16 = 1;
/// Its last transaction ends in a later batch.
const INSIDE: u16 = 2;
/// It holds transactions, and is more than a keepalive.
const TRANSACTIONS: u16 = 4;

/// Far above any batch: a value has at most 1 GB and a row of many such does not fit a walsender message. Keeps a
/// damaged length inside a record from reserving memory.
const DECODE_BYTES_MAX: usize = 4 << 30;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: u64,
    pub(super) through: Lsn,
    /// When its first transaction was committed; `None` for a mere keepalive.
    pub(super) committed_at_us: Option<i64>,
    /// Bytes it takes in memory.
    pub(super) size_bytes: u64,
    /// Its first transaction began in an earlier batch.
    pub(super) continues: bool,
    /// Its last transaction ends in a later batch.
    pub(super) inside: bool,
    /// Of the batch behind the header.
    pub(super) length: u32,
    crc: u32,
}

/// What is wrong with a record.
pub(super) type Damage = &'static str;

/// Appends the record of `batch` to `to`. The error says what bincode could not do.
pub(super) fn encode(batch: &Batch, to: &mut Vec<u8>) -> Result<(), String> {
    let start = to.len();
    to.resize(start + HEADER_BYTES, 0);
    bincode::serde::encode_into_std_write(batch, to, bincode::config::standard()).map_err(|error| error.to_string())?;
    let (header, body) = to[start..].split_at_mut(HEADER_BYTES);
    let length = u32::try_from(body.len()).map_err(|_| "it is larger than 4 GiB".to_owned())?;
    let first = batch.transactions.first();
    header[0..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[6..8].copy_from_slice(&flags(batch).to_le_bytes());
    header[8..16].copy_from_slice(&batch.seq.to_le_bytes());
    header[16..24].copy_from_slice(&batch.through.get().to_le_bytes());
    header[24..32].copy_from_slice(&first.map_or(0, |first| first.committed_at_us).to_le_bytes());
    header[32..40].copy_from_slice(&(batch.size_bytes() as u64).to_le_bytes());
    header[40..44].copy_from_slice(&length.to_le_bytes());
    header[44..48].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    let crc = crc32fast::hash(&header[..48]);
    header[48..52].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn flags(batch: &Batch) -> u16 {
    let first = batch.transactions.first();
    let continues = first.is_some_and(|first| !first.part.begins());
    u16::from(continues) * CONTINUES
        + u16::from(batch.ends_inside()) * INSIDE
        + u16::from(first.is_some()) * TRANSACTIONS
}

impl Header {
    pub(super) fn read(bytes: &[u8; HEADER_BYTES]) -> Result<Self, Damage> {
        let mut rest = &bytes[..];
        if take(&mut rest) != MAGIC {
            return Err("no record begins here");
        }
        if u16::from_le_bytes(take(&mut rest)) != VERSION {
            return Err("a record of another version");
        }
        let flags = u16::from_le_bytes(take(&mut rest));
        let seq = u64::from_le_bytes(take(&mut rest));
        let through = u64::from_le_bytes(take(&mut rest));
        let committed_at_us = i64::from_le_bytes(take(&mut rest));
        let size_bytes = u64::from_le_bytes(take(&mut rest));
        let length = u32::from_le_bytes(take(&mut rest));
        let crc = u32::from_le_bytes(take(&mut rest));
        if u32::from_le_bytes(take(&mut rest)) != crc32fast::hash(&bytes[..HEADER_BYTES - 4]) {
            return Err("its header's checksum is another");
        }
        Ok(Self {
            seq,
            through: Lsn::new(through).ok_or("a batch without a position")?,
            committed_at_us: (flags & TRANSACTIONS != 0).then_some(committed_at_us),
            size_bytes,
            continues: flags & CONTINUES != 0,
            inside: flags & INSIDE != 0,
            length,
            crc,
        })
    }

    /// Header and batch together.
    pub(super) fn record_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.length)
    }

    /// Whether `body` is what was written behind this header.
    pub(super) fn check(&self, body: &[u8]) -> Result<(), Damage> {
        if crc32fast::hash(body) == self.crc { Ok(()) } else { Err("its checksum is another") }
    }

    /// The batch in `body`, which is exactly what stands behind this header.
    pub(super) fn batch(&self, body: &[u8]) -> Result<Batch, Damage> {
        self.check(body)?;
        let config = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();
        match bincode::serde::decode_from_slice::<Batch, _>(body, config) {
            Ok((batch, read)) if read == body.len() && batch.seq == self.seq => Ok(batch),
            Ok(_) => Err("a batch that is not the one announced"),
            Err(_) => Err("no batch in spite of a right checksum"),
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (taken, left) = rest.split_first_chunk::<N>().expect("the fields add up to HEADER_BYTES");
    *rest = left;
    *taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Part;
    use crate::spool::testing::{batch, part};

    fn read(bytes: &[u8]) -> Result<Batch, Damage> {
        let header = Header::read(bytes.first_chunk().ok_or("short")?)?;
        let body = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length as usize).ok_or("short")?;
        header.batch(body)
    }

    #[test]
    fn a_batch_is_read_back_as_it_was_written() {
        let batch = batch(41, 500);
        let mut bytes = Vec::new();
        encode(&batch, &mut bytes).unwrap();
        assert_eq!(read(&bytes), Ok(batch.clone()));
        assert_eq!(read(&bytes).unwrap().size_bytes(), batch.size_bytes());
    }

    #[test]
    fn the_header_says_what_a_restart_has_to_know() {
        for (kind, continues, inside) in [
            (Part::Whole, false, false),
            (Part::First, false, true),
            (Part::Middle, true, true),
            (Part::Last, true, false),
        ] {
            let batch = part(7, 100, kind);
            let mut bytes = Vec::new();
            encode(&batch, &mut bytes).unwrap();
            let header = Header::read(bytes.first_chunk().unwrap()).unwrap();
            assert_eq!((header.seq, header.through, header.committed_at_us), (7, batch.through, Some(7)));
            assert_eq!((header.continues, header.inside), (continues, inside), "{kind:?}");
            assert_eq!(header.size_bytes, batch.size_bytes() as u64);
            assert_eq!(header.record_bytes(), bytes.len() as u64);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_torn_end_is_noticed() {
        let mut bytes = Vec::new();
        encode(&batch(41, 50), &mut bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut at {length}");
        }
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
