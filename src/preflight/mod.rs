//! `check` (is everything ready?) and `inspect` (what is there?). Both only look.
//!
//! A check is one small function: it asks one thing of one side and answers with a [`Finding`], which is PASS, or WARN or
//! FAIL with the remedy as SQL or a command. [`check`](fn@check) runs them in order; one that cannot be asked is itself a FAIL.

mod finding;
mod error;
mod sides;
mod check;

mod server;
mod source;
mod tables;
mod adopted;
mod rows;
mod load;
mod target;
mod contents;
mod owners;
mod partitions;
mod here;
mod routes;

mod care;
mod inventory;

pub use check::{check, check_copy};
pub use error::Error;
pub use finding::{Finding, Report, Verdict};
pub use inventory::{Inventory, InventoryTable, inspect};
