//! The parts of a table out of one pass over it, for a source that reads no block range by itself (PostgreSQL 13).
//!
//! ```text
//! COPY (SELECT ctid, …) ═► [places]: is the row of this part? its place comes off ═► COPY of part n   (one transaction
//!                                                    the first row behind it ═► COPY of part n + 1     on the target each)
//! ```
//!
//! A sequential scan that nothing synchronises goes through the file from its first block to its last, so a part is over
//! when a row of a later one comes. After an interruption the next pass begins behind the last recorded part: the server
//! looks at what lies before it, and sends none of it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Error;
use super::holder::Holder;
use super::plan::{Blocks, Unit};
use super::progress::{CopyState, Counts};
use super::split::TableCopy;
use super::sql;
use super::worker::{Attempt, Ended, Moved, Worker, give_up, wait_to_begin};
use crate::wire::{COPY_HEADER, COPY_TRAILER, CopyIn, CopyOut, put_message, take_payload};

/// Nothing but a sequential scan, in the order of the file, also where a row filter would suit an index.
const IN_ORDER: &str =
    "SET LOCAL synchronize_seqscans = off; SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off;
     SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off";

/// One pass over a table.
struct Pass {
    places: Places,
    /// Of the last chunk, what belongs to the next part.
    rest: Bytes,
    is_over: bool,
}

impl Worker<'_> {
    pub(super) async fn copy_in_order(&mut self, of: &Arc<TableCopy>, mut left: VecDeque<u32>) -> Result<(), Error> {
        let name = &of.copied.table.name;
        while let Some(&first) = left.front() {
            wait_to_begin(self.attempt, Some(self)).await?;
            if self.attempt.stop.is_cancelled() {
                return Err(Error::Stopped);
            }
            let (holder, base) = self.snapshot_for(of).await?;
            self.adopt(&holder).await?;
            let prepared = self.source.simple_query(IN_ORDER).await;
            prepared.map_err(Error::copy(name, "have the source read it in order"))?;
            let unit = Unit { of: Arc::clone(of), part: first };
            self.ask(name, &sql::copy_out_in_order(&unit, base.as_ref())).await?;
            self.source.copy_out_asked().await.map_err(Error::copy(name, "read the source"))?;
            self.parts_of_pass(of, &mut left, &holder).await?;
            if self.source.is_in_copy() {
                // A cancelled query may end before it hears of it, and the next one would hear of it instead.
                self.renew_source().await?;
            }
        }
        if of.is_recorded() { self.complete(of).await } else { Ok(()) }
    }

    /// Until nothing is left, or nothing more should be read under this snapshot.
    async fn parts_of_pass(
        &mut self,
        of: &Arc<TableCopy>,
        left: &mut VecDeque<u32>,
        holder: &Arc<Holder>,
    ) -> Result<(), Error> {
        let attempt = self.attempt;
        let (name, migration) = (&of.copied.table.name, &attempt.options.migration);
        let counts = attempt.progress.table(name);
        counts.enter(CopyState::Copying);
        let mut pass = Pass { places: Places::new(of.copied.destination.binary), rest: Bytes::new(), is_over: false };
        while let Some(&part) = left.front() {
            let unit = Unit { of: Arc::clone(of), part };
            let begun = self.target.simple_query(&sql::begin(&unit, migration)).await;
            begun.map_err(Error::copy(name, "begin a part on the target"))?;
            let moved = self.move_part(&unit, &mut pass, &counts).await?;
            holder.confirm().await?;
            self.record(&unit, holder, moved).await?;
            of.part_recorded(&holder.snapshot);
            left.pop_front();
            if pass.is_over {
                continue;
            }
            if !attempt.snapshots.stays(holder) {
                return Ok(());
            }
            tokio::select! {
                biased; // usually there is nothing to wait for
                () = attempt.options.throttle.may_begin(&attempt.stop) => {}
                () = attempt.options.throttle.long_hold() => return Ok(()),
            }
        }
        Ok(())
    }

    async fn move_part(&mut self, unit: &Unit, pass: &mut Pass, counts: &Counts) -> Result<Moved, Error> {
        let (attempt, copied) = (self.attempt, &unit.of.copied);
        let name = &copied.table.name;
        let failed = || Error::copy(name, "write to the target");
        let mut rows = self.source.copy_out_under_way();
        let mut into = self.target.copy_in(&sql::copy_in(copied)).await.map_err(failed())?;
        let mut moved = Moved::default();
        let taken = match pass.forward(unit, &mut rows, &mut into, counts, &mut moved, attempt).await {
            Ok(Ended::AtTheEnd) => into.finish().await.map_err(failed()),
            Ok(Ended::Stopped) => Err(give_up(into, name).await),
            Err(error) => Err(error),
        };
        moved.account(name, counts, Some(moved.frames), taken)
    }
}

