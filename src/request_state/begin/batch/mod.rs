//! Many begins in one call: the wire form, and each entry's reply out of the one reply.
//!
//! Guarantees that a batch does what its entries would do one after the other at one instant, and that an entry's
//! failure is its own. The form is described at the head of `migrations/0023_regatta_v6.lua`.

mod entry;
mod layout;
mod reply;

use bytes::Bytes;
pub use entry::{BeginEntry, EncodedCall};
use layout::BatchPlan;

use crate::redis::RedisError;
use crate::redis::wire::{Value, to_f64};
use crate::request_state::begin::request::BeginReply;

/// Flags of a batch.
const RECORDED: u64 = 1;
const REPEATED: u64 = 2;
const ALL_COUNT_VIEWS: u64 = 4;

/// What makes a batch of begins or commits repeatable: a key that holds the number and the result of its lane's last
/// batch.
#[derive(Debug, Clone)]
pub struct BatchLedger {
    /// Key of the lane, in which at most one batch is under way.
    pub key: Value,
    /// The batch's number, which grows within its lane.
    pub number: u64,
    /// Whether it may have been executed before; not used for commits.
    pub repeated: bool,
}

impl BatchLedger {
    /// The number as the ledger stores it: fixed in width, so that a smaller text is an earlier number.
    pub fn number_text(&self) -> Value {
        Value::from(format!("{:016}:", self.number))
    }
}

/// The arguments in wire order: function, number of keys, keys, arguments.
pub fn encode(entries: &[&BeginEntry], ledger: Option<&BatchLedger>, entry: Value) -> Vec<Value> {
    let plan = BatchPlan::from_entries(entries);
    let mut args = Vec::with_capacity(8 + 3 * entries.len() + plan.limits.len());
    args.push(entry);
    args.push(Value::Null);
    args.extend(ledger.map(|ledger| ledger.key.clone()));
    args.extend(key_values(&plan));
    let rare: Vec<_> = plan.standalone_calls(entries).collect();
    args.extend(rare.iter().flat_map(|call| call.keys.iter().cloned()));
    let keys = args.len() - 2;
    args[1] = Value::Integer(i64::try_from(keys).unwrap_or(i64::MAX));

    let mut flags = if plan.all_count_views() { ALL_COUNT_VIEWS } else { 0 };
    if let Some(ledger) = ledger {
        flags |= RECORDED | if ledger.repeated { REPEATED } else { 0 };
    }
    let mut head = Vec::with_capacity(size_of::<f64>() * (9 + 2 * plan.limits.len() + 2 * rare.len()));
    let mut put = |number: u64| head.extend_from_slice(&to_f64(number).to_le_bytes());
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    put(flags);
    put(plan.idle_ms);
    put(plan.absolute_ms);
    put(count(plan.counters.len()));
    put(count(plan.limits.len()));
    put(count(plan.generations.len()));
    put(count(plan.compact.len()));
    put(count(plan.sessions().count()));
    put(count(rare.len()));
    for limit in &plan.limits {
        put(limit.interval_us);
        put(limit.tolerance_us);
    }
    for call in &rare {
        put(count(call.keys.len()));
        put(count(call.args.len()));
    }
    args.push(Value::Bytes(head.into()));
    args.push(ledger.map_or(Value::from_static_str(""), BatchLedger::number_text));
    args.push(Value::Bytes(plan.encode_layout()));
    args.extend(plan.counters.iter().map(|counter| Value::Integer(counter.sum)));
    args.extend(rare.into_iter().flat_map(|call| call.args.into_owned()));
    args
}

/// The plan's keys, as slices of one allocation.
fn key_values(plan: &BatchPlan<'_>) -> impl Iterator<Item = Value> {
    let mut all = Vec::with_capacity(plan.keys().map(<[u8]>::len).sum());
    plan.keys().for_each(|key| all.extend_from_slice(key));
    let mut all = Bytes::from(all);
    plan.keys().map(move |key| Value::Bytes(all.split_to(key.len())))
}

/// Reads the reply to what [`encode`] made of the same entries.
///
/// # Errors
/// `Protocol` when the server's reply has another form; an entry's own errors are in the list.
pub fn decode(
    entries: &[&BeginEntry],
    reply: Value,
) -> Result<Vec<Result<BeginReply, RedisError>>, RedisError> {
    reply::decode(entries, &BatchPlan::from_entries(entries), reply)
}

#[cfg(test)]
mod tests;
