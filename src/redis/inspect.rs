//! What about the server will lose state one day: found out at boot and every minute, and told before it happens.

use std::fmt;

use fred::types::Value;

use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::lanes::Kind;
use crate::redis::link::Live;
use crate::redis::memory::Memory;
use crate::redis::reach::Reach;

/// Oldest major version that has functions.
const MAJOR_MIN: u64 = 7;

/// One thing that is wrong with the server, although it works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Finding {
    /// `maxmemory-policy` is not `noeviction`.
    Evicts,
    /// It has evicted keys since it started.
    Evicted,
    /// Neither `appendonly` nor `save`.
    ForgetsAll,
    /// `save` without `appendonly`.
    ForgetsSome,
    /// It is a replica.
    Replica,
    /// It is too old for functions.
    Old,
    /// Its user may not subscribe to the fleet's channels.
    Deaf,
    /// Its user may not publish on them.
    Mute,
}

impl Finding {
    /// Every finding, in the order of the enum.
    pub const ALL: [Self; 8] = [
        Self::Evicts,
        Self::Evicted,
        Self::ForgetsAll,
        Self::ForgetsSome,
        Self::Replica,
        Self::Old,
        Self::Deaf,
        Self::Mute,
    ];

    /// What it means and what to change, in one sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Evicts => {
                "Redis may evict sessions and limits when its memory is full, because they are the keys with a lifetime: \
                 set maxmemory-policy noeviction, and keep caches in another Redis"
            }
            Self::Evicted => {
                "Redis has evicted keys since it started, and sessions and limits may be among them: give it more memory \
                 (maxmemory) and set maxmemory-policy noeviction"
            }
            Self::ForgetsAll => {
                "Redis keeps nothing over a restart, and every session with it: set appendonly yes"
            }
            Self::ForgetsSome => {
                "Redis keeps snapshots only, so that a crash loses the last minutes and brings back sessions that were \
                 logged out: set appendonly yes"
            }
            Self::Replica => {
                "Redis is a replica, which takes no writes: let redis.url lead to the primary, or promote it (REPLICAOF \
                 NO ONE)"
            }
            Self::Old => {
                "Redis is older than 7 and has no functions, so scripts are used in their place: upgrade it"
            }
            Self::Deaf => {
                "Redis does not let this user subscribe to the fleet's channels, so that broadcasts, log-outs and tasks \
                 are noticed later: add +subscribe +unsubscribe &PREFIX:* to its ACL rules, where PREFIX is redis.prefix \
                 (&regatta:* by default; Redis 7 gives new users no channels)"
            }
            Self::Mute => {
                "Redis does not let this user publish on the fleet's channels, so that broadcasts, log-outs and tasks \
                 are noticed later: add +publish &PREFIX:* to its ACL rules, where PREFIX is redis.prefix (&regatta:* by \
                 default)"
            }
        }
    }
}

/// A set of findings, as one number.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings(u64);

impl Findings {
    /// From the number of [`Findings::bits`].
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each, by its place in [`Finding::ALL`].
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether it is among them.
    pub fn contains(self, finding: Finding) -> bool {
        self.0 & (1 << finding as u8) != 0
    }

    /// Those among them.
    pub fn iter(self) -> impl Iterator<Item = Finding> {
        Finding::ALL.into_iter().filter(move |finding| self.contains(*finding))
    }

    /// These and those.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    fn insert(&mut self, finding: Finding, found: bool) {
        self.0 |= u64::from(found) << finding as u8;
    }

    /// What `INFO` and, where it is allowed, `CONFIG GET save` say.
    fn of(info: &str, save: Option<&str>) -> Self {
        let field = |name: &str| field(info, name).unwrap_or_default();
        let mut found = Self::default();
        let policy = field("maxmemory_policy");
        found.insert(Finding::Evicts, !policy.is_empty() && policy != "noeviction");
        found.insert(Finding::Evicted, field("evicted_keys").parse().is_ok_and(|keys: u64| keys > 0));
        if field("aof_enabled") == "0" {
            let snapshots = save.is_some_and(|save| !save.is_empty());
            found.insert(Finding::ForgetsAll, save == Some(""));
            found.insert(Finding::ForgetsSome, snapshots);
        }
        found.insert(Finding::Replica, field("role") == "slave");
        // Engines of another name count their own versions and have what we need, or `auto` finds out.
        let other = ["valkey_version", "dragonfly_version"].iter().any(|name| !field(name).is_empty());
        found.insert(Finding::Old, !other && version(info).is_some_and(|(major, _)| major < MAJOR_MIN));
        found
    }
}

