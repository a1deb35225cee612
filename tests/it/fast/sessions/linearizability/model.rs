//! What Redis must do, one step after the other: plain data and rules, written from the promises and not from the code.

use std::collections::{BTreeMap, BTreeSet};

/// Names of sessions, fields, limits and counters are small numbers, so that steps meet.
pub(crate) type Index = u8;

/// One step of a request: one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Begin {
        session: Option<Use>,
        /// Limits on rate, with their cost; every one is of [`BURST`] and never refills during a test.
        rates: Vec<(Index, u64, bool)>,
        /// Limits on concurrency, at most [`AT_ONCE`]; leases never end during a test.
        leases: Vec<(Index, bool)>,
        counters: Vec<(Index, i64)>,
        /// The request's name in limits on concurrency.
        token: Index,
    },
    Commit {
        key: Index,
        create: bool,
        expect: Vec<(Index, Option<String>)>,
        set: Vec<(Index, String)>,
        add: Vec<(Index, i64)>,
        remove: Vec<Index>,
        max_bytes: u64,
    },
    /// Logout.
    Delete(Index),
    /// The user logs out everywhere.
    Revoke,
}

/// How a begin uses a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) key: Index,
    pub(crate) visit: bool,
    pub(crate) create: bool,
    /// The visitor's cookie names the one user there is.
    pub(crate) user: bool,
}

/// Requests that a limit on rate allows.
pub(crate) const BURST: u64 = 6;
/// Requests that a limit on concurrency allows.
pub(crate) const AT_ONCE: u64 = 2;
/// Most fields of a session.
pub(crate) const FIELDS: usize = 3;

/// What a step is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Whether each limit allows, and how much it still would; rates first.
    Denied(Vec<(bool, u64)>),
    Granted {
        limits: Vec<(bool, u64)>,
        session: Seen,
        counters: Vec<i64>,
    },
    Overflow,
    Committed(Vec<i64>),
    Gone,
    Exists,
    Full,
    Conflict,
    NoSum,
    Done,
}

/// A session as a begin sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    None,
    Gone,
    Revoked,
    Live { views: u64, fields: BTreeMap<Index, String> },
}

/// Everything there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct World {
    sessions: BTreeMap<Index, Session>,
    /// What each limit on rate has spent.
    spent: BTreeMap<Index, u64>,
    /// The requests that each limit on concurrency knows.
    leases: BTreeMap<Index, BTreeSet<Index>>,
    counters: BTreeMap<Index, i64>,
    /// How often the user has logged out everywhere; sessions here belong to generation 0.
    generation: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Session {
    views: u64,
    fields: BTreeMap<Index, String>,
}

impl World {
    /// Does one step.
    pub(crate) fn step(&mut self, step: &Step) -> Answer {
        match step {
            Step::Begin { session, rates, leases, counters, token } => {
                self.begin(*session, rates, leases, counters, *token)
            }
            Step::Commit { key, create, expect, set, add, remove, max_bytes } => {
                let change = Change { expect, set, add, remove, max_bytes: *max_bytes };
                match (self.sessions.get(key), *create) {
                    (Some(_), true) => Answer::Exists,
                    (None, false) => Answer::Gone,
                    (before, _) => {
                        let mut session = before.cloned().unwrap_or_default();
                        let answer = change.apply(&mut session.fields);
                        if let Answer::Committed(_) = answer {
                            self.sessions.insert(*key, session);
                        }
                        answer
                    }
                }
            }
            Step::Delete(key) => {
                self.sessions.remove(key);
                Answer::Done
            }
            Step::Revoke => {
                self.generation += 1;
                Answer::Done
            }
        }
    }

    fn begin(
        &mut self,
        session: Option<Use>,
        rates: &[(Index, u64, bool)],
        leases: &[(Index, bool)],
        counters: &[(Index, i64)],
        token: Index,
    ) -> Answer {
        let spent = |limit: &Index| *self.spent.get(limit).unwrap_or(&0);
        let busy = |limit: &Index| self.leases.get(limit).map_or(0, BTreeSet::len) as u64;
        let decided = rates.iter().map(|(limit, cost, shadow)| (spent(limit), *cost, BURST, *shadow));
        let decided = decided.chain(leases.iter().map(|(limit, shadow)| (busy(limit), 1, AT_ONCE, *shadow)));
        let decided: Vec<_> = decided.collect();
        let allows = |(used, cost, most, _): &(u64, u64, u64, bool)| used + cost <= *most;
        // Told without the charge, if none is made.
        let told = |limit: &(u64, u64, u64, bool), charged: bool| {
            let charge = if charged && allows(limit) { limit.1 } else { 0 };
            (allows(limit), limit.2 - limit.0 - charge)
        };
        if decided.iter().any(|limit| !allows(limit) && !limit.3) {
            return Answer::Denied(decided.iter().map(|limit| told(limit, false)).collect());
        }
        let Some(sums) = self.sums(counters) else { return Answer::Overflow };
        let limits = decided.iter().map(|limit| told(limit, true)).collect();
        for ((limit, _), sum) in counters.iter().zip(&sums) {
            self.counters.insert(*limit, *sum);
        }
        for ((limit, cost, _), decided) in rates.iter().zip(&decided) {
            if allows(decided) {
                *self.spent.entry(*limit).or_default() += cost;
            }
        }
        for ((limit, _), decided) in leases.iter().zip(&decided[rates.len()..]) {
            if allows(decided) {
                self.leases.entry(*limit).or_default().insert(token);
            }
        }
        let session = session.map_or(Seen::None, |how| self.visit(how));
        Answer::Granted { limits, session, counters: sums.into_iter().map(doubled).collect() }
    }

