//! Frames of transactions in progress as bytes, in memory and in files alike: blocks of whole frames.

use std::io::{self, Read, Write};

use bytes::{Buf, BufMut, Bytes};

use crate::model::{Lsn, StashedFrame, Xid};

/// About how large a block is: few allocations and writes, and little is lost to the last, half-empty one.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

/// ```text
/// frame: arrival u64  xid u32  lsn u64 (0: none)  length u32  message
/// ```
const FRAME_HEADER_BYTES: usize = 24;

/// ```text
/// block in a file: magic [4]  length u32  crc u32 (of the block)
/// ```
pub(super) const BLOCK_HEADER_BYTES: usize = 12;
const MAGIC: [u8; 4] = *b"cost";

/// Bytes that `frame` takes in a block.
pub(super) fn frame_bytes(frame: &StashedFrame) -> usize {
    FRAME_HEADER_BYTES + frame.message.len()
}

pub(super) fn push_frame(block: &mut Vec<u8>, frame: &StashedFrame) {
    block.put_u64(frame.arrival);
    block.put_u32(frame.xid.0);
    block.put_u64(frame.lsn.map_or(0, Lsn::get));
    block.put_u32(u32::try_from(frame.message.len()).expect("a protocol message is shorter than 2 GiB"));
    block.put_slice(&frame.message);
}

/// Takes the next frame, whose message is a slice of `block`; `None` at its end.
pub(super) fn take_frame(block: &mut Bytes) -> Option<StashedFrame> {
    if block.is_empty() {
        return None;
    }
    assert!(block.len() >= FRAME_HEADER_BYTES, "a block holds whole frames");
    let (arrival, xid, lsn) = (block.get_u64(), Xid(block.get_u32()), Lsn::new(block.get_u64()));
    let length = block.get_u32() as usize;
    Some(StashedFrame { arrival, xid, lsn, message: block.split_to(length) })
}

pub(super) fn write_block(file: &mut impl Write, block: &[u8]) -> io::Result<()> {
    let mut header = Vec::with_capacity(BLOCK_HEADER_BYTES);
    header.put_slice(&MAGIC);
    header.put_u32(u32::try_from(block.len()).expect("a block is a few hundred KiB, or one frame"));
    header.put_u32(crc32fast::hash(block));
    file.write_all(&header)?;
    file.write_all(block)
}

/// The next block of a file, checked; `None` at its end.
pub(super) fn read_block(file: &mut impl Read) -> io::Result<Option<Bytes>> {
    let mut header = [0; BLOCK_HEADER_BYTES];
    // At the end not one byte is left; anything between is a torn block, which `read_exact` tells as well.
    if file.read(&mut header[..1])? == 0 {
        return Ok(None);
    }
    file.read_exact(&mut header[1..])?;
    let mut fields = &header[..];
    let mut magic = [0; 4];
    fields.copy_to_slice(&mut magic);
    let (length, crc) = (fields.get_u32(), fields.get_u32());
    if magic != MAGIC {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no block begins here"));
    }
    // Read as it comes, so that a damaged length does not reserve what the file does not have.
    let mut block = Vec::new();
    file.take(u64::from(length)).read_to_end(&mut block)?;
    if block.len() != length as usize || crc32fast::hash(&block) != crc {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the block is damaged"));
    }
    Ok(Some(block.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<StashedFrame> {
        let frame = |arrival: u64, length: usize| StashedFrame {
            arrival,
            xid: Xid(7 + arrival as u32),
            lsn: Lsn::new(arrival),
            message: vec![arrival as u8; length].into(),
        };
        vec![frame(0, 10), frame(1, 0), frame(2, 3000)]
    }

    #[test]
    fn frames_come_back_from_memory_and_from_a_file_as_they_were() {
        let mut block = Vec::new();
        frames().iter().for_each(|frame| push_frame(&mut block, frame));
        assert_eq!(block.len(), frames().iter().map(frame_bytes).sum::<usize>());
        let mut file = Vec::new();
        write_block(&mut file, &block).unwrap();
        let mut read = &file[..];
        let mut bytes = read_block(&mut read).unwrap().unwrap();
        assert_eq!(bytes, block);
        assert!(std::iter::from_fn(|| take_frame(&mut bytes)).eq(frames()));
        assert_eq!(read_block(&mut read).unwrap(), None);
    }

    #[test]
    fn a_torn_or_damaged_block_is_an_error() {
        let mut file = Vec::new();
        write_block(&mut file, b"some frames").unwrap();
        for length in 1..file.len() {
            assert!(read_block(&mut &file[..length]).is_err(), "cut at {length}");
        }
        for byte in 0..file.len() {
            file[byte] ^= 0x10;
            assert!(read_block(&mut &file[..]).is_err(), "byte {byte}");
            file[byte] ^= 0x10;
        }
    }
}
