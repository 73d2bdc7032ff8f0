//! Runs the sections of a dump on the target.

mod options;
mod steps;
mod worker;
mod watch;
mod side_by_side;
mod selection;
mod roles;
mod role_sql;
mod settings;
mod pre_data;
mod table_plan;
mod schedule;
mod indexes;
mod post_data;
mod large_objects;

pub use indexes::{Rows, copy_indexes};
pub use large_objects::copy_large_objects;
pub use options::CopyOptions;
pub use post_data::copy_post_data;
pub use pre_data::copy_pre_data;
pub use steps::{RunningStep, ServerWork, Steps, StepsRead, WorkUnit};
