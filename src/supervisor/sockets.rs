//! A slot's listeners as a handoff names them.

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::listener::SocketOwner;

/// Numbers of a slot's listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotFds {
    /// One per public address.
    pub public: Vec<ListenerFd>,
    /// One per address of the operators; a single one is written as itself, as programs read it that know no list.
    #[serde(with = "one_or_more")]
    pub admin: Vec<ListenerFd>,
}

/// One value, or a list of several.
mod one_or_more {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::supervisor::sockets::ListenerFd;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMore {
        One(ListenerFd),
        Many(Vec<ListenerFd>),
    }

    pub(super) fn serialize<S: Serializer>(sockets: &[ListenerFd], serializer: S) -> Result<S::Ok, S::Error> {
        match sockets {
            [one] => one.serialize(serializer),
            more => more.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<ListenerFd>, D::Error> {
        Ok(match OneOrMore::deserialize(deserializer)? {
            OneOrMore::One(one) => vec![one],
            OneOrMore::Many(more) => more,
        })
    }
}

/// A listener: its number and its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerFd {
    /// Its number.
    pub fd: RawFd,
    /// Whether the fleet opened it or systemd lends it.
    pub owner: SocketOwner,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_admin_socket_is_written_as_programs_read_it_that_know_no_list() {
        let socket = |fd| ListenerFd { fd, owner: SocketOwner::Slot };
        let mut sockets = SlotFds { public: vec![socket(7)], admin: vec![socket(8)] };
        let read = |sockets: &SlotFds| {
            let json = serde_json::to_value(sockets).unwrap();
            assert_eq!(&serde_json::from_value::<SlotFds>(json.clone()).unwrap(), sockets);
            json
        };
        assert_eq!(read(&sockets)["admin"]["fd"], 8);
        sockets.admin.push(socket(9));
        assert_eq!(read(&sockets)["admin"][1]["fd"], 9);
    }
}
