//! The supervisor's end of the control socket: never blocks, starts no thread, bounds everything.
//!
//! The loop that owns it waits for [`ControlServer::poll_fds`] beside its other descriptors, then takes requests with
//! `Server::poll` and answers with `Server::reply`, at once or much later. A client may disappear at any moment:
//! answers to it are dropped.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::control::connection::{ClientState, ControlConnection, ControlConnectionState, PeerState};
use crate::control::events::{EventLog, FleetEvent};
use crate::control::protocol;
use crate::control::protocol::{CommandResult, ControlReply, ControlRequest};
use crate::sys::fd::{Interest, Readiness};
use crate::sys::path::FileId;
use crate::sys::{clock, fd, path, unix_socket};

/// Most clients at once.
pub const CLIENTS_MAX: usize = 256;

/// Most connections accepted in one turn, so that a flood of them holds up nothing else.
const ACCEPTS_MAX: usize = 64;

/// One client, never the same number again; it stays valid across an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(u64);

/// Everything another program needs to go on with the open socket and its clients after an exec.
///
/// The descriptors keep their numbers; see `Server::set_inheritable`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlServerState {
    listener: RawFd,
    #[serde(with = "path::path_serde")]
    path: PathBuf,
    file: FileId,
    turn: u64,
    #[serde(rename = "next")]
    next_id: u64,
    clients: Vec<(ClientId, RawFd, ControlConnectionState)>,
    #[serde(default)]
    events: EventLog,
}

impl ControlServerState {
    /// The folder it lies in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// The control socket and its clients.
#[derive(Debug)]
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
    /// Which file the socket's is.
    file: FileId,
    clients: BTreeMap<ClientId, ControlConnection>,
    next_id: u64,
    /// Counts calls of `poll`.
    turn: u64,
    /// What happened: one log for all clients, each of which has its place in it.
    events: EventLog,
    /// No descriptor was left for a client: it is accepted when something else wakes the loop.
    fds_exhausted: bool,
}

impl ControlServer {
    /// Opens the socket, in place of one that a killed fleet left.
    ///
    /// The caller holds the lock of the folder, so no living fleet can own the file.
    ///
    /// # Errors
    /// When the folder may not be written, or the path belongs to something that is no socket.
    pub fn open(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => {
                let text = "something that is no socket is in the way: remove it";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = unix_socket::listen_private(path)?;
        let file = FileId::from_entry(path)?;
        let (clients, events) = (BTreeMap::new(), EventLog::default());
        Ok(Self {
            listener,
            path: path.into(),
            file,
            clients,
            next_id: 1,
            turn: 0,
            events,
            fds_exhausted: false,
        })
    }

    /// What to go on with after an exec. This server must not be dropped after another went on with it.
    pub fn save(&self) -> ControlServerState {
        let part =
            |(id, client): (&ClientId, &ControlConnection)| (*id, client.stream.as_raw_fd(), client.save());
        ControlServerState {
            listener: self.listener.as_raw_fd(),
            path: self.path.clone(),
            file: self.file,
            turn: self.turn,
            next_id: self.next_id,
            clients: self.clients.iter().map(part).collect(),
            events: self.events.clone(),
        }
    }

    /// Goes on where the program before the exec was. Each part may be used once.
    ///
    /// # Errors
    /// When the listener is not open; a client that is not is only left out.
    pub fn restore(parts: ControlServerState) -> io::Result<Self> {
        let ControlServerState { listener, path, file, turn, next_id: next, clients, events } = parts;
        let listener = UnixListener::from(unix_socket::adopt_fd(listener)?);
        let resumed = |(id, number, kept)| {
            let stream = UnixStream::from(unix_socket::adopt_fd(number).ok()?);
            Some((id, ControlConnection::restore(stream, turn, kept)))
        };
        let clients = clients.into_iter().filter_map(resumed).collect();
        Ok(Self { listener, path, file, clients, next_id: next, turn, events, fds_exhausted: false })
    }

    /// Decides whether every descriptor of the server stays open across an exec.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_inheritable(&self, keep: bool) -> io::Result<()> {
        unix_socket::set_inheritable(&self.listener, keep)?;
        self.clients.values().try_for_each(|client| unix_socket::set_inheritable(&client.stream, keep))
    }

