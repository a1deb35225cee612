//! Files and folders by their path: how they are opened, whose they are, and what is wrong when they are not there.
//!
//! What a fleet reads (its configuration, secrets) is looked up by its written path each time. What it owns (its run
//! folder, its data) is resolved once, and no other user may be able to replace it (`ownership`).

#[cfg(feature = "fleet")]
mod error;
mod files;
#[cfg(feature = "fleet")]
mod held_folders;
#[cfg(feature = "fleet")]
mod ownership;
pub mod path_serde;
#[cfg(feature = "fleet")]
mod private_files;
#[cfg(test)]
mod tests;

#[cfg(feature = "fleet")]
pub use error::PathError;
pub use files::{
    FileContent, FileId, SOCKET_PATH_MAX, display_path, error_detail, proc_fd_path, read, read_secret,
};
#[cfg(feature = "fleet")]
pub use held_folders::{
    open_folder, open_working_folder, replace_descriptor, restore_working_folder, set_working_folder,
};
#[cfg(feature = "fleet")]
pub use ownership::{check_log_path, ensure_private_folder};
#[cfg(feature = "fleet")]
pub use private_files::{
    check_private_entry, create_private_file, open_private_file, open_private_read_only, replace_file,
};
