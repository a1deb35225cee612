//! Processes of which only the number is known, distinguished from others that have it by now.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use std::{fs, io};

use crate::sys::fd::Interest;
use crate::sys::process::Pid;
use crate::sys::signal::Signal;
use crate::sys::{application_fds, fd};

/// What no two processes of one boot have in common: number, start, and the program they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: Pid,
    /// When it was started, in ticks since the boot; field 22 of `/proc/PID/stat`, proc(5).
    pub started: u64,
    /// Device and inode of its program.
    pub program: (u64, u64),
}

/// What no two boots have in common; `/proc/sys/kernel/random/boot_id`.
pub fn boot_id() -> Option<String> {
    Some(fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned())
}

impl ProcessIdentity {
    /// That of a process which runs now; none when there is no such process, or it may not be looked at.
    pub fn from_pid(pid: Pid) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
        Some(Self { pid, started: start_time(&stat)?, program: (program.dev(), program.ino()) })
    }

    /// Gets hold of it, if this very process still runs.
    pub fn open(self) -> Option<ProcessHandle> {
        // SAFETY: asks for a descriptor of a process, pidfd_open(2).
        let number = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid.as_raw(), 0) };
        let number = i32::try_from(number).ok().filter(|number| *number >= 0)?;
        // SAFETY: the kernel has just made this descriptor, and no other code knows its number.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        application_fds::claim_opened(&fd);
        let handle = ProcessHandle { fd, pid: self.pid };
        // The descriptor holds the number: what is found under it now stays the same process.
        (Self::from_pid(self.pid) == Some(self) && handle.is_alive()).then_some(handle)
    }
}

/// The start in a line of `/proc/PID/stat`. The name of a program may hold anything, brackets and spaces too.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(") ")?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// A process that cannot be mistaken for another one any more.
#[derive(Debug)]
pub struct ProcessHandle {
    fd: OwnedFd,
    pid: Pid,
}

impl ProcessHandle {
    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        let polled = fd::poll(&[(self.fd.as_fd(), Interest::Read)], Some(Duration::ZERO));
        polled.is_ok_and(|polled| !polled[0].any())
    }

    /// Sends it a signal; that it has ended is no error.
    ///
    /// # Errors
    /// When this process may not signal that one.
    pub fn send(&self, signal: Signal) -> io::Result<()> {
        let (number, none) = (self.fd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
        // SAFETY: sends a signal to a process behind an open descriptor, pidfd_send_signal(2).
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, signal as i32, none, 0) };
        match nix::errno::Errno::result(sent) {
            Ok(_) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Whether it has a TCP socket that listens.
    pub fn is_listening(&self) -> bool {
        let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/{}/net/{name}", self.pid)));
        let listening: BTreeSet<u64> =
            tables.iter().flatten().flat_map(|table| listening_inodes(table)).collect();
        self.has_any_socket(&listening)
    }

    /// Whether it has a Unix socket that listens.
    pub fn has_unix_listener(&self) -> bool {
        let table = fs::read_to_string(format!("/proc/{}/net/unix", self.pid)).unwrap_or_default();
        self.has_any_socket(&listening_unix_inodes(&table).collect())
    }

    fn has_any_socket(&self, inodes: &BTreeSet<u64>) -> bool {
        let Ok(entries) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return false };
        let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        targets.filter_map(|target| socket_inode(target.to_str()?)).any(|inode| inodes.contains(&inode))
    }
}

/// Inodes of the Unix sockets that listen, of a table as in `/proc/net/unix`, proc(5): its fourth column has the flag
/// `__SO_ACCEPTCON`.
fn listening_unix_inodes(table: &str) -> impl Iterator<Item = u64> {
    const ACCEPTS: &str = "00010000";
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(3)? == ACCEPTS).then_some(fields.nth(2)?)?.parse().ok()
    })
}

/// Inodes of the sockets that listen, of a table as in `/proc/net/tcp`, proc(5).
fn listening_inodes(table: &str) -> impl Iterator<Item = u64> {
    const LISTEN: &str = "0A";
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.nth(3)? == LISTEN).then_some(fields.nth(5)?)?.parse().ok()
    })
}

fn socket_inode(target: &str) -> Option<u64> {
    target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::sys::process;

    #[test]
    fn a_process_is_known_by_its_start_and_its_program() {
        let own = ProcessIdentity::from_pid(process::pid()).unwrap();
        assert_eq!(ProcessIdentity::from_pid(process::pid()), Some(own));
        assert!(own.open().is_some_and(|handle| handle.is_alive() && handle.pid() == process::pid()));
        let others = [
            ProcessIdentity { started: own.started + 1, ..own },
            ProcessIdentity { program: (own.program.0, own.program.1 + 1), ..own },
            ProcessIdentity { pid: Pid::from_raw(i32::MAX), ..own },
        ];
        assert!(others.into_iter().all(|other| other.open().is_none()));
        assert!(boot_id().unwrap().len() > 30);
    }

    #[test]
    fn a_name_with_brackets_hides_no_start() {
        let text = "7 (a) R b) T 1 7 7 0 -1 4194304 91 0 0 0 12 30 0 0 20 0 1 0 5000 0 0";
        assert_eq!((start_time(text), start_time("7 (cut) S 1"), start_time("")), (Some(5000), None, None));
    }

    #[test]
    fn what_listens_is_seen_until_it_does_not() {
        let child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let silent = ProcessIdentity::from_pid(pid).and_then(ProcessIdentity::open).unwrap();
        assert!(!silent.is_listening());
        let own = ProcessIdentity::from_pid(process::pid()).and_then(ProcessIdentity::open).unwrap();
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(own.is_listening());
        let folder = tempfile::tempdir().unwrap();
        let _unix = std::os::unix::net::UnixListener::bind(folder.path().join("a")).unwrap();
        assert!(own.has_unix_listener());
        silent.send(Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(pid, None).unwrap();
        assert!(!silent.is_alive());
        silent.send(Signal::SIGKILL).unwrap();
        drop(child);
    }
}
