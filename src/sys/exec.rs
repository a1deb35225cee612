//! Becoming another program in place: what survives an exec, and the exec itself.
//!
//! Everything this process opens is closed on exec. What a successor is to have goes through [`set_inheritable`] right
//! before `exec`, and through [`adopt_fd`] by number after it.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::fcntl::{AtFlags, FcntlArg, FdFlag, OFlag, SealFlag, fcntl};
use nix::sys::memfd::MFdFlags;
use nix::sys::signal::Signal;

use crate::sys::executable::ExecutableFormat;
use crate::sys::process::Pid;
use crate::sys::{application_fds, executable, fd, named, path, process, signal};

/// Largest memfd that is read back, bytes.
const MEMFD_MAX: u64 = 64 << 20;

/// Bytes in memory to be handed to another program, sealed against changes where the kernel has seals;
/// `memfd_create(2)`.
///
/// # Errors
/// When the kernel refuses the memory.
pub fn sealed_memfd(name: &CStr, bytes: &[u8]) -> io::Result<OwnedFd> {
    let create = |flags| nix::sys::memfd::memfd_create(name, MFdFlags::MFD_CLOEXEC | flags);
    let memory = create(MFdFlags::MFD_ALLOW_SEALING).or_else(|_| create(MFdFlags::empty()));
    let mut file = File::from(memory.map_err(named("memfd_create"))?);
    file.write_all(bytes)?;
    let seals =
        SealFlag::F_SEAL_SEAL | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE;
    // Seals catch mistakes of readers; where the kernel has none, nothing else depends on them.
    let _ = fcntl(&file, FcntlArg::F_ADD_SEALS(seals));
    Ok(file.into())
}

/// All of a memfd's bytes, wherever its position is.
///
/// # Errors
/// When it cannot be read, or is larger than any state of a fleet.
pub fn read_memfd(blob: &impl AsFd) -> io::Result<Vec<u8>> {
    let file = File::from(blob.as_fd().try_clone_to_owned()?);
    let len = file.metadata()?.len();
    if len > MEMFD_MAX {
        return Err(io::Error::other(format!("it has {len} bytes, more than {MEMFD_MAX}")));
    }
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// Has a descriptor survive the next exec, or not.
///
/// # Errors
/// When there is no such descriptor.
pub fn set_inheritable(fd: RawFd, kept: bool) -> io::Result<()> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: it is only looked at and marked, and a number that is no descriptor is refused by the kernel.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl(fd, FcntlArg::F_SETFD(if kept { FdFlag::empty() } else { FdFlag::FD_CLOEXEC }))?;
    Ok(())
}

/// Takes a descriptor that was kept open for this program; from now on it is closed on exec again.
///
/// # Errors
/// When it was not handed over, or has been taken already: whatever this process opens itself is closed on exec, and
/// which distinguishes the two.
pub fn adopt_fd(fd: RawFd) -> io::Result<OwnedFd> {
    inherited_fd(fd)?;
    set_inheritable(fd, false)?;
    application_fds::claim(fd);
    // SAFETY: it came through the exec, so nothing in this program owns it, and the mark just set lets nothing take it
    // a second time.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of a descriptor that was kept open for this program; the original stays where it is, so that the program
/// can still be taken back.
///
/// # Errors
/// When it was not handed over, or no descriptor is left.
pub fn duplicate_inherited(fd: RawFd) -> io::Result<OwnedFd> {
    inherited_fd(fd)?.try_clone_to_owned()
}

/// Whether a descriptor came through the exec.
fn inherited_fd<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    let missing = || io::Error::other(format!("descriptor {fd} was not handed over"));
    if fd <= libc::STDERR_FILENO {
        return Err(missing());
    }
    // SAFETY: a number that is no descriptor is refused by the kernel in the next line; one that came through the exec
    // is closed by nothing before `adopt_fd` takes it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let flags = fcntl(borrowed, FcntlArg::F_GETFD).map_err(|_| missing())?;
    match FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC) {
        true => Err(missing()),
        false => Ok(borrowed),
    }
}

/// A program's file, opened once: the file that passed preflight is the file that is run, even if another one lies at its
/// path by then.
///
/// A script is run by its path all the same: the kernel hands its interpreter a name, and scripts look beside themselves
/// by theirs. That it is still the same file is looked at right before.
#[derive(Debug)]
pub struct Executable {
    path: PathBuf,
    file: OwnedFd,
    format: ExecutableFormat,
    identity: executable::FileIdentity,
}

