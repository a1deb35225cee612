//! Charging a policy for what arrives over one long connection, such as the messages of a WebSocket.
//!
//! Each message is charged to the same key as a request would be, so that both together are bounded. A client that
//! sends much costs Redis a few calls a second in each worker, whatever it sends and over however many connections:
//! quota is prefetched for one message first, for twice as many the next time, and never more than
//! [`PREFETCHES_PER_SECOND`] times a second; known denials are repeated without a call. Pure but for the [`Notify`]
//! that messages wait for; times are µs of the worker's clock.

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::Notify;

use crate::limiter::gcra::Quota;

/// Most prefetches a second for one limit in one worker.
pub const PREFETCHES_PER_SECOND: u64 = 10;

/// Shortest time between two prefetches, µs.
const PREFETCH_INTERVAL_US: u64 = 1_000_000 / PREFETCHES_PER_SECOND;

/// A client that pauses for so long starts with one message's quota again, µs.
const IDLE_RESET_US: u64 = 300_000;

/// Most limits that are metered; the least recently used is evicted first.
const METERS_MAX: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// Limits that are metered, by their keys.
#[derive(Debug)]
pub struct MessageMeters {
    meters: LruCache<Box<str>, MessageMeter>,
}

#[derive(Debug, Default)]
struct MessageMeter {
    /// Prefetched requests that are left.
    available: u64,
    /// When the last prefetch was answered, and how much it requested.
    prefetched_us: u64,
    last_amount: u64,
    /// A cost and a time: until then nothing is allowed that costs as much or more.
    denied_until: Option<(u64, u64)>,
    /// A prefetch is in flight; others wait for its reply.
    in_flight: Option<Arc<Notify>>,
}

/// What a message has to do.
#[derive(Debug)]
pub enum MeterStep {
    /// Nothing: prefetched quota pays for it.
    Covered,
    /// It is denied for so long, µs.
    Denied(u64),
    /// It waits for the prefetch in flight, and tries again.
    Wait(Arc<Notify>),
    /// It waits until then, and tries again: the last prefetch was a moment ago.
    Until(u64),
    /// It prefetches so much; others wait for the reply.
    Prefetch(u64),
}

impl Default for MessageMeters {
    fn default() -> Self {
        Self { meters: LruCache::sparse(METERS_MAX) }
    }
}

impl MessageMeters {
    /// What a message of this cost has to do.
    pub fn next_step(&mut self, key: &str, quota: &Quota, cost: u64, now_us: u64) -> MeterStep {
        if !self.meters.contains(key) {
            self.meters.push(key.into(), MessageMeter::default());
        }
        match self.meters.get_mut(key) {
            Some(meter) => meter.next_step(quota, cost, now_us),
            None => MeterStep::Covered,
        }
    }

    /// A prefetch was answered: requests, and time until the whole burst is available; `None`: Redis did not reply.
    pub fn record_prefetched(
        &mut self,
        key: &str,
        (quota, cost): (&Quota, u64),
        answer: Option<(u64, u64)>,
        now_us: u64,
    ) {
        let Some(meter) = self.meters.peek_mut(key) else { return };
        meter.prefetched_us = now_us;
        if let Some((requests, reset_us)) = answer {
            meter.available = meter.available.saturating_add(requests);
            if meter.available < cost {
                let missing_us = quota.interval_us().saturating_mul(cost - meter.available);
                let wait_us = reset_us.saturating_add(missing_us).saturating_sub(quota.tolerance_us()).max(1);
                meter.denied_until = Some((cost, now_us.saturating_add(wait_us)));
            }
        }
        if let Some(answered) = meter.in_flight.take() {
            answered.notify_waiters();
        }
    }

