//! The file that nginx includes, replaced as a whole, and the command that has nginx read it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::{clock, path, process, signal};

/// Longest time for the command; then it is killed.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// Longest file that is compared, bytes.
const READ_MAX: u64 = 16 << 20;
/// How often it is asked whether it has ended.
const STEP: Duration = Duration::from_millis(20);

/// What stands in the file; none where there is no file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match path::read(path, READ_MAX) {
        // What is not even text is not what we would write.
        Ok(read) => Ok(Some(String::from_utf8_lossy(&read.bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), path::error_detail(path, &error))),
    }
}

/// How a file was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileWriteOutcome {
    /// Another file took its place, all at once.
    Replaced,
    /// It is mounted there by itself, or its folder cannot be written: its content was changed, and for a moment a reader
    /// may have found a part of it.
    InPlace,
}

impl FileWriteOutcome {
    /// What there is to say about it.
    pub(super) fn remark(self) -> &'static str {
        match self {
            Self::Replaced => "",
            Self::InPlace => {
                " in place, for it cannot be replaced: have nginx read it only afterwards (--reload)"
            }
        }
    }
}

/// Puts a new file in its place: a reader sees the old one or the new one, whatever fails. A file that cannot be
/// replaced (one that is mounted by itself, as containers are given configuration) is written where it is.
///
/// # Errors
/// When neither is possible; the file is as it was, or what a disk that is full made of it.
pub(super) fn write(path: &Path, text: &str) -> io::Result<FileWriteOutcome> {
    // A link stays one: what is replaced is the file it leads to.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    // To replace a device would be to remove it.
    if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("that is no file"));
    }
    let temporary = temporary_path(&path)?;
    let written = write_temporary(&temporary, text, &path).and_then(|()| fs::rename(&temporary, &path));
    let Err(error) = written else { return Ok(FileWriteOutcome::Replaced) };
    // Nothing is left behind, or nothing could be begun.
    let _ = fs::remove_file(&temporary);
    match error.kind() {
        io::ErrorKind::ResourceBusy | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            // What can be done about the folder is the first thing to know when that fails too.
            overwrite(&path, text).map(|()| FileWriteOutcome::InPlace).map_err(|_| error)
        }
        _ => Err(error),
    }
}

/// Changes the content of a file that is there, with one write and without an empty file in between.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

/// A name in the same folder that a pattern such as `*.conf` does not take in.
fn temporary_path(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("that is no file's name"))?;
    Ok(path.with_file_name(format!(".{}.{}", name.to_string_lossy(), process::pid())))
}

fn write_temporary(temporary: &Path, text: &str, model: &Path) -> io::Result<()> {
    let mut file = path::create_private_file(temporary)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    if let Ok(metadata) = fs::metadata(model) {
        file.set_permissions(metadata.permissions())?;
    }
    file.sync_all()
}

/// Runs the command to its end; a failure is one sentence.
///
/// # Errors
/// When it cannot be started, does not succeed, or takes longer than 30 s.
pub(super) fn run_command(command: &str) -> Result<(), String> {
    let mut child = process::spawn_shell(command).map_err(|error| format!("cannot run a shell: {error}"))?;
    let deadline = clock::monotonic() + COMMAND_MAX;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`{command}` failed: {status}")),
            Ok(None) if clock::monotonic() < deadline => std::thread::sleep(STEP),
            Ok(None) | Err(_) => {
                let leader = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
                // It may have ended by itself just now.
                let _ = signal::send_group(leader, Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("`{command}` did not end within {COMMAND_MAX:?} and was killed"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.conf"), folder.path().join("link.conf"));
        assert_eq!(read(&file).unwrap(), None);
        assert_eq!(write(&file, "one").unwrap(), FileWriteOutcome::Replaced);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "two").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
        assert!(write(&folder.path().join("nowhere/x"), "x").is_err());
        assert!(write(Path::new("/dev/null"), "x").is_err(), "a device is not replaced");
        fs::write(&file, b"\xff").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_written_where_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mounted.conf");
        fs::write(&file, "a longer text than the next").unwrap();
        overwrite(&file, "short").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("short"));
        assert!(overwrite(&folder.path().join("none"), "x").is_err(), "it makes no file");
        assert!(read(folder.path()).unwrap_err().to_string().contains("a folder"));
    }

    #[test]
    fn a_command_is_a_line_of_shell() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        run_command(&format!("true && echo yes > {}", file.display())).unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("yes\n"));
        assert!(run_command("exit 3").unwrap_err().contains("exit status: 3"));
    }
}
