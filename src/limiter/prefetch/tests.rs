//! Purses by themselves, and leasing workers against GCRA alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::limits::Rate;
use crate::limiter::gcra;

const KEY: &str = "k";
const TIMEOUT_US: u64 = 50_000;
const LEASE: PrefetchMode = PrefetchMode::Always;

/// Of a limit of 1000/s, of whose state in Redis nothing was heard.
fn decision(remaining: u64) -> RateLimitDecision {
    RateLimitDecision { allowed: true, remaining, retry_after_us: None, reset_us: (1000 - remaining) * 1000 }
}

fn fresh() -> QuotaPrefetch {
    QuotaPrefetch::new([1, 2])
}

/// Far enough ahead that time takes none of it within a test.
fn far(requests: u64, now_us: u64) -> Option<PrefetchReply> {
    Some(PrefetchReply { requests, reset_us: 60_000_000, sent_us: now_us, was_subscribed: true })
}

/// The time of so many requests.
fn held(quota: Quota, requests: u64) -> QuotaReturn {
    QuotaReturn { quota, time_us: requests * quota.interval_us() }
}

fn quota(burst: u64) -> Quota {
    Quota::new(Rate { count: burst, period: Duration::from_secs(1) }, burst)
}

#[test]
fn it_draws_what_a_tenth_of_a_second_needs_and_at_most_a_twentieth_of_the_burst() {
    let (quota, mut advance) = (quota(1000), fresh());
    assert_eq!(advance.consume(KEY, (&quota, LEASE), 1, 0), ConsumeOutcome::Insufficient);
    assert_eq!(advance.amount_to_prefetch(KEY, (LEASE, 1), 0, TIMEOUT_US), None, "one request is no demand");
    for now in 1..20 {
        assert_eq!(advance.consume(KEY, (&quota, LEASE), 1, now), ConsumeOutcome::Insufficient);
    }
    assert_eq!(advance.amount_to_prefetch(KEY, (LEASE, 1), 20, TIMEOUT_US), Some(20));
    assert_eq!(advance.amount_to_prefetch(KEY, (LEASE, 1), 21, TIMEOUT_US), None, "it is on its way");
    assert!(advance.record_prefetched(KEY, far(20, 100), 100));
    for left in (10..20).rev() {
        assert_eq!(advance.consume(KEY, (&quota, LEASE), 1, 200), ConsumeOutcome::Consumed(decision(left)));
    }
    for _ in 0..100 {
        advance.consume(KEY, (&quota, LEASE), 1, 300);
    }
    assert_eq!(
        advance.amount_to_prefetch(KEY, (LEASE, 1), 300, TIMEOUT_US),
        Some(50),
        "a twentieth of the burst"
    );
    assert!(!advance.record_prefetched(KEY, None, 400));
}

#[test]
fn what_is_not_used_goes_back() {
    let (quota, mut advance) = (quota(1000), fresh());
    advance.consume(KEY, (&quota, LEASE), 10, 0);
    assert_eq!(advance.amount_to_prefetch(KEY, (LEASE, 1), 0, TIMEOUT_US), Some(10));
    advance.record_prefetched(KEY, far(10, 1000), 1000);
    assert_eq!(advance.take_expired(KEY, LEASE, 1000 + HOLD_US - 1), None);
    assert_eq!(
        advance.consume(KEY, (&quota, LEASE), 1, 1000 + HOLD_US),
        ConsumeOutcome::Insufficient,
        "it is about to go back"
    );
    assert_eq!(advance.take_expired(KEY, LEASE, 1000 + HOLD_US), Some(held(quota, 10)));
    assert_eq!(advance.take_expired(KEY, LEASE, 1000 + HOLD_US), None);
    advance.record_prefetched(KEY, far(5, 500_000), 500_000);
    advance.consume(KEY, (&quota, LEASE), 2, 500_000);
    assert!(advance.return_unused(KEY, 1, (500_000, 500_000)));
    assert_eq!(advance.drain(500_000), [(KEY.to_owned(), held(quota, 4))]);
    assert!(advance.drain(500_000).is_empty());
}

