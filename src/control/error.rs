//! What can go wrong with the listener.

use std::io;
use std::net::SocketAddr;

use crate::model::Disposition;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("listen on {listen}")]
    Listen {
        listen: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("serve HTTP requests")]
    Serve {
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Listen { listen, source } if source.kind() == io::ErrorKind::AddrInUse => Disposition::Halt {
                hint: format!(
                    "something listens on {listen} already, perhaps another daemon: `changeover status` asks it; \
                     or set control.listen to another port"
                ),
            },
            Self::Listen { listen, .. } => {
                Disposition::Halt { hint: format!("set control.listen to an address of this machine; {listen} is not") }
            }
            Self::Serve { .. } => Disposition::Retry,
        }
    }
}
