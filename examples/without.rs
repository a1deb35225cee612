//! Runs a program on a kernel that lacks something: `without ENOSYS close_range,setsockopt:1:68 PROGRAM WORDS…`.
//!
//! A filter of the kernel's (seccomp(2)) refuses the named system calls with the named error, for the program and all
//! that it starts. `setsockopt:LEVEL:OPTION` and `prctl:OPTION` stand for one option. Its tests have a fleet begin and
//! serve where a kernel is too old, or a container's profile is strict.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().collect();
    let [_, error, calls, program, rest @ ..] = words.as_slice() else {
        return Err("without ERROR CALL[,CALL…] PROGRAM WORDS…".into());
    };
    seccompiler::apply_filter(&filter(error, calls)?)?;
    Err(Command::new(program).args(rest).exec().into())
}

type Failure = Box<dyn std::error::Error>;

fn filter(error: &str, calls: &str) -> Result<BpfProgram, Failure> {
    let number = match error {
        "ENOSYS" => libc::ENOSYS,
        "EPERM" => libc::EPERM,
        "ENOPROTOOPT" => libc::ENOPROTOOPT,
        "EINVAL" => libc::EINVAL,
        other => return Err(format!("{other} is no error this program knows").into()),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in calls.split(',') {
        let mut parts = call.split(':');
        let name = parts.next().unwrap_or_default();
        let values = parts.map(str::parse).collect::<Result<Vec<u64>, _>>()?;
        // The options of setsockopt(2) begin with its second argument, those of prctl(2) with its first.
        let first = u8::from(name == "setsockopt");
        let conditions = (first..)
            .zip(values)
            .map(|(at, value)| SeccompCondition::new(at, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value));
        let conditions = conditions.collect::<Result<Vec<_>, _>>()?;
        let wanted = rules.entry(syscall(name)?).or_default();
        if !conditions.is_empty() {
            wanted.push(SeccompRule::new(conditions)?);
        }
    }
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let refuse = SeccompAction::Errno(u32::try_from(number)?);
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()?)
}

fn syscall(name: &str) -> Result<i64, Failure> {
    Ok(match name {
        "close_range" => libc::SYS_close_range,
        "execveat" => libc::SYS_execveat,
        "getrandom" => libc::SYS_getrandom,
        "memfd_create" => libc::SYS_memfd_create,
        "pidfd_open" => libc::SYS_pidfd_open,
        "prctl" => libc::SYS_prctl,
        "prlimit64" => libc::SYS_prlimit64,
        "pwritev2" => libc::SYS_pwritev2,
        "setpriority" => libc::SYS_setpriority,
        "setsockopt" => libc::SYS_setsockopt,
        "signalfd4" => libc::SYS_signalfd4,
        "splice" => libc::SYS_splice,
        "statx" => libc::SYS_statx,
        "timer_create" => libc::SYS_timer_create,
        other => return Err(format!("{other} is no system call this program knows").into()),
    })
}