proptest! {
    #[test]
    fn nothing_is_allowed_that_was_not_paid(
        steps in prop::collection::vec((0..3u8, 1..20u64, 0..40_000u64), 1..200),
    ) {
        let (quota, mut advance) = (quota(2000), fresh());
        let (mut now, mut drawn, mut spent, mut back) = (0, 0, 0, 0);
        for (kind, cost, pause) in steps {
            now += pause;
            match kind {
                0 | 1 => {
                    let covered = advance.holds_enough(KEY, cost, now);
                    let paid = matches!(advance.consume(KEY, (&quota, LEASE), cost, now), ConsumeOutcome::Consumed(_));
                    prop_assert_eq!(covered, paid);
                    spent += if paid { cost } else { 0 };
                }
                _ => if let Some(amount) = advance.amount_to_prefetch(KEY, (LEASE, 1), now, TIMEOUT_US) {
                    prop_assert!(amount <= 100);
                    drawn += amount;
                    advance.record_prefetched(KEY, far(amount, now), now);
                },
            }
            back += advance.take_expired(KEY, LEASE, now).map_or(0, |left| left.time_us.div_ceil(quota.interval_us()));
            prop_assert!(spent + back <= drawn);
            prop_assert!(drawn - spent - back <= 100 + PREFETCH_MIN, "more than a twentieth is held");
        }
        let left: u64 = advance.drain(now).iter().map(|(_, held)| held.time_us / quota.interval_us()).sum();
        prop_assert!(spent + back + left <= drawn);
    }
}

/// So many requests at this time of which none is paid for.
fn ask(advance: &mut QuotaPrefetch, quota: &Quota, requests: u64, now_us: u64) {
    for _ in 0..requests {
        assert_eq!(
            advance.consume(KEY, (quota, PrefetchMode::Auto), 1, now_us),
            ConsumeOutcome::Insufficient
        );
    }
}

fn amount_to_prefetch(advance: &mut QuotaPrefetch, now_us: u64) -> Option<u64> {
    advance.amount_to_prefetch(KEY, (PrefetchMode::Auto, 1), now_us, TIMEOUT_US)
}

#[test]
fn auto_keeps_nothing_of_subjects_that_come_rarely() {
    let (quota, mut advance) = (quota(1000), fresh());
    for client in 0..10_000 {
        let key = format!("regatta:l:default:Zm9vYmFy:10.0.{}.{}", client / 256, client % 256);
        let now_us = client * 10_000;
        assert_eq!(
            advance.consume(&key, (&quota, PrefetchMode::Auto), 1, now_us),
            ConsumeOutcome::Insufficient
        );
        advance.record_redis_state(&key, 1000, (now_us, now_us));
        assert_eq!(advance.amount_to_prefetch(&key, (PrefetchMode::Auto, 1), now_us, TIMEOUT_US), None);
    }
    assert!(advance.buckets.is_empty());
    let slow = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 99);
    ask(&mut advance, &slow, 1000, 0);
    assert!(advance.buckets.is_empty(), "a burst below a hundred is not leased");
}

#[test]
fn auto_draws_for_a_subject_that_comes_often_and_only_above_half_the_burst() {
    let (quota, mut advance) = (quota(1000), fresh());
    ask(&mut advance, &quota, 40, 1_000_000);
    assert_eq!(
        amount_to_prefetch(&mut advance, 1_000_000),
        None,
        "it is busy from the thirty-second on, and forty of those are needed"
    );
    ask(&mut advance, &quota, 44, 1_000_001);
    assert_eq!(amount_to_prefetch(&mut advance, 1_000_001), None, "nothing was heard of Redis");
    advance.record_redis_state(KEY, 500_000, (1_000_002, 1_000_002));
    assert_eq!(amount_to_prefetch(&mut advance, 1_000_002), None, "half of it is left");
    advance.record_redis_state(KEY, 480_000, (1_000_003, 1_000_003));
    assert_eq!(amount_to_prefetch(&mut advance, 1_000_003), Some(20), "what is beyond half of it");
    assert!(advance.record_prefetched(KEY, far(20, 1_000_004), 1_000_004));
    advance.record_redis_state(KEY, 500_000, (1_000_004, 1_000_004));
    assert_eq!(advance.take_excess(KEY, PrefetchMode::Auto, (1_000_003, 1_000_004)), None);
    let ConsumeOutcome::Consumed(reply) = advance.consume(KEY, (&quota, PrefetchMode::Auto), 1, 1_000_004)
    else {
        panic!("short")
    };
    assert_eq!((reply.remaining, reply.reset_us), (519, 481_000), "the limit's, and not what is held of it");
    let ConsumeOutcome::Consumed(reply) = advance.consume(KEY, (&quota, PrefetchMode::Auto), 1, 1_010_004)
    else {
        panic!("short")
    };
    assert_eq!(reply.remaining, 528, "ten came back meanwhile");
    advance.record_redis_state(KEY, 0, (1_010_003, 1_010_004));
    let ConsumeOutcome::Consumed(reply) = advance.consume(KEY, (&quota, PrefetchMode::Auto), 0, 1_010_004)
    else {
        panic!("short")
    };
    assert_eq!(reply.remaining, 1000, "nothing newer was heard");
    advance.record_redis_state(KEY, 600_000, (1_010_005, 1_010_005));
    advance.record_redis_state(KEY, 0, (1_010_004, 1_010_005));
    assert_eq!(
        advance.take_excess(KEY, PrefetchMode::Auto, (1_010_004, 1_010_005)),
        Some(held(quota, 18)),
        "others drew, too"
    );
}

