//! The fleet's machines as Redis knows them: one heartbeat a machine, dead ones gone by Redis's own clock.
//!
//! Plain data and its wire form, described at the head of `migrations/0012_regatta_fleet_v2.lua`. What is read needs no
//! server-side code, so that a command that only looks changes nothing on the server.

use std::time::Duration;

use fred::types::Value;
use serde::{Deserialize, Serialize};

use crate::redis::breakers::CallKind;
use crate::redis::connection::ActiveConnection;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;
use crate::redis::instance_figures::{InstanceFigures, SlotFigures};
use crate::redis::reach::OneShotConnection;
use crate::redis::transport::RedisTransport;
use crate::redis::{RedisClient, functions, keys, plain};

/// Version of [`Machine`]'s fields: they are added under the same version.
pub const DOCUMENT_VERSION: u32 = 1;

/// Heartbeats that a machine may miss; then it is dead.
pub const MISSED_HEARTBEATS_MAX: u32 = 5;

/// The field of the hash that says since when it has been written without a pause.
pub(super) const SINCE_FIELD: &str = "-";

/// One supervisor and its workers, as a worker of it describes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceRecord {
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
    pub slots: Vec<SlotRecord>,
    /// How it fared when it said this; none where nobody measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<InstanceFigures>,
}

/// One slot of a machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotRecord {
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
    pub figures: Option<SlotFigures>,
}

impl InstanceRecord {
    /// Slots whose worker serves.
    pub fn ready_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == "ready").count()
    }
}

/// A machine and when it was last heard of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListedInstance {
    /// Time since its last beat, ms by Redis's clock.
    pub age_ms: u64,
    /// What it said.
    #[serde(flatten)]
    pub instance: InstanceRecord,
}

/// All machines that live.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceList {
    /// Those that are understood, by host and pid.
    pub instances: Vec<ListedInstance>,
    /// How many live whose document this program cannot read.
    pub unreadable: usize,
    /// Whether every machine that lives has had the time to say so. Not yet where Redis has just lost what it knew,
    /// or nobody could write to it for a while.
    pub complete: bool,
}

