//! The layout of a batch: what its entries share is named once.

use bytes::Bytes;

use crate::request_state::begin::batch::entry::{BeginEntry, CompactEntry, EncodedCall, EntryShape};

/// Distinct limits, and distinct counters, that a plan can name: an index is one byte, from 1.
const INDEX_MAX: usize = 255;

/// Codes of an entry's session in a plan.
const NONE: u8 = 0;
const READ: u8 = 1;
const VIEW: u8 = 2;

/// A batch's layout; it depends only on the entries.
pub(super) struct BatchPlan<'a> {
    pub(super) idle_ms: u64,
    pub(super) absolute_ms: u64,
    pub(super) limits: Vec<PlannedLimit<'a>>,
    pub(super) counters: Vec<PlannedCounter<'a>>,
    /// Keys of the generations of the sessions' users.
    pub(super) generations: Vec<&'a [u8]>,
    /// Compact entries, in order, with their position in the batch.
    pub(super) compact: Vec<(usize, &'a CompactEntry)>,
    /// Positions of the other entries.
    pub(super) standalone: Vec<usize>,
    /// Indexes of the limits and counters of the compact entries: those of the first, then those of the second.
    pub(super) limits_at: Vec<u8>,
    pub(super) counters_at: Vec<u8>,
    /// Index of the generation of each session; 0: none.
    users: Vec<u8>,
}

/// A limit that entries name.
pub(super) struct PlannedLimit<'a> {
    pub(super) key: &'a [u8],
    pub(super) interval_us: u64,
    pub(super) tolerance_us: u64,
}

/// A counter that entries name.
pub(super) struct PlannedCounter<'a> {
    pub(super) key: &'a [u8],
    /// The sum of all additions.
    pub(super) sum: i64,
}

impl<'a> BatchPlan<'a> {
    pub(super) fn from_entries(entries: &[&'a BeginEntry]) -> Self {
        let mut plan = Self {
            idle_ms: 0,
            absolute_ms: 0,
            limits: Vec::new(),
            counters: Vec::new(),
            generations: Vec::new(),
            compact: Vec::with_capacity(entries.len()),
            standalone: Vec::new(),
            limits_at: Vec::with_capacity(entries.len()),
            counters_at: Vec::with_capacity(entries.len()),
            users: Vec::new(),
        };
        let session = |entry: &&'a BeginEntry| match &entry.shape {
            EntryShape::Compact(plain) => plain.session.as_ref(),
            EntryShape::Standalone(_) => None,
        };
        if let Some(session) = entries.iter().find_map(session) {
            (plan.idle_ms, plan.absolute_ms) = (session.idle_ms, session.absolute_ms);
        }
        for (at, entry) in entries.iter().enumerate() {
            match &entry.shape {
                EntryShape::Compact(plain) if plan.add(plain) => plan.compact.push((at, plain)),
                _ => plan.standalone.push(at),
            }
        }
        plan
    }

    /// Adds the entry to the plan; returns false if it does not fit.
    fn add(&mut self, plain: &'a CompactEntry) -> bool {
        let lifetimes = plain
            .session
            .as_ref()
            .map_or((self.idle_ms, self.absolute_ms), |it| (it.idle_ms, it.absolute_ms));
        let full = self.limits.len() + plain.limits.len() > INDEX_MAX
            || self.counters.len() + plain.counters.len() > INDEX_MAX
            || self.generations.len() == INDEX_MAX;
        // One key with two quotas would be decided by the first quota.
        let crossed = plain.limits.iter().any(|it| {
            let quota = (it.interval_us, it.tolerance_us);
            let known = self.limits.iter().find(|limit| same(limit.key, plain.key(it.key)));
            known.is_some_and(|limit| (limit.interval_us, limit.tolerance_us) != quota)
        });
        if full || crossed || lifetimes != (self.idle_ms, self.absolute_ms) {
            return false;
        }
        for limit in &plain.limits {
            let key = plain.key(limit.key);
            let at = self.limits.iter().position(|known| same(known.key, key)).unwrap_or_else(|| {
                let (interval_us, tolerance_us) = (limit.interval_us, limit.tolerance_us);
                self.limits.push(PlannedLimit { key, interval_us, tolerance_us });
                self.limits.len() - 1
            });
            self.limits_at.push(index(at));
        }
        for counter in &plain.counters {
            let key = plain.key(counter.key);
            let at = self.counters.iter().position(|known| same(known.key, key));
            let at = at.unwrap_or_else(|| {
                self.counters.push(PlannedCounter { key, sum: 0 });
                self.counters.len() - 1
            });
            self.counters[at].sum += i64::from(counter.by);
            self.counters_at.push(index(at));
        }
        if let Some(session) = &plain.session {
            let user = session.generation.map_or(0, |key| self.generation_index(plain.key(key)));
            self.users.push(user);
        }
        true
    }

    /// The index of this generation.
    fn generation_index(&mut self, key: &'a [u8]) -> u8 {
        let at = self.generations.iter().position(|known| same(known, key)).unwrap_or_else(|| {
            self.generations.push(key);
            self.generations.len() - 1
        });
        index(at)
    }

    /// Whether all count a view, so that the server reads the plan for limits only.
    pub(super) fn all_count_views(&self) -> bool {
        let view = |plain: &CompactEntry| plain.session.as_ref().is_some_and(|session| session.view);
        !self.compact.is_empty() && self.compact.iter().all(|(_, plain)| view(plain))
    }

    /// Keys of the compact entries' sessions.
    pub(super) fn sessions(&self) -> impl Iterator<Item = &'a [u8]> {
        self.compact.iter().filter_map(|(_, plain)| Some(plain.key(plain.session.as_ref()?.key)))
    }

    /// All keys except those of separate calls: counters, limits, generations, sessions.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a [u8]> {
        let counters = self.counters.iter().map(|counter| counter.key);
        let limits = self.limits.iter().map(|limit| limit.key);
        counters.chain(limits).chain(self.generations.iter().copied()).chain(self.sessions())
    }

    /// The other entries as separate calls.
    pub(super) fn standalone_calls<'b>(
        &'b self,
        entries: &'b [&'a BeginEntry],
    ) -> impl Iterator<Item = EncodedCall<'a>> + 'b {
        self.standalone.iter().map(|at| entries[*at].call())
    }

    /// For each compact entry: mode, number of limits, index and cost of each, number of counters, index and addition
    /// of each; at the end, if there are generations, the index of each session's.
    pub(super) fn encode_layout(&self) -> Bytes {
        let mut text =
            Vec::with_capacity(3 * self.compact.len() + 2 * (self.limits_at.len() + self.counters_at.len()));
        let (mut limits, mut counters) = (self.limits_at.iter(), self.counters_at.iter());
        for (_, plain) in &self.compact {
            let mode = plain.session.as_ref().map_or(NONE, |it| if it.view { VIEW } else { READ });
            text.extend([mode, count(plain.limits.len())]);
            for (limit, at) in plain.limits.iter().zip(limits.by_ref().take(plain.limits.len())) {
                text.extend([*at, limit.cost]);
            }
            text.push(count(plain.counters.len()));
            for (counter, at) in plain.counters.iter().zip(counters.by_ref().take(plain.counters.len())) {
                text.extend([*at, counter.by]);
            }
        }
        if !self.generations.is_empty() {
            text.extend_from_slice(&self.users);
        }
        text.into()
    }
}

/// An index as the server counts, from 1.
fn index(at: usize) -> u8 {
    u8::try_from(at + 1).unwrap_or(u8::MAX)
}

fn count(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// Compares the ends first, where keys of one kind differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.last() == other.last() && one == other
}