#[test]
fn a_reclaim_takes_all_and_nothing_is_prefetched_until_redis_answers() {
    let (quota, mut advance) = (quota(1000), fresh());
    ask(&mut advance, &quota, 110, 0);
    advance.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut advance, 0), Some(50));
    advance.record_prefetched(KEY, far(50, 0), 0);
    assert_eq!(advance.reclaim(KEY, 1), Some(held(quota, 50)));
    assert_eq!((advance.reclaim(KEY, 1), advance.reclaim("other", 1)), (None, None));
    assert_eq!(amount_to_prefetch(&mut advance, 2), None);
    advance.record_redis_state(KEY, 0, (3, 3));
    assert_eq!(amount_to_prefetch(&mut advance, 3), Some(50));
}

#[test]
fn what_time_has_passed_is_neither_spent_nor_given_back() {
    let (quota, mut advance) = (quota(1000), fresh());
    ask(&mut advance, &quota, 110, 0);
    advance.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut advance, 0), Some(50));
    // Nothing was used before: the charge of fifty is gone from Redis in fifty milliseconds.
    let draw = PrefetchReply { requests: 50, reset_us: 50_000, sent_us: 0, was_subscribed: true };
    assert!(advance.record_prefetched(KEY, Some(draw), 1_000));
    assert!(advance.holds_enough(KEY, 40, 10_000) && !advance.holds_enough(KEY, 41, 10_000));
    assert!(matches!(
        advance.consume(KEY, (&quota, PrefetchMode::Auto), 10, 10_000),
        ConsumeOutcome::Consumed(_)
    ));
    assert!(advance.holds_enough(KEY, 30, 20_000), "what was spent lay before it");
    assert_eq!(
        advance.reclaim(KEY, 30_500),
        Some(QuotaReturn { quota, time_us: 19_500 }),
        "a part of a request, too"
    );
    assert_eq!(advance.reclaim(KEY, 50_000), None);
}

#[test]
fn a_draw_under_way_when_another_worker_calls_goes_back_when_it_comes() {
    let (quota, mut advance) = (quota(1000), fresh());
    ask(&mut advance, &quota, 110, 0);
    advance.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut advance, 10), Some(50));
    assert_eq!(advance.reclaim(KEY, 20), None, "nothing is held yet");
    assert!(advance.record_prefetched(KEY, far(50, 10), 30));
    advance.record_redis_state(KEY, 0, (10, 30));
    assert_eq!(advance.take_excess(KEY, PrefetchMode::Auto, (10, 30)), Some(held(quota, 50)));
    assert!(advance.record_prefetched(KEY, far(50, 40), 50));
    advance.record_redis_state(KEY, 0, (40, 50));
    assert_eq!(advance.take_excess(KEY, PrefetchMode::Auto, (40, 50)), None, "that one was asked for later");
}