impl RedisClient {
    /// Says that a machine lives, and will for `lifetime` without another word; returns how many do.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was said.
    pub async fn heartbeat(&self, instance: &InstanceRecord, lifetime: Duration) -> Result<u64, RedisError> {
        let document =
            serde_json::to_string(instance).map_err(|error| RedisError::protocol(error.to_string()))?;
        let prefix = &self.inner.prefix;
        if self.is_plain() {
            let life_ms = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
            let work = async |caller: &RedisTransport| {
                plain::registry::heartbeat(caller, prefix, &instance.id, life_ms, &document).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        let lifetime_ms = lifetime.as_millis().to_string();
        let words = [instance.id.as_str(), &lifetime_ms, &document];
        let words: Vec<&str> =
            words.into_iter().chain(instance.libraries.iter().map(String::as_str)).collect();
        let reply =
            self.call(ServerFunction::RegistryHeartbeat, |entry| encode(prefix, entry, &words)).await?;
        reply.as_u64().ok_or_else(|| RedisError::protocol("beat did not answer with a number"))
    }

    /// Says that a machine ends; that nobody knows it is no error.
    ///
    /// # Errors
    /// See [`Error`]; saying it once more does no harm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was said.
    pub async fn deregister_instance(&self, id: &str) -> Result<(), RedisError> {
        let prefix = &self.inner.prefix;
        if self.is_plain() {
            let work = async |caller: &RedisTransport| {
                plain::registry::deregister_instance(caller, prefix, id).await
            };
            return self.call_plain(CallKind::Write, work).await;
        }
        self.call(ServerFunction::RegistryDeregister, |entry| encode(prefix, entry, &[id])).await.map(|_| ())
    }

    /// The machines that live, over this worker's connection.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_instances(&self) -> Result<InstanceList, RedisError> {
        let call = |live: ActiveConnection| async move {
            fetch_instances(&live.transport, &self.inner.prefix).await
        };
        self.send(CallKind::Read, call).await
    }
}

/// The server-side libraries that a worker of this program calls.
pub fn libraries() -> Vec<String> {
    let current = functions::LIBRARIES.iter().filter(|library| library.current);
    current.map(|library| library.name.to_owned()).collect()
}

/// The machines that live; changes nothing. Needs no started connection.
///
/// # Errors
/// `Unavailable` when there is no connection to be had, `Timeout` when all of it takes longer than `patience`; otherwise
/// what the server said.
pub async fn list_instances_one_shot(
    redis: &RedisClient,
    timeout: Duration,
) -> Result<InstanceList, RedisError> {
    let listing = async {
        let link = OneShotConnection::open(&redis.inner).await?;
        fetch_instances(&link.setup_transport(), &redis.inner.prefix).await
    };
    tokio::time::timeout(timeout, listing).await.unwrap_or(Err(RedisError::Timeout))
}

async fn fetch_instances(caller: &RedisTransport, prefix: &str) -> Result<InstanceList, RedisError> {
    let now = clock_ms(&caller.call("TIME", []).await?)?;
    decode(now, caller.call("HGETALL", [&keys::instances(prefix)]).await?)
}

/// The call's arguments in wire order: the entry's name, the number of keys, keys, arguments.
fn encode(prefix: &str, entry: Value, words: &[&str]) -> Vec<Value> {
    let keys = [keys::instances(prefix), keys::instance_deadlines(prefix), keys::libraries_in_use(prefix)];
    let mut args = Vec::with_capacity(2 + keys.len() + words.len());
    args.push(entry);
    args.push(Value::Integer(3));
    args.extend(keys.into_iter().map(Value::from));
    args.extend(words.iter().copied().map(Value::from));
    args
}

/// The server's clock in its answer to `TIME`, ms.
fn clock_ms(answer: &Value) -> Result<u64, RedisError> {
    let Value::Array(parts) = answer else {
        return Err(RedisError::protocol("TIME did not answer with a list"));
    };
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
fn decode(now_ms: u64, stored: Value) -> Result<InstanceList, RedisError> {
    let mut list = InstanceList::default();
    // Since when Redis has been told, and in which time everybody who lives has spoken.
    let (mut since_ms, mut longest_ms) = (None, 0);
    for pair in texts(stored).chunks_exact(2) {
        if pair[0] == SINCE_FIELD {
            let since = pair[1].parse::<u64>();
            since_ms = Some(since.map_err(|_| RedisError::protocol("the fleet's start is no time"))?);
            continue;
        }
        let Some((beat_ms, lifetime_ms, document)) = split_record(&pair[1]) else {
            list.unreadable += 1;
            continue;
        };
        longest_ms = longest_ms.max(lifetime_ms);
        let age_ms = now_ms.saturating_sub(beat_ms);
        if age_ms >= lifetime_ms {
            continue;
        }
        match serde_json::from_str::<InstanceRecord>(document) {
            Ok(instance) if instance.version == DOCUMENT_VERSION => {
                list.instances.push(ListedInstance { age_ms, instance })
            }
            Ok(_) | Err(_) => list.unreadable += 1,
        }
    }
    list.complete = since_ms.is_some_and(|since_ms| now_ms.saturating_sub(since_ms) >= longest_ms);
    list.instances.sort_by(|left, right| sort_key(&left.instance).cmp(&sort_key(&right.instance)));
    Ok(list)
}

fn sort_key(instance: &InstanceRecord) -> (&str, u32, &str) {
    (&instance.host, instance.pid, &instance.id)
}

/// Last beat, lifetime, document.
pub(super) fn split_record(value: &str) -> Option<(u64, u64, &str)> {
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
    fn live_instances_are_separated_from_dead_and_unreadable_ones() {
        let stored = stored(&[
            ("-", "1000"),
            ("b", r#"9000 10000 {"version":1,"id":"b","host":"b","pid":7,"new":true}"#),
            ("a", r#"19999 10000 {"version":1,"id":"a","host":"a","slots":[{"slot":0,"state":"ready"}]}"#),
            ("dead", r#"10000 10000 {"version":1,"id":"dead"}"#),
            ("later", r#"19000 10000 {"version":2,"id":"later"}"#),
            ("odd", "who knows"),
        ]);
        let list = decode(18_999, stored.clone()).unwrap();
        let ids: Vec<_> = list.instances.iter().map(|seen| seen.instance.id.as_str()).collect();
        assert_eq!(ids, ["dead", "a", "b"], "by host; the one without a name first");
        let list = decode(20_000, stored).unwrap();
        let ages: Vec<_> =
            list.instances.iter().map(|seen| (seen.instance.id.as_str(), seen.age_ms)).collect();
        assert_eq!(ages, [("a", 1)], "b has been silent for 11 s, dead for exactly its lifetime");
        assert_eq!((list.unreadable, list.complete), (2, true));
        assert_eq!(list.instances[0].instance.ready_slots(), 1);
    }

    #[test]
    fn what_was_lost_a_moment_ago_is_not_complete() {
        let fields = [("-", "1000"), ("a", "1000 10000 {}"), ("b", "1000 2000 {}")];
        assert!(!decode(10_999, stored(&fields)).unwrap().complete);
        assert!(decode(11_000, stored(&fields)).unwrap().complete, "by the longest lifetime");
        assert_eq!(decode(11_000, stored(&[])).unwrap(), InstanceList::default());
        assert!(decode(11_000, stored(&[("-", "soon")])).is_err());
    }
}
