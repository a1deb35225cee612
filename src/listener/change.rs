//! Another set of addresses for a fleet that runs: what is new is opened beside what there is, and what is not named any
//! more ends only when nothing needs it.

use std::io;
use std::time::Duration;

use crate::config::settings::{ListenAddress, SteeringMode, UnixSocketName};
use crate::listener::addresses::{ListenAddresses, ListenRequest, open_missing};
use crate::listener::error::ListenError;
use crate::listener::slot_listeners::SlotListeners;
use crate::listener::socket::{Listener, ListeningSocket, SocketOwner};
use crate::sys::{tcp_socket, unix_listener};

/// How long the queue of a socket that ends must have been empty; a handshake under way needs a round trip, or two.
const QUEUE_QUIET: Duration = Duration::from_secs(1);

/// When it ends whatever is in it.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(10);

/// Sockets that another configuration adds, opened for every slot, and which ones it names no more.
#[derive(Debug)]
pub struct ListenChange {
    /// Where the fleet listens once the change is complete.
    after: ListenAddresses,
    /// What is added, for slots that open meanwhile.
    added: ListenAddresses,
    /// What each slot has of it.
    slots: Vec<SlotListeners>,
    /// Names of what ends.
    removed: SlotAddresses,
}

/// Addresses by audience.
#[derive(Debug, Default)]
struct SlotAddresses {
    public: Vec<ListenAddress>,
    admin: Vec<ListenAddress>,
}

impl ListenChange {
    /// Opens what is named and not there yet, in `slots` slots; none: nothing is to be changed.
    ///
    /// # Errors
    /// When an address is taken or refused; nothing is changed then.
    pub fn prepare(
        present: &ListenAddresses,
        wanted: ListenRequest<'_>,
        slots: usize,
    ) -> Result<Option<Self>, ListenError> {
        let (after, added) = open_missing(present, wanted)?;
        let gone = |before: Vec<ListenAddress>, after: &[ListenAddress]| -> Vec<ListenAddress> {
            before.into_iter().filter(|address| !after.contains(address)).collect()
        };
        let removed = SlotAddresses {
            public: gone(present.public(), &after.public()),
            admin: gone(present.admin(), &after.admin()),
        };
        if added.is_empty() && removed.public.is_empty() && removed.admin.is_empty() {
            return Ok(None);
        }
        match (0..slots).map(|_| added.open_slot()).collect() {
            Ok(slots) => Ok(Some(Self { after, added, slots, removed })),
            Err(error) => {
                added.close_shared();
                Err(error)
            }
        }
    }

    /// What is added and what ends, for people.
    pub fn describe(&self) -> String {
        let list = |addresses: &[ListenAddress]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let added = list(&[self.added.public(), self.added.admin()].concat());
        let removed = list(&[&self.removed.public[..], &self.removed.admin].concat());
        match (added.as_str(), removed.as_str()) {
            ("", removed) => format!("{removed} ends"),
            (added, "") => format!("{added} is added"),
            (added, removed) => format!("{added} is added, {removed} ends"),
        }
    }

    /// Slots for which what is added was opened.
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// Opens what is added for one slot more.
    ///
    /// # Errors
    /// When an address is refused.
    pub fn open_slot(&mut self) -> Result<(), ListenError> {
        let listeners = self.added.open_slot()?;
        self.slots.push(listeners);
        Ok(())
    }

    /// A slot's listeners for a worker of the new configuration: what stays and what is added; what ends stands apart, so
    /// that its queue is emptied and it is advertised no more.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn listeners_for(&self, slot: usize, own: &SlotListeners) -> io::Result<SlotListeners> {
        let mut all = own.try_clone()?;
        all.retire(&self.removed.public, &self.removed.admin);
        if let Some(added) = self.slots.get(slot) {
            all.extend(added.try_clone()?);
        }
        Ok(all)
    }

    /// Has connections to what is added go to these slots: those that have a worker which serves it.
    pub fn steer(&self, open: &[bool]) {
        let Some(first) = self.slots.first() else { return };
        if let Err(error) = first.steer(SteeringMode::Kernel, open) {
            tracing::debug!(%error, "new addresses are not steered: {error}");
        }
    }

    /// The change is complete: what is added belongs to the slots, and what ends is returned.
    pub fn commit(self, slots: &mut [Option<SlotListeners>]) -> (ListenAddresses, ClosingListeners) {
        let Self { after, slots: added, removed, .. } = self;
        let mut closing = Vec::new();
        for (own, added) in slots.iter_mut().zip(added) {
            let Some(own) = own else {
                closing.extend(added.into_all());
                continue;
            };
            own.retire(&removed.public, &removed.admin);
            closing.extend(own.take_retired());
            own.extend(added);
        }
        (after, ClosingListeners::new(closing))
    }

    /// The change is taken back: what was added ends.
    pub fn cancel(self) -> ClosingListeners {
        self.added.close_shared();
        ClosingListeners::new(self.slots.into_iter().flat_map(SlotListeners::into_all).collect())
    }
}

/// Sockets that take no new connections and end when their queues are empty. Until then the workers that have them accept
/// what was connected.
#[derive(Debug)]
pub struct ClosingListeners {
    listeners: Vec<Listener>,
    /// When they began to, and since when they are empty; none: before the first look.
    times: Option<(Duration, Duration)>,
}

