//! TLS as libpq's `sslmode` means it, over rustls.

mod binding;
mod name;
mod setup;
mod verifier;

pub(super) use binding::server_end_point;
pub(super) use setup::{client_config, server_name};
