//! The figures of a scenario, and how far each may move.

use std::collections::BTreeSet;

use crate::fleet::Stretch;
use crate::profile::Profile;
use crate::verdict::{self, Values};

/// Figures by name, and the functions of worker and Redis by name: all for one request.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) values: Values,
    pub(crate) worker: Values,
    pub(crate) redis: Values,
}

/// From a short stretch, a long one and how many requests more that had. What a stretch costs by itself, such as its
/// mark, is in both and drops out.
pub(crate) fn figures(before: &Stretch, short: &Stretch, long: &Stretch, more: f64) -> Figures {
    let worker = Profile::per_request(&long.worker, &short.worker, more);
    let redis = Profile::per_request(&long.server, &short.server, more);
    let each = |before: f64, short: f64, long: f64| ((long - short) - (short - before)) / more;
    let (b, s, l) = (before.counts, short.counts, long.counts);
    let values = [
        ("worker-instructions", worker.instructions),
        ("worker-allocations", worker.allocations),
        ("worker-system-calls", worker.syscalls),
        ("worker-writes", worker.writes),
        ("worker-bytes-to-clients", each(before.received, short.received, long.received)),
        ("redis-instructions", redis.instructions),
        ("redis-calls", each(b.calls, s.calls, l.calls)),
        ("redis-commands", each(b.commands, s.commands, l.commands)),
        ("redis-reads", each(b.reads, s.reads, l.reads)),
        ("redis-bytes-in", each(b.bytes_in, s.bytes_in, l.bytes_in)),
        ("redis-bytes-out", each(b.bytes_out, s.bytes_out, l.bytes_out)),
    ];
    let values = values.into_iter().map(|(name, value)| (name.to_owned(), verdict::cost(value))).collect();
    Figures { values, worker: worker.functions, redis: redis.functions }
}

/// The middle one of each figure, and of each function's instructions.
pub(crate) fn median(rounds: &[Figures]) -> Figures {
    let middle = |of: fn(&Figures) -> &Values| {
        let names: BTreeSet<_> = rounds.iter().flat_map(|round| of(round).keys()).collect();
        let of_all = |name: &String| {
            let mut all: Vec<_> =
                rounds.iter().map(|round| of(round).get(name).copied().unwrap_or_default()).collect();
            all.sort_by(f64::total_cmp);
            all.get(all.len() / 2).copied().unwrap_or_default()
        };
        names.into_iter().map(|name| (name.clone(), of_all(name))).collect()
    };
    Figures {
        values: middle(|round| &round.values),
        worker: middle(|round| &round.worker),
        redis: middle(|round| &round.redis),
    }
}
