//! A control socket with a script behind it instead of a supervisor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use regatta::__internals::control;
use regatta::__internals::control::protocol::ControlRequest;
use regatta::__internals::control::server::{ClientId, ControlServer};
use regatta::__internals::sys::fd;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::wait;

/// What is done with a request; false ends the service.
pub(crate) type SupervisorScript = dyn FnMut(&mut ControlServer, ClientId, ControlRequest) -> bool + Send;

/// A served control socket in a folder of its own.
#[derive(Debug)]
pub(crate) struct ScriptedSupervisor {
    folder: TempDir,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    requests: Arc<Mutex<Vec<ControlRequest>>>,
}

impl ScriptedSupervisor {
    /// Serves with this script until it is dropped.
    pub(crate) fn start(
        script: impl FnMut(&mut ControlServer, ClientId, ControlRequest) -> bool + Send + 'static,
    ) -> Self {
        let folder = TempDir::with_prefix("host").unwrap();
        let server = ControlServer::open(&control::socket_path(folder.path())).unwrap();
        Self::serve(folder, server, Box::new(script))
    }

    fn serve(folder: TempDir, server: ControlServer, script: Box<SupervisorScript>) -> Self {
        let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let thread = thread::spawn({
            let (stop, requests) = (Arc::clone(&stop), Arc::clone(&requests));
            move || run(server, &stop, &requests, script)
        });
        Self { folder, stop, thread: Some(thread), requests }
    }

    pub(crate) fn run_dir(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        control::socket_path(self.folder.path())
    }

    /// Every request so far.
    pub(crate) fn requests(&self) -> Vec<ControlRequest> {
        self.requests.lock().unwrap().clone()
    }

    /// A client of its socket.
    pub(crate) fn connect(&self) -> RawControlClient {
        RawControlClient::new(UnixStream::connect(self.socket()).unwrap())
    }
}

impl Drop for ScriptedSupervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || thread::panicking(), "the script panicked");
    }
}

fn run(
    mut server: ControlServer,
    stop: &AtomicBool,
    requests: &Mutex<Vec<ControlRequest>>,
    mut script: Box<SupervisorScript>,
) {
    while !stop.load(Ordering::Relaxed) {
        drop(fd::poll(&server.poll_fds(), Some(Duration::from_millis(20))).unwrap());
        for (client, request) in server.poll() {
            requests.lock().unwrap().push(request.clone());
            if !script(&mut server, client, request) {
                return server.finish(Duration::from_secs(5));
            }
        }
    }
}

/// A client that says what it likes.
#[derive(Debug)]
pub(crate) struct RawControlClient {
    pub(crate) stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl RawControlClient {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(wait::LONG)).unwrap();
        stream.set_write_timeout(Some(wait::LONG)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    /// Sends these bytes; that the other end has closed meanwhile is told by what is heard next.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        drop(self.stream.write_all(bytes.as_ref()));
    }

    /// The next reply; none when the other end has closed.
    pub(crate) fn receive(&mut self) -> Option<Value> {
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
    pub(crate) fn result_message(&mut self) -> String {
        let reply = self.receive().expect("a verdict, not the end");
        reply["result"]["message"].as_str().unwrap_or_else(|| panic!("no verdict: {reply}")).to_owned()
    }

    /// Whether it is answered as a status is.
    pub(crate) fn has_status(&mut self) -> bool {
        self.send("{\"version\":2,\"command\":\"status\"}\n");
        self.receive().is_some_and(|reply| reply["status"].is_object())
    }
}
