//! How eagerly the stream is read.
//!
//! A walsender pays one send and one wake-up of the reader for each message as long as the reader takes each as it
//! comes. One that rests for a moment while there is a backlog gets the same bytes in a third of the server's time
//! (measured on 15: 200,000 small transactions in 2.0 s instead of 6.5 s). At low load resting would only cost latency.
//!
//! How far behind the stream is can be read off it, by one clock: each message says when it was sent, and the first and
//! the last of a transaction when that was committed.

use std::time::Duration;

use bytes::Bytes;

use super::frames::unix_us;
use crate::model::{FrameBatch, FramePayload};

/// Long enough for the server to send some hundred small messages.
const LONGEST_REST: Duration = Duration::from_millis(2);
/// A timer that is set for less wakes late by as much.
const SHORTEST_REST: Duration = Duration::from_micros(200);
/// What is sent this long after its commit is a backlog; that a rest is added to it is not noticed.
const BEHIND_US: i64 = 20_000;
/// A read of this size was more than the server can send ahead of us on one machine (`wire::transport`), so it waits.
const PLENTY_BYTES: usize = 64 * 1024;
/// Small messages that fill the socket are worth waiting for: a server that finds no room gathers what comes next and sends
/// it at once. Fewer than this many and the time it waits costs more than the sends that it saves.
const FEW_MESSAGES: usize = 256;

/// How long a rest is follows from what the last one gathered.
#[derive(Debug)]
pub(super) struct Pace {
    /// When the transaction that was last heard of was committed. What is streamed before its commit counts as late as
    /// that: nobody waits for it.
    committed_at_us: Option<i64>,
    rest: Duration,
    /// Since the last rest.
    read_bytes: usize,
    read_messages: usize,
    /// The socket's window has been made wider.
    widened: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { committed_at_us: None, rest: LONGEST_REST, read_bytes: 0, read_messages: 0, widened: false }
    }
}

impl Pace {
    /// What comes is late, though it may be long until a commit says so: a backlog whose transactions are streamed.
    pub(super) fn of_backlog() -> Self {
        Self { committed_at_us: Some(0), ..Self::default() }
    }

    /// How long to rest after a read.
    pub(super) fn on_read(&mut self, batch: &FrameBatch) -> Option<Duration> {
        self.read_bytes = self.read_bytes.saturating_add(batch.size_bytes);
        self.read_messages = self.read_messages.saturating_add(batch.frames.len());
        let mut messages = batch.frames.iter().rev().filter_map(|frame| match &frame.payload {
            FramePayload::XLogData { message, .. } => Some((frame.sent_at_us, message)),
            FramePayload::Keepalive { .. } => None,
        });
        let (sent_at_us, last) = messages.next()?;
        let committed_at_us =
            commit_time_us(last).or_else(|| messages.find_map(|(_, message)| commit_time_us(message)));
        self.committed_at_us = committed_at_us.or(self.committed_at_us);
        let is_behind = self.committed_at_us.is_some_and(|at| sent_at_us.saturating_sub(at) >= BEHIND_US);
        (is_behind && batch.size_bytes < PLENTY_BYTES).then(|| self.next_rest())
    }

    /// Whether the socket's window should be wider: once, when messages come of which few fill it. Small ones are better
    /// gathered at the sender.
    pub(super) fn widens(&mut self, batch: &FrameBatch) -> bool {
        let is_telling = batch.size_bytes >= PLENTY_BYTES / 4;
        let are_few = batch.frames.len() * PLENTY_BYTES < batch.size_bytes * FEW_MESSAGES;
        is_telling && are_few && !std::mem::replace(&mut self.widened, true)
    }

    /// Half as long after one in which a few messages filled the socket, longer again when it was far from full.
    fn next_rest(&mut self) -> Duration {
        let gathered_bytes = std::mem::take(&mut self.read_bytes);
        let gathered_messages = std::mem::take(&mut self.read_messages);
        if gathered_bytes >= PLENTY_BYTES && gathered_messages < gathered_bytes / PLENTY_BYTES * FEW_MESSAGES {
            self.rest = (self.rest / 2).max(SHORTEST_REST);
        } else if gathered_bytes < PLENTY_BYTES / 2 || gathered_messages >= FEW_MESSAGES {
            self.rest = (self.rest * 5 / 4).min(LONGEST_REST);
        }
        self.rest
    }
}

