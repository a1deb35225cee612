//! The supervisor's end of the control socket: never blocks, starts no thread, bounds everything.
//!
//! The loop that owns it waits for [`Server::watched`] beside its other descriptors, then takes what was asked with
//! [`Server::poll`] and answers with [`Server::reply`], at once or much later. A client may disappear at any moment:
//! answers to it are dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::control::connection::Connection;
use crate::control::connection::Kept;
use crate::control::connection::Presence;
use crate::control::connection::State;
use crate::control::events::Event;
use crate::control::events::EventLog;
use crate::control::protocol;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::protocol::Verdict;
use crate::sys::fd;
use crate::sys::fd::Interest;
use crate::sys::fd::Ready;
use crate::sys::path;
use crate::sys::path::Identity;
use crate::sys::time;
use crate::sys::unix;

/// Most clients at once.
pub const CLIENTS_MAX: usize = 256;

/// Most connections accepted in one turn, so that a flood of them holds up nothing else.
const ACCEPTS_MAX: usize = 64;

/// One client, never the same number again; it stays valid across an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(u64);

/// Everything another program needs to go on with the open socket and its clients after an exec.
///
/// The descriptors keep their numbers; see [`Server::keep_on_exec`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    listener: RawFd,
    #[serde(with = "path::text")]
    path: PathBuf,
    file: Identity,
    turn: u64,
    next: u64,
    clients: Vec<(ClientId, RawFd, Kept)>,
    #[serde(default)]
    events: EventLog,
}

impl Parts {
    /// The folder it lies in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// The control socket and its clients.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Which file the socket's is.
    file: Identity,
    clients: BTreeMap<ClientId, Connection>,
    next: u64,
    /// Counts calls of `poll`.
    turn: u64,
    /// What happened: one log for all clients, each of which has its place in it.
    events: EventLog,
    /// No descriptor was left for a client: who waits is not looked at before something else wakes the loop.
    exhausted: bool,
}

