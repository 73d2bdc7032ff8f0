//! One batch as bytes in a segment: a header, then the batch in bincode 2.

use crate::model::Batch;

/// ```text
/// magic [4]  version u16  zero u16  seq u64  length u32  crc u32 (of seq, length and the batch)   all little-endian
/// ```
pub(super) const HEADER_BYTES: usize = 24;
const MAGIC: [u8; 4] = *b"cosp";
const VERSION: u16 = 1;

/// Far above any batch: a value has at most 1 GB and a row of many such does not fit a walsender message. Keeps a
/// damaged length inside a record from reserving memory.
const DECODE_BYTES_MAX: usize = 4 << 30;

/// The header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) seq: u64,
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
    let crc = checksum(batch.seq, length, body);
    header[0..4].copy_from_slice(&MAGIC);
    header[4..6].copy_from_slice(&VERSION.to_le_bytes());
    header[8..16].copy_from_slice(&batch.seq.to_le_bytes());
    header[16..20].copy_from_slice(&length.to_le_bytes());
    header[20..24].copy_from_slice(&crc.to_le_bytes());
    Ok(())
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
        take::<2>(&mut rest);
        Ok(Self {
            seq: u64::from_le_bytes(take(&mut rest)),
            length: u32::from_le_bytes(take(&mut rest)),
            crc: u32::from_le_bytes(take(&mut rest)),
        })
    }

    /// The batch in `body`, which is exactly what stands behind this header.
    pub(super) fn batch(&self, body: &[u8]) -> Result<Batch, Damage> {
        if checksum(self.seq, self.length, body) != self.crc {
            return Err("its checksum is another");
        }
        let config = bincode::config::standard().with_limit::<DECODE_BYTES_MAX>();
        match bincode::serde::decode_from_slice::<Batch, _>(body, config) {
            Ok((batch, read)) if read == body.len() && batch.seq == self.seq => Ok(batch),
            Ok(_) => Err("a batch that is not the one announced"),
            Err(_) => Err("no batch in spite of a right checksum"),
        }
    }
}

fn checksum(seq: u64, length: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&seq.to_le_bytes());
    hasher.update(&length.to_le_bytes());
    hasher.update(body);
    hasher.finalize()
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (taken, left) = rest.split_first_chunk::<N>().expect("the fields add up to HEADER_BYTES");
    *rest = left;
    *taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::testing::batch;

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
    fn every_flipped_bit_and_every_torn_end_is_noticed() {
        let mut bytes = Vec::new();
        encode(&batch(41, 50), &mut bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(read(&bytes[..length]).is_err(), "cut at {length}");
        }
        // Bytes 6 and 7 are not in use.
        for bit in (0..bytes.len() * 8).filter(|bit| !(48..64).contains(bit)) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