/// Of Begin, Commit and Stream Commit ("Logical Replication Message Formats" in the documentation).
fn commit_time_us(message: &Bytes) -> Option<i64> {
    let at = match message.first()? {
        b'B' => 9,
        b'C' => 18,
        b'c' => 22,
        _ => return None,
    };
    let time = message.get(at..)?.first_chunk::<8>()?;
    Some(unix_us(i64::from_be_bytes(*time)))
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::model::Frame;

    const NOW_US: i64 = 1_800_000_000_000_000;

    fn frame(tag: u8, before: usize, committed_at_us: i64, sent_at_us: i64) -> Frame {
        let mut message = BytesMut::new();
        message.put_u8(tag);
        message.put_bytes(7, before);
        message.put_i64(committed_at_us - unix_us(0));
        message.put_u32(42);
        Frame {
            wal_end: None,
            sent_at_us,
            payload: FramePayload::XLogData { wal_start: None, message: message.freeze() },
        }
    }

    fn keepalive() -> Frame {
        Frame { wal_end: None, sent_at_us: NOW_US, payload: FramePayload::Keepalive { reply_requested: false } }
    }

    fn read(frames: Vec<Frame>, size_bytes: usize) -> FrameBatch {
        FrameBatch { frames, size_bytes }
    }

    #[test]
    fn what_is_sent_as_it_is_committed_is_read_as_it_comes() {
        let mut pace = Pace::default();
        for (tag, before) in [(b'B', 8), (b'C', 17), (b'c', 21)] {
            let fresh = frame(tag, before, NOW_US, NOW_US + BEHIND_US - 1);
            assert_eq!(pace.on_read(&read(vec![fresh, keepalive()], 60)), None, "{}", char::from(tag));
        }
        assert_eq!(pace.on_read(&read(vec![keepalive()], 60)), None);
    }

    #[test]
    fn a_backlog_is_read_lazily_until_it_is_gone() {
        for (tag, before) in [(b'B', 8), (b'C', 17), (b'c', 21)] {
            let mut pace = Pace::default();
            let late = || frame(tag, before, NOW_US, NOW_US + BEHIND_US);
            assert_eq!(pace.on_read(&read(vec![late(), keepalive()], 60)), Some(LONGEST_REST), "{}", char::from(tag));
            let row = frame(b'I', 8, NOW_US, NOW_US + BEHIND_US);
            assert_eq!(pace.on_read(&read(vec![row.clone()], 60)), Some(LONGEST_REST), "inside of a transaction");
            assert_eq!(pace.on_read(&read(vec![row.clone()], PLENTY_BYTES)), None, "a full socket is emptied first");
            assert_eq!(
                pace.on_read(&read(vec![row], 60)),
                Some(LONGEST_REST / 2),
                "and then not left to fill up again"
            );
            assert_eq!(pace.on_read(&read(vec![late(), frame(tag, before, NOW_US, NOW_US)], 60)), None);
            assert_eq!(pace.on_read(&read(vec![keepalive()], 60)), None, "nothing is left to come");
        }
    }

    #[test]
    fn a_backlog_is_read_lazily_before_the_first_commit_too() {
        let row = || read(vec![frame(b'I', 8, NOW_US, NOW_US)], 60);
        assert_eq!(Pace::default().on_read(&row()), None);
        assert_eq!(Pace::of_backlog().on_read(&row()), Some(LONGEST_REST));
    }

    #[test]
    fn rests_are_as_long_as_it_takes_to_fill_the_socket_and_have_their_limits() {
        let mut pace = Pace::default();
        let late = frame(b'B', 8, NOW_US, NOW_US + BEHIND_US);
        let mut after = |gathered_bytes| {
            let full = gathered_bytes / PLENTY_BYTES;
            for _ in 0..full {
                assert_eq!(pace.on_read(&read(vec![late.clone()], PLENTY_BYTES)), None);
            }
            pace.on_read(&read(vec![late.clone()], gathered_bytes - full * PLENTY_BYTES)).unwrap()
        };
        assert_eq!(after(3 * PLENTY_BYTES), LONGEST_REST / 2);
        assert_eq!(after(PLENTY_BYTES - 1), LONGEST_REST / 2, "neither full nor far from it");
        assert_eq!(after(PLENTY_BYTES / 2), LONGEST_REST / 2);
        assert_eq!(after(PLENTY_BYTES / 2 - 1), LONGEST_REST * 5 / 8);
        for _ in 0..10 {
            after(PLENTY_BYTES);
        }
        assert_eq!(after(PLENTY_BYTES), SHORTEST_REST);
        for _ in 0..20 {
            after(100);
        }
        assert_eq!(after(100), LONGEST_REST);
        let many = vec![late.clone(); FEW_MESSAGES];
        assert_eq!(pace.on_read(&read(many, PLENTY_BYTES)), None);
        assert_eq!(
            pace.on_read(&read(vec![late], 60)),
            Some(LONGEST_REST),
            "small rows that are gathered at the sender"
        );
    }

    #[test]
    fn the_window_is_widened_once_for_messages_of_which_few_fill_it() {
        let row = || frame(b'I', 8, NOW_US, NOW_US);
        let rows = |count: usize, size_bytes| read(vec![row(); count], size_bytes);
        let (telling, few) = (PLENTY_BYTES / 4, FEW_MESSAGES / 4 - 1);
        let mut pace = Pace::default();
        assert!(!pace.widens(&rows(few + 1, telling)), "small ones are gathered at the sender");
        assert!(!pace.widens(&rows(1, telling - 1)), "a lone one says nothing of the others");
        assert!(pace.widens(&rows(few, telling)));
        assert!(!pace.widens(&rows(few, telling)), "it is wider already");
    }

    #[test]
    fn a_message_that_is_cut_short_says_nothing() {
        let whole = [&b"B"[..], &[0; 20]].concat();
        for length in 0..17 {
            assert_eq!(commit_time_us(&Bytes::copy_from_slice(&whole[..length])), None);
        }
    }
}
