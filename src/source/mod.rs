//! One replication session and what it needs on the source: slot, publication, identity.

mod error;
mod publication;
mod run;
mod slot;

pub use error::Error;
pub use publication::{create_publication, drop_publication, publication_tables, wait_out_running_transactions};
pub use run::{Options, Ports, SessionState, SourceEvent, run};
pub use slot::{Identified, SlotState, WhenActive, create_slot, drop_slot, identify, slot_state};