impl Pass {
    /// Passes the rows of one part on.
    async fn forward(
        &mut self,
        unit: &Unit,
        rows: &mut CopyOut<'_>,
        into: &mut CopyIn<'_>,
        counts: &Counts,
        moved: &mut Moved,
        attempt: &Attempt,
    ) -> Result<Ended, Error> {
        let name = &unit.of.copied.table.name;
        let blocks = unit.of.copied.cut.blocks(unit.part).unwrap_or(Blocks { from: 0, to: None });
        let mut pace = attempt.options.throttle.pace();
        let mut out = BytesMut::new();
        self.places.begin_part(&mut out);
        loop {
            let taken = self.places.take(&mut self.rest, blocks, &mut out);
            let frame_count = taken.map_err(|OutOfOrder| Error::OutOfOrder { table: name.clone() })?;
            let part_is_over = !self.rest.is_empty() || self.is_over;
            if part_is_over {
                self.places.end_part(&mut out);
            }
            let bytes = out.len() as u64;
            pace.admit(bytes, &attempt.stop).await;
            into.write(&out.split()).await.map_err(Error::copy(name, "write to the target"))?;
            moved.bytes += bytes;
            moved.frames += frame_count;
            counts.add(bytes, frame_count);
            if part_is_over {
                return Ok(Ended::AtTheEnd);
            }
            let chunk = tokio::select! {
                biased; // a stop should not wait for rows, which come without end
                () = attempt.stop.cancelled() => return Ok(Ended::Stopped),
                chunk = rows.next() => chunk.map_err(Error::copy(name, "read the source"))?,
            };
            match chunk {
                Some(chunk) => self.rest = chunk.frames,
                None => self.is_over = true,
            }
        }
    }
}

/// A row came without its place, or before the last one.
#[derive(Debug, PartialEq, Eq)]
struct OutOfOrder;

/// Takes the places off rows that have one in front.
struct Places {
    is_binary: bool,
    is_begun: bool,
    /// Of the last row.
    block: u32,
}

impl Places {
    fn new(is_binary: bool) -> Self {
        Self { is_binary, is_begun: false, block: 0 }
    }

    fn begin_part(&self, out: &mut BytesMut) {
        if self.is_binary {
            put_message(out, &[COPY_HEADER]);
        }
    }

    fn end_part(&self, out: &mut BytesMut) {
        if self.is_binary {
            put_message(out, &[COPY_TRAILER]);
        }
    }

    /// Moves the rows of `blocks` from `frames` (whole CopyData messages) to `out`, up to the first one behind them;
    /// how many. What lies before `blocks` is left out.
    fn take(&mut self, frames: &mut Bytes, blocks: Blocks, out: &mut BytesMut) -> Result<u64, OutOfOrder> {
        let mut count = 0;
        while !frames.is_empty() {
            let mut behind = frames.clone();
            let message = take_payload(&mut behind).ok_or(OutOfOrder)?;
            let mut payload = &*message;
            if self.is_binary && !self.is_begun {
                payload = payload.strip_prefix(COPY_HEADER).ok_or(OutOfOrder)?;
            }
            let holds_a_row = !payload.is_empty() && (!self.is_binary || payload != COPY_TRAILER);
            if holds_a_row {
                let row = if self.is_binary { binary_row(payload) } else { text_row(payload) };
                let row = row.filter(|row| row.block >= self.block).ok_or(OutOfOrder)?;
                let block = u64::from(row.block);
                if blocks.to.is_some_and(|to| block >= to) {
                    return Ok(count);
                }
                self.block = row.block;
                if block >= blocks.from {
                    row.put(out);
                    count += 1;
                }
            }
            self.is_begun = true;
            *frames = behind;
        }
        Ok(count)
    }
}

struct Row<'a> {
    block: u32,
    /// The number of columns that are left, in binary.
    column_count: Option<i16>,
    columns: &'a [u8],
}

impl Row<'_> {
    fn put(&self, out: &mut BytesMut) {
        match self.column_count {
            Some(count) => put_message(out, &[&count.to_be_bytes(), self.columns]),
            None => put_message(out, &[self.columns]),
        }
    }
}

/// Number of columns; of each, its length and value. Of a `tid`: block and offset (`tidsend` in `tid.c`).
fn binary_row(payload: &[u8]) -> Option<Row<'_>> {
    let (count, rest) = payload.split_first_chunk::<2>()?;
    let (place, columns) = rest.split_first_chunk::<10>()?;
    let (length, block) = (place.first_chunk::<4>()?, place[4..].first_chunk::<4>()?);
    let column_count = i16::from_be_bytes(*count).checked_sub(1).filter(|count| *count >= 0)?;
    let is_place = u32::from_be_bytes(*length) == 6;
    is_place.then_some(Row { block: u32::from_be_bytes(*block), column_count: Some(column_count), columns })
}

