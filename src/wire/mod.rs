//! Connections to PostgreSQL: where a server is, how we prove who we are and who it is, and the protocol under it.

mod endpoint;
mod error;
mod parameters;
mod parse;
mod passfile;
mod raw;
mod service;
mod session;

pub use endpoint::{ChannelBinding, Endpoint, Host, SslMode};
pub use error::Error;
pub use raw::{CopyChunk, CopyIn, CopyOut, Mode, RawConnection, Row, connect_raw};
pub use session::{Session, connect, connect_plain};
