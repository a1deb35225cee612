//! The fleet's machines as Redis knows them: one heartbeat a machine, dead ones gone by Redis's own clock.
//!
//! Plain data and its wire form, described at the head of `migrations/0012_regatta_fleet_v2.lua`. What is read needs no
//! server-side code, so that a command that only looks changes nothing on the server.

use std::time::Duration;

use fred::types::Value;
use serde::Deserialize;
use serde::Serialize;

use crate::redis::Redis;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::figures::Figures;
use crate::redis::figures::SeatFigures;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library;
use crate::redis::library::Entry;
use crate::redis::link::Live;
use crate::redis::plain;
use crate::redis::reach::Reach;

/// Version of [`Machine`]'s fields: they are added under the same version.
pub const VERSION: u32 = 1;

/// Heartbeats that a machine may miss; then it is dead.
pub const BEATS: u32 = 5;

/// The field of the hash that says since when it has been written without a pause.
pub(super) const SINCE: &str = "-";

/// One supervisor and its workers, as a worker of it describes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// Version of these fields.
    pub version: u32,
    /// Which supervisor it is, unlike every other one: two fleets on one machine are two.
    pub id: String,
    /// Name of its machine or container.
    pub host: String,
    /// The supervisor's process.
    pub pid: u32,
    /// Version and build of its program.
    pub build: String,
    /// The server-side libraries it calls.
    pub libraries: Vec<String>,
    /// When the fleet started, Unix ms by its own clock.
    pub started_ms: u64,
    /// The configuration and binary in use, from 1.
    pub generation: u64,
    /// Cores it may use.
    pub cores: usize,
    /// Workers it is meant to have: its share of what a load balancer gives out.
    pub weight: usize,
    /// Where others reach its visitors' listeners, host:port.
    pub addresses: Vec<String>,
    /// Its operators' address as it listens there.
    pub admin: String,
    /// Its slots in use, by index.
    pub slots: Vec<Seat>,
    /// How it fared when it said this; none where nobody measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<Figures>,
}

/// One slot of a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Seat {
    /// Index, from 0.
    pub slot: usize,
    /// Its worker's process; 0 when there is none.
    pub pid: u32,
    /// Its worker's generation; 0 when there is none.
    pub generation: u64,
    /// Where it stands, as `status` spells it: `ready`, `booting`, ….
    pub state: String,
    /// How it fared when the machine said this; none where nobody measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<SeatFigures>,
}

impl Machine {
    /// Slots whose worker serves.
    pub fn ready(&self) -> usize {
        self.slots.iter().filter(|seat| seat.state == "ready").count()
    }
}

/// A machine and when it was last heard of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Time since its last beat, ms by Redis's clock.
    pub age_ms: u64,
    /// What it said.
    #[serde(flatten)]
    pub machine: Machine,
}

/// All machines that live.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Machines {
    /// Those that are understood, by host and pid.
    pub seen: Vec<Seen>,
    /// How many live whose document this program cannot read.
    pub strange: usize,
    /// Whether every machine that lives has had the time to say so. Not yet where Redis has just lost what it knew,
    /// or nobody could write to it for a while.
    pub complete: bool,
}

impl Redis {
    /// Says that a machine lives, and will for `lifetime` without another word; returns how many do.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was said.
    pub async fn beat(&self, machine: &Machine, lifetime: Duration) -> Result<u64, Error> {
        let document = serde_json::to_string(machine).map_err(|error| Error::protocol(error.to_string()))?;
        let prefix = &self.inner.prefix;
        if self.is_plain() {
            let life_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
            let beat = async |caller: &Caller| {
                plain::fleet::beat(caller, prefix, &machine.id, life_ms, &document).await
            };
            return self.plainly(Kind::Commit, beat).await;
        }
        let lifetime_ms = lifetime.as_millis().to_string();
        let words = [machine.id.as_str(), &lifetime_ms, &document];
        let words: Vec<&str> =
            words.into_iter().chain(machine.libraries.iter().map(String::as_str)).collect();
        let reply = self.run(Entry::FleetBeat, |entry| encode(prefix, entry, &words)).await?;
        reply.as_u64().ok_or_else(|| Error::protocol("beat did not answer with a number"))
    }

    /// Says that a machine ends; that nobody knows it is no error.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was said.
    pub async fn leave(&self, id: &str) -> Result<(), Error> {
        let prefix = &self.inner.prefix;
        if self.is_plain() {
            let leave = async |caller: &Caller| plain::fleet::leave(caller, prefix, id).await;
            return self.plainly(Kind::Commit, leave).await;
        }
        self.run(Entry::FleetLeave, |entry| encode(prefix, entry, &[id])).await.map(|_| ())
    }

    /// The machines that live, over this worker's connection.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn machines(&self) -> Result<Machines, Error> {
        let call = |live: Live| async move { look(&live.caller, &self.inner.prefix).await };
        self.guard_as(Kind::Read, call).await
    }
}

/// The server-side libraries that a worker of this program calls.
pub fn libraries() -> Vec<String> {
    let current = library::ALL.iter().filter(|library| library.current);
    current.map(|library| library.name.to_owned()).collect()
}