impl ClosingListeners {
    fn new(listeners: Vec<Listener>) -> Self {
        for listener in listeners.iter().filter(|listener| listener.owner != SocketOwner::Systemd) {
            let refused = match &listener.socket {
                ListeningSocket::Tcp(socket) => tcp_socket::drop_new_connections(socket),
                // What is in its queue is still given out.
                ListeningSocket::Unix(socket) => tcp_socket::shut_down_listener(socket),
            };
            if let Err(error) = refused {
                tracing::debug!(%error, "cannot keep new connections off a closing listener");
            }
            if let Ok(ListenAddress::Unix(UnixSocketName::Path(path))) = listener.address()
                && let Err(error) = unix_listener::remove_socket_file(&path)
            {
                tracing::warn!(path = %path.display(), %error, "the file of a socket that is closed stays there: {error}");
            }
        }
        Self { listeners, times: None }
    }

    /// Ends them if they are empty for long enough; when to look again, and none once they have ended.
    pub fn poll(&mut self, now: Duration) -> Option<Duration> {
        if self.listeners.is_empty() {
            return None;
        }
        let (began, empty_since) = self.times.unwrap_or((now, now));
        let is_empty = self.listeners.iter().all(|one| one.queued_connections().unwrap_or(0) == 0);
        let empty_since = if is_empty { empty_since } else { now };
        self.times = Some((began, empty_since));
        if now < empty_since + QUEUE_QUIET && now < began + QUEUE_TIMEOUT {
            return Some(now + QUEUE_QUIET / 10);
        }
        for listener in self.listeners.drain(..) {
            if listener.owner != SocketOwner::Systemd {
                // A worker that accepts on it learns from this that it has ended.
                let _ = tcp_socket::shut_down_listener(&listener.socket);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::config::settings::SocketFileConfig;
    use crate::listener::open_listeners;
    use crate::listener::systemd::ActivatedSockets;

    const SOCKET_FILE: SocketFileConfig = SocketFileConfig { mode: 0o660, owner: None, group: None };

    fn tcp(text: &str) -> ListenAddress {
        ListenAddress::Internet(text.parse().unwrap())
    }

    fn request<'a>(public: &'a [ListenAddress], admin: &'a [ListenAddress]) -> ListenRequest<'a> {
        ListenRequest { public, admin, socket_file: &SOCKET_FILE }
    }

    fn unix(folder: &tempfile::TempDir) -> ListenAddress {
        ListenAddress::Unix(UnixSocketName::Path(folder.path().join("shop.sock")))
    }

    #[test]
    fn what_is_added_is_served_and_what_ends_gives_out_its_queue_first() {
        let folder = tempfile::tempdir().unwrap();
        let (any, admin) = ([tcp("127.0.0.1:0")], [tcp("127.0.0.1:0")]);
        let lent = ActivatedSockets::default();
        let (present, slots) = open_listeners(request(&any, &admin), &lent, 2).unwrap();
        let old = present.public()[0].internet().unwrap();
        let mut slots: Vec<_> = slots.into_iter().map(Some).collect();
        assert!(
            ListenChange::prepare(&present, request(&any, &admin), 2).unwrap().is_none(),
            "port 0 is that one"
        );
        let wanted = [unix(&folder)];
        let change = ListenChange::prepare(&present, request(&wanted, &admin), 2).unwrap().unwrap();
        assert!(change.describe().contains("shop.sock is added, 127.0.0.1:"), "{}", change.describe());
        let given = change.listeners_for(1, slots[1].as_ref().unwrap()).unwrap();
        assert_eq!((given.public.len(), given.retired().count(), given.admin.len()), (1, 1, 1));
        assert_eq!(given.public[0].address().unwrap(), wanted[0]);
        let _queued: Vec<_> = (0..8).map(|_| TcpStream::connect(old).unwrap()).collect();
        let (after, mut closing) = change.commit(&mut slots);
        assert_eq!(after.public(), wanted);
        assert_eq!(slots[0].as_ref().unwrap().public[0].address().unwrap(), wanted[0]);
        let second = Duration::from_secs(1);
        assert!(
            closing.poll(second).is_some() && closing.poll(5 * second).is_some(),
            "something is in the queue"
        );
        let accepted = closing.listeners.iter().map(|one| match &one.socket {
            ListeningSocket::Tcp(socket) => std::iter::from_fn(|| socket.accept().ok()).count(),
            ListeningSocket::Unix(_) => 0,
        });
        assert_eq!(accepted.sum::<usize>(), 8);
        assert!(closing.poll(second * 11 / 2).is_some());
        assert_eq!(closing.poll(6 * second), None);
        assert_eq!(TcpStream::connect(old).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        after.close_shared();
    }

    #[test]
    fn a_refused_or_cancelled_change_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (any, admin) = ([tcp("127.0.0.1:0")], [tcp("127.0.0.1:0")]);
        let (present, _slots) =
            open_listeners(request(&any, &admin), &ActivatedSockets::default(), 1).unwrap();
        let file = folder.path().join("shop.sock");
        let bad = [any[0].clone(), unix(&folder), tcp("192.0.2.1:1")];
        assert!(ListenChange::prepare(&present, request(&bad, &admin), 1).is_err());
        assert!(!file.exists());
        let change = ListenChange::prepare(&present, request(&bad[..2], &admin), 1).unwrap().unwrap();
        assert!(UnixStream::connect(&file).is_ok());
        let _ = change.cancel().poll(Duration::ZERO);
        assert!(!file.exists());
        assert!(TcpStream::connect(present.public()[0].internet().unwrap()).is_ok());
    }
}
