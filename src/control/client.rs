//! The asking end of the control socket: blocking, every wait with a deadline.
//!
//! The connection stays open while the fleet upgrades itself: the other end is the same socket in another program.

use std::io;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::control;
use crate::control::protocol;
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::sys::{clock, unix_socket};

/// How long a fleet that is busy may leave a client standing at the door.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait to hand over a request, at most 64 KiB.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Why a fleet cannot be reached, or did not reply.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no file, or no process listens at it.
    #[error(
        "no fleet runs here (run_dir {}): start it with `serve`, or name its run_dir with --run-dir",
        run_dir.display()
    )]
    NotRunning {
        /// Where one was looked for.
        run_dir: PathBuf,
    },
    /// The socket may not be used.
    #[error("cannot ask the fleet with the run_dir {}", run_dir.display())]
    Connect {
        /// Where it is.
        run_dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The fleet does not read its socket.
    #[error("the fleet does not answer: its supervisor is stopped or very busy")]
    Unresponsive,
    /// No reply came in time.
    #[error("no reply in time")]
    Timeout,
    /// The fleet, or what it ran as, is gone.
    #[error("the fleet ended the connection")]
    Disconnected,
    /// The connection broke.
    #[error("the connection to the fleet broke")]
    Io(#[source] io::Error),
    /// The other end speaks something else.
    #[error(transparent)]
    Protocol(#[from] protocol::ProtocolError),
}

/// A connection to a running fleet.
#[derive(Debug)]
pub struct ControlClient {
    stream: UnixStream,
    incoming: Vec<u8>,
    /// Bytes of `incoming` in which no newline is.
    searched: usize,
    run_dir: PathBuf,
    /// The request in the form that a fleet of the release before reads, until it was needed.
    previous_form: Option<Vec<u8>>,
}

impl ControlClient {
    /// Connects to the fleet with this run folder.
    ///
    /// # Errors
    /// [`ControlError::NotRunning`] when none runs there, [`ControlError::Connect`] when this user may not connect.
    pub fn connect(run_dir: &Path) -> Result<Self, ControlError> {
        let stream =
            unix_socket::connect(&control::socket_path(run_dir), CONNECT_TIMEOUT).map_err(|source| {
                let run_dir = run_dir.to_owned();
                match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                        ControlError::NotRunning { run_dir }
                    }
                    io::ErrorKind::WouldBlock => ControlError::Unresponsive,
                    _ => ControlError::Connect { run_dir, source },
                }
            })?;
        stream.set_write_timeout(Some(SEND_TIMEOUT)).map_err(ControlError::Io)?;
        let run_dir = run_dir.to_owned();
        Ok(Self { stream, incoming: Vec::new(), searched: 0, run_dir, previous_form: None })
    }

    /// Sends a request. Its replies come with [`ControlClient::receive`].
    ///
    /// # Errors
    /// [`ControlError::Unresponsive`] when it reads nothing. That it is gone shows in the next reply, which may hold why.
    pub fn send(&mut self, request: &ControlRequest) -> Result<(), ControlError> {
        self.previous_form = protocol::encode_previous_request(request);
        self.write(&protocol::encode_request(request)?)
    }

    fn write(&mut self, line: &[u8]) -> Result<(), ControlError> {
        match self.stream.write_all(line) {
            Err(error) if timed_out(&error) => Err(ControlError::Unresponsive),
            // A rejected client may still read the reason, although the connection is closed.
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The next reply, waiting for it until `deadline` on the monotonic clock, without end if there is none.
    ///
    /// # Errors
    /// [`ControlError::Timeout`] at the deadline; receiving later is fine. [`ControlError::Disconnected`] when the fleet
    /// has gone. Every other error ends the conversation.
    pub fn receive(&mut self, deadline: Option<Duration>) -> Result<ControlReply, ControlError> {
        loop {
            let found = self.incoming[self.searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = found.map(|at| self.searched + at) {
                let line: Vec<u8> = self.incoming.drain(..=end).collect();
                self.searched = 0;
                match (protocol::decode_reply(&line), self.previous_form.take()) {
                    (Err(protocol::ProtocolError::EarlierRelease), Some(request)) => {
                        self.send_again(&request)?;
                        continue;
                    }
                    (reply, _) => return Ok(reply?),
                }
            }
            self.searched = self.incoming.len();
            self.read(deadline)?;
        }
    }

    /// A fleet of the release before closes the connection of a client whose request it does not read.
    fn send_again(&mut self, request: &[u8]) -> Result<(), ControlError> {
        *self = Self::connect(&self.run_dir)?;
        self.write(request)
    }

    fn read(&mut self, deadline: Option<Duration>) -> Result<(), ControlError> {
        let left = deadline.map(|at| at.saturating_sub(clock::monotonic()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(ControlError::Timeout);
        }
        self.stream.set_read_timeout(left).map_err(ControlError::Io)?;
        let mut chunk = [0; CHUNK];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ControlError::Disconnected),
            Ok(got) => {
                self.incoming.extend_from_slice(&chunk[..got]);
                Ok(())
            }
            Err(error) if timed_out(&error) => Err(ControlError::Timeout),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(ControlError::Disconnected),
            Err(error) => Err(ControlError::Io(error)),
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