    /// What the loop waits for; call `Server::poll` when any of it is ready.
    pub fn poll_fds(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        let listener_interest = if self.fds_exhausted { Interest::Nothing } else { Interest::Read };
        let clients = self.clients.values().map(|client| (client.stream.as_fd(), client.interest()));
        std::iter::once((self.listener.as_fd(), listener_interest)).chain(clients).collect()
    }

    /// Checks that the socket's file is there, and opens it anew if it is not; its clients stay. True when it was.
    ///
    /// # Errors
    /// When something else is in its place, which is left alone, or a new file cannot be made.
    pub fn restore_socket_file(&mut self) -> io::Result<bool> {
        match FileId::from_entry(&self.path) {
            Ok(file) if file == self.file => return Ok(false),
            Ok(_) => return Err(io::Error::other("something else is in its place: remove it")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let listener = unix_socket::listen_private(&self.path)?;
        self.file = FileId::from_entry(&self.path)?;
        self.listener = listener;
        Ok(true)
    }

    /// The folder it lies in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// How many clients there are.
    pub fn client_count(&self) -> usize {
        self.clients.len()
    }

    /// Whether the client has not left.
    pub fn is_connected(&self, id: ClientId) -> bool {
        self.clients.contains_key(&id)
    }

    /// Takes what has come, sends what can be sent, and returns the requests; it never waits.
    ///
    /// Each request is to be answered with one final reply, sooner or later; its client sends no other until then.
    pub fn poll(&mut self) -> Vec<(ClientId, ControlRequest)> {
        self.turn += 1;
        let Ok(ready) = fd::poll(&self.poll_fds(), Some(Duration::ZERO)) else { return Vec::new() };
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        let mut requests = Vec::new();
        for (id, ready) in ids.into_iter().zip(&ready[1..]).filter(|(_, ready)| ready.any()) {
            if self.serve_client(id, *ready, &mut requests) == PeerState::Disconnected {
                self.clients.remove(&id);
            }
        }
        if ready[0].any() || self.fds_exhausted {
            self.accept_clients();
        }
        self.send_new_events();
        requests
    }

    fn serve_client(
        &mut self,
        id: ClientId,
        ready: Readiness,
        requests: &mut Vec<(ClientId, ControlRequest)>,
    ) -> PeerState {
        let Some(client) = self.clients.get_mut(&id) else { return PeerState::Disconnected };
        let broken = ready.read && client.read().is_err();
        let gone = broken || ready.gone || (ready.write && client.flush() == PeerState::Disconnected);
        loop {
            if gone {
                client.mark_disconnected();
            }
            match client.next_request() {
                Some(Ok(request)) => {
                    client.last_request_turn = self.turn;
                    requests.push((id, request));
                }
                Some(Err(error)) if !gone => return self.reject(id, &error),
                Some(Err(_)) | None => break,
            }
        }
        if gone || client.is_finished() { PeerState::Disconnected } else { PeerState::Connected }
    }

    /// Answers what was no request; the client is closed when it has the answer.
    fn reject(&mut self, id: ClientId, error: &protocol::ProtocolError) -> PeerState {
        let Some(client) = self.clients.get_mut(&id) else { return PeerState::Disconnected };
        let result = ControlReply::Result(CommandResult::rejected(error.to_string()));
        match client.send(&result) {
            PeerState::Connected if client.is_finished() => PeerState::Disconnected,
            other => other,
        }
    }

    fn accept_clients(&mut self) {
        self.fds_exhausted = false;
        for _ in 0..ACCEPTS_MAX {
            // A client that has disconnected makes room: it is removed before an idle one is.
            if self.clients.len() >= CLIENTS_MAX && self.has_pending() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.accept_client(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_transient_accept_error(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the control socket: {error}");
                    self.fds_exhausted = !self.evict_idle();
                    return;
                }
            }
        }
    }

    /// Whether any client has something for the next turn, be it its end.
    fn has_pending(&self) -> bool {
        let ready = fd::poll(&self.poll_fds(), Some(Duration::ZERO)).unwrap_or_default();
        ready.iter().skip(1).any(|ready| ready.any())
    }

    /// Lets a client in if it may come in and there is room.
    fn accept_client(&mut self, stream: UnixStream) {
        let own = unix_socket::own_user();
        let turned_away = match unix_socket::peer_credentials(&stream) {
            Ok(peer) if peer.uid != 0 && peer.uid != own => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a client of the control socket");
                Some(format!("only root and the user with id {own} may ask this fleet, not {}", peer.uid))
            }
            Ok(_) if self.clients.len() >= CLIENTS_MAX && !self.evict_idle() => {
                Some(format!("{CLIENTS_MAX} clients wait for answers already"))
            }
            Ok(_) => stream.set_nonblocking(true).err().map(|error| error.to_string()),
            Err(error) => Some(format!("the kernel does not say who asks: {error}")),
        };
        match turned_away {
            Some(message) => reject_connection(stream, message),
            None => {
                self.clients.insert(ClientId(self.next_id), ControlConnection::new(stream, self.turn));
                self.next_id += 1;
            }
        }
    }

    /// Drops the client that has waited longest without asking; false when every one waits for an answer.
    fn evict_idle(&mut self) -> bool {
        let idle = self.clients.iter().filter(|(_, client)| client.is_idle());
        let oldest = idle.min_by_key(|(id, client)| (client.last_request_turn, **id)).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.clients.remove(&id).is_some())
    }