/// `(block,offset)`, a tab, the other columns.
fn text_row(payload: &[u8]) -> Option<Row<'_>> {
    let at = payload.iter().position(|byte| *byte == b'\t')?;
    let place = std::str::from_utf8(&payload[..at]).ok()?;
    let (block, _) = place.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(Row { block: block.parse().ok()?, column_count: None, columns: &payload[at + 1..] })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the source sends for rows in these blocks: the header is in one message with the first row.
    fn sent(is_binary: bool, blocks: &[u32]) -> Vec<Bytes> {
        let mut frames = Vec::new();
        for (n, block) in blocks.iter().enumerate() {
            let mut frame = BytesMut::new();
            let header: &[u8] = if n == 0 && is_binary { COPY_HEADER } else { b"" };
            if is_binary {
                let place = [&6u32.to_be_bytes()[..], &block.to_be_bytes(), &1u16.to_be_bytes()].concat();
                put_message(&mut frame, &[header, &2i16.to_be_bytes(), &place, &1u32.to_be_bytes(), &[b'a' + n as u8]]);
            } else {
                put_message(&mut frame, &[format!("({block},7)\t{}\tx\n", char::from(b'a' + n as u8)).as_bytes()]);
            }
            frames.push(frame.freeze());
        }
        if is_binary {
            let mut frame = BytesMut::new();
            put_message(&mut frame, if blocks.is_empty() { &[COPY_HEADER, COPY_TRAILER] } else { &[COPY_TRAILER] });
            frames.push(frame.freeze());
        }
        frames
    }

    /// What reaches the target for a row.
    fn written(is_binary: bool, n: usize) -> Bytes {
        let mut frame = BytesMut::new();
        let value = b'a' + n as u8;
        if is_binary {
            put_message(&mut frame, &[&1i16.to_be_bytes(), &1u32.to_be_bytes(), &[value]]);
        } else {
            put_message(&mut frame, &[&[value], b"\tx\n"]);
        }
        frame.freeze()
    }

    const PARTS: [Blocks; 4] = [
        Blocks { from: 2, to: Some(4) },
        Blocks { from: 4, to: Some(5) },
        Blocks { from: 5, to: Some(9) },
        Blocks { from: 9, to: None },
    ];

    /// The rows of each part, for every way in which the messages can arrive together.
    #[test]
    fn every_row_reaches_the_part_of_its_block_however_it_arrives() {
        let cases: [&[u32]; 7] = [&[], &[2], &[9, 9], &[1, 2, 3, 5], &[4, 4], &[0, 3, 4, 8, 9, 70_000], &[5, 6, 8]];
        for (is_binary, blocks) in [true, false].into_iter().flat_map(|binary| cases.map(|blocks| (binary, blocks))) {
            let frames = sent(is_binary, blocks);
            for cuts in 0..1u32 << frames.len().saturating_sub(1) {
                let mut chunks = VecDeque::from([Vec::new()]);
                for (n, frame) in frames.iter().enumerate() {
                    chunks.back_mut().unwrap().extend_from_slice(frame);
                    if cuts & (1 << n) != 0 {
                        chunks.push_back(Vec::new());
                    }
                }
                let mut places = Places::new(is_binary);
                let mut rest = Bytes::new();
                for part in PARTS {
                    let (mut out, mut count) = (BytesMut::new(), 0);
                    loop {
                        count += places.take(&mut rest, part, &mut out).unwrap();
                        let Some(chunk) = rest.is_empty().then(|| chunks.pop_front()).flatten() else { break };
                        rest = chunk.into();
                    }
                    let is_in =
                        |block: u32| u64::from(block) >= part.from && part.to.is_none_or(|to| u64::from(block) < to);
                    let wanted: Vec<usize> = (0..blocks.len()).filter(|n| is_in(blocks[*n])).collect();
                    assert_eq!(count, wanted.len() as u64, "{blocks:?} {cuts:b} {part:?}");
                    let wanted: Vec<Bytes> = wanted.into_iter().map(|n| written(is_binary, n)).collect();
                    assert_eq!(out, wanted.concat(), "{blocks:?} {cuts:b} {part:?}");
                }
            }
        }
    }

    #[test]
    fn rows_out_of_turn_and_what_is_no_row_are_refused() {
        let whole = Blocks { from: 0, to: None };
        let refused = |is_binary, frames: &[u8]| {
            let taken = Places::new(is_binary).take(&mut Bytes::copy_from_slice(frames), whole, &mut BytesMut::new());
            taken == Err(OutOfOrder)
        };
        for is_binary in [true, false] {
            assert!(refused(is_binary, &sent(is_binary, &[3, 2]).concat()));
            assert!(!refused(is_binary, &sent(is_binary, &[2, 2]).concat()));
        }
        assert!(refused(true, b"d\0\0\0\x06\0\x01"), "no header");
        let mut frame = BytesMut::new();
        put_message(&mut frame, &[COPY_HEADER, &1i16.to_be_bytes(), &4u32.to_be_bytes(), &[0; 6]]);
        assert!(refused(true, &frame), "not as long as a place");
        for text in [&b"d\0\0\0\x06a\n"[..], b"d\0\0\0\x0a(1;2)\t", b"d\0\0\0\x09(1,2\t", b"d\0\0\0\xff"] {
            assert!(refused(false, text), "{text:?}");
        }
    }
}
