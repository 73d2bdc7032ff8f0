//! Checked reading of one message.

use bytes::Bytes;

use crate::model::{Lsn, POSTGRES_EPOCH_US, Tuple, Xid};

/// What is wrong with a message; the machine adds its tag and position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

/// Reads a message from its start. Rows come out as slices of it.
pub(super) struct Wire<'a> {
    message: &'a Bytes,
    at: usize,
}

impl<'a> Wire<'a> {
    pub(super) fn new(message: &'a Bytes) -> Self {
        Self { message, at: 0 }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn i32(&mut self) -> Result<i32, Malformed> {
        self.array().map(i32::from_be_bytes)
    }

    pub(super) fn xid(&mut self) -> Result<Xid, Malformed> {
        self.u32().map(Xid)
    }

    /// A position that may be `InvalidXLogRecPtr`.
    pub(super) fn lsn(&mut self) -> Result<Option<Lsn>, Malformed> {
        self.array().map(u64::from_be_bytes).map(Lsn::new)
    }

    /// A position that must be one.
    pub(super) fn lsn_given(&mut self) -> Result<Lsn, Malformed> {
        self.lsn()?.ok_or(Malformed("a position of zero"))
    }

    /// A timestamp, as microseconds since the Unix epoch.
    pub(super) fn time_us(&mut self) -> Result<i64, Malformed> {
        self.array().map(i64::from_be_bytes)?.checked_add(POSTGRES_EPOCH_US).ok_or(Malformed("a time out of range"))
    }

    /// A name: text up to a zero byte, in `client_encoding`, which is pinned to UTF-8.
    pub(super) fn name(&mut self) -> Result<&'a str, Malformed> {
        let rest = self.rest();
        let length = memchr::memchr(0, rest).ok_or(Malformed("a name without an end"))?;
        self.at += length + 1;
        std::str::from_utf8(&rest[..length]).map_err(|_| Malformed("a name that is not UTF-8"))
    }

    pub(super) fn tuple(&mut self) -> Result<Tuple, Malformed> {
        let mut rest = self.message.slice(self.at..);
        let tuple = Tuple::split_from(&mut rest).map_err(|malformed| Malformed(malformed.what))?;
        self.at += tuple.size_bytes();
        Ok(tuple)
    }

    /// `length` bytes as a slice of the message.
    pub(super) fn bytes(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if self.rest().len() < length {
            return Err(Malformed("less content than its length says"));
        }
        let start = self.at;
        self.at += length;
        Ok(self.message.slice(start..self.at))
    }

    /// How many bytes have not been read.
    pub(super) fn left(&self) -> usize {
        self.rest().len()
    }

    /// Refuses bytes behind the end: they would be a field we do not know.
    pub(super) fn finish(&self) -> Result<(), Malformed> {
        if self.rest().is_empty() { Ok(()) } else { Err(Malformed("bytes behind its end")) }
    }

    fn rest(&self) -> &'a [u8] {
        self.message.get(self.at..).unwrap_or_default()
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let array = *self.rest().first_chunk::<N>().ok_or(Malformed("it ends too early"))?;
        self.at += N;
        Ok(array)
    }
}