/// Workers, and one Redis: each is its own `Advance`, and the arrival time is the same for all.
struct Fleet {
    quota: Quota,
    workers: Vec<(QuotaPrefetch, PrefetchMode)>,
    tat_us: Option<u64>,
    /// The arrival time that those have who were let in, and none else.
    real_us: Option<u64>,
    /// Every so many returns one does not arrive; 0: all do.
    lost: usize,
    returns: usize,
}

impl Fleet {
    fn new(quota: Quota, leases: Vec<PrefetchMode>, lost: usize) -> Self {
        let workers = leases.into_iter().map(|lease| (fresh(), lease)).collect();
        Self { quota, workers, tat_us: None, real_us: None, lost, returns: 0 }
    }

    fn charge(&mut self, requests: u64, now_us: u64) -> RateLimitDecision {
        let decision = gcra::decide(self.tat_us, now_us, &self.quota, requests);
        self.tat_us = decision.tat_us.or(self.tat_us);
        decision.reply
    }

    /// As Redis does it: in pieces, of each of which all workers hear.
    fn refund(&mut self, held: Option<QuotaReturn>, now_us: u64) {
        let Some(QuotaReturn { quota, mut time_us }) = held else { return };
        self.returns += 1;
        if self.lost > 0 && self.returns.is_multiple_of(self.lost) {
            return;
        }
        while time_us > 0 {
            let piece_us = time_us.min(refund_chunk_us(quota.interval_us(), quota.tolerance_us()));
            let ahead_us = self.tat_us.map_or(0, |tat_us| tat_us.saturating_sub(now_us));
            let ahead_us = ahead_us.saturating_sub(piece_us);
            self.tat_us = (ahead_us > 0).then_some(now_us + ahead_us);
            time_us -= piece_us;
            self.workers.iter_mut().for_each(|(advance, _)| advance.on_quota_returned(KEY, now_us));
        }
    }

    fn go_back(&mut self, now_us: u64) {
        for number in 0..self.workers.len() {
            let (advance, lease) = &mut self.workers[number];
            let held = advance.take_expired(KEY, *lease, now_us);
            self.refund(held, now_us);
        }
    }

    /// One request of one worker, as the desk decides it; whether it is allowed.
    fn ask(&mut self, number: usize, now_us: u64) -> bool {
        self.go_back(now_us);
        let (quota, (advance, lease)) = (self.quota, &mut self.workers[number]);
        let lease = *lease;
        let paid = matches!(advance.consume(KEY, (&quota, lease), 1, now_us), ConsumeOutcome::Consumed(_));
        if let Some(requested) = advance.amount_to_prefetch(KEY, (lease, 1), now_us, TIMEOUT_US) {
            let room = gcra::decide(self.tat_us, now_us, &quota, 0).reply.remaining;
            let requests = requested.min(room);
            let reset_us = self.charge(requests, now_us).reset_us;
            let advance = &mut self.workers[number].0;
            advance.record_prefetched(
                KEY,
                Some(PrefetchReply { requests, reset_us, sent_us: now_us, was_subscribed: true }),
                now_us,
            );
            advance.record_redis_state(KEY, reset_us, (now_us, now_us));
            let held = advance.take_excess(KEY, lease, (now_us, now_us));
            self.refund(held, now_us);
        }
        if paid {
            return true;
        }
        let mut reply = self.charge(1, now_us);
        if !reply.allowed && lease == PrefetchMode::Auto {
            for other in 0..self.workers.len() {
                let held = self.workers[other].0.reclaim(KEY, now_us);
                self.refund(held, now_us);
            }
            reply = self.charge(1, now_us);
        }
        self.workers[number].0.record_redis_state(KEY, reply.reset_us, (now_us, now_us));
        reply.allowed
    }

    /// Whether those that were let in stay within the burst and the rate, in every window, with this one too.
    fn admits(&mut self, now_us: u64) -> bool {
        let decision = gcra::decide(self.real_us, now_us, &self.quota, 1);
        self.real_us = decision.tat_us.or(self.real_us);
        decision.reply.allowed
    }
}

/// A lease that is always on, with and without a most, and the default.
fn leases() -> impl Strategy<Value = PrefetchMode> {
    prop::sample::select(vec![
        PrefetchMode::Auto,
        PrefetchMode::Auto,
        PrefetchMode::Always,
        PrefetchMode::AtMost(20),
        PrefetchMode::Never,
    ])
}

