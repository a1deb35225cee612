//! What was asked of Redis, by name, and in how many turns.

use std::collections::BTreeMap;
use std::fmt;

use crate::support::fault_proxy::resp;

/// Commands by name, and round trips.
///
/// A name is the command in capitals; of a function call it is the function's, of a script `EVALSHA` and the first
/// eight letters of its digest. What the client does by itself, without any request, counts as housekeeping.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CommandCounts {
    /// Commands of requests.
    pub(crate) commands: BTreeMap<String, u64>,
    /// Turns from asking to being answered, of commands of requests: several commands sent at once are one.
    pub(crate) rounds: u64,
    /// Commands that belong to no request: connecting, PING, the signing key, migrations, the fleet's heartbeat.
    pub(crate) housekeeping: BTreeMap<String, u64>,
    /// Bytes of commands of requests.
    pub(crate) sent: u64,
    /// Bytes of their replies.
    pub(crate) received: u64,
}

impl CommandCounts {
    /// What was added since an earlier look.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            commands: grown(&self.commands, &before.commands),
            rounds: self.rounds - before.rounds,
            housekeeping: grown(&self.housekeeping, &before.housekeeping),
            sent: self.sent - before.sent,
            received: self.received - before.received,
        }
    }

    /// Commands of requests in all.
    pub(crate) fn total(&self) -> u64 {
        self.commands.values().sum()
    }

    /// Commands of requests whose name contains this.
    pub(crate) fn of(&self, part: &str) -> u64 {
        self.commands.iter().filter(|(name, _)| name.contains(part)).map(|(_, count)| count).sum()
    }

    pub(super) fn command(&mut self, name: &CommandName, bytes: usize) {
        let list = if name.housekeeping { &mut self.housekeeping } else { &mut self.commands };
        *list.entry(name.text.clone()).or_default() += 1;
        if !name.housekeeping {
            self.sent += bytes as u64;
        }
    }
}

impl fmt::Display for CommandCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} round trips, {} B sent, {} B received", self.rounds, self.sent, self.received)?;
        self.commands.iter().try_for_each(|(name, count)| write!(f, ", {count} {name}"))
    }
}

fn grown(now: &BTreeMap<String, u64>, before: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let added = |(name, count): (&String, &u64)| (name.clone(), count - before.get(name).unwrap_or(&0));
    now.iter().map(added).filter(|(_, count)| *count > 0).collect()
}

/// A command's name, and whether any request asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CommandName {
    pub(super) text: String,
    pub(super) housekeeping: bool,
}

/// Commands that no request sends.
const SETUP: [&str; 20] = [
    "PING",
    // The first question in mode evalsha, and migrations; requests call scripts by their digests.
    "EVAL",
    "HELLO",
    "AUTH",
    "SELECT",
    "CLIENT",
    "INFO",
    "CONFIG",
    "FUNCTION",
    "SCRIPT",
    "ROLE",
    "SENTINEL",
    "CLUSTER",
    "QUIT",
    "COMMAND",
    "READONLY",
    "SUBSCRIBE",
    "TIME",
    // Whether bits are allowed; a request asks for them within a function only.
    "GETBIT",
    // What a request has ended is told to the other workers after it was answered.
    "PUBLISH",
];

/// Parts of keys and functions that no request names.
const APART: [&str; 4] = [":secret", ":mig", "regatta_fleet", "{fleet}"];

/// Of a whole command.
pub(super) fn name(frame: &[u8]) -> CommandName {
    let mut words = resp::words(frame, 5);
    if words.is_empty() {
        // A greeting may come as a bare line.
        words = frame.trim_ascii().split(u8::is_ascii_whitespace).collect();
    }
    let word = |at: usize| words.get(at).map(|word| String::from_utf8_lossy(word).into_owned());
    let command = word(0).unwrap_or_default().to_ascii_uppercase();
    let text = match command.as_str() {
        "FCALL" | "FCALL_RO" => word(1).unwrap_or_default(),
        "EVALSHA" => format!("EVALSHA {}", word(1).unwrap_or_default().get(..8).unwrap_or_default()),
        _ => command.clone(),
    };
    let apart = |at: usize| word(at).is_some_and(|word| APART.iter().any(|part| word.contains(part)));
    let housekeeping = SETUP.contains(&command.as_str()) || (1..5).any(apart);
    CommandName { text, housekeeping }
}
