//! The figures of a scenario, and how far each may move.

use std::collections::BTreeMap;

use crate::fleet::Stretch;
use crate::profile::Profile;

/// Figures by name, and the functions of worker and Redis by name: all for one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) values: BTreeMap<String, f64>,
    pub(crate) worker: BTreeMap<String, f64>,
    pub(crate) redis: BTreeMap<String, f64>,
}

/// From a short stretch, a long one and how many requests more that had. What a stretch costs by itself, such as its
/// mark, is in both and drops out.
pub(crate) fn figures(
    before: &Stretch,
    short: &Stretch,
    long: &Stretch,
    bytes: [u64; 3],
    more: f64,
) -> Figures {
    let worker = Profile::per_request(&long.worker, &short.worker, more);
    let redis = Profile::per_request(&long.server, &short.server, more);
    let each = |before: f64, short: f64, long: f64| ((long - short) - (short - before)) / more;
    let (b, s, l) = (before.counts, short.counts, long.counts);
    let sent = bytes.map(|count| count as f64);
    let values = [
        ("worker-instructions", worker.instructions),
        ("worker-allocations", worker.allocations),
        ("worker-system-calls", worker.syscalls),
        ("worker-writes", worker.writes),
        ("worker-bytes-to-clients", each(sent[0], sent[1], sent[2])),
        ("redis-instructions", redis.instructions),
        ("redis-calls", each(b.calls, s.calls, l.calls)),
        ("redis-commands", each(b.commands, s.commands, l.commands)),
        ("redis-reads", each(b.reads, s.reads, l.reads)),
        ("redis-bytes-in", each(b.bytes_in, s.bytes_in, l.bytes_in)),
        ("redis-bytes-out", each(b.bytes_out, s.bytes_out, l.bytes_out)),
    ];
    let values = values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    Figures { values, worker: worker.functions, redis: redis.functions }
}