impl Executable {
    /// Opens it, and finds out that the kernel would at least begin to run it.
    ///
    /// # Errors
    /// See `executable::Error`.
    pub fn open(path: &Path) -> Result<Self, executable::ExecutableError> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty());
        let file = file.map_err(|refused| executable::ExecutableError::Unreadable(refused.into()))?;
        let form = executable::check_executable(&path::proc_fd_path(&file))?;
        let content = executable::file_identity(&path::proc_fd_path(&file))
            .map_err(executable::ExecutableError::Unreadable)?;
        Ok(Self { path: path.into(), file, format: form, identity: content })
    }

    /// Its path, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file holds what it held when it was opened; of a script, the one that lies at its path.
    ///
    /// # Errors
    /// When it does not.
    pub fn check_unchanged(&self) -> io::Result<()> {
        match executable::file_identity(&self.exec_path()) {
            Ok(content) if content == self.identity => Ok(()),
            Ok(_) | Err(_) => Err(io::Error::other("it was changed while it was asked")),
        }
    }

    /// Under which name the kernel finds it.
    fn exec_path(&self) -> PathBuf {
        match self.format {
            ExecutableFormat::Script => self.path.clone(),
            ExecutableFormat::Program => path::proc_fd_path(&self.file),
        }
    }

    /// Becomes it, under its path as a name; returns only if that fails. Blocked signals stay blocked and wait.
    pub fn exec(&self, arguments: &[OsString], environment: &[(OsString, OsString)]) -> io::Error {
        match (self.check_unchanged(), self.format) {
            (Err(changed), _) => changed,
            (Ok(()), ExecutableFormat::Script) => exec(&self.path, arguments, environment),
            (Ok(()), ExecutableFormat::Program) => exec_fd(&self.file, arguments, environment),
        }
    }
}

/// The program this process runs, even where its file has been replaced or removed since.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn open_self() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open("/proc/self/exe", flags, nix::sys::stat::Mode::empty())?)
}

/// Becomes the program at `path`; returns only if that fails.
fn exec(path: &Path, arguments: &[OsString], environment: &[(OsString, OsString)]) -> io::Error {
    let run = || -> io::Result<std::convert::Infallible> {
        let path = c_string(path.as_os_str())?;
        Ok(nix::unistd::execve(&path, &c_strings(arguments)?, &environment_strings(environment)?)?)
    };
    match run() {
        Ok(never) => match never {},
        Err(refused) => refused,
    }
}