proptest! {
    /// With and without leases on one and the same arrivals, workers that lease and workers of a release that does not:
    /// never more, and never a denial that Redis alone would not have given, within what lay unused for a while.
    #[test]
    fn a_leased_limit_allows_what_redis_alone_would(
        workers in prop::sample::select(vec![1usize, 2, 16]),
        leasing in 0..4usize,
        burst in prop::sample::select(vec![100u64, 1000]),
        arrivals in prop::collection::vec((0..16usize, 0..600u64), 1..3000),
    ) {
        // Nothing comes back within the test, so that who has the last one is decided by counting.
        let quota = Quota::new(Rate { count: 1, period: Duration::from_secs(86_400) }, burst);
        let of = |number: usize| if leasing > 0 && number % 4 == 3 { PrefetchMode::Never } else { PrefetchMode::Auto };
        let mut fleet = Fleet::new(quota, (0..workers).map(of).collect(), 0);
        let (mut now_us, mut allowed, requested) = (0, 0, arrivals.len() as u64);
        for (number, pause_us) in arrivals {
            now_us += pause_us;
            let number = number % fleet.workers.len();
            let leases = fleet.workers[number].1 != PrefetchMode::Never;
            let granted = if leases {
                fleet.ask(number, now_us)
            } else {
                // It knows no leases, and calls none back.
                fleet.go_back(now_us);
                fleet.charge(1, now_us).allowed
            };
            prop_assert!(granted || !leases || allowed == burst, "denied after {} of {}", allowed, burst);
            allowed += u64::from(granted);
            prop_assert!(allowed <= burst);
        }
        if fleet.workers.iter().all(|(_, lease)| *lease == PrefetchMode::Auto) {
            prop_assert_eq!(allowed, burst.min(requested));
        }
    }

    /// The same where time gives back: in no window is more allowed than burst and rate, whatever is drawn, left,
    /// called back or lost on its way.
    #[test]
    fn in_no_window_is_more_allowed_than_burst_and_rate(
        workers in prop::sample::select(vec![1usize, 2, 16]),
        of in prop::collection::vec(leases(), 16),
        rate in prop::sample::select(vec![50u64, 500, 5000]),
        burst in prop::sample::select(vec![100u64, 1000]),
        lost in 0..4usize,
        phases in prop::collection::vec((1..200usize, 0..16usize, 1..3000u64, 0..400_000u64), 1..30),
    ) {
        let quota = Quota::new(Rate { count: rate, period: Duration::from_secs(1) }, burst);
        let mut fleet = Fleet::new(quota, of[..workers].to_vec(), lost);
        let mut now_us = 1_000_000;
        for (requests, first, pause_us, rest_us) in phases {
            for number in 0..requests {
                now_us += pause_us / 2 * (number as u64 % 3);
                if fleet.ask((first + number * first) % workers, now_us) {
                    prop_assert!(fleet.admits(now_us), "one too many at {}", now_us);
                }
            }
            now_us += rest_us;
        }
    }

    /// A client that stays below its burst by what the rate brings in half a second is never denied by default.
    #[test]
    fn a_client_within_its_limit_is_not_denied(
        workers in prop::sample::select(vec![1usize, 2, 16]),
        rate in prop::sample::select(vec![50u64, 500, 5000]),
        phases in prop::collection::vec((1..400usize, 0..16usize, 1..3000u64, 0..400_000u64), 1..30),
    ) {
        let quota = Quota::new(Rate { count: rate, period: Duration::from_secs(1) }, 2 * rate);
        let mut fleet = Fleet::new(quota, vec![PrefetchMode::Auto; workers], 0);
        let mut now_us = 1_000_000;
        for (requests, first, pause_us, rest_us) in phases {
            for number in 0..requests {
                now_us += pause_us / 2 * (number as u64 % 3);
                let slack = gcra::decide(fleet.real_us, now_us, &quota, 0).reply.remaining;
                if slack <= rate / 2 {
                    continue;
                }
                prop_assert!(fleet.ask((first + number * first) % workers, now_us), "{} are left", slack);
                prop_assert!(fleet.admits(now_us));
            }
            now_us += rest_us;
        }
    }
}
