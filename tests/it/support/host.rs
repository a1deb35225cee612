//! A control socket with a script behind it instead of a supervisor.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use regatta::__internals::control;
use regatta::__internals::control::protocol::Request;
use regatta::__internals::control::server::ClientId;
use regatta::__internals::control::server::Server;
use regatta::__internals::sys::fd;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::wait;

/// What is done with a request; false ends the service.
pub(crate) type Script = dyn FnMut(&mut Server, ClientId, Request) -> bool + Send;

/// A served control socket in a folder of its own.
#[derive(Debug)]
pub(crate) struct Host {
    folder: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Host {
    /// Serves with this script until it is dropped.
    pub(crate) fn start(script: impl FnMut(&mut Server, ClientId, Request) -> bool + Send + 'static) -> Self {
        let folder = TempDir::with_prefix("host").unwrap();
        let server = Server::open(&control::socket(folder.path())).unwrap();
        Self::serve(folder, server, Box::new(script))
    }

    fn serve(folder: TempDir, server: Server, script: Box<Script>) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = thread::spawn({
            let (stop, asked) = (Arc::clone(&stop), Arc::clone(&asked));
            move || run(server, &stop, &asked, script)
        });
        Self { folder, stop, thread: Some(thread), asked }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        control::socket(self.folder.path())
    }

    /// Every request so far.
    pub(crate) fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// A client of its socket.
    pub(crate) fn knock(&self) -> Raw {
        Raw::new(UnixStream::connect(self.socket()).unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "the script panicked");
    }
}

fn run(mut server: Server, stop: &AtomicBool, asked: &Mutex<Vec<Request>>, mut script: Box<Script>) {
    while !stop.load(Ordering::Relaxed) {
        drop(fd::wait(&server.watched(), Some(Duration::from_millis(20))).unwrap());
        for (client, request) in server.poll() {
            asked.lock().unwrap().push(request.clone());
            if !script(&mut server, client, request) {
                return server.finish(Duration::from_secs(5));
            }
        }
    }
}

/// A client that says what it likes.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Raw {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(wait::LONG)).unwrap();
        stream.set_write_timeout(Some(wait::LONG)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    /// Sends these bytes; that the other end has closed meanwhile is told by what is heard next.
    pub(crate) fn say(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.stream.write_all(bytes.as_ref()));
    }

    /// The next reply; none when the other end has closed.
    pub(crate) fn hear(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no reply: {error}"),
        }
    }

    /// The sentence of the verdict that must come next.
    #[track_caller]
    pub(crate) fn sentence(&mut self) -> String {
        let reply = self.hear().expect("a verdict, not the end");
        reply["verdict"]["sentence"].as_str().unwrap_or_else(|| panic!("no verdict: {reply}")).to_owned()
    }

    /// Whether it is answered as a status is.
    pub(crate) fn has_status(&mut self) -> bool {
        self.say("{\"version\":1,\"verb\":\"status\"}\n");
        self.hear().is_some_and(|reply| reply["status"].is_object())
    }
}
