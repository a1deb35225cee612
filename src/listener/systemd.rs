//! Sockets that systemd opened for the fleet (socket activation); `sd_listen_fds(3)`.
//!
//! Such a socket is one queue for all slots. It belongs to systemd: the fleet only accepts from it, and what comes while
//! no worker accepts waits there for the next one, or for the next fleet.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use crate::config::settings::SteeringMode;
use crate::listener::socket::ListeningSocket;
use crate::sys::{tcp_socket, unix_listener};

/// Number of the first descriptor that is handed over.
const FIRST_DESCRIPTOR: i32 = 3;

/// Name of a socket that serves operators (`FileDescriptorName=admin`); any other serves visitors.
const ADMIN_NAME: &str = "admin";

/// Why the sockets that were handed over cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A variable does not say what it should.
    #[error(
        "the environment variable {variable} is {value:?}, but {reason}: start the fleet by its .socket unit, or remove the variable"
    )]
    InvalidVariable {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A descriptor is no listening socket of streams.
    #[error(
        "descriptor {number} ({name}) that systemd handed over cannot be served: use ListenStream= with an Internet address or the path of a Unix socket in its .socket unit"
    )]
    InvalidSocket {
        /// The descriptor.
        number: i32,
        /// Its name, as the unit gives it.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Nothing can be steered within one queue.
    #[error(
        "listen.steering cannot steer what comes to a socket that systemd lends, because all slots share its queue: set it to kernel, or start the fleet without the .socket unit"
    )]
    SteeringUnsupported,
}

/// What systemd opened; empty for a fleet that was started in another way.
#[derive(Debug, Default)]
pub struct ActivatedSockets {
    /// Sockets for visitors; if there is one, the setting `listen` has no effect.
    pub public: Vec<ListeningSocket>,
    /// Sockets for operators; if there is one, the setting `admin.listen` has no effect.
    pub admin: Vec<ListeningSocket>,
}

impl ActivatedSockets {
    /// Takes over what the environment says was handed to the process `pid`, which must be this one.
    ///
    /// To be called once, before anything else is opened.
    ///
    /// # Errors
    /// When the variables contradict each other, or a descriptor is no listening socket of streams.
    pub fn from_environment(
        environment: &BTreeMap<String, String>,
        pid: i32,
    ) -> Result<Self, ActivationError> {
        let mut lent = Self::default();
        for (number, name) in (FIRST_DESCRIPTOR..).zip(descriptor_names(environment, pid)?) {
            let taken = take_socket(number);
            let socket = taken.map_err(|source| ActivationError::InvalidSocket {
                number,
                name: name.clone(),
                source,
            })?;
            match name.as_str() {
                ADMIN_NAME => lent.admin.push(socket),
                _ => lent.public.push(socket),
            }
        }
        Ok(lent)
    }

    /// Whether connections can be spread as wanted.
    ///
    /// # Errors
    /// When they come to a lent socket and are wanted otherwise than they happen to be accepted.
    pub fn check_steering(&self, steering: SteeringMode) -> Result<(), ActivationError> {
        match steering {
            SteeringMode::ClientIp if !self.public.is_empty() => Err(ActivationError::SteeringUnsupported),
            SteeringMode::Kernel | SteeringMode::ClientIp => Ok(()),
        }
    }
}

fn take_socket(number: RawFd) -> io::Result<ListeningSocket> {
    match unix_listener::from_inherited(number) {
        Ok(unix) => Ok(ListeningSocket::Unix(unix)),
        Err(_) => tcp_socket::from_inherited(number).map(ListeningSocket::Tcp),
    }
}

/// The name of each descriptor that was handed over, in their order.
fn descriptor_names(
    environment: &BTreeMap<String, String>,
    pid: i32,
) -> Result<Vec<String>, ActivationError> {
    let find =
        |variable: &str| environment.get(variable).map(String::as_str).filter(|value| !value.is_empty());
    let wrong = |variable, reason| {
        let value = environment.get(variable).cloned().unwrap_or_default();
        Err(ActivationError::InvalidVariable { variable, value, reason })
    };
    let (Some(meant), Some(count)) = (find("LISTEN_PID"), find("LISTEN_FDS")) else { return Ok(Vec::new()) };
    // Meant for another process, for example the shell that started this one.
    if meant != pid.to_string() {
        return Ok(Vec::new());
    }
    let Ok(count) = count.parse::<u16>() else { return wrong("LISTEN_FDS", "that is not a number") };
    let names: Vec<String> = match find("LISTEN_FDNAMES") {
        Some(names) => names.split(':').map(str::to_owned).collect(),
        None => vec!["unknown".into(); count.into()],
    };
    match names.len() == usize::from(count) {
        true => Ok(names),
        false => wrong("LISTEN_FDNAMES", "that is not one name for each of LISTEN_FDS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(variables: &[(&str, &str)]) -> Result<Vec<String>, ActivationError> {
        let environment = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        descriptor_names(&environment.collect(), 7)
    }

    #[test]
    fn only_what_is_meant_for_this_process_is_taken() {
        assert!(named(&[]).unwrap().is_empty());
        assert!(named(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "1")]).unwrap().is_empty());
        assert_eq!(named(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")]).unwrap(), ["unknown", "unknown"]);
        let both = [("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "admin:web")];
        assert_eq!(named(&both).unwrap(), ["admin", "web"]);
    }

    #[test]
    fn variables_that_contradict_each_other_are_named() {
        let few = named(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2"), ("LISTEN_FDNAMES", "web")]);
        assert!(few.unwrap_err().to_string().contains("LISTEN_FDNAMES"));
        assert!(
            named(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "x")])
                .unwrap_err()
                .to_string()
                .contains("LISTEN_FDS")
        );
    }

    #[test]
    fn a_descriptor_that_does_not_listen_is_refused() {
        let idle = std::os::fd::IntoRawFd::into_raw_fd(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
        assert!(tcp_socket::from_inherited(idle).unwrap_err().to_string().contains("no TCP socket"));
        assert!(tcp_socket::from_inherited(9999).is_err());
    }
}
