//! How the rows of one table are changed on their way.

/// Compiled once at start, asked for each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing is declared for the table: its rows pass through as bytes, unread.
    PassThrough,
}

impl Plan {
    /// Whether rows may be forwarded without looking inside.
    pub const fn passes_bytes(self) -> bool {
        match self {
            Self::PassThrough => true,
        }
    }
}
