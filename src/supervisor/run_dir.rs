//! The run folder: what others find a fleet by, claimed by one fleet at a time, and put back when a cleaner removes it.
//!
//! The folder itself is locked, and so is the file with the pid in it: files can be removed by a cleaner of temporary
//! files, and the lock of a folder stays (systemd-tmpfiles leaves locked folders alone). Both locks end with the process.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::control;
use crate::control::server::ControlServer;
use crate::sys::path::FileId;
use crate::sys::{exec, fd, path, process, unix_socket};

/// File in the run folder that a running fleet holds locked, with its pid in it.
const PID_FILE: &str = "regatta.pid";

/// Longest wait for a supervisor that has a socket there and no lock.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// Why a run folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunDirError {
    /// It cannot be made, or its files cannot be.
    #[error("cannot use the folder {} (run_dir)", folder.display())]
    Unusable {
        /// As configured.
        folder: PathBuf,
        /// Why.
        source: path::PathError,
    },
    /// A fleet uses it.
    #[error("the folder {} (run_dir) is in use by the fleet with pid {pid}; give this one a run_dir of its own", folder.display())]
    Running {
        /// As configured.
        folder: PathBuf,
        /// What the fleet has written.
        pid: String,
    },
}

/// The run folder of this fleet.
#[derive(Debug)]
pub struct RunDir {
    /// Its path without links: a deployment that switches one does not move a fleet that runs.
    path: PathBuf,
    /// The folder, locked.
    folder: File,
    /// The file in it, locked.
    pid_file: File,
}

impl RunDir {
    /// Claims it for this process; it is made if need be.
    ///
    /// # Errors
    /// See `Error`.
    pub fn claim(given: &Path) -> Result<Self, RunDirError> {
        let unusable = |source: path::PathError| RunDirError::Unusable { folder: given.into(), source };
        let failed = |source: io::Error| unusable(source.into());
        let path = path::ensure_private_folder(given).map_err(unusable)?;
        let folder = path::open_folder(&path).map_err(failed)?;
        let running = || {
            let listening = || control_socket_pid(&path).map(|pid| pid.to_string());
            let pid = read_pid(&path).or_else(listening).unwrap_or_else(|| "unknown".to_owned());
            RunDirError::Running { folder: given.into(), pid }
        };
        // Before anything is made there: what a second fleet left would be in the way of the first one's own file. A fleet
        // of an older version whose file was removed has no lock that can be found, but it listens.
        if !lock_folder(&folder) || control_socket_pid(&path).is_some() {
            return Err(running());
        }
        let pid = path::open_private_file(&path.join(PID_FILE)).map_err(unusable)?;
        if !fd::try_lock(&pid).map_err(failed)? {
            return Err(running());
        }
        let claimed = Self { path, folder, pid_file: pid };
        claimed.write_pid().map_err(failed)?;
        Ok(claimed)
    }

    /// The same in another program that goes on with the fleet; a program of an older version has no lock of the folder.
    ///
    /// # Errors
    /// When what was handed over is not there.
    pub fn restore(path: &Path, pid: RawFd, folder: Option<RawFd>) -> io::Result<Self> {
        let folder = match folder {
            Some(folder) => exec::duplicate_inherited(folder)?.into(),
            None => path::open_folder(path)?,
        };
        lock_folder(&folder);
        Ok(Self { path: path.into(), folder, pid_file: exec::duplicate_inherited(pid)?.into() })
    }

    /// Its path without links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Numbers of the file and the folder, for the next program.
    pub(super) fn fds(&self) -> (RawFd, RawFd) {
        (self.pid_file.as_raw_fd(), self.folder.as_raw_fd())
    }

    /// Records that this fleet has ended in order: an empty file.
    pub fn clear_pid(&self) {
        let _ = self.pid_file.set_len(0);
    }

    fn write_pid(&self) -> io::Result<()> {
        let mut pid = &self.pid_file;
        pid.set_len(0)?;
        pid.rewind()?;
        writeln!(pid, "{}", process::pid())
    }

