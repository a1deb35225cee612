//! Programs under callgrind, and the files it writes.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::Outcome;
use crate::profile::Profile;

/// Has this program, and so all that it starts, run on one processor.
///
/// Together with `SCHED_BATCH`, which lets nothing that wakes up interrupt what runs, each process goes on until it
/// waits. Otherwise it depended on two processors' speed how often a worker looks for an answer of Redis in vain.
pub(crate) fn on_one_processor() -> Outcome<()> {
    let here = sched_getaffinity(Pid::from_raw(0))?;
    let first = (0..CpuSet::count()).find(|number| here.is_set(*number).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(first.ok_or("no processor")?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &one)?)
}

/// The beginning of a command that counts a program and what it forks; entering such a function writes a file.
pub(crate) fn callgrind(pattern: &str, mark: &str) -> Command {
    let mut command = Command::new("chrt");
    command.args(["--batch", "0", "valgrind", "--quiet", "--tool=callgrind", "--vgdb=no"]);
    command.arg(format!("--callgrind-out-file={pattern}"));
    command.arg(format!("--dump-before={mark}"));
    command
}

/// Files of one program and its processes.
#[derive(Debug)]
pub(crate) struct Dumps {
    prefix: PathBuf,
}

impl Dumps {
    pub(crate) fn new(prefix: PathBuf) -> Self {
        Self { prefix }
    }

    /// What `--callgrind-out-file` is given.
    pub(crate) fn pattern(&self) -> String {
        format!("{}.%p", self.prefix.display())
    }

    /// All that a process wrote since the last time, added up; the files are gone then.
    pub(crate) fn take(&self, pid: u32) -> Outcome<Profile> {
        let mut profile = None::<Profile>;
        let name = self.prefix.file_name().ok_or("a prefix without a name")?.to_string_lossy().into_owned();
        let folder = self.prefix.parent().ok_or("a prefix without a folder")?;
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if file.starts_with(&format!("{name}.{pid}.")) {
                profile.get_or_insert_default().add(&Profile::read(&fs::read_to_string(&path)?));
                fs::remove_file(&path)?;
            }
        }
        profile
            .ok_or_else(|| format!("valgrind wrote nothing for process {pid}: its mark was not met").into())
    }
}
