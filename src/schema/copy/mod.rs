//! Runs the sections of a dump on the target.

mod options;
mod steps;
mod worker;
mod side_by_side;
mod selection;
mod roles;
mod role_sql;
mod settings;
mod pre_data;
mod indexes;
mod post_data;
mod added;
mod large_objects;

pub use added::copy_added_pre_data;
pub use indexes::copy_indexes;
pub use large_objects::copy_large_objects;
pub use options::CopyOptions;
pub use post_data::{copy_post_data, copy_post_data_of};
pub use pre_data::copy_pre_data;
pub use steps::{Steps, StepsRead};
