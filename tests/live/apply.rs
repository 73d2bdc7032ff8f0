//! The target's applier against real servers: what was decoded on one database is applied to another and compared.

#[path = "apply/world.rs"]
mod world;

#[path = "apply/values.rs"]
mod values;
#[path = "apply/exactness.rs"]
mod exactness;
#[path = "apply/near.rs"]
mod near;
#[path = "apply/refusals.rs"]
mod refusals;
#[path = "apply/standing_still.rs"]
mod standing_still;
#[path = "apply/workload.rs"]
mod workload;
