//! How a name becomes a key or a channel, and the names that this room writes itself. Those of a domain are made in its
//! `keys.rs`, and nowhere else.
//!
//! Every name begins with the configured prefix: fleets with the same prefix share everything, others nothing. The name
//! of a family follows; no prefix nests in another one as long as `config/key_prefix.rs` knows all families. Channels have
//! the database's number besides, because pub/sub is not separated by database.

/// The names below one prefix, that of keys or that of channels.
#[derive(Debug, Clone, Copy)]
pub struct KeySpace<'a>(&'a str);

impl<'a> KeySpace<'a> {
    /// The names below this prefix.
    pub fn new(prefix: &'a str) -> Self {
        Self(prefix)
    }

    /// The name of these parts; the first one is that of the family.
    pub fn key<const N: usize>(self, parts: [&str; N]) -> String {
        join(self.0, &parts)
    }
}

/// A name beside a key, in the same hash slot if the key has a tag.
pub fn beside<const N: usize>(key: &str, parts: [&str; N]) -> String {
    join(key, &parts)
}

/// A mark in the same hash slot as a key: that something was done to it once.
pub fn mark_beside(key: &str, mark: &str) -> String {
    beside(key, ["m", mark])
}

/// The ledger of migrations: a hash, one field a migration.
pub fn migration_ledger(prefix: &str) -> String {
    KeySpace::new(prefix).key(["mig"])
}

/// The lock for migrations: a string.
pub fn migration_lock(prefix: &str) -> String {
    KeySpace::new(prefix).key(["mig", "lock"])
}

/// The fencing number of migrations, increased by every holder of the lock.
pub fn migration_fence(prefix: &str) -> String {
    KeySpace::new(prefix).key(["mig", "fence"])
}

/// The lock for walks: a string.
pub fn walk_lock(prefix: &str) -> String {
    KeySpace::new(prefix).key(["mig", "walk", "lock"])
}

/// The fencing number of walks.
pub fn walk_fence(prefix: &str) -> String {
    KeySpace::new(prefix).key(["mig", "walk", "fence"])
}

/// All keys below the prefix that match, as SCAN's MATCH has it; the prefix itself has no special characters.
pub fn key_pattern(prefix: &str, pattern: &str) -> String {
    KeySpace::new(prefix).key([pattern])
}

/// What a key below the prefix holds, for operators.
pub fn kind(prefix: &str, key: &str) -> &'static str {
    let below = key.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':')).unwrap_or_default();
    match below.split(':').next().unwrap_or_default() {
        "s" => "sessions",
        "l" | "n" => "limits",
        "c" => "counters",
        _ => "other",
    }
}

/// A key that is never written, for checks of the user's rights.
pub fn check(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{check}"])
}

/// The fleet's cookie signing key, when none is configured: a string.
pub fn signing_key(prefix: &str) -> String {
    KeySpace::new(prefix).key(["secret"])
}

/// When each library was last in use: a sorted set of names, scores ms by Redis's clock.
///
/// Every instance writes the libraries that it uses at each heartbeat, which shows later releases whether earlier ones
/// are running.
pub fn libraries_in_use(prefix: &str) -> String {
    KeySpace::new(prefix).key(["{fleet}", "libraries"])
}

/// The prefix of a fleet's channels. No configured prefix contains an `@`.
///
/// Redis delivers a message to all subscribers, whatever database it was published from: without the number, fleets
/// with one prefix on two databases of one server would receive each other's messages. A cluster has database 0 only;
/// behind Sentinels the number is that of the primary's.
pub fn channel_prefix(prefix: &str, database: u8) -> String {
    match database {
        0 => prefix.to_owned(),
        number => format!("{prefix}:@{number}"),
    }
}

/// The common channel: sessions that ended, limits that have quota again.
pub fn notifications_channel(space: &str) -> String {
    KeySpace::new(space).key(["news"])
}

/// First part of a worker's channel behind the prefix.
pub(super) const WORKER_CHANNELS: &str = "w";

/// The name of a key in a cluster; `None` if it is the same.
///
/// Keys that one call uses must be in one hash slot, so each family has a hash tag: sessions and their users `{s}`,
/// counters and their journals `{c}`, the ledger `{mig}`; each rate limit has one of its own, which it shares with its
/// marks. Outside a cluster names have no tags.
pub fn cluster_name(prefix: &str, key: &str) -> Option<String> {
    let rest = key.strip_prefix(prefix)?.strip_prefix(':')?;
    if rest.contains('{') {
        return None;
    }
    let tagged = |tag: &str| Some(format!("{prefix}:{{{tag}}}:{rest}"));
    match rest.split(':').next().unwrap_or_default() {
        "s" | "q" | "u" | "g" | "n" => tagged("s"),
        "c" | "j" | "b" | "bt" => tagged("c"),
        "mig" => tagged("mig"),
        "l" => {
            // l, policy, version, subject; a mark follows behind `:m:`.
            let subject: usize = rest.splitn(4, ':').take(3).map(|part| part.len() + 1).sum();
            let marks = rest.get(subject..)?.find(":m:").map_or(rest.len(), |at| subject + at);
            Some(format!("{prefix}:{{{}}}{}", &rest[..marks], &rest[marks..]))
        }
        _ => None,
    }
}

/// The name of a rate limit outside a cluster, from the one that [`cluster_name`] made.
pub fn plain_name(prefix: &str, name: &str) -> Option<String> {
    let rest = name.strip_prefix(prefix)?.strip_prefix(":{l:")?.strip_suffix('}')?;
    Some(format!("{prefix}:l:{rest}"))
}

/// Joins with `:` in one allocation; `format!` costs three times as much here, for every key of every request.
fn join(first: &str, parts: &[&str]) -> String {
    let length = parts.iter().map(|part| part.len() + 1).sum::<usize>();
    let mut key = String::with_capacity(first.len() + length);
    key.push_str(first);
    for part in parts {
        key.push(':');
        key.push_str(part);
    }
    key
}
