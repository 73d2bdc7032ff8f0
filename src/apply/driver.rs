//! Waits and performs.

use super::error::Error;
use super::options::{Options, Ports};

/// Applies the stream until the input ends or `stop` is cancelled. An error with [`crate::model::Disposition::Retry`]
/// means: run again from [`super::read_position`], with input from there on.
pub async fn run(_options: Options, _ports: Ports) -> Result<(), Error> {
    unimplemented!()
}
