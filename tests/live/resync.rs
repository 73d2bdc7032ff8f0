//! Tables that are copied again, join or leave while the others stream.

#[path = "resync/world.rs"]
mod world;

#[path = "resync/again.rs"]
mod again;
#[path = "resync/crashes.rs"]
mod crashes;
#[path = "resync/membership.rs"]
mod membership;
#[path = "resync/refusals.rs"]
mod refusals;
