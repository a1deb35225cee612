//! The private Redis of a fleet that was given none: a child like any other, started first, stopped last.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use crate::config;
use crate::sys::path::SOCKET_PATH_MAX;
use crate::sys::process::Pid;
use crate::sys::{fd, path, process};

/// Programs that serve as private Redis, the first found is taken.
pub const REDIS_PROGRAMS: &[&str] = &["redis-server", "valkey-server"];

/// What of the environment it may have, besides the locale.
const INHERITED_VARIABLES: &[&str] = &["PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH"];

/// Longest wait for one answer.
const REPLY_TIMEOUT: Duration = Duration::from_millis(200);

/// Why the private Redis could not be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PrivateRedisError {
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
        source: path::PathError,
    },
    /// Another fleet uses the folder.
    #[error("the data folder {} (data_dir) is in use by another fleet; give this one a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The path is too long for a Unix socket.
    #[error("the data folder {} (data_dir) has too long a path for a Unix socket (at most {SOCKET_PATH_MAX} bytes with /redis.sock)", folder.display())]
    PathTooLong {
        /// The folder.
        folder: PathBuf,
    },
}

/// Everything needed to start it, again and again.
#[derive(Debug)]
pub struct PrivateRedisServer {
    program: PathBuf,
    folder: PathBuf,
    /// Held by this process and by the server itself, so that no second server ever writes the same data.
    lock: File,
}

impl PrivateRedisServer {
    /// Finds the program, makes the folder and locks it; waits up to `patience` for a server of a supervisor that
    /// was killed to finish writing.
    ///
    /// # Errors
    /// See `Error`.
    pub fn prepare(folder: &Path, search: &OsStr, patience: Duration) -> Result<Self, PrivateRedisError> {
        let program = process::find_program(REDIS_PROGRAMS, search).ok_or(PrivateRedisError::NotInstalled)?;
        let failed = |source| PrivateRedisError::Folder { folder: folder.into(), source };
        let folder = path::ensure_private_folder(folder).map_err(failed)?;
        if socket_path(&folder).as_os_str().len() > SOCKET_PATH_MAX {
            return Err(PrivateRedisError::PathTooLong { folder });
        }
        let failed = |source| PrivateRedisError::Folder { folder: folder.clone(), source };
        let file = path::open_private_file(&folder.join("redis.lock")).map_err(failed)?;
        // Both are opened by their names, by a program that follows links.
        for name in ["redis.log", "redis.sock"] {
            path::check_private_entry(&folder.join(name)).map_err(failed)?;
        }
        let lock = wait_for_lock(file, patience).map_err(|error| failed(error.into()))?;
        match lock {
            Some(lock) => Ok(Self { program, folder, lock }),
            None => Err(PrivateRedisError::InUse { folder }),
        }
    }

    /// The same in another program that goes on with it; `lock` holds the folder.
    pub(in crate::supervisor) fn restore(program: PathBuf, folder: PathBuf, lock: File) -> Self {
        Self { program, folder, lock }
    }

    /// Its program.
    pub(in crate::supervisor) fn program(&self) -> &Path {
        &self.program
    }

    /// Its folder.
    pub(in crate::supervisor) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The locked file.
    pub(in crate::supervisor) fn lock(&self) -> &File {
        &self.lock
    }

    /// Its Unix socket.
    pub fn socket_path(&self) -> PathBuf {
        socket_path(&self.folder)
    }

    /// Its log file.
    pub fn log_path(&self) -> PathBuf {
        self.folder.join("redis.log")
    }

    /// Starts it; its data takes at most so many bytes. When they are used up it refuses writes and forgets nothing.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(in crate::supervisor) fn start(&self, memory: Option<u64>) -> io::Result<Pid> {
        let socket = self.socket_path();
        let log = self.log_path();
        let memory = memory.unwrap_or(0).to_string();
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
            "--maxmemory".as_ref(),
            memory.as_ref(),
            "--maxmemory-policy".as_ref(),
            "noeviction".as_ref(),
            "--daemonize".as_ref(),
            "no".as_ref(),
            "--logfile".as_ref(),
            log.as_ref(),
        ];
        let needed = |(name, _): &(OsString, OsString)| {
            INHERITED_VARIABLES.iter().any(|known| name == known)
                || name.as_encoded_bytes().starts_with(b"LC_")
        };
        // The fleet's own has secrets in it, which a program beside it has no need of.
        let environment = config::process_environment().into_iter().filter(needed).collect();
        process::spawn_program(&self.program, arguments, &self.folder, &log, &self.lock, environment)
    }

    /// Whether all files are there from which it would read its data, were it started again. Those of Redis 7 and Valkey
    /// are named in a manifest, and the one before knows one.
    pub(in crate::supervisor) fn has_data_files(&self) -> bool {
        let folder = self.folder.join("appendonlydir");
        let manifest = fs::read_to_string(folder.join("appendonly.aof.manifest"));
        match manifest {
            Ok(text) => manifest_files(&text).all(|name| folder.join(name).is_file()),
            Err(_) => self.folder.join("appendonly.aof").is_file(),
        }
    }

    /// Whether it has read its data and answers; until then it replies LOADING.
    pub(in crate::supervisor) fn is_ready(&self) -> bool {
        let ping = || -> io::Result<bool> {
            let mut stream = UnixStream::connect(self.socket_path())?;
            stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
            stream.write_all(b"PING\r\n")?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer)?;
            Ok(&answer == b"+PONG")
        };
        ping().unwrap_or(false)
    }
}

/// Socket of a private server that keeps its data in this folder.
pub fn socket_path(folder: &Path) -> PathBuf {
    folder.join("redis.sock")
}

/// The files that a manifest names: `file NAME seq 1 type b`, a line each.
fn manifest_files(manifest: &str) -> impl Iterator<Item = &str> {
    manifest.lines().filter_map(|line| line.strip_prefix("file ")?.split(' ').next())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_started_again_only_from_data_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let lock = path::open_private_file(&at("redis.lock")).unwrap();
        let server = PrivateRedisServer::restore("/bin/true".into(), folder.path().into(), lock);
        assert!(!server.has_data_files());
        fs::create_dir(at("appendonlydir")).unwrap();
        let manifest =
            "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n";
        fs::write(at("appendonlydir/appendonly.aof.manifest"), manifest).unwrap();
        fs::write(at("appendonlydir/appendonly.aof.1.incr.aof"), "").unwrap();
        assert!(!server.has_data_files(), "the base is gone");
        fs::write(at("appendonlydir/appendonly.aof.1.base.rdb"), "").unwrap();
        assert!(server.has_data_files());
        fs::remove_dir_all(at("appendonlydir")).unwrap();
        fs::write(at("appendonly.aof"), "").unwrap();
        assert!(server.has_data_files(), "as Redis 6 keeps it");
    }
}
