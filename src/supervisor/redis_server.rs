//! The private Redis of a fleet that was given none: a child like any other, started first, stopped last.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::fs::DirBuilder;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use crate::config;
use crate::sys::fd;
use crate::sys::proc;
use crate::sys::proc::Pid;

/// Programs that serve as private Redis, the first found is taken.
pub const PROGRAMS: &[&str] = &["redis-server", "valkey-server"];

/// Longest path of a Unix socket, without the final zero; unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// What of the environment it may have, besides the locale.
const ENVIRONMENT: &[&str] = &["PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why the private Redis could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No program for it.
    #[error(
        "no Redis is configured and none is installed: run `apt-get install redis-server` (or the like), \
         or name one, for example REDIS_URL=redis://127.0.0.1:6379"
    )]
    NotInstalled,
    /// The folder cannot be used.
    #[error("cannot keep the private Redis's data in {} (data_dir)", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another fleet uses the folder.
    #[error("the data folder {} (data_dir) is in use by another fleet; give this one a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The path is too long for a Unix socket.
    #[error("the data folder {} (data_dir) has too long a path for a Unix socket (at most {SOCKET_PATH_MAX} bytes with /redis.sock)", folder.display())]
    TooLong {
        /// The folder.
        folder: PathBuf,
    },
}

/// Everything needed to start it, again and again.
#[derive(Debug)]
pub struct RedisServer {
    program: PathBuf,
    folder: PathBuf,
    /// Held by this process and by the server itself, so that no second server ever writes the same data.
    lock: File,
}

impl RedisServer {
    /// Finds the program, makes the folder and locks it; waits up to `patience` for a server of a supervisor that
    /// was killed to finish writing.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn prepare(folder: &Path, path: &OsStr, patience: Duration) -> Result<Self, Error> {
        let program = proc::find_program(PROGRAMS, path).ok_or(Error::NotInstalled)?;
        let failed = |source| Error::Folder { folder: folder.into(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let folder = folder.canonicalize().map_err(failed)?;
        if socket(&folder).as_os_str().len() > SOCKET_PATH_MAX {
            return Err(Error::TooLong { folder });
        }
        let failed = |source| Error::Folder { folder: folder.clone(), source };
        let file =
            OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("redis.lock"));
        let lock = file.and_then(|file| wait_for_lock(file, patience)).map_err(failed)?;
        match lock {
            Some(lock) => Ok(Self { program, folder, lock }),
            None => Err(Error::InUse { folder }),
        }
    }

    /// The same in another program that goes on with it; `lock` holds the folder.
    pub(super) fn resume(program: PathBuf, folder: PathBuf, lock: File) -> Self {
        Self { program, folder, lock }
    }

    /// Its program.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Its folder.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The locked file.
    pub(super) fn lock(&self) -> &File {
        &self.lock
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        socket(&self.folder)
    }

    /// Its log file.
    pub fn log(&self) -> PathBuf {
        self.folder.join("redis.log")
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(super) fn start(&self) -> io::Result<Pid> {
        let socket = self.socket();
        let log = self.log();
        let arguments: &[&OsStr] = &[
            "--port".as_ref(),
            "0".as_ref(),
            "--unixsocket".as_ref(),
            socket.as_ref(),
            "--unixsocketperm".as_ref(),
            "700".as_ref(),
            "--dir".as_ref(),
            self.folder.as_ref(),
            "--appendonly".as_ref(),
            "yes".as_ref(),
            "--appendfsync".as_ref(),
            "everysec".as_ref(),
            "--save".as_ref(),
            "".as_ref(),
            "--maxmemory-policy".as_ref(),
            "noeviction".as_ref(),
            "--daemonize".as_ref(),
            "no".as_ref(),
            "--logfile".as_ref(),
            log.as_ref(),
        ];
        let needed = |(name, _): &(OsString, OsString)| {
            ENVIRONMENT.iter().any(|known| name == known) || name.as_encoded_bytes().starts_with(b"LC_")
        };
        // The fleet's own has secrets in it, which a program beside it has no need of.
        let environment = config::environment_of_process().into_iter().filter(needed).collect();
        proc::spawn_program(&self.program, arguments, &self.folder, &log, &self.lock, environment)
    }

    /// Whether it has read its data and answers; until then it says LOADING.
    pub(super) fn answers(&self) -> bool {
        let asked = || -> io::Result<bool> {
            let mut stream = UnixStream::connect(self.socket())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(&answer == b"+PONG")
        };
        asked().unwrap_or(false)
    }
}

/// Socket of a private server that keeps its data in this folder.
pub fn socket(folder: &Path) -> PathBuf {
    folder.join("redis.sock")
}

fn wait_for_lock(file: File, patience: Duration) -> io::Result<Option<File>> {
    const STEP: Duration = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while !fd::try_lock(&file)? {
        if waited >= patience {
            return Ok(None);
        }
        std::thread::sleep(STEP);
        waited += STEP;
    }
    Ok(Some(file))
}
