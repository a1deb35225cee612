//! Messages to systemd: `sd_notify(3)`, one datagram a message.
//!
//! Its crates read `$NOTIFY_SOCKET` themselves, which only `config` may do here; what is left of them is a datagram.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{fmt, io};

/// What the service manager learns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::supervisor) enum ServiceMessage<'a> {
    /// Every slot serves, at first or again after [`ServiceMessage::Reloading`].
    Ready {
        /// The supervisor; it never changes, but this ends all doubt after an upgrade.
        pid: u32,
        /// One line for `systemctl status`.
        status: &'a str,
    },
    /// A reload or an upgrade has begun.
    Reloading {
        /// Time on the monotonic clock; the manager compares it with that of its own order.
        now: Duration,
        /// One line for `systemctl status`.
        status: &'a str,
    },
    /// The fleet drains.
    Stopping {
        /// How much longer it may take.
        within: Duration,
    },
    /// The loop still turns.
    Watchdog,
}

impl fmt::Display for ServiceMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A line break would begin another assignment.
        let line = |text: &str| text.replace(['\n', '\r'], " ");
        match self {
            Self::Ready { pid, status } => write!(f, "READY=1\nMAINPID={pid}\nSTATUS={}", line(status)),
            Self::Reloading { now, status } => {
                write!(f, "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS={}", now.as_micros(), line(status))
            }
            Self::Stopping { within } => {
                write!(f, "STOPPING=1\nEXTEND_TIMEOUT_USEC={}\nSTATUS=draining", within.as_micros())
            }
            Self::Watchdog => f.write_str("WATCHDOG=1"),
        }
    }
}

/// The way to the service manager; without one, every message goes nowhere.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct ServiceNotifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// How often it expects [`ServiceMessage::Watchdog`], and when the next is due.
    watchdog: Option<(Duration, Duration)>,
}

impl ServiceNotifier {
    /// The manager that `environment` names for the process `pid`, if it names one.
    ///
    /// # Errors
    /// When there is one and it cannot be reached by any socket.
    pub(in crate::supervisor) fn new(environment: &BTreeMap<String, String>, pid: u32) -> io::Result<Self> {
        let Some(path) = environment.get("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else {
            return Ok(Self::default());
        };
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { manager: Some((socket, address)), watchdog: watchdog(environment, pid) })
    }

    /// Sends a message. One that is lost is not worth a fleet: what went wrong is only logged.
    pub(in crate::supervisor) fn send(&self, message: &ServiceMessage<'_>) {
        let Some((socket, address)) = &self.manager else { return };
        if let Err(error) = socket.send_to_addr(message.to_string().as_bytes(), address) {
            tracing::debug!(%error, ?message, "cannot tell the service manager: {error}");
        }
    }

    /// Sends the sign of life if it is due.
    pub(in crate::supervisor) fn send_watchdog(&mut self, now: Duration) {
        let Some((period, next)) = &mut self.watchdog else { return };
        if *next <= now {
            *next = now + *period;
            self.send(&ServiceMessage::Watchdog);
        }
    }

    /// When the next sign of life is due; the loop must not sleep longer.
    pub(in crate::supervisor) fn next_watchdog(&self) -> Option<Duration> {
        self.watchdog.map(|(_, next)| next)
    }
}

/// Half of what the manager allows between two signs, if it watches this process.
fn watchdog(environment: &BTreeMap<String, String>, pid: u32) -> Option<(Duration, Duration)> {
    let number = |name: &str| environment.get(name)?.parse::<u64>().ok();
    let allowed = number("WATCHDOG_USEC").filter(|micros| *micros > 0)?;
    let ours = environment.get("WATCHDOG_PID").is_none_or(|watched| *watched == pid.to_string());
    ours.then(|| (Duration::from_micros(allowed) / 2, Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn receive(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let len = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..len].to_vec()).unwrap()
    }

    fn manager(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }

    #[test]
    fn messages_are_assignments_and_a_status_stays_one_line() {
        let now = Duration::from_micros(1_500_000);
        let reloading = ServiceMessage::Reloading { now, status: "1 of 2\nREADY=1" };
        assert_eq!(reloading.to_string(), "RELOADING=1\nMONOTONIC_USEC=1500000\nSTATUS=1 of 2 READY=1");
        let ready = ServiceMessage::Ready { pid: 7, status: "serving" };
        assert_eq!(ready.to_string(), "READY=1\nMAINPID=7\nSTATUS=serving");
        let stopping = ServiceMessage::Stopping { within: Duration::from_secs(30) };
        assert!(stopping.to_string().starts_with("STOPPING=1\nEXTEND_TIMEOUT_USEC=30000000\n"));
    }

    #[test]
    fn a_manager_receives_messages_by_path_and_by_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = manager(&path);
        let notifier =
            ServiceNotifier::new(&environment(&[("NOTIFY_SOCKET", path.to_str().unwrap())]), 1).unwrap();
        notifier.send(&ServiceMessage::Watchdog);
        assert_eq!(receive(&by_path), "WATCHDOG=1");
        let name = format!("regatta-test-{}", path.display());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let abstracted = UnixDatagram::bind_addr(&address).unwrap();
        let notifier =
            ServiceNotifier::new(&environment(&[("NOTIFY_SOCKET", &format!("@{name}"))]), 1).unwrap();
        notifier.send(&ServiceMessage::Watchdog);
        assert_eq!(receive(&abstracted), "WATCHDOG=1");
    }

    #[test]
    fn signs_of_life_come_at_half_of_what_is_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = manager(&path);
        let given =
            [("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "4000000"), ("WATCHDOG_PID", "9")];
        let mut notifier = ServiceNotifier::new(&environment(&given), 9).unwrap();
        notifier.send_watchdog(Duration::from_secs(100));
        assert_eq!(receive(&manager), "WATCHDOG=1");
        assert_eq!(notifier.next_watchdog(), Some(Duration::from_secs(102)));
        notifier.send_watchdog(Duration::from_secs(101));
        manager.set_nonblocking(true).unwrap();
        assert!(manager.recv(&mut [0; 16]).is_err(), "not due yet");
        assert_eq!(
            ServiceNotifier::new(&environment(&given), 8).unwrap().next_watchdog(),
            None,
            "another is watched"
        );
    }

    #[test]
    fn without_a_manager_nothing_is_sent() {
        let mut notifier = ServiceNotifier::new(&BTreeMap::new(), 1).unwrap();
        notifier.send(&ServiceMessage::Watchdog);
        notifier.send_watchdog(Duration::ZERO);
        assert_eq!(notifier.next_watchdog(), None);
        // A manager that has gone is no reason to fail.
        let gone = environment(&[("NOTIFY_SOCKET", "/nonexistent/notify")]);
        ServiceNotifier::new(&gone, 1).unwrap().send(&ServiceMessage::Watchdog);
    }
}