    /// Answers a client, which may have left; a final reply lets it ask again.
    pub fn reply(&mut self, id: ClientId, reply: &ControlReply) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if reply.is_final() && client.state == ClientState::AwaitingReply {
            client.state = ClientState::Idle;
        }
        let gone = client.send(reply) == PeerState::Disconnected;
        if gone && client.has_pending_line() && !client.is_over_limit() {
            // One that disconnected may have sent more before: the next turn takes that, and then removes it.
            client.mark_disconnected();
        } else if gone || client.is_finished() {
            self.clients.remove(&id);
        }
    }

    /// Sends the client the events later than number `after`, and with `follow` whatever is published, until it leaves.
    pub fn start_events(&mut self, id: ClientId, after: Option<u64>, follow: bool) {
        let until = (!follow).then(|| self.events.last());
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = ClientState::Following { after, until, sent_count: 0 };
        }
        self.send_new_events();
    }

    /// Numbers and keeps an event, and sends it to its followers.
    pub fn publish(&mut self, event: FleetEvent) {
        self.events.push(event);
        self.send_new_events();
    }

    /// Sends every follower the events that are new to it, as far as it reads.
    fn send_new_events(&mut self) {
        let events = &self.events;
        self.clients.retain(|_, client| {
            let gone = client.send_events(events) == PeerState::Disconnected;
            if gone && client.has_pending_line() {
                // The next turn takes that, and then lets it go.
                client.mark_disconnected();
                return true;
            }
            !gone && !client.is_finished()
        });
    }

    /// Closes a client as soon as it has what is queued for it.
    pub fn close_client(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.state = ClientState::Closing;
        if client.flush() == PeerState::Disconnected || client.is_finished() {
            self.clients.remove(&id);
        }
    }

    /// Ends the service: sends what is queued, waiting for slow readers no longer than `patience`.
    pub fn finish(mut self, patience: Duration) {
        let until = clock::monotonic() + patience;
        loop {
            self.clients.retain(|_, client| client.flush() == PeerState::Connected && client.unsent() > 0);
            let left = until.saturating_sub(clock::monotonic());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let fds: Vec<_> =
                self.clients.values().map(|client| (client.stream.as_fd(), Interest::Write)).collect();
            if fd::poll(&fds, Some(left)).is_err() {
                return;
            }
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A successor may have put its own in the place.
        if FileId::from_entry(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the next connection may well be accepted though this one was not.
fn is_transient_accept_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Says why, as far as the socket takes it at once, and closes.
fn reject_connection(mut stream: UnixStream, message: String) {
    let line =
        protocol::encode_reply(&ControlReply::Result(CommandResult::failed(message))).unwrap_or_default();
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&line));
}
