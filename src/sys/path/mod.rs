//! Files and folders by their path: how they are opened, whose they are, and what is wrong when they are not there.
//!
//! What a fleet reads (its configuration, secrets) is looked up by its written path each time. What it owns (its run
//! folder, its data) is resolved once, and no other user may be able to replace it (`ownership`).

mod error;
mod files;
mod ownership;
pub mod path_serde;
#[cfg(test)]
mod tests;

pub use error::PathError;
pub use files::{
    FileContent, FileId, SOCKET_PATH_MAX, check_private_entry, create_private_file, display_path,
    error_detail, open_folder, open_private_file, open_private_read_only, open_working_folder, proc_fd_path,
    read, read_secret, replace_descriptor, replace_file, restore_working_folder, set_working_folder,
};
pub use ownership::{check_log_path, ensure_private_folder};
