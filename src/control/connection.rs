//! One client of the control socket: its bytes on the way in and out, and where its request stands.
//!
//! Requests of one client are taken one after the other: the next is not looked at before the last is answered and
//! the answer is gone. So replies need no number, and a client that does not read delays only itself.

use std::io;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use crate::control::events::EventLog;
use crate::control::protocol;
use crate::control::protocol::{
    CommandResult, ControlReply, ControlRequest, PREVIOUS_VERSION, ProtocolError, REQUEST_MAX, VERSION,
};
use crate::sys::fd::Interest;

/// Bytes of events that are written for a client before it has read them. What comes later waits in the log, which is
/// one for all: a client that does not read costs no more than this, and one that reads too late learns how many it missed.
const EVENTS_AHEAD: usize = 16 * 1024;

/// Events looked at in one piece.
const EVENTS_PER_READ: usize = 64;

/// Bytes that may wait for a client that does not read, before the next reply ends it.
pub(super) const SEND_QUEUE_MAX: usize = 1024 * 1024;

/// Bytes read at a time.
const CHUNK: usize = 8 * 1024;

/// Where a client stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ClientState {
    /// It may ask.
    Idle,
    /// It has sent a request; the final reply is not queued yet.
    #[serde(rename = "Asked")]
    AwaitingReply,
    /// It follows events.
    #[serde(rename = "Follows")]
    Following {
        /// Number of the last one that was sent; none before the first.
        after: Option<u64>,
        /// Number of the last one it wants; none when it follows until it leaves.
        until: Option<u64>,
        /// How many were sent.
        #[serde(rename = "told")]
        sent_count: u64,
    },
    /// It gets what is queued, and nothing more is read.
    Closing,
}

/// Whether a client is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerState {
    Connected,
    Disconnected,
}

/// What is kept of a client across an exec, its descriptor aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ControlConnectionState {
    #[serde(with = "bytes_serde")]
    incoming: Vec<u8>,
    #[serde(with = "bytes_serde")]
    outgoing: Vec<u8>,
    state: ClientState,
    #[serde(rename = "ended")]
    read_closed: bool,
    /// Programs that do not write it know the first version only.
    #[serde(default = "first_version")]
    version: u32,
}

fn first_version() -> u32 {
    PREVIOUS_VERSION
}

/// Bytes as text: a list of numbers would be three times as long.
mod bytes_serde {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A client.
#[derive(Debug)]
pub(super) struct ControlConnection {
    pub(super) stream: UnixStream,
    pub(super) state: ClientState,
    /// When its last request came, in turns of the server.
    pub(super) last_request_turn: u64,
    /// At most one byte more than the longest request, so that a longer one is noticed.
    incoming: Vec<u8>,
    /// Where the first line in `incoming` ends.
    line_end: Option<usize>,
    /// It will send nothing more.
    read_closed: bool,
    outgoing: Vec<u8>,
    /// How much of `outgoing` is gone.
    sent: usize,
    /// The version of the protocol that it speaks.
    version: u32,
}

impl ControlConnection {
    /// A client that has just been let in; its stream must not block.
    pub(super) fn new(stream: UnixStream, last_request_turn: u64) -> Self {
        let kept = ControlConnectionState {
            incoming: Vec::new(),
            outgoing: Vec::new(),
            state: ClientState::Idle,
            read_closed: false,
            version: VERSION,
        };
        Self::restore(stream, last_request_turn, kept)
    }

    /// A client as another program left it.
    pub(super) fn restore(stream: UnixStream, last_request_turn: u64, kept: ControlConnectionState) -> Self {
        let ControlConnectionState { incoming, outgoing, state, read_closed, version } = kept;
        let line_end = incoming.iter().position(|byte| *byte == b'\n');
        Self { stream, state, last_request_turn, incoming, line_end, read_closed, outgoing, sent: 0, version }
    }

    /// What another program needs to go on with it.
    pub(super) fn save(&self) -> ControlConnectionState {
        ControlConnectionState {
            incoming: self.incoming.clone(),
            outgoing: self.outgoing[self.sent..].to_vec(),
            state: self.state,
            read_closed: self.read_closed,
            version: self.version,
        }
    }

    /// What to wait for.
    pub(super) fn interest(&self) -> Interest {
        let read =
            !self.read_closed && self.state != ClientState::Closing && self.incoming.len() <= REQUEST_MAX;
        // A request that waits here needs no wake-up when it comes, but when there is room to answer it.
        let has_pending_request = self.state == ClientState::Idle && self.has_request();
        Interest::new(read, self.unsent() > 0 || has_pending_request)
    }

