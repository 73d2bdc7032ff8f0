//! What can go wrong with the source's stream, and what is to be done about it.

use crate::model::Disposition;
use crate::wire;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("talk to the source")]
    Wire(#[from] wire::Error),
}

impl Error {
    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Wire(error) => error.disposition(),
        }
    }
}
