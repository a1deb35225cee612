//! A slot's listeners as a handoff names them.

use std::os::fd::RawFd;

use serde::Deserialize;
use serde::Serialize;

use crate::listener::Owner;

/// Numbers of a slot's listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sockets {
    /// One per public address.
    pub public: Vec<Socket>,
    /// One per address of the operators; a single one is written as itself, as programs read it that know no list.
    #[serde(with = "one_or_more")]
    pub admin: Vec<Socket>,
}

/// One value, or a list of several.
mod one_or_more {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serialize;
    use serde::Serializer;

    use super::Socket;

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Given {
        One(Socket),
        More(Vec<Socket>),
    }

    pub(super) fn serialize<S: Serializer>(sockets: &[Socket], serializer: S) -> Result<S::Ok, S::Error> {
        match sockets {
            [one] => one.serialize(serializer),
            more => more.serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Socket>, D::Error> {
        Ok(match Given::deserialize(deserializer)? {
            Given::One(one) => vec![one],
            Given::More(more) => more,
        })
    }
}

/// A listener: its number and its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// Its number.
    pub fd: RawFd,
    /// Whether the fleet opened it or systemd lends it.
    pub owner: Owner,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_admin_socket_is_written_as_programs_read_it_that_know_no_list() {
        let socket = |fd| Socket { fd, owner: Owner::Slot };
        let mut sockets = Sockets { public: vec![socket(7)], admin: vec![socket(8)] };
        let read = |sockets: &Sockets| {
            let json = serde_json::to_value(sockets).unwrap();
            assert_eq!(&serde_json::from_value::<Sockets>(json.clone()).unwrap(), sockets);
            json
        };
        assert_eq!(read(&sockets)["admin"]["fd"], 8);
        sockets.admin.push(socket(9));
        assert_eq!(read(&sockets)["admin"][1]["fd"], 9);
    }
}