impl FromIterator<Finding> for Findings {
    fn from_iter<I: IntoIterator<Item = Finding>>(findings: I) -> Self {
        let mut found = Self::default();
        findings.into_iter().for_each(|finding| found.insert(finding, true));
        found
    }
}

impl fmt::Debug for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Redis {
    /// Looks at how the server is set up.
    ///
    /// # Errors
    /// See [`Error`]; a server that does not tell its settings is judged by the rest.
    pub async fn inspect(&self) -> Result<Findings, Error> {
        let told = |live: Live| async move { look(&live.caller).await.map(|(findings, _)| findings) };
        Ok(self.guard_as(Kind::Read, told).await?.and(self.news_findings()))
    }

    /// The same over a connection for this alone, and how full the server is. Needs no started connection.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn inspect_once(&self) -> Result<(Findings, Option<Memory>), Error> {
        look(&Reach::open(&self.inner).await?.patient()).await
    }
}

async fn look(caller: &Caller) -> Result<(Findings, Option<Memory>), Error> {
    let info = caller.call("INFO", []).await?.as_string().unwrap_or_default();
    let save = match caller.call("CONFIG", ["GET", "save"]).await {
        Ok(answer) => value_of(answer),
        Err(error) if error.unsupported() => None,
        Err(error) => return Err(error),
    };
    Ok((Findings::of(&info, save.as_deref()), Memory::of(&info)))
}

/// Major and minor version in what `INFO` says, if it tells them.
pub(super) fn version(info: &str) -> Option<(u64, u64)> {
    let mut parts = field(info, "redis_version")?.split('.').map(|part| part.parse::<u64>().ok());
    Some((parts.next()??, parts.next().flatten().unwrap_or(0)))
}

/// A field of the answer to `INFO`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// The value in the answer to `CONFIG GET` of one name.
fn value_of(answer: Value) -> Option<String> {
    let Value::Array(pair) = answer else { return None };
    pair.into_iter().nth(1)?.as_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(info: &str, save: Option<&str>) -> Vec<Finding> {
        Findings::of(info, save).iter().collect()
    }

    #[test]
    fn a_server_that_is_set_up_well_has_no_findings() {
        let info = "# Server\r\nredis_version:7.0.15\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n\
                    evicted_keys:0\r\nrole:master\r\n";
        assert_eq!(names(info, Some("3600 1")), []);
        assert_eq!(names(info, None), []);
        assert_eq!(names("", None), [], "what is not told is not guessed");
    }

    #[test]
    fn whatever_loses_state_is_found() {
        let info = "redis_version:6.2.1\r\nmaxmemory_policy:volatile-lru\r\naof_enabled:0\r\nevicted_keys:7\r\nrole:slave\r\n";
        let always = [Finding::Evicts, Finding::Evicted, Finding::Replica, Finding::Old];
        for (save, expected) in
            [(Some(""), Some(Finding::ForgetsAll)), (Some("60 1"), Some(Finding::ForgetsSome)), (None, None)]
        {
            let found = Findings::of(info, save);
            assert!(always.iter().all(|finding| found.contains(*finding)), "{found:?}");
            assert_eq!(found.iter().count(), always.len() + usize::from(expected.is_some()));
            assert!(expected.is_none_or(|finding| found.contains(finding)));
            assert_eq!(Findings::from_bits(found.bits()), found);
        }
        assert_eq!(names("redis_version:6.2\r\nvalkey_version:8.0.1\r\n", None), []);
    }
}
