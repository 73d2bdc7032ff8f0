//! What goes to Kafka: one record, borrowed from the encoder's buffers.

/// A record for one topic. It is copied by the client before the next one is made.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub placement: Placement,
    pub key: Option<&'a [u8]>,
    /// `None`: a tombstone, which tells a compacted topic to forget the key.
    pub value: Option<&'a [u8]>,
    pub header: Option<Header<'a>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub name: &'a str,
    pub value: &'a [u8],
}

/// Which partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// By the key's murmur2, as Java clients choose; at random without key.
    ByKey,
    /// Always the same one: rows without key that can be updated, whose order would otherwise be lost.
    First,
    /// A copy to each: what every reader has to see.
    Every,
}
