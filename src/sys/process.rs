//! Processes: which ended and how, ties to the supervisor, memory, programs of others.

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag};
use nix::sys::signal::Signal;
pub use nix::unistd::Pid;

use crate::sys::{fork, signal};

/// A process in data that travels: its bare number.
pub mod pid_serde {
    use nix::unistd::Pid;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    /// Writes the number.
    ///
    /// # Errors
    /// When the format refuses it.
    pub fn serialize<S: Serializer>(pid: &Pid, serializer: S) -> Result<S::Ok, S::Error> {
        pid.as_raw().serialize(serializer)
    }

    /// Reads it.
    ///
    /// # Errors
    /// When it is no number.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pid, D::Error> {
        i32::deserialize(deserializer).map(Pid::from_raw)
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// A signal ended it.
    Signal(Signal),
    /// A real-time signal, which has only a number, ended it.
    RealtimeSignal(i32),
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(Signal::SIGKILL) => f.write_str("SIGKILL (killed, perhaps for want of memory)"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::RealtimeSignal(number) => write!(f, "signal {number}"),
        }
    }
}

/// The next child that has ended, if any; adopted orphans are among them. Until it is [`reap`]ed its number,
/// and that of a process group it led, belong to no other process; waitid(2).
///
/// # Errors
/// When waiting fails for another reason than that there is no child.
pub fn next_exited() -> io::Result<Option<Pid>> {
    const FLAGS: i32 = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    loop {
        // SAFETY: a struct of integers and pointers, for which all zero is a value.
        let mut found: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes into the struct.
        let result = Errno::result(unsafe { libc::waitid(libc::P_ALL, 0, &raw mut found, FLAGS) });
        match result {
            // SAFETY: after a successful waitid the field is set; zero says that none has ended.
            Ok(_) => return Ok(Some(unsafe { found.si_pid() }).filter(|pid| *pid > 0).map(Pid::from_raw)),
            Err(Errno::ECHILD) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// Takes a child that has ended; none when it has not.
///
/// # Errors
/// When there is no such child.
pub fn reap(child: Pid) -> io::Result<Option<ExitStatus>> {
    loop {
        let mut status = 0;
        // SAFETY: the kernel writes into a variable of this function.
        let result = unsafe { libc::waitpid(child.as_raw(), &raw mut status, libc::WNOHANG) };
        match Errno::result(result) {
            Ok(0) => return Ok(None),
            Ok(_) if libc::WIFEXITED(status) => return Ok(Some(ExitStatus::Code(libc::WEXITSTATUS(status)))),
            Ok(_) if libc::WIFSIGNALED(status) => {
                return Ok(Some(ExitStatus::from_signal(libc::WTERMSIG(status))));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
}

/// Takes the next child that has ended, if any.
///
/// # Errors
/// See `ended`.
pub fn reap_next() -> io::Result<Option<(Pid, ExitStatus)>> {
    let Some(pid) = next_exited()? else { return Ok(None) };
    Ok(reap(pid)?.map(|exit| (pid, exit)))
}

impl ExitStatus {
    fn from_signal(number: i32) -> Self {
        Signal::try_from(number).map_or(Self::RealtimeSignal(number), Self::Signal)
    }
}

/// This process.
pub fn pid() -> Pid {
    nix::unistd::getpid()
}

/// Gives this process the name that `ps` shows, as far as 15 bytes go; `PR_SET_NAME`, prctl(2).
///
/// A program that was started by its descriptor is else named after that on older kernels.
pub fn set_process_name(program: &Path) {
    let name = program.file_name().and_then(|name| std::ffi::CString::new(name.as_encoded_bytes()).ok());
    if let Some(name) = name {
        // A wrong name does no harm.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// Has the kernel send `signal` to this process when the one that forked it ends; `PR_SET_PDEATHSIG`, prctl(2).
///
/// Where the kernel has no such signal the process goes on without: a worker learns of it by its lifeline as well.
///
/// # Errors
/// When the supervisor is gone already, so that the signal would never come.
pub fn set_parent_death_signal(supervisor: Pid, signal: Signal) -> io::Result<()> {
    let _ = nix::sys::prctl::set_pdeathsig(signal);
    if nix::unistd::getppid() == supervisor {
        Ok(())
    } else {
        Err(io::Error::other("the supervisor is gone"))
    }
}

/// Makes orphaned grandchildren children of this process, so that it can reap them; prctl(2).
///
/// # Errors
/// When the kernel is too old.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true)?;
    fork::set_subreaper();
    Ok(())
}

/// Memory this process holds that no file backs, bytes; `/proc/self/statm`, proc(5).
///
/// Pages that it still shares with its supervisor count too. What is private to the last page is found by a walk through
/// all of them, 10 ms for each GiB, and no event loop can spare that.
pub fn anonymous_memory() -> Option<u64> {
    statm("self").map(|(resident, shared)| resident.saturating_sub(shared))
}

/// Memory no other process shares with this one, bytes; `/proc/PID/smaps_rollup`, proc(5). Where its map is hidden, what
/// it holds that no file backs.
pub fn private_memory_of(pid: Pid) -> Option<u64> {
    let pid = pid.to_string();
    smaps(&pid).or_else(|| {
        let (resident, shared) = statm(&pid)?;
        Some(resident.saturating_sub(shared))
    })
}

/// Has the kernel, when memory runs out, end this process before the one that forked it; `/proc/self/oom_score_adj`.
///
/// Without it a large worker and the supervisor of a small one are equals, and the end of the supervisor ends them all.
pub fn raise_oom_score() {
    const FILE: &str = "/proc/self/oom_score_adj";
    const MORE: i32 = 100;
    const MOST: i32 = 1000;
    let own = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    // A container may not allow it, and then nothing is worse than before.
    let _ = own.map(|own| std::fs::write(FILE, (own + MORE).min(MOST).to_string()));
}

/// All memory of another process that is in use, bytes: never less than its private one, and found without a walk
/// through its pages.
pub fn resident_memory_of(pid: Pid) -> Option<u64> {
    statm(&pid.to_string()).map(|(resident, _)| resident)
}

/// Memory in use, and the part of it that files back or that was made to be shared.
fn statm(pid: &str) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = text.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some((resident * page_size(), shared * page_size()))
}

fn smaps(pid: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
    };
    Some((kib("Private_Clean:")? + kib("Private_Dirty:")?) * 1024)
}

fn page_size() -> u64 {
    // SAFETY: asks for a constant of the system.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// The host's name.
pub fn hostname() -> String {
    nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| "localhost".into())
}

/// The first of `names` that is a program on `path` (as in the environment's PATH).
pub fn find_program(names: &[&str], path: &OsStr) -> Option<PathBuf> {
    names.iter().find_map(|name| find_all_programs(OsStr::new(name), path).into_iter().next())
}

/// Every program of this name on `path`, in order.
pub fn find_all_programs(name: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    let runs =
        |file: &PathBuf| file.is_file() && nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok();
    std::env::split_paths(path).map(|folder| folder.join(name)).filter(runs).collect()
}

/// Starts another program that ends when this process does: it is sent SIGTERM, whatever way this one goes.
///
/// It inherits `kept`, a descriptor it knows nothing of, so that a lock is held as long as it runs. What it complains
/// goes to the end of the file `complaints`, or nowhere if that cannot be opened: the standard error of this process
/// may have a reader that stands still, and the program would with it. `environment` is all that it gets of that.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_program(
    program: &Path,
    arguments: &[&OsStr],
    folder: &Path,
    stderr_path: &Path,
    kept: &impl AsFd,
    environment: Vec<(OsString, OsString)>,
) -> io::Result<Pid> {
    let kept = kept.as_fd().as_raw_fd();
    let supervisor = pid();
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command.env_clear().envs(environment);
    let stderr_file = OpenOptions::new().append(true).create(true).open(stderr_path);
    command.stderr(stderr_file.map_or_else(|_| Stdio::null(), Stdio::from));
    // A process group of its own: Ctrl-C on the terminal must not stop it before the workers that need it.
    command.process_group(0);
    let prepare = move || {
        // SAFETY: the descriptor is open in this copy of the process until exec, because its owner is never dropped.
        let kept = unsafe { BorrowedFd::borrow_raw(kept) };
        nix::fcntl::fcntl(kept, FcntlArg::F_SETFD(FdFlag::empty()))?;
        signal::reset_for_exec()?;
        set_parent_death_signal(supervisor, Signal::SIGTERM)
    };
    // SAFETY: between fork and exec it makes a few system calls and allocates nothing on success.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
}

/// The service manager's socket is for this process alone: one that it starts and that knows the socket too could report
/// in its name.
fn clear_manager_variables(command: &mut Command) {
    const MANAGER_VARIABLES: &[&str] =
        &["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
    for name in MANAGER_VARIABLES {
        command.env_remove(name);
    }
}

/// The companion of this process; 0: none.
static COMPANION: AtomicI32 = AtomicI32::new(0);

/// The process that [`spawn_companion`] has started, or that another program has left to this one.
pub fn companion() -> Option<Pid> {
    Some(COMPANION.load(Ordering::Relaxed)).filter(|pid| *pid > 0).map(Pid::from_raw)
}

/// Sets the companion, or forgets it once it has ended: its number may become another process's.
pub fn set_companion(pid: Option<Pid>) {
    COMPANION.store(pid.map_or(0, Pid::as_raw), Ordering::Relaxed);
}

/// Starts the program of this process once more with these words, as the companion of this process: it ends when this
/// process does.
///
/// It has a process group of its own: a signal that a terminal or a shell sends to the group of this process is for this
/// process to follow.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_companion(name: &OsStr, arguments: impl IntoIterator<Item = OsString>) -> io::Result<()> {
    let starter = pid();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(name).args(arguments).stdin(Stdio::null()).process_group(0);
    clear_manager_variables(&mut command);
    let prepare = move || {
        signal::reset_for_exec()?;
        set_parent_death_signal(starter, Signal::SIGTERM)
    };
    // SAFETY: between fork and exec it makes a few system calls and allocates nothing on success.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    set_companion(i32::try_from(child.id()).ok().map(Pid::from_raw));
    Ok(())
}

/// Starts a command of an operator's by the shell (`sh -c`), in a process group of its own.
///
/// It takes every signal, whatever this process has blocked, and ends when this process does.
///
/// # Errors
/// When there is no shell.
pub fn spawn_shell(text: &str) -> io::Result<Child> {
    let starter = pid();
    let mut command = Command::new("sh");
    command.args(["-c", text]).stdin(Stdio::null()).process_group(0);
    clear_manager_variables(&mut command);
    let prepare = move || {
        signal::reset_for_exec()?;
        set_parent_death_signal(starter, Signal::SIGTERM)
    };
    // SAFETY: between fork and exec it makes a few system calls and allocates nothing on success.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
