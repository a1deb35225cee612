//! The application's descriptors and the supervisor's: what the program had open before its fleet began stays open in
//! the workers, and what the supervisor opened is closed there.
//!
//! No list of the supervisor's own descriptors is kept, because one that is forgotten would leak into every worker. The
//! application's are remembered instead: whatever is open when `remember` is called, less what is taken over from
//! systemd or from the program before an upgrade.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use crate::sys::path::proc_fd_path;

/// Descriptors that are not this program's, and what was behind them: a number that means something else by now is recognised by that.
static APPLICATION_FDS: Mutex<Vec<ApplicationFd>> = Mutex::new(Vec::new());

#[derive(Debug, Clone, PartialEq, Eq)]
struct ApplicationFd {
    number: RawFd,
    target: FdTarget,
}

/// What is behind a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FdTarget {
    /// Device and inode.
    file: (u64, u64),
    /// What kind of thing it is, if it has no path: `socket:[7]`, `anon_inode:[eventpoll]`; proc(5). Paths are left out,
    /// because a log that is renamed is the same file.
    kind: Option<PathBuf>,
}

impl FdTarget {
    /// Epolls, signalfds, inotifies and others like them share one inode: the kind distinguishes an epoll from a signalfd, and
    /// nothing distinguishes two of a kind. What this program makes of them it takes over at once.
    fn is_same(&self, other: &Self) -> bool {
        let differ = self.kind.as_ref().zip(other.kind.as_ref()).is_some_and(|(one, other)| one != other);
        self.file == other.file && !differ
    }
}

fn lock_application_fds() -> MutexGuard<'static, Vec<ApplicationFd>> {
    APPLICATION_FDS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Remembers what is open now as the application's; to be called before this program opens anything for itself.
///
/// # Errors
/// When the open descriptors cannot be found out.
pub fn record_application_fds() -> io::Result<()> {
    let found = open_fds()?
        .into_iter()
        .filter_map(|number| Some(ApplicationFd { number, target: target_of(number)? }));
    *lock_application_fds() = found.collect();
    Ok(())
}

/// A descriptor that was open already is this program's from now on.
pub(super) fn claim(number: RawFd) {
    lock_application_fds().retain(|one| one.number != number);
}

/// Says that a descriptor was opened by this program, which may have got a number that the application has closed.
///
/// Needed for what has no inode of its own; everything else is known by its inode.
pub(super) fn claim_opened(opened: &impl AsFd) {
    claim(opened.as_fd().as_raw_fd());
}

/// Numbers of the application's descriptors.
pub fn application_fds() -> Vec<RawFd> {
    let known = lock_application_fds();
    let still = |one: &&ApplicationFd| target_of(one.number).is_some_and(|now| now.is_same(&one.target));
    known.iter().filter(still).map(|one| one.number).collect()
}

/// Closes every descriptor of this process but standard ones, the application's, and those in `keep`.
///
/// Only for a child right after the fork: whatever owned a closed descriptor must never be used or dropped.
///
/// # Errors
/// When the open descriptors cannot be found out.
pub fn close_all_but(keep: &[RawFd]) -> io::Result<()> {
    let mut kept = application_fds();
    kept.extend_from_slice(keep);
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO + 1;
    for number in kept.iter().copied().chain([RawFd::MAX]) {
        // The last gap ends with the largest number there is, and no descriptor has that.
        if first < number && !close_range(first, number - 1) {
            return close_one_by_one(&kept);
        }
        first = first.max(number.saturating_add(1));
    }
    Ok(())
}

/// False where the kernel is older than `close_range(2)` (5.9), or a filter refuses it.
fn close_range(first: RawFd, last: RawFd) -> bool {
    // SAFETY: what owned these numbers is never used again in this copy of the process, as the contract above demands.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) == 0 }
}

