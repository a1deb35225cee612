//! One variable of the environment: how a program learns that this process has a fleet already.

use std::os::fd::RawFd;

/// How a program learns that it takes a fleet over: `PID STATE OLD`, or `PID STATE - WHY` when it gets it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Descriptor of the state.
    pub state: RawFd,
    /// Which way it goes.
    pub way: Way,
}

/// Which way a fleet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To a new program.
    Forward {
        /// Descriptor of the old one.
        old: RawFd,
    },
    /// Back to the old one.
    Back {
        /// Why the new one could not take it; none when the state says so.
        reason: Option<String>,
    },
}

impl Ticket {
    /// Reads it. One that belongs to another process, inherited by accident, is none.
    pub fn parse(text: &str, pid: u32) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let whose: u32 = words.next()?.parse().ok()?;
        let state = words.next()?.parse().ok()?;
        let way = match (words.next()?, words.next()) {
            ("-", reason) => Way::Back { reason: reason.map(str::to_owned) },
            (old, _) => Way::Forward { old: old.parse().ok()? },
        };
        (whose == pid).then_some(Self { state, way })
    }

    /// As [`Ticket::parse`] reads it in the process `pid`.
    pub fn text(&self, pid: u32) -> String {
        match &self.way {
            Way::Forward { old } => format!("{pid} {} {old}", self.state),
            Way::Back { reason: None } => format!("{pid} {} -", self.state),
            Way::Back { reason: Some(reason) } => {
                format!("{pid} {} - {}", self.state, reason.replace('\0', " "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_for_one_process() {
        let forward = Ticket { state: 9, way: Way::Forward { old: 11 } };
        assert_eq!(forward.text(42), "42 9 11");
        let back = Ticket { state: 9, way: Way::Back { reason: Some("no such flag".into()) } };
        let home = Ticket { state: 9, way: Way::Back { reason: None } };
        for ticket in [forward, back, home] {
            assert_eq!(Ticket::parse(&ticket.text(42), 42).as_ref(), Some(&ticket));
            assert_eq!(Ticket::parse(&ticket.text(42), 43), None);
        }
        for garbage in ["", "42", "42 9", "42 x y", "x 9 11"] {
            assert_eq!(Ticket::parse(garbage, 42), None);
        }
    }
}
