//! The file that nginx includes, replaced as a whole, and the command that has nginx read it.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::sys::proc;
use crate::sys::proc::Pid;
use crate::sys::signal;
use crate::sys::signal::Signal;
use crate::sys::time;

/// Longest time for the command; then it is killed.
const COMMAND_MAX: Duration = Duration::from_secs(30);
/// How often it is asked whether it has ended.
const STEP: Duration = Duration::from_millis(20);

/// What stands in the file; none where there is no file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        // What is not even text is not what we would write.
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts a new file in its place: whoever reads it sees the old one or the new one, whatever fails.
///
/// # Errors
/// When the folder cannot be written to; the file is as it was.
pub(super) fn write(path: &Path, text: &str) -> io::Result<()> {
    // A link stays one: what is replaced is the file it leads to.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let temporary = beside(&path)?;
    let written = fill(&temporary, text, &path).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // Nothing is left behind, or nothing could be begun.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// A name in the same folder that a pattern such as `*.conf` does not take in.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("that is no file's name"))?;
    Ok(path.with_file_name(format!(".{}.{}", name.to_string_lossy(), proc::pid())))
}

fn fill(temporary: &Path, text: &str, model: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(temporary)?;
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
pub(super) fn run(command: &str) -> Result<(), String> {
    let mut child = proc::spawn_shell(command).map_err(|error| format!("cannot run a shell: {error}"))?;
    let deadline = time::monotonic() + COMMAND_MAX;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("`{command}` failed: {status}")),
            Ok(None) if time::monotonic() < deadline => std::thread::sleep(STEP),
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_keeps_its_mode_and_its_link() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.conf"), folder.path().join("link.conf"));
        assert_eq!(read(&file).unwrap(), None);
        write(&file, "one").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "two").unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside it");
        assert!(write(&folder.path().join("nowhere/x"), "x").is_err());
    }

    #[test]
    fn a_command_is_a_line_of_shell() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        run(&format!("true && echo yes > {}", file.display())).unwrap();
        assert_eq!(read(&file).unwrap().as_deref(), Some("yes\n"));
        assert!(run("exit 3").unwrap_err().contains("exit status: 3"));
    }
}
