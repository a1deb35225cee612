//! What the server reports about itself, and warnings about settings that lose state one day. No I/O.

use std::fmt;

/// Oldest major version that has functions.
const MIN_MAJOR_VERSION: u64 = 7;

/// A problem of a server that works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ServerWarning {
    /// `maxmemory-policy` is not `noeviction`.
    EvictionPolicy,
    /// It has evicted keys since it started.
    KeysEvicted,
    /// Neither `appendonly` nor `save`.
    NoPersistence,
    /// `save` without `appendonly`.
    SnapshotsOnly,
    /// It is a replica.
    IsReplica,
    /// It is too old for functions.
    OldVersion,
    /// Its user may not subscribe to the fleet's channels.
    SubscribeDenied,
    /// Its user may not publish on them.
    PublishDenied,
}

impl ServerWarning {
    /// Every warning, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::EvictionPolicy,
        Self::KeysEvicted,
        Self::NoPersistence,
        Self::SnapshotsOnly,
        Self::IsReplica,
        Self::OldVersion,
        Self::SubscribeDenied,
        Self::PublishDenied,
    ];

    /// What it means and what to change, in one sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Self::EvictionPolicy => {
                "Redis may evict sessions and limits when its memory is full, because they are the keys with a lifetime: \
                 set maxmemory-policy noeviction, and keep caches in another Redis"
            }
            Self::KeysEvicted => {
                "Redis has evicted keys since it started, and sessions and limits may be among them: give it more memory \
                 (maxmemory) and set maxmemory-policy noeviction"
            }
            Self::NoPersistence => {
                "Redis keeps nothing over a restart, and every session with it: set appendonly yes"
            }
            Self::SnapshotsOnly => {
                "Redis keeps snapshots only, so that a crash loses the last minutes and brings back sessions that were \
                 logged out: set appendonly yes"
            }
            Self::IsReplica => {
                "Redis is a replica, which takes no writes: let redis.url lead to the primary, or promote it (REPLICAOF \
                 NO ONE)"
            }
            Self::OldVersion => {
                "Redis is older than 7 and has no functions, so scripts are used in their place: upgrade it"
            }
            Self::SubscribeDenied => {
                "Redis does not let this user subscribe to the fleet's channels, so that broadcasts, log-outs and tasks \
                 are noticed later: add +subscribe +unsubscribe &PREFIX:* to its ACL rules, where PREFIX is redis.prefix \
                 (&regatta:* by default; Redis 7 gives new users no channels)"
            }
            Self::PublishDenied => {
                "Redis does not let this user publish on the fleet's channels, so that broadcasts, log-outs and tasks \
                 are noticed later: add +publish &PREFIX:* to its ACL rules, where PREFIX is redis.prefix (&regatta:* by \
                 default)"
            }
        }
    }
}

/// A set of warnings.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerWarnings(u64);

impl ServerWarnings {
    /// From the number of [`ServerWarnings::bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each warning, by its position in [`ServerWarning::ALL`].
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether the warning is in the set.
    pub fn contains(self, finding: ServerWarning) -> bool {
        self.0 & (1 << finding as u8) != 0
    }

    /// The warnings in the set.
    pub fn iter(self) -> impl Iterator<Item = ServerWarning> {
        ServerWarning::ALL.into_iter().filter(move |finding| self.contains(*finding))
    }

