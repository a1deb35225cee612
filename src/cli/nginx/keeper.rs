//! What a maintained file should hold after each look at Redis. Pure: no file, no clock.

use crate::cli::nginx::block::Servers;

/// Decides by what was seen last.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    known: Option<Servers>,
}

/// Why the hosts stay as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// No one lives, as far as Redis knows: an empty upstream would not even be a configuration.
    Nobody,
    /// Redis knows too little yet, and so do we.
    Early,
}

impl Keeper {
    /// The hosts to be written after a look; `complete` as in [`crate::redis::fleet::Machines`], `written` whether
    /// there is a file already.
    ///
    /// # Errors
    /// Why the file is to stay as it is.
    pub(super) fn look(&mut self, found: Servers, complete: bool, written: bool) -> Result<&Servers, Doubt> {
        let next = match (self.known.take(), complete) {
            (None, false) if written => return Err(Doubt::Early),
            (known, _) if found.is_empty() => {
                self.known = known;
                return Err(Doubt::Nobody);
            }
            (_, true) | (None, false) => found,
            // Redis has lost what it knew: the one who has not spoken again yet is not gone for that.
            (Some(mut known), false) => {
                known.extend(found);
                known
            }
        };
        Ok(self.known.insert(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::nginx::block::servers;
    use crate::redis::fleet::Machine;
    use crate::redis::fleet::Seat;
    use crate::redis::fleet::Seen;

    fn hosts(addresses: &[&str]) -> Servers {
        let seen = addresses.iter().map(|address| {
            let slots = vec![Seat { state: "ready".into(), ..Seat::default() }];
            let machine = Machine { addresses: vec![(*address).into()], slots, ..Machine::default() };
            Seen { age_ms: 0, machine }
        });
        servers(&seen.collect::<Vec<_>>())
    }

    fn names(looked: Result<&Servers, Doubt>) -> Result<Vec<String>, Doubt> {
        looked.map(|servers| servers.keys().cloned().collect())
    }

    #[test]
    fn hosts_come_and_go() {
        let mut keeper = Keeper::default();
        assert_eq!(names(keeper.look(hosts(&["a:1", "b:1"]), true, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(names(keeper.look(hosts(&["b:1", "c:1"]), true, true)).unwrap(), ["b:1", "c:1"]);
    }

    #[test]
    fn the_last_hosts_stay_when_nobody_is_left() {
        let mut keeper = Keeper::default();
        assert_eq!(names(keeper.look(hosts(&[]), true, true)), Err(Doubt::Nobody));
        assert_eq!(names(keeper.look(hosts(&["a:1"]), true, true)).unwrap(), ["a:1"]);
        assert_eq!(names(keeper.look(hosts(&[]), true, true)), Err(Doubt::Nobody));
        assert_eq!(
            names(keeper.look(hosts(&["b:1"]), false, true)).unwrap(),
            ["a:1", "b:1"],
            "a is still known"
        );
    }

    #[test]
    fn without_a_file_what_is_known_is_better_than_nothing() {
        let mut keeper = Keeper::default();
        assert_eq!(names(keeper.look(hosts(&["a:1"]), false, false)).unwrap(), ["a:1"]);
    }

    #[test]
    fn while_redis_is_learning_hosts_only_come() {
        let mut keeper = Keeper::default();
        assert_eq!(names(keeper.look(hosts(&["a:1"]), false, true)), Err(Doubt::Early));
        assert_eq!(names(keeper.look(hosts(&["a:1", "b:1"]), true, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(names(keeper.look(hosts(&["b:1"]), false, true)).unwrap(), ["a:1", "b:1"]);
        assert_eq!(names(keeper.look(hosts(&["b:1", "c:1"]), false, true)).unwrap(), ["a:1", "b:1", "c:1"]);
        assert_eq!(names(keeper.look(hosts(&["b:1", "c:1"]), true, true)).unwrap(), ["b:1", "c:1"]);
    }
}
