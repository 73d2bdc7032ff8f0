//! Why a question could not be asked.

use crate::model::Disposition;
use crate::{schema, source, wire};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reach the server")]
    Reach(#[from] wire::Error),
    #[error("read the catalog")]
    Catalog(#[from] schema::Error),
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error("ask the server")]
    Query(#[from] tokio_postgres::Error),
}

impl Error {
    /// What is to be done about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Reach(error) => error.disposition(),
            Self::Catalog(error) => error.disposition(),
            Self::Source(error) => error.disposition(),
            Self::Query(error) if error.is_closed() => Disposition::Retry,
            Self::Query(_) => Disposition::Halt { hint: "look at the server's message, then check again".to_owned() },
        }
    }
}
