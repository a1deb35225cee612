//! Every kind of file a log may go to, while nothing takes its lines and when something does again.

use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixStream};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::*;

const LINE: &[u8] = b"a line of the log\n";

/// Writes until nothing is taken; how much was.
fn fill(sink: &mut NonblockingSink) -> (usize, SinkError) {
    let mut taken = 0;
    loop {
        match sink.write(LINE) {
            Ok(written) => taken += written,
            Err(refused) => return (taken, refused),
        }
    }
}

/// An end whose description blocks, as an inherited one does.
fn blocking(fd: impl Into<OwnedFd>) -> SinkTarget {
    let fd = fd.into();
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    own_target(fd)
}

fn flags(end: &SinkTarget) -> i32 {
    fcntl(end, FcntlArg::F_GETFL).unwrap()
}

#[test]
fn a_pipe_without_a_reader_is_full_and_the_shared_description_stays_as_it_is() {
    for way in [WriteStrategy::NoWait, WriteStrategy::Splice, WriteStrategy::Polled] {
        let (read, write) = fd::pipe().unwrap();
        let end = blocking(write);
        let mut sink = NonblockingSink::from_inherited(end.clone());
        assert_eq!(sink.strategy, WriteStrategy::NoWait);
        sink.strategy = way;
        let (taken, refused) = fill(&mut sink);
        assert!(matches!(refused, SinkError::Full) && taken > 0, "{way:?}: {taken} {refused:?}");
        let mut text = vec![0; taken];
        File::from(read).read_exact(&mut text).unwrap();
        assert!(text.chunks(LINE.len()).all(|line| line == LINE), "{way:?}");
        assert!(sink.write(LINE).is_err(), "{way:?}: its reader is gone");
        assert_eq!(flags(&end) & libc::O_NONBLOCK, 0, "{way:?}");
    }
}

#[test]
fn what_the_kernel_does_not_know_is_done_another_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    // FIFOs do not know RWF_NOWAIT.
    let end = blocking(both);
    let mut sink = NonblockingSink::from_inherited(end.clone());
    assert!(matches!(fill(&mut sink), (1.., SinkError::Full)));
    assert_eq!((sink.strategy, flags(&end) & libc::O_NONBLOCK), (WriteStrategy::Plain, 0));
    assert!(fallback_method(WriteStrategy::NoWait, &SinkTarget::StandardError, Errno::EAGAIN).is_none());
}

#[test]
fn sockets_are_full_or_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut sink = NonblockingSink::from_inherited(blocking(ours));
    assert!(matches!(fill(&mut sink), (1.., SinkError::Full)));
    drop(theirs);
    assert!(matches!(sink.write(LINE), Err(SinkError::Closed(_))));
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    let mut sink = NonblockingSink::from_inherited(blocking(ours));
    assert!(matches!(fill(&mut sink), (1.., SinkError::Full)));
    let mut line = [0; 100];
    assert_eq!(theirs.recv(&mut line).unwrap(), LINE.len(), "a message is a line");
    assert!(matches!(sink.write(&vec![b'x'; 16 << 20]), Err(SinkError::TooLong)));
}

#[test]
fn a_terminal_that_was_stopped_is_full_until_it_goes_on() {
    use nix::sys::termios::{FlowArg, tcflow};
    let pty = nix::pty::openpty(None, None).unwrap();
    let end = own_target(pty.slave);
    for way in [WriteStrategy::Plain, WriteStrategy::Polled] {
        let mut sink = NonblockingSink::from_inherited(end.clone());
        assert_eq!(sink.strategy, WriteStrategy::Plain, "it was opened anew");
        if way == WriteStrategy::Polled {
            sink = NonblockingSink { target: Some(end.clone()), strategy: way, fifo: None };
        }
        tcflow(&end, FlowArg::TCOOFF).unwrap();
        assert!(matches!(sink.write(LINE), Err(SinkError::Full)), "{way:?}");
        assert!(!end.await_room(clock::monotonic() + Duration::from_millis(20)), "{way:?}");
        tcflow(&end, FlowArg::TCOON).unwrap();
        assert_eq!(sink.write(LINE).unwrap(), LINE.len(), "{way:?}");
        assert_eq!(flags(&end) & libc::O_NONBLOCK, 0, "{way:?}");
    }
}

#[test]
fn a_fifo_waits_for_its_reader_without_blocking() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    NonblockingSink::check(&path).unwrap();
    let mut sink = NonblockingSink::file(&path).unwrap();
    assert!(matches!(sink.write(LINE), Err(SinkError::NoReader)));
    assert_eq!(sink.descriptor(), None);
    let read = || OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    let mut reader = read();
    assert_eq!(sink.write(LINE).unwrap(), LINE.len());
    let mut text = [0; 64];
    assert_eq!(reader.read(&mut text).unwrap(), LINE.len());
    drop(reader);
    assert!(matches!(sink.write(LINE), Err(SinkError::NoReader)));
    let _reader = read();
    assert_eq!(sink.write(LINE).unwrap(), LINE.len());
}

#[test]
fn a_full_disk_is_a_failure_and_other_files_take_all() {
    let mut full = NonblockingSink::file(Path::new("/dev/full")).unwrap();
    assert!(matches!(full.write(LINE), Err(SinkError::Failed(_))));
    full.write_within(LINE, Duration::from_secs(60));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    assert!(NonblockingSink::check(&path).is_err());
    let mut file = NonblockingSink::file(&path).unwrap();
    file.write_within(LINE, Duration::ZERO);
    assert_eq!(std::fs::read(&path).unwrap(), LINE);
    assert_eq!(file.ends_mid_line(), Some(false));
    file.write_within(b"cut sho", Duration::ZERO);
    assert_eq!((file.ends_mid_line(), full.ends_mid_line()), (Some(true), None));
    assert!(NonblockingSink::check(&path).is_ok() && file.descriptor().is_some());
    assert!(NonblockingSink::file(folder.path()).is_err(), "a folder is no file");
}
