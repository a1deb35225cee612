//! Files of this process's own, in folders that no other user controls.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::{fs, io};

use crate::sys::path::error::PathError;
use crate::sys::path::files::file_kind;
use crate::sys::path::ownership::own_user;

/// Opens a file of this process's own in a folder that `ensure_private_folder` approved, and makes it if need be; mode 0600.
///
/// # Errors
/// `Error::NotPrivate` for a link, something that is no file, another user's, or one with a second name: to write it
/// would be to write elsewhere.
pub fn open_private_file(path: &Path) -> Result<File, PathError> {
    let shown = path.display();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| {
        let foreign = fs::symlink_metadata(path).ok().filter(|found| found.uid() != own_user());
        match (error.raw_os_error(), foreign) {
            (Some(libc::ELOOP), _) => PathError::NotPrivate(format!(
                "{shown} is a link, and what it leads to is not to be written: remove it"
            )),
            (_, Some(found)) if error.kind() == io::ErrorKind::PermissionDenied => PathError::NotPrivate(
                format!("{shown} belongs to the user with id {}: remove it", found.uid()),
            ),
            (_, _) => PathError::Io(error),
        }
    })?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(PathError::NotPrivate(format!(
            "{shown} is {}, and no file: remove it",
            file_kind(&found)
        )));
    }
    if found.uid() != own_user() {
        let message = format!("{shown} belongs to the user with id {}: remove it", found.uid());
        return Err(PathError::NotPrivate(message));
    }
    if found.nlink() > 1 {
        let message = format!("{shown} is another file's second name (a hard link): remove it");
        return Err(PathError::NotPrivate(message));
    }
    if found.mode() & 0o077 != 0 {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

/// Finds out that what lies there, if anything does, is no link and belongs to this user: another program will open it.
///
/// # Errors
/// `Error::NotPrivate` with what to do about it.
pub fn check_private_entry(path: &Path) -> Result<(), PathError> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let shown = path.display();
    if found.is_symlink() {
        return Err(PathError::NotPrivate(format!(
            "{shown} is a link, and what it leads to is not to be written: remove it"
        )));
    }
    match found.uid() == own_user() {
        true => Ok(()),
        false => Err(PathError::NotPrivate(format!(
            "{shown} belongs to the user with id {}: remove it",
            found.uid()
        ))),
    }
}

/// Opens a file that `open_private_file` made, to look at it only; none when there is none, or it is not this user's or
/// root's.
pub fn open_private_read_only(path: &Path) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && [0, own_user()].contains(&found.uid())).then_some(file)
}

/// Opens a file that is new; mode 0600. What was left under that name is removed, and never followed.
///
/// # Errors
/// When the folder may not be written, or something else comes in between.
pub fn create_private_file(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Puts a file of this process's own in its place, all at once: a reader finds the old one or the new one.
///
/// # Errors
/// When the folder may not be written.
pub fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    create_private_file(&next)?.write_all(bytes)?;
    fs::rename(next, path)
}