    /// Checks that it is all there and puts back what is not; what it has put back.
    ///
    /// # Errors
    /// What cannot be put back, and why; nothing that belongs to another fleet is touched.
    pub(super) fn restore_files(&self, control: &mut ControlServer) -> Result<Vec<&'static str>, String> {
        let mut restored = Vec::new();
        let shown = self.path.display();
        if self.restore_folder().map_err(|error| format!("the folder {shown} (run_dir) is lost: {error}"))? {
            restored.push("its folder");
        }
        if self
            .restore_pid_file()
            .map_err(|error| format!("{PID_FILE} in {shown} (run_dir) is lost: {error}"))?
        {
            restored.push(PID_FILE);
        }
        match control.restore_socket_file() {
            Ok(true) => restored.push("control.sock"),
            Ok(false) => {}
            Err(error) => return Err(format!("control.sock in {shown} (run_dir) is lost: {error}")),
        }
        Ok(restored)
    }

    fn restore_folder(&self) -> Result<bool, path::PathError> {
        match FileId::from_entry(&self.path) {
            Ok(there) if there == FileId::from_file(&self.folder)? => return Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let path = path::ensure_private_folder(&self.path)?;
        if path != self.path {
            let message = format!("a link to {} is in its place", path.display());
            return Err(path::PathError::Io(io::Error::other(message)));
        }
        let folder = path::open_folder(&path)?;
        let taken = || io::Error::other("another folder is in its place, and another fleet uses it");
        if !lock_folder(&folder) || control_socket_pid(&path).is_some() {
            return Err(taken().into());
        }
        path::replace_descriptor(&self.folder, &folder)?;
        Ok(true)
    }

    fn restore_pid_file(&self) -> Result<bool, path::PathError> {
        let path = self.path.join(PID_FILE);
        match FileId::from_entry(&path) {
            Ok(there) if there == FileId::from_file(&self.pid_file)? => return Ok(false),
            // Left by a process that is gone: this fleet has the folder.
            Ok(_) => {
                let file = path::open_private_file(&path)?;
                if !fd::try_lock(&file)? {
                    return Err(path::PathError::Io(io::Error::other(
                        "another fleet has put its own in its place",
                    )));
                }
                path::replace_descriptor(&self.pid_file, &file)?;
                self.write_pid()?;
                return Ok(true);
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Err(_) => {}
        }
        // It has its lock and its content before it has its name.
        let next = self.path.join("regatta.pid.next");
        let file = path::create_private_file(&next)?;
        let locked = fd::try_lock(&file)?;
        writeln!(&file, "{}", process::pid())?;
        let named = fs::hard_link(&next, &path);
        fs::remove_file(&next)?;
        named?;
        if !locked {
            return Err(path::PathError::Io(io::Error::other("another process has locked it")));
        }
        path::replace_descriptor(&self.pid_file, &file)?;
        Ok(true)
    }
}

/// The pid of the fleet that uses the run folder, if one does.
pub fn running_pid(folder: &Path) -> Option<String> {
    let held = path::open_private_read_only(&folder.join(PID_FILE))
        .is_some_and(|file| !fd::is_unlocked(&file).unwrap_or(true));
    let listening = || control_socket_pid(folder).map(|pid| pid.to_string());
    held.then(|| read_pid(folder)).flatten().or_else(listening)
}

/// What a fleet has written into its file, as far as it can be a number.
fn read_pid(folder: &Path) -> Option<String> {
    let mut text = String::new();
    path::open_private_read_only(&folder.join(PID_FILE))?.take(32).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|pid| !pid.is_empty())
}

/// Locks a folder; a file system without locks for folders (NFS) has those of the file in it.
fn lock_folder(folder: &File) -> bool {
    fd::try_lock(folder).unwrap_or(true)
}

/// The process behind the control socket, if one listens there.
fn control_socket_pid(folder: &Path) -> Option<i32> {
    let stream = unix_socket::connect(&control::socket_path(folder), CONNECT_TIMEOUT).ok()?;
    unix_socket::peer_credentials(&stream).ok().map(|peer| peer.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(run_dir: &RunDir, control: &mut ControlServer) -> Result<Vec<&'static str>, String> {
        run_dir.restore_files(control)
    }

    fn claimed(folder: &Path) -> (RunDir, ControlServer) {
        let run_dir = RunDir::claim(&folder.join("run")).unwrap();
        let control = ControlServer::open(&control::socket_path(run_dir.path())).unwrap();
        (run_dir, control)
    }

    #[test]
    fn what_a_cleaner_removes_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let (run_dir, mut control) = claimed(folder.path());
        let path = run_dir.path().to_owned();
        assert_eq!(keep(&run_dir, &mut control), Ok(vec![]));
        fs::remove_file(control::socket_path(&path)).unwrap();
        assert_eq!(keep(&run_dir, &mut control), Ok(vec!["control.sock"]));
        assert!(unix_socket::connect(&control::socket_path(&path), CONNECT_TIMEOUT).is_ok());
        fs::remove_file(path.join(PID_FILE)).unwrap();
        // While the file is gone, the folder's lock keeps the next fleet away.
        assert!(matches!(RunDir::claim(&path), Err(RunDirError::Running { .. })));
        assert!(!path.join(PID_FILE).exists(), "it has left nothing");
        assert_eq!(keep(&run_dir, &mut control), Ok(vec![PID_FILE]));
        assert_eq!(running_pid(&path), Some(std::process::id().to_string()));
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(keep(&run_dir, &mut control), Ok(vec!["its folder", PID_FILE, "control.sock"]));
        assert!(matches!(RunDir::claim(&path), Err(RunDirError::Running { .. })));
        assert_eq!(keep(&run_dir, &mut control), Ok(vec![]));
    }

    #[test]
    fn what_belongs_to_others_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (run_dir, mut control) = claimed(folder.path());
        let path = run_dir.path().to_owned();
        let socket = control::socket_path(&path);
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "notes").unwrap();
        assert!(keep(&run_dir, &mut control).unwrap_err().contains("control.sock"));
        assert_eq!(fs::read_to_string(&socket).unwrap(), "notes");
        fs::remove_file(&socket).unwrap();
        assert_eq!(keep(&run_dir, &mut control), Ok(vec!["control.sock"]));
        fs::remove_file(path.join(PID_FILE)).unwrap();
        fs::write(path.join(PID_FILE), "").unwrap();
        assert_eq!(keep(&run_dir, &mut control), Ok(vec![PID_FILE]), "no process has it");
        // Another fleet in a folder of the same name.
        fs::rename(&path, folder.path().join("moved")).unwrap();
        let (other, other_control) = claimed(folder.path());
        assert!(keep(&run_dir, &mut control).unwrap_err().contains("another fleet uses it"));
        assert!(unix_socket::connect(&socket, CONNECT_TIMEOUT).is_ok());
        drop((other, other_control));
        assert_eq!(keep(&run_dir, &mut control).unwrap().first(), Some(&"its folder"));
    }
}
