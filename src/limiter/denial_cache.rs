//! What this worker knows to be denied, so that a flood from one client does not become a flood of Redis.
//!
//! Kept is a lower bound of a limit's arrival time, never a permission. Requests of others only move the true one
//! further away, so whatever the bound denies, Redis would deny too, for any cost. Two things could make it wrong and
//! are met: quota that is given back (its worker notifies all others, [`Denials::forget`]) and clocks (the bound is
//! counted from the moment at which the question was sent, which is before Redis decided).
//!
//! Where an interval is shorter than a round trip the bound has passed before it is known, and every denial would cost a
//! question. Three rules keep a flood at one question in a while, at any rate:
//!
//! - A denial of Redis is believed for a moment (`belief_us`), also past its bound: a tenth of a second at most, and
//!   never as long as it takes for the burst to come back, so that no quota is lost by it. This is the only denial that
//!   Redis might not confirm; the `Retry-After` that came with it is a second at least.
//! - After that one request asks, and the others of the same limit wait for its answer and share it: they were there
//!   when Redis decided. The one that asks first waits for as long as the last answer took: by then the denial is over
//!   for Redis too, which decided somewhere in between.
//! - While a limit is short, no more questions are under way than what Redis had left can grant.
//!
//! Pure but for the signal that others wait for; times are µs of the worker's own clock.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::gcra;
use crate::limiter::quota::Quota;
use crate::redis::begin::RateLimitDecision;

/// Most limits that are remembered; the least recently used is forgotten first.
pub const CACHED_LIMITS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// Longest time for which a denial is believed past its bound, µs.
const TRUST_MAX_US: u64 = 100_000;

/// How long after a denial a limit counts as short, µs.
const SCARCE_US: u64 = 1_000_000;

/// What is known of the limits by their keys, which name subject, policy and the policy's version.
#[derive(Debug)]
pub struct DenialCache {
    entries: LruCache<Box<str>, CachedDenial>,
    /// Of which limits quota was given back, the earliest first: without their end each would keep this table from being
    /// empty, and every request of the worker would look into it.
    resets: VecDeque<(u64, Box<str>)>,
}

#[derive(Debug, Clone)]
enum CachedDenial {
    Bound(ArrivalBound),
    /// Quota was given back at this time: answers to questions from before it are worth nothing.
    Reset {
        at_us: u64,
    },
}

#[derive(Debug, Clone)]
struct ArrivalBound {
    /// The arrival time is this or later,
    tat_us: u64,
    /// as learned from a question that was sent then
    sent_us: u64,
    /// and took so long.
    round_trip_us: u64,
    /// What the questions under way cost: granted, they move the arrival time as far.
    in_flight_cost: u64,
    /// Redis denied a request of this cost, which is believed until then.
    trusted_denial: Option<(u64, u64)>,
    /// When Redis last denied; none: it only granted the last that was left.
    denied_us: Option<u64>,
    /// One request asks whether the denial is over, since then; the others wait for this.
    probe: Option<(u64, Arc<Notify>)>,
}

/// What to do with a request under one limit.
#[derive(Debug)]
pub enum CacheLookup {
    /// Redis would deny it, or did so a moment ago.
    Denied(RateLimitDecision),
    /// Nothing is known: ask.
    Unknown,
    /// The limit was short a moment ago and has something left: a caller that asks says so with [`Denials::ask`].
    Scarce,
    /// What was known has run out, and no request asks: likewise, for all others.
    Expired {
        /// Before this time Redis may still deny it.
        check_at_us: u64,
    },
    /// Another request asks already: wait for this and look again.
    InFlight(Arc<Notify>),
}

/// When a look is taken, and what it may rely on.
#[derive(Debug, Clone, Copy)]
pub struct LookupContext {
    /// Now.
    pub now_us: u64,
    /// Knowledge from before this time is not used, because news of refunds may have been missed since.
    pub oldest_us: u64,
    /// An answer that takes longer is not waited for.
    pub timeout_us: u64,
    /// Whether the request waited for another one's answer, which then is its own.
    pub waited: bool,
}

/// A question that is under way and known to [`Denials`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrackedCheck {
    /// The limit.
    pub key: String,
    /// What is asked for.
    pub cost: u64,
    /// Whether others wait for the answer.
    pub probe: bool,
}

impl Default for DenialCache {
    fn default() -> Self {
        Self { entries: LruCache::sparse(CACHED_LIMITS_MAX), resets: VecDeque::new() }
    }
}

