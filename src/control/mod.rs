//! The daemon's HTTP side: health, metrics, status, requests, and a page for operators.
//!
//! ```text
//! GET  /healthz /readyz /metrics / /api/v1/status              ─► what is going on
//! POST /api/v1/{verify,cutover,pause,resume,throttle,stop}  ─[access]─► pipeline::Handle
//! ```
//!
//! [`Client`] is the other end: what the command line talks through.

mod server;
mod routes;
mod access;
mod gauges;
mod error;

mod client;
mod screen;

pub use client::{Client, ClientError};
pub use error::Error;
pub use screen::{Screen, duration_words};
pub use server::{Options, bind, serve};

#[cfg(test)]
mod tests;
