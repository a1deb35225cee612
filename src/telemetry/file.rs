//! The log in a file that can be opened again: what a rotation by renaming needs.
//!
//! Every process of the fleet has a descriptor of its own, or one it inherited, and each line is one write at the
//! file's end (`O_APPEND`), so that lines of several processes neither mix nor overwrite each other. Who has renamed
//! the file says so to each process; until then they write to the renamed one, and no line is lost.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tracing_subscriber::fmt::MakeWriter;

/// A file at a path, which stays the same while the file behind it changes.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// The lock is held for an instruction or two, and never across a fork: a supervisor has one thread.
    file: Mutex<Arc<File>>,
}

impl LogFile {
    /// Opens the file, and makes it if need be.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Mutex::new(Arc::new(append(path)?)) })
    }

    /// Opens what the path names now; the old file stays in use when that fails.
    pub(super) fn reopen(&self) -> io::Result<()> {
        let fresh = Arc::new(append(&self.path)?);
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's descriptor now.
    pub(super) fn descriptor(&self) -> RawFd {
        self.current().as_raw_fd()
    }

    fn current(&self) -> Arc<File> {
        Arc::clone(&self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Finds out whether [`LogFile::open`] would succeed, without making a file.
pub(super) fn check(path: &Path) -> io::Result<()> {
    if path.exists() {
        return OpenOptions::new().append(true).open(path).map(drop);
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match folder.metadata()?.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Writes one event's line.
#[derive(Debug)]
pub(super) struct Writer(Arc<File>);

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (&*self.0).write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for &'static LogFile {
    type Writer = Writer;

    fn make_writer(&'a self) -> Self::Writer {
        Writer(self.current())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).unwrap().lines().count()
    }

    #[test]
    fn a_renamed_file_is_written_to_until_the_path_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("log"), folder.path().join("log.1"));
        let log: &'static LogFile = Box::leak(Box::new(LogFile::open(&path).unwrap()));
        log.make_writer().write_all(b"one\n").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.make_writer().write_all(b"two\n").unwrap();
        assert!(!path.exists());
        log.reopen().unwrap();
        log.make_writer().write_all(b"three\n").unwrap();
        assert_eq!((lines(&old), lines(&path)), (2, 1));
    }

    #[test]
    fn a_path_that_cannot_be_opened_leaves_the_old_file_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        std::fs::create_dir(&below).unwrap();
        let log: &'static LogFile = Box::leak(Box::new(LogFile::open(&below.join("log")).unwrap()));
        let moved = folder.path().join("moved");
        std::fs::rename(&below, &moved).unwrap();
        assert!(log.reopen().is_err());
        log.make_writer().write_all(b"still here\n").unwrap();
        assert_eq!(lines(&moved.join("log")), 1);
    }

    #[test]
    fn a_check_makes_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        check(&path).unwrap();
        assert!(!path.exists());
        assert!(check(&folder.path().join("missing/log")).is_err());
        assert!(check(folder.path()).is_err(), "a folder is no file");
    }
}