/// Becomes the program behind a descriptor; returns only if that fails. execveat(2)
pub fn exec_fd(
    program: &impl AsFd,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
) -> io::Error {
    let run = || -> io::Result<std::convert::Infallible> {
        let (arguments, environment) = (c_strings(arguments)?, environment_strings(environment)?);
        let flags = AtFlags::AT_EMPTY_PATH;
        match nix::unistd::execveat(program.as_fd(), c"", &arguments, &environment, flags) {
            // A kernel or a filter without execveat(2).
            Err(nix::Error::ENOSYS | nix::Error::EPERM) => {
                let path = c_string(path::proc_fd_path(program).as_os_str())?;
                Ok(nix::unistd::execve(&path, &arguments, &environment)?)
            }
            other => Ok(other?),
        }
    };
    match run() {
        Ok(never) => match never {},
        Err(refused) => refused,
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(io::Error::other)
}

fn c_strings(texts: &[OsString]) -> io::Result<Vec<CString>> {
    texts.iter().map(|text| c_string(text)).collect()
}

fn environment_strings(environment: &[(OsString, OsString)]) -> io::Result<Vec<CString>> {
    let join = |(name, value): &(OsString, OsString)| {
        let mut pair = name.clone();
        pair.push("=");
        pair.push(value);
        c_string(&pair)
    };
    environment.iter().map(join).collect()
}

/// A program that runs beside this one to answer a question.
#[derive(Debug)]
pub struct ProbeProcess {
    /// Its process, to be reaped like any other child.
    pub pid: Pid,
    /// What it prints; never blocks.
    pub stdout: File,
    /// What it complains; never blocks.
    pub stderr: File,
}

/// Starts `program` in a folder with one descriptor of this process under its own number; it dies with this process.
///
/// # Errors
/// When it cannot be started.
pub fn spawn_probe(
    program: &Executable,
    arguments: &[OsString],
    environment: &[(OsString, OsString)],
    folder: Option<&Path>,
    handed: &impl AsFd,
) -> io::Result<ProbeProcess> {
    let handed = handed.as_fd().as_raw_fd();
    let supervisor = process::pid();
    let (answer, stdout) = fd::pipe()?;
    let (complaint, stderr) = fd::pipe()?;
    let mut command = Command::new(program.exec_path());
    command.arg0(program.path());
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    command.args(arguments).env_clear().envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(blocking(stdout)?).stderr(blocking(stderr)?).process_group(0);
    let prepare = move || {
        set_inheritable(handed, true)?;
        signal::reset_for_exec()?;
        process::set_parent_death_signal(supervisor, Signal::SIGKILL)
    };
    // SAFETY: between fork and exec it makes a few system calls and allocates nothing on success.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    let pid = i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)?;
    Ok(ProbeProcess { pid, stdout: answer.into(), stderr: complaint.into() })
}

/// The end that another program writes to may block: few expect anything else of their standard output.
fn blocking(end: OwnedFd) -> io::Result<Stdio> {
    fcntl(&end, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_reads_back_and_cannot_be_changed() {
        let blob = sealed_memfd(c"test", b"state of a fleet").unwrap();
        assert_eq!(read_memfd(&blob).unwrap(), b"state of a fleet");
        assert_eq!(read_memfd(&blob).unwrap(), b"state of a fleet", "its position does not matter");
        let file = File::from(blob);
        assert!(file.write_at(b"x", 0).is_err() && file.set_len(1).is_err());
    }

    #[test]
    fn only_what_was_handed_over_can_be_taken_and_only_once() {
        let (read, _write) = fd::pipe().unwrap();
        let number = nix::unistd::dup(&read).map(|copy| {
            // A plain dup is not closed on exec, like a descriptor that has come through one.
            std::os::fd::IntoRawFd::into_raw_fd(copy)
        });
        let number = number.unwrap();
        assert!(adopt_fd(read.as_raw_fd()).is_err(), "this process opened it itself");
        assert_ne!(duplicate_inherited(number).unwrap().as_raw_fd(), number);
        let taken = adopt_fd(number).unwrap();
        assert_eq!(taken.as_raw_fd(), number);
        assert!(adopt_fd(number).is_err(), "it is taken");
        assert!(adopt_fd(-1).is_err() && adopt_fd(2).is_err() && adopt_fd(9999).is_err());
    }

    #[test]
    fn a_probe_gets_the_descriptor_and_its_own_environment() {
        let blob = sealed_memfd(c"test", b"handed").unwrap();
        let script = format!("cat <&{}; echo $NAME $0 $(pwd) >&2", blob.as_raw_fd());
        let arguments = [OsString::from("-c"), script.into()];
        let environment = [(OsString::from("NAME"), OsString::from("value")), ("PATH".into(), "/bin".into())];
        // The blob's position stands at its end; the child shares it.
        nix::unistd::lseek(&blob, 0, nix::unistd::Whence::SeekSet).unwrap();
        let shell = Executable::open(Path::new("/bin/sh")).unwrap();
        let started = spawn_probe(&shell, &arguments, &environment, Some(Path::new("/")), &blob).unwrap();
        nix::sys::wait::waitpid(started.pid, None).unwrap();
        assert_eq!(io::read_to_string(started.stdout).unwrap(), "handed");
        assert_eq!(io::read_to_string(started.stderr).unwrap(), "value /bin/sh /\n");
    }

    #[test]
    fn what_was_opened_is_run_whatever_lies_there_by_then() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (program, other) = (at("program"), at("other"));
        std::fs::copy("/bin/sh", &program).unwrap();
        std::fs::hard_link(&program, at("kept")).unwrap();
        let opened = Executable::open(&program).unwrap();
        std::fs::copy("/bin/false", &other).unwrap();
        std::fs::rename(&other, &program).unwrap();
        let blob = sealed_memfd(c"test", b"").unwrap();
        let arguments = [OsString::from("-c"), "echo $0".into()];
        let started = spawn_probe(&opened, &arguments, &[], None, &blob).unwrap();
        nix::sys::wait::waitpid(started.pid, None).unwrap();
        assert_eq!(io::read_to_string(started.stdout).unwrap(), format!("{}\n", program.display()));
        opened.check_unchanged().unwrap();
        // The very file changes its content: that was not proven.
        File::options().append(true).open(at("kept")).unwrap().write_all(b"x").unwrap();
        assert!(opened.check_unchanged().is_err());
        let refused = opened.exec(&[OsString::from("x")], &[]);
        assert!(refused.to_string().contains("changed"), "{refused}");
        let script = |text: &str| {
            std::fs::write(at("next"), text).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            std::fs::set_permissions(at("next"), mode).unwrap();
            std::fs::rename(at("next"), at("script")).unwrap();
        };
        script("#!/bin/sh\nexit 0\n");
        let opened = Executable::open(&at("script")).unwrap();
        opened.check_unchanged().unwrap();
        script("#!/bin/sh\nexit 1\n");
        assert!(opened.check_unchanged().is_err(), "a script is found by its path");
    }
}