impl DenialCache {
    /// Looks a limit up, changing nothing.
    pub fn lookup(&mut self, key: &str, quota: &Quota, cost: u64, at: LookupContext) -> CacheLookup {
        match self.entries.get(key) {
            // A request that costs nothing is never denied, and has nothing to wait for.
            Some(CachedDenial::Bound(bound)) if cost > 0 => bound.lookup(quota, cost, at),
            _ => CacheLookup::Unknown,
        }
    }

    /// Redis is asked about a limit that was [`Look::Short`] or [`Look::Stale`]; ends with [`Denials::learn`] or
    /// [`Denials::unanswered`].
    pub fn track(&mut self, question: &TrackedCheck, now_us: u64) {
        if let Some(CachedDenial::Bound(bound)) = self.entries.get_mut(question.key.as_str()) {
            bound.in_flight_cost = bound.in_flight_cost.saturating_add(question.cost);
            if question.probe {
                bound.probe = Some((now_us, Arc::default()));
            }
        }
    }

    /// Takes note of Redis's answer, which comes now, to a question that was sent at `asked_us`; `tracked` is what was
    /// said of it to [`Denials::ask`].
    ///
    /// Kept only if it denies the same request again, be it that the limit denied it or that it took the last; and
    /// while the limit is short.
    pub fn record(
        &mut self,
        (key, quota, cost): (&str, &Quota, u64),
        reply: &RateLimitDecision,
        (sent_us, now_us): (u64, u64),
        tracked: Option<&TrackedCheck>,
    ) {
        let spent = reply.reset_us.min(quota.tolerance_us());
        let possible = cost > 0 && quota.interval_us().saturating_mul(cost) <= quota.tolerance_us();
        let denies = possible && !gcra::decide(Some(spent), 0, quota, cost).reply.allowed;
        let answer = ArrivalBound {
            tat_us: sent_us.saturating_add(spent),
            sent_us,
            round_trip_us: now_us.saturating_sub(sent_us),
            in_flight_cost: 0,
            trusted_denial: (possible && !reply.allowed)
                .then(|| (cost, now_us.saturating_add(trust_us(quota)))),
            denied_us: (possible && !reply.allowed).then_some(now_us),
            probe: None,
        };
        // The common case, a client far from its limit, is only this one look-up; mostly in an empty table.
        match self.entries.get_mut(key) {
            None if !denies => return,
            Some(CachedDenial::Reset { at_us }) if sent_us <= *at_us => return,
            Some(CachedDenial::Bound(bound)) => {
                bound.finish_check(tracked);
                bound.merge(&answer);
                if denies || bound.is_scarce(now_us) || bound.probe.is_some() {
                    return;
                }
            }
            None | Some(CachedDenial::Reset { .. }) if denies => {
                self.entries.push(key.into(), CachedDenial::Bound(answer));
                return;
            }
            None | Some(CachedDenial::Reset { .. }) => {}
        }
        self.entries.pop(key);
    }

    /// The question failed: each request that waited for its answer asks Redis by itself.
    pub fn abandon_probe(&mut self, question: &TrackedCheck) {
        if let Some(CachedDenial::Bound(bound)) = self.entries.peek_mut(question.key.as_str()) {
            bound.finish_check(Some(question));
            if question.probe {
                self.entries.pop(question.key.as_str());
            }
        }
    }

    /// Quota was given back, or the limit was reset.
    pub fn invalidate(&mut self, key: &str, now_us: u64) {
        // Remembered even if nothing is known: an answer from before may still be on its way.
        if self.resets.len() >= CACHED_LIMITS_MAX.get() {
            self.resets.pop_front();
        }
        self.resets.push_back((now_us, key.into()));
        let before = self.entries.push(key.into(), CachedDenial::Reset { at_us: now_us });
        if let Some((_, CachedDenial::Bound(ArrivalBound { probe: Some((_, answered)), .. }))) = before {
            answered.notify_waiters();
        }
    }

    /// Forgets quota given back so long ago that no question from before it is under way any more.
    pub fn expire_resets(&mut self, now_us: u64, after_us: u64) {
        while self.resets.front().is_some_and(|(at_us, _)| now_us.saturating_sub(*at_us) > after_us) {
            let Some((reset_us, key)) = self.resets.pop_front() else { break };
            // A later one, or what was learned since, stays.
            if matches!(self.entries.peek(&key), Some(CachedDenial::Reset { at_us }) if *at_us == reset_us) {
                self.entries.pop(&key);
            }
        }
    }