    /// Takes out what was not used in time, to be returned to Redis.
    pub fn take_expired(&mut self, key: &str, now_us: u64) -> u64 {
        match self.meters.peek_mut(key) {
            Some(meter) if now_us.saturating_sub(meter.prefetched_us) >= 2 * PREFETCH_INTERVAL_US => {
                std::mem::take(&mut meter.available)
            }
            _ => 0,
        }
    }

    /// Quota was returned: a known denial may be over.
    pub fn clear_denial(&mut self, key: &str) {
        if let Some(meter) = self.meters.peek_mut(key) {
            meter.denied_until = None;
        }
    }
}

impl MessageMeter {
    fn next_step(&mut self, quota: &Quota, cost: u64, now_us: u64) -> MeterStep {
        if self.available >= cost {
            self.available -= cost;
            return MeterStep::Covered;
        }
        if let Some((_, until_us)) =
            self.denied_until.filter(|(least, until)| cost >= *least && now_us < *until)
        {
            return MeterStep::Denied(until_us - now_us);
        }
        if let Some(answered) = &self.in_flight {
            return MeterStep::Wait(Arc::clone(answered));
        }
        let due_us = self.prefetched_us.saturating_add(PREFETCH_INTERVAL_US);
        if self.last_amount > 0 && now_us < due_us {
            return MeterStep::Until(due_us);
        }
        let is_idle = self.last_amount == 0 || now_us.saturating_sub(self.prefetched_us) > IDLE_RESET_US;
        let more = if is_idle { 0 } else { self.last_amount.saturating_mul(2).min(quota.burst() / 4) };
        self.last_amount = (cost - self.available).max(more).max(1);
        self.in_flight = Some(Arc::new(Notify::new()));
        MeterStep::Prefetch(self.last_amount)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limits::Rate;

    fn quota() -> Quota {
        Quota::new(Rate { count: 5, period: Duration::from_secs(1) }, 20)
    }

    #[test]
    fn one_message_is_one_prefetch_and_many_need_few() {
        let (quota, mut meters) = (quota(), MessageMeters::default());
        let (mut now, mut prefetches, mut covered) = (1_000_000, Vec::new(), 0);
        while covered < 16 {
            match meters.next_step("k", &quota, 1, now) {
                MeterStep::Covered => covered += 1,
                MeterStep::Prefetch(amount) => {
                    assert!(matches!(meters.next_step("k", &quota, 1, now), MeterStep::Wait(_)));
                    prefetches.push(amount);
                    meters.record_prefetched("k", (&quota, 1), Some((amount, 0)), now);
                }
                MeterStep::Until(at) => now = at,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(prefetches, [1, 2, 4, 5, 5]);
        assert!(now <= 1_000_000 + 5 * PREFETCH_INTERVAL_US);
        assert_eq!(meters.take_expired("k", now), 0);
        assert_eq!(meters.take_expired("k", now + 2 * PREFETCH_INTERVAL_US), 1, "it goes back");
        assert!(matches!(meters.next_step("k", &quota, 1, now + 2 * IDLE_RESET_US), MeterStep::Prefetch(1)));
    }

    #[test]
    fn a_known_denial_is_repeated_until_it_may_be_over() {
        let (quota, mut meters) = (quota(), MessageMeters::default());
        assert!(matches!(meters.next_step("k", &quota, 2, 0), MeterStep::Prefetch(2)));
        meters.record_prefetched("k", (&quota, 2), Some((1, quota.tolerance_us())), 0);
        assert!(matches!(meters.next_step("k", &quota, 2, 10), MeterStep::Denied(199_990)));
        assert!(
            matches!(meters.next_step("k", &quota, 1, 10), MeterStep::Covered),
            "a cheaper one is covered"
        );
        meters.clear_denial("k");
        assert!(matches!(meters.next_step("k", &quota, 2, 150_000), MeterStep::Prefetch(..)));
        meters.record_prefetched("k", (&quota, 2), None, 150_000);
        assert!(matches!(meters.next_step("k", &quota, 2, 150_001), MeterStep::Until(250_000)));
    }
}