    /// Reads what there is, as far as there is room.
    ///
    /// # Errors
    /// When the client is gone.
    pub(super) fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        while !self.read_closed && self.state != ClientState::Closing && self.incoming.len() <= REQUEST_MAX {
            let begin = self.incoming.len();
            let room = CHUNK.min(REQUEST_MAX + 1 - begin);
            match self.stream.read(&mut chunk[..room]) {
                Ok(0) => self.read_closed = true,
                Ok(got) => {
                    self.incoming.extend_from_slice(&chunk[..got]);
                    self.find_line(begin);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn find_line(&mut self, from: usize) {
        let found = || Some(from + self.incoming[from..].iter().position(|byte| *byte == b'\n')?);
        self.line_end = self.line_end.or_else(found);
    }

    /// Whether the bytes at hand are a request, or never will be one.
    fn has_request(&self) -> bool {
        self.line_end.is_some()
            || self.incoming.len() > REQUEST_MAX
            || (self.read_closed && !self.incoming.is_empty())
    }

    /// The next request, if the client has sent one and may; after an invalid one nothing more is read.
    pub(super) fn next_request(&mut self) -> Option<Result<ControlRequest, ProtocolError>> {
        while self.state == ClientState::Idle && self.unsent() == 0 && self.has_request() {
            let read = match self.line_end {
                Some(end) => {
                    let mut line: Vec<u8> = self.incoming.drain(..=end).collect();
                    line.pop();
                    self.line_end = None;
                    self.find_line(0);
                    if line.trim_ascii().is_empty() {
                        continue;
                    }
                    protocol::decode_versioned_request(&line)
                }
                None if self.incoming.len() > REQUEST_MAX => Err(ProtocolError::TooLong),
                None if self.incoming.trim_ascii().is_empty() => {
                    self.incoming.clear();
                    return None;
                }
                None => Err(ProtocolError::Unterminated),
            };
            if self.incoming.is_empty() {
                self.incoming = Vec::new();
            }
            let read = read.map(|(version, request)| {
                self.version = version;
                request
            });
            if matches!(&read, Err(ProtocolError::Version { given }) if *given == PREVIOUS_VERSION.to_string())
            {
                self.version = PREVIOUS_VERSION;
            }
            self.state = if read.is_ok() { ClientState::AwaitingReply } else { ClientState::Closing };
            return Some(read);
        }
        None
    }

    /// The client is gone, so that no answer is waited for: its whole requests can be taken at once.
    pub(super) fn mark_disconnected(&mut self) {
        self.outgoing = Vec::new();
        self.sent = 0;
        if matches!(self.state, ClientState::AwaitingReply | ClientState::Following { until: Some(_), .. }) {
            self.state = ClientState::Idle;
        }
    }

    /// Queues a reply and sends what the client takes now; gone when it has left too much unread.
    pub(super) fn send(&mut self, reply: &ControlReply) -> PeerState {
        if self.unsent() > SEND_QUEUE_MAX {
            return PeerState::Disconnected;
        }
        let line = self.encode(reply);
        self.outgoing.extend_from_slice(&line);
        self.flush()
    }

    /// A reply as a line of the client's version.
    fn encode(&self, reply: &ControlReply) -> Vec<u8> {
        if self.version == PREVIOUS_VERSION {
            return protocol::encode_previous_reply(reply);
        }
        protocol::encode_reply(reply).unwrap_or_else(|error| {
            let result = CommandResult::failed(format!("the answer cannot be sent: {error}"));
            protocol::encode_reply(&ControlReply::Result(result)).unwrap_or_default()
        })
    }

    /// Sends a follower as many events as it takes.
    pub(super) fn send_events(&mut self, events: &EventLog) -> PeerState {
        while let ClientState::Following { mut after, until, mut sent_count } = self.state
            && self.unsent() == 0
        {
            let batch = events.read_after(after, EVENTS_PER_READ);
            let mut due =
                batch.iter().filter(|event| until.is_none_or(|last| event.sequence <= last)).peekable();
            if due.peek().is_none() {
                let Some(last) = until else { return PeerState::Connected };
                let message = format!("{sent_count} events, the last is number {last}");
                let result = ControlReply::Result(CommandResult::ok(message).with_detail("last", last));
                self.state = ClientState::Idle;
                return self.send(&result);
            }
            if self.version == PREVIOUS_VERSION
                && let Some(event) = due.next()
            {
                // Its form has no events, and one reply ends a request: it gets one, and nothing after it.
                self.state = ClientState::Closing;
                return self.send(&ControlReply::Event(event.clone()));
            }
            for event in due {
                let line = self.encode(&ControlReply::Event(event.clone()));
                self.outgoing.extend_from_slice(&line);
                (after, sent_count) = (Some(event.sequence), sent_count + 1);
                if self.unsent() >= EVENTS_AHEAD {
                    break;
                }
            }
            self.state = ClientState::Following { after, until, sent_count };
            if self.flush() == PeerState::Disconnected {
                return PeerState::Disconnected;
            }
        }
        PeerState::Connected
    }

    /// Sends what the client takes now.
    pub(super) fn flush(&mut self) -> PeerState {
        while self.unsent() > 0 {
            match self.stream.write(&self.outgoing[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return PeerState::Connected,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return PeerState::Disconnected,
            }
        }
        // What a large status took is given back.
        self.outgoing = Vec::new();
        self.sent = 0;
        PeerState::Connected
    }

    /// Whether a whole request waits here.
    pub(super) fn has_pending_line(&self) -> bool {
        self.line_end.is_some()
    }

    /// Whether it has left too much unread.
    pub(super) fn is_over_limit(&self) -> bool {
        self.unsent() > SEND_QUEUE_MAX
    }

    /// Bytes that wait for the client.
    pub(super) fn unsent(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    /// Whether it has all it will get and will ask nothing more.
    pub(super) fn is_finished(&self) -> bool {
        let finished = match self.state {
            ClientState::Idle => self.read_closed && !self.has_request(),
            ClientState::Closing => true,
            ClientState::AwaitingReply | ClientState::Following { .. } => false,
        };
        finished && self.unsent() == 0
    }

    /// Whether it may be closed: it waits for no answer.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, ClientState::Idle | ClientState::Closing)
    }
}