    /// The union of both sets.
    #[must_use]
    pub fn union(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    fn insert(&mut self, finding: ServerWarning, found: bool) {
        self.0 |= u64::from(found) << finding as u8;
    }

    /// From the replies to `INFO` and, where it is allowed, `CONFIG GET save`.
    pub(super) fn from_info(info: &str, save: Option<&str>) -> Self {
        let field = |name: &str| info_field(info, name).unwrap_or_default();
        let mut found = Self::default();
        let policy = field("maxmemory_policy");
        found.insert(ServerWarning::EvictionPolicy, !policy.is_empty() && policy != "noeviction");
        found.insert(
            ServerWarning::KeysEvicted,
            field("evicted_keys").parse().is_ok_and(|keys: u64| keys > 0),
        );
        if field("aof_enabled") == "0" {
            let snapshots = save.is_some_and(|save| !save.is_empty());
            found.insert(ServerWarning::NoPersistence, save == Some(""));
            found.insert(ServerWarning::SnapshotsOnly, snapshots);
        }
        found.insert(ServerWarning::IsReplica, field("role") == "slave");
        // Forks of Redis have version numbers of their own and have functions, or `auto` finds out.
        let other = ["valkey_version", "dragonfly_version"].iter().any(|name| !field(name).is_empty());
        found.insert(
            ServerWarning::OldVersion,
            !other && server_version(info).is_some_and(|(major, _)| major < MIN_MAJOR_VERSION),
        );
        found
    }
}

impl FromIterator<ServerWarning> for ServerWarnings {
    fn from_iter<I: IntoIterator<Item = ServerWarning>>(findings: I) -> Self {
        let mut found = Self::default();
        findings.into_iter().for_each(|finding| found.insert(finding, true));
        found
    }
}

impl fmt::Debug for ServerWarnings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// The server's memory; in a cluster that of the queried node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerMemory {
    /// Bytes in use.
    pub used: u64,
    /// Bytes beyond which writes are refused; `None` without a bound.
    pub max: Option<u64>,
}

impl ServerMemory {
    /// The used part, thousandths; 0 without a bound.
    pub fn permille(&self) -> u64 {
        let part = |most: u64| self.used.saturating_mul(1000) / most.max(1);
        self.max.map_or(0, part).min(1000)
    }

    pub(super) fn from_info(info: &str) -> Option<Self> {
        let field = |name: &str| info_field(info, name)?.parse::<u64>().ok();
        Some(Self { used: field("used_memory")?, max: field("maxmemory").filter(|most| *most > 0) })
    }
}

/// Major and minor version in the reply to `INFO`, if it has them.
pub(super) fn server_version(info: &str) -> Option<(u64, u64)> {
    let mut parts = info_field(info, "redis_version")?.split('.').map(|part| part.parse::<u64>().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// A field of the reply to `INFO`.
pub(super) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(info: &str, save: Option<&str>) -> Vec<ServerWarning> {
        ServerWarnings::from_info(info, save).iter().collect()
    }

    #[test]
    fn a_well_configured_server_has_no_warnings() {
        let info = "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n\
                    evicted_keys:0\r\nrole:master\r\n";
        assert_eq!(names(info, Some("3600 1")), []);
        assert_eq!(names(info, None), []);
        assert_eq!(names("", None), [], "what is not told is not guessed");
    }

    #[test]
    fn settings_that_lose_state_are_reported() {
        let info = "redis_version:6.2.1\r\nmaxmemory_policy:volatile-lru\r\naof_enabled:0\r\nevicted_keys:7\r\nrole:slave\r\n";
        let always = [
            ServerWarning::EvictionPolicy,
            ServerWarning::KeysEvicted,
            ServerWarning::IsReplica,
            ServerWarning::OldVersion,
        ];
        for (save, expected) in [
            (Some(""), Some(ServerWarning::NoPersistence)),
            (Some("60 1"), Some(ServerWarning::SnapshotsOnly)),
            (None, None),
        ] {
            let found = ServerWarnings::from_info(info, save);
            assert!(always.iter().all(|finding| found.contains(*finding)), "{found:?}");
            assert_eq!(found.iter().count(), always.len() + usize::from(expected.is_some()));
            assert!(expected.is_none_or(|finding| found.contains(finding)));
            assert_eq!(ServerWarnings::from_bits(found.bits()), found);
        }
        assert_eq!(names("redis_version:6.2\r\nvalkey_version:8.0.1\r\n", None), []);
    }

    #[test]
    fn a_server_without_a_bound_is_never_full() {
        let info = "# Memory\r\nused_memory:900\r\nused_memory_human:900B\r\nmaxmemory:1000\r\nmaxmemory_human:1000B\r\n";
        assert_eq!(ServerMemory::from_info(info).map(|memory| memory.permille()), Some(900));
        let unbounded = ServerMemory::from_info("used_memory:900\r\nmaxmemory:0\r\n").unwrap();
        assert_eq!((unbounded.max, unbounded.permille()), (None, 0));
        assert_eq!(ServerMemory::from_info("used_memory:2000\r\nmaxmemory:1000").unwrap().permille(), 1000);
        assert_eq!(ServerMemory::from_info(""), None);
    }
}
