//! One variable of the environment: how a program learns that this process has a fleet already.

use std::os::fd::RawFd;

/// What stands before the descriptor of a state in the same variable, where a program is only asked whether it could.
pub const PREFLIGHT: &str = "preflight ";

/// How a program learns that it takes a fleet over: `PID STATE OLD`, or `PID STATE - WHY` when it gets it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TakeoverEnv {
    /// Descriptor of the state.
    pub state: RawFd,
    /// Which way it goes.
    pub direction: TakeoverDirection,
}

/// Which way a fleet goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakeoverDirection {
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

impl TakeoverEnv {
    /// Reads it. One that belongs to another process, inherited by accident, is none.
    pub fn parse(text: &str, pid: u32) -> Option<Self> {
        let mut words = text.splitn(4, ' ');
        let addressee: u32 = words.next()?.parse().ok()?;
        let state = words.next()?.parse().ok()?;
        let way = match (words.next()?, words.next()) {
            ("-", reason) => TakeoverDirection::Back { reason: reason.map(str::to_owned) },
            (old, _) => TakeoverDirection::Forward { old: old.parse().ok()? },
        };
        (addressee == pid).then_some(Self { state, direction: way })
    }

    /// As [`TakeoverEnv::parse`] reads it in the process `pid`.
    pub fn encode(&self, pid: u32) -> String {
        match &self.direction {
            TakeoverDirection::Forward { old } => format!("{pid} {} {old}", self.state),
            TakeoverDirection::Back { reason: None } => format!("{pid} {} -", self.state),
            TakeoverDirection::Back { reason: Some(reason) } => {
                format!("{pid} {} - {}", self.state, reason.replace('\0', " "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_variable_is_for_one_process() {
        let forward = TakeoverEnv { state: 9, direction: TakeoverDirection::Forward { old: 11 } };
        assert_eq!(forward.encode(42), "42 9 11");
        let back = TakeoverEnv {
            state: 9,
            direction: TakeoverDirection::Back { reason: Some("no such flag".into()) },
        };
        let home = TakeoverEnv { state: 9, direction: TakeoverDirection::Back { reason: None } };
        for takeover in [forward, back, home] {
            assert_eq!(TakeoverEnv::parse(&takeover.encode(42), 42).as_ref(), Some(&takeover));
            assert_eq!(TakeoverEnv::parse(&takeover.encode(42), 43), None);
        }
        for garbage in ["", "42", "42 9", "42 x y", "x 9 11"] {
            assert_eq!(TakeoverEnv::parse(garbage, 42), None);
        }
    }
}