/// The machines that live; changes nothing. Needs no started connection.
///
/// # Errors
/// `Unavailable` when there is no connection to be had, `Timeout` when all of it takes longer than `patience`; otherwise
/// what the server said.
pub async fn machines(redis: &Redis, patience: Duration) -> Result<Machines, Error> {
    let asked = async {
        let link = Reach::open(&redis.inner).await?;
        look(&link.patient(), &redis.inner.prefix).await
    };
    tokio::time::timeout(patience, asked).await.unwrap_or(Err(Error::Timeout))
}

async fn look(caller: &Caller, prefix: &str) -> Result<Machines, Error> {
    let now = clock_ms(&caller.call("TIME", []).await?)?;
    decode(now, caller.call("HGETALL", [&keys::machines(prefix)]).await?)
}

/// The call's arguments in wire order: the entry's name, the number of keys, keys, arguments.
fn encode(prefix: &str, entry: Value, words: &[&str]) -> Vec<Value> {
    let keys = [keys::machines(prefix), keys::deaths(prefix), keys::libraries_seen(prefix)];
    let mut args = Vec::with_capacity(2 + keys.len() + words.len());
    args.push(entry);
    args.push(Value::Integer(3));
    args.extend(keys.into_iter().map(Value::from));
    args.extend(words.iter().copied().map(Value::from));
    args
}

/// The server's clock in its answer to `TIME`, ms.
fn clock_ms(answer: &Value) -> Result<u64, Error> {
    let Value::Array(parts) = answer else { return Err(Error::protocol("TIME did not answer with a list")) };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}

fn texts(reply: Value) -> Vec<String> {
    match reply {
        Value::Array(parts) => parts.iter().filter_map(Value::as_string).collect(),
        Value::Map(map) => {
            let pairs = map.inner().into_iter();
            pairs.flat_map(|(name, value)| [name.into_string(), value.as_string()]).flatten().collect()
        }
        _ => Vec::new(),
    }
}

/// Reads the hash of machines as of `now_ms`, by the server's clock.
///
/// # Errors
/// `Protocol` when something else lies there.
fn decode(now_ms: u64, stored: Value) -> Result<Machines, Error> {
    let mut machines = Machines::default();
    // Since when Redis has been told, and in which time everybody who lives has spoken.
    let (mut since_ms, mut longest_ms) = (None, 0);
    for pair in texts(stored).chunks_exact(2) {
        if pair[0] == SINCE {
            let since = pair[1].parse::<u64>();
            since_ms = Some(since.map_err(|_| Error::protocol("the fleet's start is no time"))?);
            continue;
        }
        let Some((beat_ms, lifetime_ms, document)) = parts(&pair[1]) else {
            machines.strange += 1;
            continue;
        };
        longest_ms = longest_ms.max(lifetime_ms);
        let age_ms = now_ms.saturating_sub(beat_ms);
        if age_ms >= lifetime_ms {
            continue;
        }
        match serde_json::from_str::<Machine>(document) {
            Ok(machine) if machine.version == VERSION => machines.seen.push(Seen { age_ms, machine }),
            Ok(_) | Err(_) => machines.strange += 1,
        }
    }
    machines.complete = since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= longest_ms);
    machines.seen.sort_by(|left, right| order(&left.machine).cmp(&order(&right.machine)));
    Ok(machines)
}

fn order(machine: &Machine) -> (&str, u32, &str) {
    (&machine.host, machine.pid, &machine.id)
}

/// Last beat, lifetime, document.
pub(super) fn parts(value: &str) -> Option<(u64, u64, &str)> {
    let mut parts = value.splitn(3, ' ');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(fields: &[(&str, &str)]) -> Value {
        let texts = fields.iter().flat_map(|(name, value)| [*name, *value]).map(Value::from);
        Value::Array(texts.collect())
    }

    #[test]
    fn the_living_are_told_from_the_dead_and_the_strange() {
        let stored = stored(&[
            ("-", "1000"),
            ("b", r#"9000 10000 {"version":1,"id":"b","host":"b","pid":7,"new":true}"#),
            ("a", r#"19999 10000 {"version":1,"id":"a","host":"a","slots":[{"slot":0,"state":"ready"}]}"#),
            ("dead", r#"10000 10000 {"version":1,"id":"dead"}"#),
            ("later", r#"19000 10000 {"version":2,"id":"later"}"#),
            ("odd", "who knows"),
        ]);
        let machines = decode(18_999, stored.clone()).unwrap();
        let ids: Vec<_> = machines.seen.iter().map(|seen| seen.machine.id.as_str()).collect();
        assert_eq!(ids, ["dead", "a", "b"], "by host; the one without a name first");
        let machines = decode(20_000, stored).unwrap();
        let ages: Vec<_> = machines.seen.iter().map(|seen| (seen.machine.id.as_str(), seen.age_ms)).collect();
        assert_eq!(ages, [("a", 1)], "b has been silent for 11 s, dead for exactly its lifetime");
        assert_eq!((machines.strange, machines.complete), (2, true));
        assert_eq!(machines.seen[0].machine.ready(), 1);
    }

    #[test]
    fn what_was_lost_a_moment_ago_is_not_complete() {
        let fields = [("-", "1000"), ("a", "1000 10000 {}"), ("b", "1000 2000 {}")];
        assert!(!decode(10_999, stored(&fields)).unwrap().complete);
        assert!(decode(11_000, stored(&fields)).unwrap().complete, "by the longest lifetime");
        assert_eq!(decode(11_000, stored(&[])).unwrap(), Machines::default());
        assert!(decode(11_000, stored(&[("-", "soon")])).is_err());
    }
}
