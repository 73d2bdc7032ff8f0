//! What can go wrong while rows are copied, and what is to be done about it.

use crate::model::Disposition;
use crate::{schema, wire};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("connect for the copy")]
    Connect(#[source] wire::Error),
    #[error("read the tables")]
    Catalog(#[source] schema::Error),
}

impl Error {
    /// Whether trying again may help, or what the operator has to do.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Connect(source) => source.disposition(),
            Self::Catalog(source) => source.disposition(),
        }
    }
}