impl Server {
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
        let listener = unix::listen_private(path)?;
        let file = Identity::at(path)?;
        let (clients, events) = (BTreeMap::new(), EventLog::default());
        Ok(Self { listener, path: path.into(), file, clients, next: 1, turn: 0, events, exhausted: false })
    }

    /// What to go on with after an exec. This server must not be dropped after another went on with it.
    pub fn parts(&self) -> Parts {
        let part = |(id, client): (&ClientId, &Connection)| (*id, client.stream.as_raw_fd(), client.kept());
        Parts {
            listener: self.listener.as_raw_fd(),
            path: self.path.clone(),
            file: self.file,
            turn: self.turn,
            next: self.next,
            clients: self.clients.iter().map(part).collect(),
            events: self.events.clone(),
        }
    }

    /// Goes on where the program before the exec was. Each part may be used once.
    ///
    /// # Errors
    /// When the listener is not open; a client that is not is only left out.
    pub fn resume(parts: Parts) -> io::Result<Self> {
        let Parts { listener, path, file, turn, next, clients, events } = parts;
        let listener = UnixListener::from(unix::adopt(listener)?);
        let resumed = |(id, number, kept)| {
            let stream = UnixStream::from(unix::adopt(number).ok()?);
            Some((id, Connection::resume(stream, turn, kept)))
        };
        let clients = clients.into_iter().filter_map(resumed).collect();
        Ok(Self { listener, path, file, clients, next, turn, events, exhausted: false })
    }

    /// Decides whether every descriptor of the server stays open across an exec.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep_on_exec(&self, keep: bool) -> io::Result<()> {
        unix::keep_on_exec(&self.listener, keep)?;
        self.clients.values().try_for_each(|client| unix::keep_on_exec(&client.stream, keep))
    }

    /// What the loop waits for; call [`Server::poll`] when any of it is ready.
    pub fn watched(&self) -> Vec<(BorrowedFd<'_>, Interest)> {
        let door = if self.exhausted { Interest::Nothing } else { Interest::Read };
        let clients = self.clients.values().map(|client| (client.stream.as_fd(), client.interest()));
        std::iter::once((self.listener.as_fd(), door)).chain(clients).collect()
    }

    /// Looks whether the socket's file is there, and opens it anew if it is not; its clients stay. True when it was.
    ///
    /// # Errors
    /// When something else is in its place, which is left alone, or a new file cannot be made.
    pub fn keep(&mut self) -> io::Result<bool> {
        match Identity::at(&self.path) {
            Ok(file) if file == self.file => return Ok(false),
            Ok(_) => return Err(io::Error::other("something else is in its place: remove it")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let listener = unix::listen_private(&self.path)?;
        self.file = Identity::at(&self.path)?;
        self.listener = listener;
        Ok(true)
    }

    /// The folder it lies in.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether the client has not left.
    pub fn knows(&self, id: ClientId) -> bool {
        self.clients.contains_key(&id)
    }

    /// Takes what has come, sends what can be sent, and returns what was asked; it never waits.
    ///
    /// Each request is to be answered with one final reply, sooner or later; its client asks nothing more until then.
    pub fn poll(&mut self) -> Vec<(ClientId, Request)> {
        self.turn += 1;
        let Ok(ready) = fd::wait(&self.watched(), Some(Duration::ZERO)) else { return Vec::new() };
        let ids: Vec<ClientId> = self.clients.keys().copied().collect();
        let mut asked = Vec::new();
        for (id, ready) in ids.into_iter().zip(&ready[1..]).filter(|(_, ready)| ready.any()) {
            if self.serve(id, *ready, &mut asked) == Presence::Gone {
                self.clients.remove(&id);
            }
        }
        if ready[0].any() || self.exhausted {
            self.accept();
        }
        self.feed();
        asked
    }

    fn serve(&mut self, id: ClientId, ready: Ready, asked: &mut Vec<(ClientId, Request)>) -> Presence {
        let Some(client) = self.clients.get_mut(&id) else { return Presence::Gone };
        let broken = ready.read && client.read().is_err();
        let gone = broken || ready.gone || (ready.write && client.flush() == Presence::Gone);
        loop {
            if gone {
                client.abandon();
            }
            match client.next_request() {
                Some(Ok(request)) => {
                    client.heard = self.turn;
                    asked.push((id, request));
                }
                Some(Err(error)) if !gone => return self.refuse(id, &error),
                Some(Err(_)) | None => break,
            }
        }
        if gone || client.is_done() { Presence::Gone } else { Presence::Here }
    }

    /// Answers what was no request; the client is closed when it has the answer.
    fn refuse(&mut self, id: ClientId, error: &protocol::Error) -> Presence {
        let Some(client) = self.clients.get_mut(&id) else { return Presence::Gone };
        let verdict = Reply::Verdict(Verdict::refused(error.to_string()));
        let line = protocol::encode_reply(&verdict).unwrap_or_default();
        match client.send(&line) {
            Presence::Here if client.is_done() => Presence::Gone,
            other => other,
        }
    }

    fn accept(&mut self) {
        self.exhausted = false;
        for _ in 0..ACCEPTS_MAX {
            // The one who has left makes room; no one has to go for a newcomer before that was seen.
            if self.clients.len() >= CLIENTS_MAX && self.somebody_stirs() {
                return;
            }
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if passes(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client of the control socket: {error}");
                    self.exhausted = !self.drop_idle();
                    return;
                }
            }
        }
    }

    /// Whether any client has something for the next turn, be it its end.
    fn somebody_stirs(&self) -> bool {
        let ready = fd::wait(&self.watched(), Some(Duration::ZERO)).unwrap_or_default();
        ready.iter().skip(1).any(|ready| ready.any())
    }

    /// Lets a client in if it may come in and there is room.
    fn admit(&mut self, stream: UnixStream) {
        let own = unix::own_user();
        let turned_away = match unix::peer(&stream) {
            Ok(peer) if peer.uid != 0 && peer.uid != own => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a client of the control socket");
                Some(format!("only root and the user with id {own} may ask this fleet, not {}", peer.uid))
            }
            Ok(_) if self.clients.len() >= CLIENTS_MAX && !self.drop_idle() => {
                Some(format!("{CLIENTS_MAX} clients wait for answers already"))
            }
            Ok(_) => stream.set_nonblocking(true).err().map(|error| error.to_string()),
            Err(error) => Some(format!("the kernel does not say who asks: {error}")),
        };
        match turned_away {
            Some(sentence) => turn_away(stream, sentence),
            None => {
                self.clients.insert(ClientId(self.next), Connection::new(stream, self.turn));
                self.next += 1;
            }
        }
    }

    /// Drops the client that has waited longest without asking; false when every one waits for an answer.
    fn drop_idle(&mut self) -> bool {
        let idle = self.clients.iter().filter(|(_, client)| client.is_idle());
        let oldest = idle.min_by_key(|(id, client)| (client.heard, **id)).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.clients.remove(&id).is_some())
    }

    /// Answers a client, which may have left; a final reply lets it ask again.
    pub fn reply(&mut self, id: ClientId, reply: &Reply) {
        let line = protocol::encode_reply(reply).unwrap_or_else(|error| {
            let verdict = Verdict::failed(format!("the answer cannot be sent: {error}"));
            protocol::encode_reply(&Reply::Verdict(verdict)).unwrap_or_default()
        });
        let Some(client) = self.clients.get_mut(&id) else { return };
        if reply.is_final() && client.state == State::Asked {
            client.state = State::Idle;
        }
        let gone = client.send(&line) == Presence::Gone;
        if gone && client.has_asked_more() && !client.is_overrun() {
            // One that left may have asked more before: the next turn takes that, and then lets it go.
            client.abandon();
        } else if gone || client.is_done() {
            self.clients.remove(&id);
        }
    }

    /// Tells the client the events later than number `after`, and with `follow` whatever is published, until it leaves.
    pub fn tell_events(&mut self, id: ClientId, after: Option<u64>, follow: bool) {
        let until = (!follow).then(|| self.events.last());
        if let Some(client) = self.clients.get_mut(&id) {
            client.state = State::Follows { after, until, told: 0 };
        }
        self.feed();
    }

    /// Keeps an event under a number, and tells it to all who follow.
    pub fn publish(&mut self, event: Event) {
        self.events.push(event);
        self.feed();
    }

    /// Tells all who are told events what is new to them, as far as they read.
    fn feed(&mut self) {
        let events = &self.events;
        self.clients.retain(|_, client| {
            let gone = client.feed(events) == Presence::Gone;
            if gone && client.has_asked_more() {
                // The next turn takes that, and then lets it go.
                client.abandon();
                return true;
            }
            !gone && !client.is_done()
        });
    }

    /// Closes a client as soon as it has what is queued for it.
    pub fn end(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.state = State::Closing;
        if client.flush() == Presence::Gone || client.is_done() {
            self.clients.remove(&id);
        }
    }

    /// Ends the service: sends what is queued, waiting for slow readers no longer than `patience`.
    pub fn finish(mut self, patience: Duration) {
        let until = time::monotonic() + patience;
        loop {
            self.clients.retain(|_, client| client.flush() == Presence::Here && client.unsent() > 0);
            let left = until.saturating_sub(time::monotonic());
            if self.clients.is_empty() || left.is_zero() {
                return;
            }
            let fds: Vec<_> =
                self.clients.values().map(|client| (client.stream.as_fd(), Interest::Write)).collect();
            if fd::wait(&fds, Some(left)).is_err() {
                return;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A successor may have put its own in the place.
        if Identity::at(&self.path).is_ok_and(|file| file == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the next connection may well be accepted though this one was not.
fn passes(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted)
}

/// Says why, as far as the socket takes it at once, and closes.
fn turn_away(mut stream: UnixStream, sentence: String) {
    let line = protocol::encode_reply(&Reply::Verdict(Verdict::failed(sentence))).unwrap_or_default();
    let _ = stream.set_nonblocking(true).and_then(|()| stream.write_all(&line));
}