    /// The counters' new values; none if one does not fit.
    fn sums(&self, counters: &[(Index, i64)]) -> Option<Vec<i64>> {
        let sum = |(counter, by): &(Index, i64)| self.counters.get(counter).unwrap_or(&0).checked_add(*by);
        counters.iter().map(sum).collect()
    }

    fn visit(&mut self, how: Use) -> Seen {
        if how.create {
            // Its id is new: no one else can have it.
            // The first view is its ticket's.
            let session = Session { views: 1 + u64::from(how.visit), fields: BTreeMap::new() };
            self.sessions.insert(how.key, session);
        } else {
            let revoked = how.user && self.generation > 0;
            if revoked && self.sessions.remove(&how.key).is_some() {
                return Seen::Revoked;
            }
            let Some(session) = self.sessions.get_mut(&how.key) else { return Seen::Gone };
            session.views += u64::from(how.visit);
        }
        let session = &self.sessions[&how.key];
        Seen::Live { views: session.views, fields: session.fields.clone() }
    }

    /// Whether a step would make a session under an id that is taken, which new ids never are.
    pub(crate) fn is_impossible(&self, step: &Step) -> bool {
        let Step::Begin { session: Some(how), .. } = step else { return false };
        how.create && self.sessions.contains_key(&how.key)
    }
}

/// A counter's value as begin tells it: a double, so that its reader asks again beyond 2^53.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "that is the subject")]
fn doubled(sum: i64) -> i64 {
    sum as f64 as i64
}

struct Change<'a> {
    expect: &'a [(Index, Option<String>)],
    set: &'a [(Index, String)],
    add: &'a [(Index, i64)],
    remove: &'a [Index],
    max_bytes: u64,
}

impl Change<'_> {
    /// All of it or nothing.
    fn apply(&self, fields: &mut BTreeMap<Index, String>) -> Answer {
        if self.expect.iter().any(|(name, value)| fields.get(name) != value.as_ref()) {
            return Answer::Conflict;
        }
        if !self.set.is_empty() || !self.add.is_empty() {
            let mut size: BTreeMap<Index, usize> =
                fields.iter().map(|(name, value)| (*name, value.len())).collect();
            size.extend(self.set.iter().map(|(name, value)| (*name, value.len())));
            size.extend(self.add.iter().map(|(name, _)| (*name, 20)));
            size.retain(|name, _| !self.remove.contains(name));
            let bytes: usize =
                size.iter().map(|(name, length)| super::play::stored_length(*name) + length).sum();
            if size.len() > FIELDS || (self.max_bytes > 0 && bytes as u64 > self.max_bytes) {
                return Answer::Full;
            }
        }
        let mut after = fields.clone();
        let mut sums = Vec::new();
        for (name, by) in self.add {
            let stored = after.get(name).map_or("0", String::as_str);
            match integer(stored).and_then(|stored| stored.checked_add(*by)) {
                Some(sum) => {
                    sums.push(sum);
                    after.insert(*name, sum.to_string());
                }
                None => return Answer::NoSum,
            }
            // Of several additions none may fail after the first was made: long numbers are refused beforehand.
            let long = |text: &str| text.len() > 18;
            if self.add.len() > 1 && (long(stored_before(fields, *name)) || long(&by.to_string())) {
                return Answer::NoSum;
            }
        }
        after.extend(self.set.iter().cloned());
        after.retain(|name, _| !self.remove.contains(name));
        *fields = after;
        Answer::Committed(sums)
    }
}

fn stored_before(fields: &BTreeMap<Index, String>, name: Index) -> &str {
    fields.get(&name).map_or("0", String::as_str)
}

/// A text that is an integer as Redis writes it.
fn integer(text: &str) -> Option<i64> {
    text.parse::<i64>().ok().filter(|number| number.to_string() == text)
}
