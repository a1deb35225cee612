//! The fleet's shared queue: connections that a worker has accepted and leaves to one that has fewer.
//!
//! The queue belongs to the fleet as listeners belong to slots: the supervisor makes it once and holds both its ends,
//! every worker inherits both, and it lasts over reloads and upgrades. So a worker that ends takes nothing with it that
//! it has put there, and one that stands still gets nothing that another could serve.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::sys::{fd, socket_queue};

/// Bytes of a note: the slot, and when the connection was put into the queue.
const HEADER_LEN: usize = 16;

/// Bells of a fleet.
///
/// A slot's is that of its number, counted round and round: as many as this are woken alone, and with twice as many
/// slots two are woken for one connection. The state that an upgrade hands over has a field of so many
/// (`supervisor/deployment/handoff.rs`): another number needs another field there.
pub const WAKE_FDS: usize = 8;

/// Both ends of the queue, and what wakes the workers that are to look at it.
///
/// Were the queue watched itself, each connection would wake every worker of the fleet: with 16 of them that costs more
/// CPU than the connection.
#[derive(Debug)]
pub struct SharedQueue {
    pub(crate) send_end: OwnedFd,
    pub(crate) receive_end: OwnedFd,
    wake_fds: [OwnedFd; WAKE_FDS],
}

/// A connection from the queue.
#[derive(Debug)]
pub struct SharedConnection {
    /// The connection, of which nothing was read; none: another thread took the last descriptor in between, and the
    /// kernel has closed it.
    pub stream: Option<TcpStream>,
    /// The slot whose worker accepted it.
    pub from_slot: usize,
}

impl SharedQueue {
    /// A new queue.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let (entrance, exit) = socket_queue::socket_queue()?;
        Ok(Self {
            send_end: entrance,
            receive_end: exit,
            wake_fds: collect_fds([(); WAKE_FDS].map(|()| socket_queue::wakeup_fd()))?,
        })
    }

    /// The queue with these ends and bells; new bells, if its maker had none.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn from_parts(
        [entrance, exit]: [OwnedFd; 2],
        bells: Option<[io::Result<OwnedFd>; WAKE_FDS]>,
    ) -> io::Result<Self> {
        let bells = collect_fds(bells.unwrap_or_else(|| [(); WAKE_FDS].map(|()| socket_queue::wakeup_fd())))?;
        Ok(Self { send_end: entrance, receive_end: exit, wake_fds: bells })
    }

    /// The numbers of its ends, in the order of [`Self::from_parts`].
    pub fn end_fds(&self) -> [RawFd; 2] {
        [self.send_end.as_raw_fd(), self.receive_end.as_raw_fd()]
    }

    /// The numbers of its bells.
    pub fn wake_fds(&self) -> [RawFd; WAKE_FDS] {
        self.wake_fds.each_ref().map(AsRawFd::as_raw_fd)
    }

    /// All its numbers.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.end_fds().into_iter().chain(self.wake_fds())
    }

    /// Other descriptors of the same queue.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let bells = collect_fds(self.wake_fds.each_ref().map(OwnedFd::try_clone))?;
        Ok(Self {
            send_end: self.send_end.try_clone()?,
            receive_end: self.receive_end.try_clone()?,
            wake_fds: bells,
        })
    }

    /// Another descriptor of this slot's bell, to be watched.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn wake_fd(&self, slot: usize) -> io::Result<OwnedFd> {
        self.wake_fds[slot % WAKE_FDS].try_clone()
    }

    /// Wakes the workers that have the bell of this slot.
    pub fn wake(&self, slot: usize) {
        if let Err(error) = socket_queue::wake(&self.wake_fds[slot % WAKE_FDS]) {
            tracing::debug!(%error, "cannot wake another worker: {error}");
        }
    }
}

fn collect_fds(bells: [io::Result<OwnedFd>; WAKE_FDS]) -> io::Result<[OwnedFd; WAKE_FDS]> {
    let bells: Vec<_> = bells.into_iter().collect::<io::Result<_>>()?;
    bells.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Puts a connection into the queue, of which the caller then closes its own descriptor.
///
/// # Errors
/// When the queue is full, or the kernel has too many sockets on their way: the connection is the caller's as before.
pub fn enqueue(entrance: &impl AsFd, stream: &impl AsFd, from: usize, now: Duration) -> io::Result<()> {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let mut header = [0; HEADER_LEN];
    header[..8].copy_from_slice(&(from as u64).to_ne_bytes());
    header[8..].copy_from_slice(&now.to_ne_bytes());
    socket_queue::enqueue(entrance, stream, &header)
}

/// Takes the connection that has been in the queue for longest.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none, or why none can be taken: then it stays in the queue.
pub fn dequeue(exit: &impl AsFd) -> io::Result<SharedConnection> {
    // The kernel drops what it finds no descriptor for, so that there must be one: this one, closed again.
    match exit.as_fd().try_clone_to_owned() {
        Ok(spare) => drop(spare),
        // A process without descriptors must see an empty queue as such, or it would look again for ever.
        Err(_) if oldest_enqueued_at(exit).is_none() => return Err(io::ErrorKind::WouldBlock.into()),
        Err(refused) => return Err(refused),
    }
    let mut header = [0; HEADER_LEN];
    let (_, socket) = socket_queue::dequeue(exit, &mut header)?;
    let (from, _) = parse_header(&header);
    Ok(SharedConnection {
        stream: socket.map(TcpStream::from),
        from_slot: usize::try_from(from).unwrap_or(usize::MAX),
    })
}

/// When the oldest connection in the queue was put there; none: there is none.
pub fn oldest_enqueued_at(exit: &impl AsFd) -> Option<Duration> {
    let mut header = [0; HEADER_LEN];
    fd::receive_copy_now(exit, &mut header).ok().filter(|len| *len > 0)?;
    Some(Duration::from_nanos(parse_header(&header).1))
}

fn parse_header(header: &[u8; HEADER_LEN]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_ne_bytes);
    (number(&header[..8]), number(&header[8..]))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_is_taken_once_with_where_it_came_from_and_since_when() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let SharedQueue { send_end: entrance, receive_end: exit, .. } = SharedQueue::open().unwrap();
        assert_eq!(oldest_enqueued_at(&exit), None);
        enqueue(&entrance, &accepted, 3, Duration::from_millis(7)).unwrap();
        drop(accepted);
        assert_eq!(oldest_enqueued_at(&exit), Some(Duration::from_millis(7)));
        assert_eq!(oldest_enqueued_at(&exit), Some(Duration::from_millis(7)), "a look takes nothing");
        let passed = dequeue(&exit).unwrap();
        let mut stream = passed.stream.unwrap();
        assert_eq!((passed.from_slot, stream.peer_addr().unwrap()), (3, peer));
        stream.write_all(b"here").unwrap();
        drop(stream);
        let mut received = String::new();
        client.read_to_string(&mut received).unwrap();
        assert_eq!(received, "here");
        assert_eq!(dequeue(&exit).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_in_the_queue_outlives_the_process_that_put_it_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let queue = SharedQueue::open().unwrap();
        let copy = queue.try_clone().unwrap();
        enqueue(&copy.send_end, &accepted, 0, Duration::ZERO).unwrap();
        drop((accepted, copy));
        assert!(dequeue(&queue.receive_end).is_ok());
    }
}
