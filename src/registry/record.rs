//! The documents of the fleet's instances and their wire form, described at the head of
//! `migrations/0012_regatta_fleet_v2.lua`.

use serde::ser::Error;
use serde::{Deserialize, Serialize, Serializer};

use crate::redis::RedisError;
use crate::redis::wire::Value;
use crate::registry::figures::{InstanceFigures, SlotFigures};
use crate::registry::public_form;

/// Version of [`InstanceRecord`]'s fields: fields are added under the same version.
pub const DOCUMENT_VERSION: u32 = 1;

/// Heartbeats that an instance may miss before it counts as dead.
pub const MISSED_HEARTBEATS_MAX: u32 = 5;

/// The field that stores since when the hash has been written without interruption.
pub(super) const SINCE_FIELD: &str = "-";

/// A supervisor and its workers, as one of its workers reports them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InstanceRecord {
    /// Version of these fields.
    pub version: u32,
    /// Identifies the supervisor: two fleets on one machine are two instances.
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
    /// Workers it is configured to have: its share of what a load balancer distributes.
    pub weight: usize,
    /// Addresses on which others reach its public listeners, host:port.
    pub addresses: Vec<String>,
    /// Its admin address as it listens there.
    pub admin: String,
    /// Its slots in use, by index.
    pub slots: Vec<SlotRecord>,
    /// Its figures; `None` if they were not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<InstanceFigures>,
}

/// One slot of an instance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SlotRecord {
    /// Index, from 0.
    pub slot: usize,
    /// Its worker's process; 0 when there is none.
    pub pid: u32,
    /// Its worker's generation; 0 when there is none.
    pub generation: u64,
    /// Its state, as `status` spells it: `ready`, `booting`, ….
    pub state: String,
    /// Its figures; `None` if they were not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub figures: Option<SlotFigures>,
}

impl SlotRecord {
    fn differs_beyond_figures(&self, other: &Self) -> bool {
        let Self { slot, pid, generation, state, figures: _ } = self;
        (slot, pid, generation, state) != (&other.slot, &other.pid, &other.generation, &other.state)
    }
}

impl InstanceRecord {
    /// Whether it says anything else than the other one, figures left out: they change all the time, and are no reason
    /// for a heartbeat.
    pub fn differs_beyond_figures(&self, other: &Self) -> bool {
        let Self {
            version,
            id,
            host,
            pid,
            build,
            libraries,
            started_ms,
            generation,
            cores,
            weight,
            addresses,
            admin,
            slots,
            figures: _,
        } = self;
        *version != other.version
            || *id != other.id
            || *host != other.host
            || *pid != other.pid
            || *build != other.build
            || *libraries != other.libraries
            || *started_ms != other.started_ms
            || *generation != other.generation
            || *cores != other.cores
            || *weight != other.weight
            || *addresses != other.addresses
            || *admin != other.admin
            || slots.len() != other.slots.len()
            || slots.iter().zip(&other.slots).any(|(one, other)| one.differs_beyond_figures(other))
    }

    /// The number of slots whose worker serves.
    pub fn ready_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state == "ready").count()
    }
}

/// An instance and the age of its report; as JSON it is what operators read.
#[derive(Debug, Clone, PartialEq)]
pub struct ListedInstance {
    /// Time since its last heartbeat, ms by Redis's clock.
    pub age_ms: u64,
    /// Its report.
    pub instance: InstanceRecord,
}

impl Serialize for ListedInstance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut stored = serde_json::to_value(&self.instance).map_err(S::Error::custom)?;
        if let Some(fields) = stored.as_object_mut() {
            // The version of the stored form is not that of the document it stands in.
            fields.remove("version");
            fields.insert("age_ms".into(), self.age_ms.into());
        }
        public_form::from_stored(stored).serialize(serializer)
    }
}

/// All live instances.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InstanceList {
    /// Those whose document was read, by host and pid.
    pub instances: Vec<ListedInstance>,
    /// Live instances whose document this program cannot read.
    pub unreadable: usize,
    /// Whether every live instance has had the time to report itself. False while Redis has just lost its data, or
    /// could not be written for a while.
    pub complete: bool,
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

/// Reads the hash of instances as of `now_ms`, by the server's clock.
///
/// # Errors
/// `Protocol` when the value has another form.
pub(super) fn decode(now_ms: u64, stored: Value) -> Result<InstanceList, RedisError> {
    let mut list = InstanceList::default();
    // Since when the hash has been written, and the longest lifetime: after both every live instance has reported.
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

/// Last heartbeat, lifetime, document.
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
    fn a_list_that_was_just_lost_is_not_complete() {
        let fields = [("-", "1000"), ("a", "1000 10000 {}"), ("b", "1000 2000 {}")];
        assert!(!decode(10_999, stored(&fields)).unwrap().complete);
        assert!(decode(11_000, stored(&fields)).unwrap().complete, "by the longest lifetime");
        assert_eq!(decode(11_000, stored(&[])).unwrap(), InstanceList::default());
        assert!(decode(11_000, stored(&[("-", "soon")])).is_err());
    }
}
