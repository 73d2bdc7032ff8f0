//! One replication session and what it needs on the source: slot, publication, identity.
//!
//! ```text
//!  slot, publication ─► [admit] refuse rather than guess ─► [driver] ─FrameBatch▶ decode
//!                                                            ▲ [machine] when to report, when to give up
//!                              progress ─confirmed─────────────┘
//! A backlog, until little of it is left:
//!  slot ─copies─► [bulk] COPY of decoded spans ([spans]: how large) ─FrameBatch▶ decode
//! ```

mod publication;
mod row_filters;
mod slot;
mod slot_state;
mod claim;
mod blockers;

mod run;
mod backoff;
mod admit;
mod driver;
mod machine;
mod pace;
mod bulk;
mod spans;
mod frames;

mod error;

pub use bulk::SLOTS_TO_CATCH_UP;
pub use claim::{claimed_by_another, published_for_another, read_by_another, sign_publication};
pub use error::{Blocker, Blockers, Error};
pub use publication::{
    add_to_publication, addition, create_publication, drop_publication, publication_tables, remove_from_publication,
    wait_out_running_transactions,
};
pub use row_filters::{publication_filters, published_otherwise, row_filter_columns};
pub use run::{Options, Ports, SessionState, SourceEvent, run};
pub use slot::{Identified, WhenActive, create_slot, drop_slot, identify};
pub use slot_state::{SlotState, slot_state};
