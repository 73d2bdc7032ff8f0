//! Runs the sections of a dump on the target.

mod options;
mod steps;
mod worker;
mod side_by_side;
mod selection;
mod roles;
mod role_sql;
mod settings;
mod database;
mod lacks;
mod extension_rows;
mod pre_data;
mod indexes;
mod post_data;
mod added;
mod large_objects;

pub use added::copy_added_pre_data;
pub use extension_rows::{ExtensionTable, extension_tables};
pub use indexes::copy_indexes;
pub use lacks::{TargetLacks, target_lacks};
pub use large_objects::copy_large_objects;
pub use options::CopyOptions;
pub use post_data::{copy_post_data, copy_post_data_of};
pub use pre_data::copy_pre_data;
pub use roles::{MissingRoles, missing_roles};
pub use steps::{Steps, StepsRead};
