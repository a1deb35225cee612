//! Open sockets that one process gives to another (`SCM_RIGHTS`, unix(7)).

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::sys::application_fds;

/// A queue of sockets with a note each: the end they are put in at, and the end they are taken from. Both never block
/// and are closed on exec.
///
/// A message is one socket and its note, and any number of processes may hold either end: each message reaches one of
/// them. What is in the queue stays open as long as a process holds the taking end.
///
/// # Errors
/// When no descriptor is left.
pub fn socket_queue() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Puts a copy of a socket into the queue.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when the queue is full, or what the kernel says: nothing was put there then.
pub fn enqueue(queue: &impl AsFd, socket: &impl AsFd, metadata: &[u8]) -> io::Result<()> {
    let sockets = [socket.as_fd().as_raw_fd()];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let rights = [ControlMessage::ScmRights(&sockets)];
    sendmsg::<()>(queue.as_fd().as_raw_fd(), &[IoSlice::new(metadata)], &rights, flags, None)?;
    Ok(())
}

/// Takes the oldest socket from the queue, and its note into `note`, whose length is returned.
///
/// None: the kernel had no descriptor for it, and has dropped it. To be sure of one, make one before and close it.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when the queue is empty, or what the kernel says.
pub fn dequeue(queue: &impl AsFd, metadata: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut room = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(metadata)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(queue.as_fd().as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let mut taken = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(sockets) = control {
            for socket in sockets {
                // SAFETY: the kernel has just made this descriptor for this call, and nothing else knows its number.
                taken = Some(unsafe { OwnedFd::from_raw_fd(socket) });
            }
        }
    }
    Ok((message.bytes, taken))
}

/// Something that wakes all who watch it, each time it is rung (eventfd(2)).
///
/// It is never read, and every ring wakes an edge-triggered watcher. Any number of processes may watch it and ring
/// it; it is closed on exec.
///
/// # Errors
/// When no descriptor is left.
pub fn wakeup_fd() -> io::Result<OwnedFd> {
    // SAFETY: it takes numbers only.
    let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if event < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for this call, and nothing else knows its number.
    let event = unsafe { OwnedFd::from_raw_fd(event) };
    application_fds::claim_opened(&event);
    Ok(event)
}

/// Rings a event.
///
/// # Errors
/// What the kernel says.
pub fn wake(event: &impl AsFd) -> io::Result<()> {
    nix::unistd::write(event, &1_u64.to_ne_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_and_its_metadata_come_out_once_and_in_order() {
        let (entrance, exit) = socket_queue().unwrap();
        let mut others = Vec::new();
        for metadata in [b"one", b"two"] {
            let (near, far) = UnixStream::pair().unwrap();
            enqueue(&entrance, &near, metadata).unwrap();
            others.push(far);
        }
        for (expected, mut far) in [b"one", b"two"].into_iter().zip(others) {
            let mut metadata = [0; 8];
            let (len, socket) = dequeue(&exit, &mut metadata).unwrap();
            assert_eq!(&metadata[..len], expected);
            UnixStream::from(socket.unwrap()).write_all(expected).unwrap();
            let mut received = Vec::new();
            far.read_to_end(&mut received).unwrap();
            assert_eq!(received, expected);
        }
        assert_eq!(dequeue(&exit, &mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_full_queue_takes_nothing_more_and_keeps_what_it_has() {
        let (entrance, exit) = socket_queue().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let mut put_in = 0;
        let refused = loop {
            match enqueue(&entrance, &near, b"note") {
                Ok(()) => put_in += 1,
                Err(refused) => break refused,
            }
        };
        assert!(put_in >= 64, "{put_in}");
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        for _ in 0..put_in {
            assert!(dequeue(&exit, &mut [0; 4]).unwrap().1.is_some());
        }
        assert!(dequeue(&exit, &mut [0; 4]).is_err());
    }
}
