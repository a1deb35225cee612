//! The fleet's shared queue: connections that a worker has accepted and leaves to one that has fewer.
//!
//! The queue belongs to the fleet as listeners belong to slots: the supervisor makes it once and holds both its ends,
//! every worker inherits both, and it lasts over reloads and upgrades. So a worker that ends takes nothing with it that
//! it has put there, and one that stands still gets nothing that another could serve.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::time::Duration;

use crate::sys::fd;
use crate::sys::pass;

/// Bytes of a note: the slot, and when the connection was put into the queue.
const NOTE: usize = 16;

/// Bells of a fleet.
///
/// A slot's is that of its number, counted round and round: as many as this are woken alone, and with twice as many
/// slots two are woken for one connection. The state that an upgrade hands over has a field of so many
/// (`supervisor/handoff.rs`): another number needs another field there.
pub const BELLS: usize = 8;

/// Both ends of the queue, and what wakes the workers that are to look at it.
///
/// Were the queue watched itself, each connection would wake every worker of the fleet: with 16 of them that costs more
/// CPU than the connection.
#[derive(Debug)]
pub struct SharedQueue {
    pub(crate) entrance: OwnedFd,
    pub(crate) exit: OwnedFd,
    bells: [OwnedFd; BELLS],
}

/// A connection from the queue.
#[derive(Debug)]
pub struct Passed {
    /// The connection, of which nothing was read; none: another thread took the last descriptor in between, and the
    /// kernel has closed it.
    pub stream: Option<TcpStream>,
    /// The slot whose worker accepted it.
    pub from: usize,
}

impl SharedQueue {
    /// A new queue.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn open() -> io::Result<Self> {
        let (entrance, exit) = pass::queue()?;
        Ok(Self { entrance, exit, bells: all([(); BELLS].map(|()| pass::bell()))? })
    }

    /// The queue with these ends and bells; new bells, if its maker had none.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn from_parts(
        [entrance, exit]: [OwnedFd; 2],
        bells: Option<[io::Result<OwnedFd>; BELLS]>,
    ) -> io::Result<Self> {
        let bells = all(bells.unwrap_or_else(|| [(); BELLS].map(|()| pass::bell())))?;
        Ok(Self { entrance, exit, bells })
    }

    /// The numbers of its ends, in the order of [`Self::from_parts`].
    pub fn ends(&self) -> [RawFd; 2] {
        [self.entrance.as_raw_fd(), self.exit.as_raw_fd()]
    }

    /// The numbers of its bells.
    pub fn bells(&self) -> [RawFd; BELLS] {
        self.bells.each_ref().map(AsRawFd::as_raw_fd)
    }

    /// All its numbers.
    pub fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.ends().into_iter().chain(self.bells())
    }

    /// Other descriptors of the same queue.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let bells = all(self.bells.each_ref().map(OwnedFd::try_clone))?;
        Ok(Self { entrance: self.entrance.try_clone()?, exit: self.exit.try_clone()?, bells })
    }

    /// Another descriptor of this slot's bell, to be watched.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn bell(&self, slot: usize) -> io::Result<OwnedFd> {
        self.bells[slot % BELLS].try_clone()
    }

    /// Wakes the workers that have the bell of this slot.
    pub fn ring(&self, slot: usize) {
        if let Err(error) = pass::ring(&self.bells[slot % BELLS]) {
            tracing::debug!(%error, "cannot wake another worker: {error}");
        }
    }
}

fn all(bells: [io::Result<OwnedFd>; BELLS]) -> io::Result<[OwnedFd; BELLS]> {
    let bells: Vec<_> = bells.into_iter().collect::<io::Result<_>>()?;
    bells.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Puts a connection into the queue, of which the caller then closes its own descriptor.
///
/// # Errors
/// When the queue is full, or the kernel has too many sockets on their way: the connection is the caller's as before.
pub fn put(entrance: &impl AsFd, stream: &impl AsFd, from: usize, now: Duration) -> io::Result<()> {
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let mut note = [0; NOTE];
    note[..8].copy_from_slice(&(from as u64).to_ne_bytes());
    note[8..].copy_from_slice(&now.to_ne_bytes());
    pass::put(entrance, stream, &note)
}

/// Takes the connection that has been in the queue for longest.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none, or why none can be taken: then it stays in the queue.
pub fn take(exit: &impl AsFd) -> io::Result<Passed> {
    // The kernel drops what it finds no descriptor for, so that there must be one: this one, closed again.
    match exit.as_fd().try_clone_to_owned() {
        Ok(spare) => drop(spare),
        // A process without descriptors must see an empty queue as such, or it would look again for ever.
        Err(_) if oldest(exit).is_none() => return Err(io::ErrorKind::WouldBlock.into()),
        Err(refused) => return Err(refused),
    }
    let mut note = [0; NOTE];
    let (_, socket) = pass::take(exit, &mut note)?;
    let (from, _) = read(&note);
    Ok(Passed { stream: socket.map(TcpStream::from), from: usize::try_from(from).unwrap_or(usize::MAX) })
}

/// When the oldest connection in the queue was put there; none: there is none.
pub fn oldest(exit: &impl AsFd) -> Option<Duration> {
    let mut note = [0; NOTE];
    fd::peek_now(exit, &mut note).ok().filter(|len| *len > 0)?;
    Some(Duration::from_nanos(read(&note).1))
}

fn read(note: &[u8; NOTE]) -> (u64, u64) {
    let number = |bytes: &[u8]| bytes.try_into().map_or(u64::MAX, u64::from_ne_bytes);
    (number(&note[..8]), number(&note[8..]))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_connection_is_taken_once_with_where_it_came_from_and_since_when() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let SharedQueue { entrance, exit, .. } = SharedQueue::open().unwrap();
        assert_eq!(oldest(&exit), None);
        put(&entrance, &accepted, 3, Duration::from_millis(7)).unwrap();
        drop(accepted);
        assert_eq!(oldest(&exit), Some(Duration::from_millis(7)));
        assert_eq!(oldest(&exit), Some(Duration::from_millis(7)), "a look takes nothing");
        let passed = take(&exit).unwrap();
        let mut stream = passed.stream.unwrap();
        assert_eq!((passed.from, stream.peer_addr().unwrap()), (3, peer));
        stream.write_all(b"here").unwrap();
        drop(stream);
        let mut said = String::new();
        client.read_to_string(&mut said).unwrap();
        assert_eq!(said, "here");
        assert_eq!(take(&exit).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_in_the_queue_outlives_the_process_that_put_it_there() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let queue = SharedQueue::open().unwrap();
        let copy = queue.try_clone().unwrap();
        put(&copy.entrance, &accepted, 0, Duration::ZERO).unwrap();
        drop((accepted, copy));
        assert!(take(&queue.exit).is_ok());
    }
}