    /// Limits that are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl ArrivalBound {
    fn lookup(&self, quota: &Quota, cost: u64, at: LookupContext) -> CacheLookup {
        let LookupContext { now_us, oldest_us, timeout_us, waited } = at;
        let is_fresh = self.sent_us >= oldest_us;
        let decide = |tat_us: u64, at_us: u64| gcra::decide(Some(tat_us), at_us, quota, cost).reply;
        // Whether there was something left when the last answer was given.
        let had_room = decide(self.tat_us, self.sent_us).allowed;
        if is_fresh {
            let believed = self.trusted_denial.filter(|(least, until)| cost >= *least && now_us < *until);
            let rest_us = believed.map_or(0, |(_, until_us)| until_us - now_us);
            let reply = decide(self.tat_us, now_us);
            if !reply.allowed || rest_us > 0 || (waited && !had_room) {
                // A cost above the burst is never allowed, and has no time at which it would be.
                let retry_after_us = match reply.allowed {
                    true => Some(rest_us.max(1)),
                    false => reply.retry_after_us.map(|retry_us| retry_us.max(rest_us)),
                };
                let remaining = if reply.allowed { 0 } else { reply.remaining };
                let reset_us = reply.reset_us.max(rest_us);
                return CacheLookup::Denied(RateLimitDecision {
                    allowed: false,
                    remaining,
                    retry_after_us,
                    reset_us,
                });
            }
        }
        match &self.probe {
            Some((since_us, answered)) if !waited && now_us.saturating_sub(*since_us) < timeout_us => {
                return CacheLookup::InFlight(Arc::clone(answered));
            }
            Some(_) => return CacheLookup::Expired { check_at_us: now_us },
            None => {}
        }
        if !is_fresh {
            return CacheLookup::Expired { check_at_us: now_us };
        }
        if !had_room {
            return CacheLookup::Expired {
                check_at_us: allowed_at_us(self.tat_us, quota, cost).saturating_add(self.round_trip_us),
            };
        }
        let taken_us = quota.interval_us().saturating_mul(self.in_flight_cost);
        match decide(self.tat_us.max(now_us).saturating_add(taken_us), now_us) {
            reply if !reply.allowed => CacheLookup::Denied(reply),
            _ => CacheLookup::Scarce,
        }
    }

    /// A question is not under way any more.
    fn finish_check(&mut self, question: Option<&TrackedCheck>) {
        let Some(question) = question else { return };
        self.in_flight_cost = self.in_flight_cost.saturating_sub(question.cost);
        if question.probe
            && let Some((_, answered)) = self.probe.take()
        {
            answered.notify_waiters();
        }
    }

    /// Joins another answer to this one; they may overtake each other, and both are true.
    fn merge(&mut self, answer: &Self) {
        if self.sent_us >= answer.sent_us {
            self.tat_us = self.tat_us.max(answer.tat_us);
        } else {
            (self.tat_us, self.sent_us, self.round_trip_us) =
                (answer.tat_us, answer.sent_us, answer.round_trip_us);
            // Granted later than denied: there is quota again.
            self.trusted_denial = self.trusted_denial.filter(|_| answer.trusted_denial.is_some());
        }
        if let Some((cost, until_us)) = answer.trusted_denial {
            let least = self.trusted_denial.map_or(cost, |(least, _)| least.min(cost));
            self.trusted_denial = Some((least, until_us));
        }
        self.denied_us = answer.denied_us.or(self.denied_us);
    }

    /// Whether Redis denied a request lately.
    fn is_scarce(&self, now_us: u64) -> bool {
        self.denied_us.is_some_and(|denied_us| now_us.saturating_sub(denied_us) < SCARCE_US)
    }
}

/// How long a denial is believed past its bound: by then not even half of the burst has come back, so none is lost.
fn trust_us(quota: &Quota) -> u64 {
    TRUST_MAX_US.min(quota.tolerance_us() / 2)
}

/// When a request of this cost is allowed at the earliest.
fn allowed_at_us(tat_us: u64, quota: &Quota, cost: u64) -> u64 {
    tat_us.saturating_add(quota.interval_us().saturating_mul(cost)).saturating_sub(quota.tolerance_us())
}

#[cfg(test)]
mod tests;