fn close_one_by_one(kept: &[RawFd]) -> io::Result<()> {
    for number in open_fds()?.into_iter().filter(|number| !kept.contains(number)) {
        // SAFETY: as above. The descriptor of the listing itself is closed already; that fails and does nothing.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Every descriptor beyond the standard ones that is open.
fn open_fds() -> io::Result<Vec<RawFd>> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return probe_open_fds() };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<RawFd>().ok());
    let mut numbers: Vec<_> = numbers.filter(|number| *number > libc::STDERR_FILENO).collect();
    // Less that of the listing, which is closed by now.
    numbers.retain(|number| is_open(*number));
    Ok(numbers)
}

/// The same without `/proc`: every number that there may be is tried.
fn probe_open_fds() -> io::Result<Vec<RawFd>> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let end = RawFd::try_from(soft).unwrap_or(RawFd::MAX).min(1 << 20);
    Ok((libc::STDERR_FILENO + 1..end).filter(|number| is_open(*number)).collect())
}

fn is_open(number: RawFd) -> bool {
    // SAFETY: asks for a flag; a number that is no descriptor is refused.
    unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
}

fn target_of(number: RawFd) -> Option<FdTarget> {
    if !is_open(number) {
        return None;
    }
    // SAFETY: it is open, as just seen, and borrowed for one call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let stat = nix::sys::stat::fstat(borrowed).ok()?;
    let kind = std::fs::read_link(proc_fd_path(&borrowed)).ok().filter(|target| target.is_relative());
    Some(FdTarget { file: (stat.st_dev, stat.st_ino), kind })
}

/// Opens `/dev/null` under each standard number that is closed: the next socket would get it, and whatever is printed
/// would go to its client.
///
/// The runtime does so before `main`; this is for a program that has closed one since.
///
/// # Errors
/// When `/dev/null` cannot be opened.
pub fn open_standard_fds() -> io::Result<()> {
    for number in [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        if is_open(number) {
            continue;
        }
        // SAFETY: the path is a constant that ends with zero.
        let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
        // The lowest free number is this one, because those below it are open.
        Errno::result(opened)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::inotify::{InitFlags, Inotify};
    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::SignalFd;

    use super::*;

    #[test]
    fn what_is_open_is_found_with_and_without_proc() {
        let file = File::open("/dev/null").unwrap();
        for found in [open_fds().unwrap(), probe_open_fds().unwrap()] {
            assert!(found.contains(&file.as_raw_fd()), "{found:?}");
        }
        assert!(!is_open(1_000_000));
    }

    #[test]
    fn a_number_that_names_another_file_by_now_is_not_the_applications() {
        let one = File::open("/dev/null").unwrap();
        let known = target_of(one.as_raw_fd()).unwrap();
        assert!(target_of(one.as_raw_fd()).unwrap().is_same(&known));
        let other = File::open("/dev/zero").unwrap();
        assert!(!target_of(other.as_raw_fd()).unwrap().is_same(&known));
        assert_eq!(target_of(1_000_000), None);
    }

    fn inotify() -> Inotify {
        Inotify::init(InitFlags::IN_CLOEXEC).unwrap()
    }

    #[test]
    fn anonymous_ones_of_two_kinds_differ_and_a_renamed_file_is_the_same() {
        let (one, two) = (inotify(), SignalFd::new(&SigSet::empty()).unwrap());
        let [known, other] = [one.as_fd(), two.as_fd()].map(|opened| target_of(opened.as_raw_fd()).unwrap());
        assert_eq!(known.file, other.file, "they share an inode");
        assert!(known.is_same(&known) && !other.is_same(&known));
        assert!(FdTarget { kind: None, ..other }.is_same(&known), "without /proc it is not known");
        let folder = tempfile::tempdir().unwrap();
        let (log, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let file = File::create(&log).unwrap();
        let known = target_of(file.as_raw_fd()).unwrap();
        std::fs::rename(log, old).unwrap();
        assert!(target_of(file.as_raw_fd()).unwrap().is_same(&known));
    }

    #[test]
    fn what_was_opened_under_a_number_of_the_applications_is_not_its() {
        let one = inotify();
        record_application_fds().unwrap();
        let known = || application_fds().contains(&one.as_fd().as_raw_fd());
        assert!(known(), "another one of its kind is not told apart");
        claim_opened(&one);
        assert!(!known());
    }
}
