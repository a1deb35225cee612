//! The program of this process, under the name by which the next one is looked for.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::config;
use crate::config::ConfigInputs;
use crate::sys::path::FileId;
use crate::sys::{path, process};

/// The program of this process; proc(5).
const EXECUTABLE: &str = "/proc/self/exe";

/// The program a supervisor runs as, and would become again.
#[derive(Debug, Clone)]
pub struct ProgramSpec {
    /// Its file: an absolute path, whatever lies there by now.
    pub path: PathBuf,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// With which words another program is asked whether it could take over.
    pub probe_words: ProbeWords,
}

/// With which words a new program is asked whether it could take over; what asks is a variable of its environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeWords {
    /// `check --handoff FD`, which programs of the release before need beside the variable: the command line is the
    /// library's.
    Check,
    /// Those that this fleet was started with: the command line is the program's own, and need not know any other.
    OwnArguments,
}

/// The program that served before.
#[derive(Debug)]
pub struct PreviousProgram {
    /// Itself, wherever its file is by now.
    pub program: OwnedFd,
    /// How it was started, its own path first.
    pub arguments: Vec<OsString>,
    /// Its environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What its configuration was read from.
    pub inputs: ConfigInputs,
    /// Which build it is.
    pub build: String,
    /// The folder in which it worked.
    pub working_dir: Option<OwnedFd>,
}

impl ProgramSpec {
    /// The program that was started with these arguments, its own name first, in this folder.
    ///
    /// `/proc/self/exe` would name the file that runs; an upgrade wants the one that lies where it was started from, and
    /// by the name it was started by: behind a link that is switched lies another one then.
    pub fn new(arguments: &[OsString], folder: &Path, search: &OsStr, probe_words: ProbeWords) -> Self {
        let name = arguments.first().map_or(Path::new(""), Path::new);
        let is_plain = name.components().count() == 1 && !name.as_os_str().as_encoded_bytes().contains(&b'/');
        let written = match is_plain {
            // A name may be a lie (`exec -a`, a login shell's `-name`): only the program that runs is believed.
            true => find_running(&process::find_all_programs(name.as_os_str(), search), folder),
            false => Some(config::path::absolute(name, folder)).filter(|_| !name.as_os_str().is_empty()),
        };
        let path = written.unwrap_or_else(executable);
        Self { path, arguments: arguments.iter().skip(1).cloned().collect(), probe_words }
    }

    /// Its path as it was written, and the file this process runs if that is elsewhere.
    pub(in crate::supervisor) fn display_path(&self) -> String {
        path::display_path(&self.path, &executable())
    }
}

/// The first of these that is the program of this process.
fn find_running(candidates: &[PathBuf], folder: &Path) -> Option<PathBuf> {
    let own = FileId::from_path(Path::new(EXECUTABLE)).ok()?;
    let mut found = candidates.iter().map(|path| config::path::absolute(path, folder));
    found.find(|path| FileId::from_path(path).is_ok_and(|there| there == own))
}

/// The file that this process runs, or where it was before it was removed.
fn executable() -> PathBuf {
    const DELETED_SUFFIX: &[u8] = b" (deleted)";
    let Ok(path) = std::fs::read_link(EXECUTABLE) else { return PathBuf::from(EXECUTABLE) };
    match path.as_os_str().as_encoded_bytes().strip_suffix(DELETED_SUFFIX) {
        Some(before) if !path.exists() => PathBuf::from(OsStr::from_bytes(before)),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, folder: &Path, search: &str) -> PathBuf {
        let arguments = [OsString::from(name), "--workers".into(), "3".into()];
        let program = ProgramSpec::new(&arguments, folder, OsStr::new(search), ProbeWords::Check);
        assert_eq!(program.arguments, arguments[1..]);
        program.path
    }

    #[test]
    fn a_program_is_where_it_was_started_from() {
        let folder = tempfile::tempdir().unwrap();
        let (bin, other) = (folder.path().join("bin"), folder.path().join("other"));
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir(&other).unwrap();
        std::fs::copy("/bin/true", other.join("regatta")).unwrap();
        std::os::unix::fs::symlink(executable(), bin.join("regatta")).unwrap();
        let (srv, search) = (Path::new("/srv/current"), format!("{}:{}", other.display(), bin.display()));
        assert_eq!(
            found("regatta", srv, &search),
            bin.join("regatta"),
            "another of that name is not what runs"
        );
        assert_eq!(found("./target/regatta", srv, &search), Path::new("/srv/current/target/regatta"));
        assert_eq!(found("/opt/current/regatta", srv, &search), Path::new("/opt/current/regatta"));
        for lie in ["elsewhere", "-regatta", ""] {
            assert_eq!(found(lie, srv, &search), executable(), "{lie}");
        }
    }
}
