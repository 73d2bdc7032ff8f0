//! (door of the room; see the crate's map)
