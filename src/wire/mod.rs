//! Connections to PostgreSQL: where a server is, how we prove who we are and who it is, and the protocol under it.
//!
//! ```text
//!  Endpoint ─► transport ─► tls ─► startup (auth) ─┬─► RawConnection ─► CopyOut, CopyIn, CopyBoth
//!                                                  └─► Session: the SQL client over the same connection
//! ```
//!
//! Everything up to the login exists once; what is opened by it is the same for SQL, COPY and replication.

mod endpoint;
mod settings;
mod parameters;
mod parse;
mod passfile;
mod service;

mod socket;
mod transport;
mod tls;
mod messages;
mod auth;
mod startup;
mod pinned;

mod raw;
mod copy;
mod copy_both;
mod pipelined;
mod cancel;
mod adopted;
mod session;

mod error;
mod server_error;
pub mod sqlstate;

pub use cancel::CancelToken;
pub use copy::{COPY_HEADER, COPY_TRAILER, CopyChunk, CopyIn, CopyOut, put_message, take_payload};
pub use copy_both::{CopyBoth, CopyBothEvent};
pub use endpoint::{ChannelBinding, Endpoint, Host, SslMode};
pub use error::{Error, disposition_of};
pub use pipelined::Answer;
pub use raw::{Mode, RawConnection, Row, connect_raw};
pub use server_error::ServerError;
pub use session::{Session, connect, connect_plain};
