//! Buckets by themselves, and prefetching workers against GCRA alone.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::config::limits::Rate;
use crate::limiter::gcra;

const KEY: &str = "k";
const TIMEOUT_US: u64 = 50_000;
const MODE: PrefetchMode = PrefetchMode::Always;

/// The decision of a limit of 1000/s whose state in Redis is not known.
fn decision(remaining: u64) -> RateLimitDecision {
    RateLimitDecision { allowed: true, remaining, retry_after_us: None, reset_us: (1000 - remaining) * 1000 }
}

fn fresh() -> QuotaPrefetch {
    QuotaPrefetch::new([1, 2])
}

/// A reply far enough ahead that time takes none of it within a test.
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
fn a_prefetch_covers_a_tenth_of_a_second_and_at_most_a_twentieth_of_the_burst() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    assert_eq!(prefetch.consume(KEY, (&quota, MODE), 1, 0), ConsumeOutcome::Insufficient);
    assert_eq!(prefetch.amount_to_prefetch(KEY, (MODE, 1), 0, TIMEOUT_US), None, "one request is no demand");
    for now in 1..20 {
        assert_eq!(prefetch.consume(KEY, (&quota, MODE), 1, now), ConsumeOutcome::Insufficient);
    }
    assert_eq!(prefetch.amount_to_prefetch(KEY, (MODE, 1), 20, TIMEOUT_US), Some(20));
    assert_eq!(prefetch.amount_to_prefetch(KEY, (MODE, 1), 21, TIMEOUT_US), None, "a prefetch is in flight");
    assert!(prefetch.record_prefetched(KEY, far(20, 100), 100));
    for left in (10..20).rev() {
        assert_eq!(prefetch.consume(KEY, (&quota, MODE), 1, 200), ConsumeOutcome::Consumed(decision(left)));
    }
    for _ in 0..100 {
        prefetch.consume(KEY, (&quota, MODE), 1, 300);
    }
    assert_eq!(
        prefetch.amount_to_prefetch(KEY, (MODE, 1), 300, TIMEOUT_US),
        Some(50),
        "a twentieth of the burst"
    );
    assert!(!prefetch.record_prefetched(KEY, None, 400));
}

#[test]
fn unused_quota_is_returned() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    prefetch.consume(KEY, (&quota, MODE), 10, 0);
    assert_eq!(prefetch.amount_to_prefetch(KEY, (MODE, 1), 0, TIMEOUT_US), Some(10));
    prefetch.record_prefetched(KEY, far(10, 1000), 1000);
    assert_eq!(prefetch.take_expired(KEY, MODE, 1000 + HOLD_US - 1), None);
    assert_eq!(
        prefetch.consume(KEY, (&quota, MODE), 1, 1000 + HOLD_US),
        ConsumeOutcome::Insufficient,
        "it is about to be returned"
    );
    assert_eq!(prefetch.take_expired(KEY, MODE, 1000 + HOLD_US), Some(held(quota, 10)));
    assert_eq!(prefetch.take_expired(KEY, MODE, 1000 + HOLD_US), None);
    prefetch.record_prefetched(KEY, far(5, 500_000), 500_000);
    prefetch.consume(KEY, (&quota, MODE), 2, 500_000);
    assert!(prefetch.return_unused(KEY, 1, (500_000, 500_000)));
    assert_eq!(prefetch.drain(500_000), [(KEY.to_owned(), held(quota, 4))]);
    assert!(prefetch.drain(500_000).is_empty());
}

proptest! {
    #[test]
    fn nothing_is_allowed_that_was_not_paid(
        steps in prop::collection::vec((0..3u8, 1..20u64, 0..40_000u64), 1..200),
    ) {
        let (quota, mut prefetch) = (quota(2000), fresh());
        let (mut now, mut drawn, mut spent, mut back) = (0, 0, 0, 0);
        for (kind, cost, pause) in steps {
            now += pause;
            match kind {
                0 | 1 => {
                    let covered = prefetch.holds_enough(KEY, cost, now);
                    let paid = matches!(prefetch.consume(KEY, (&quota, MODE), cost, now), ConsumeOutcome::Consumed(_));
                    prop_assert_eq!(covered, paid);
                    spent += if paid { cost } else { 0 };
                }
                _ => if let Some(amount) = prefetch.amount_to_prefetch(KEY, (MODE, 1), now, TIMEOUT_US) {
                    prop_assert!(amount <= 100);
                    drawn += amount;
                    prefetch.record_prefetched(KEY, far(amount, now), now);
                },
            }
            back += prefetch.take_expired(KEY, MODE, now).map_or(0, |left| left.time_us.div_ceil(quota.interval_us()));
            prop_assert!(spent + back <= drawn);
            prop_assert!(drawn - spent - back <= 100 + PREFETCH_MIN, "more than a twentieth is held");
        }
        let left: u64 = prefetch.drain(now).iter().map(|(_, held)| held.time_us / quota.interval_us()).sum();
        prop_assert!(spent + back + left <= drawn);
    }
}

/// So many requests at this time that no prefetched quota pays for.
fn ask(prefetch: &mut QuotaPrefetch, quota: &Quota, requests: u64, now_us: u64) {
    for _ in 0..requests {
        assert_eq!(
            prefetch.consume(KEY, (quota, PrefetchMode::Auto), 1, now_us),
            ConsumeOutcome::Insufficient
        );
    }
}

fn amount_to_prefetch(prefetch: &mut QuotaPrefetch, now_us: u64) -> Option<u64> {
    prefetch.amount_to_prefetch(KEY, (PrefetchMode::Auto, 1), now_us, TIMEOUT_US)
}

#[test]
fn auto_stores_nothing_of_rare_subjects() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    for client in 0..10_000 {
        let key = format!("regatta:l:default:Zm9vYmFy:10.0.{}.{}", client / 256, client % 256);
        let now_us = client * 10_000;
        assert_eq!(
            prefetch.consume(&key, (&quota, PrefetchMode::Auto), 1, now_us),
            ConsumeOutcome::Insufficient
        );
        prefetch.record_redis_state(&key, 1000, (now_us, now_us));
        assert_eq!(prefetch.amount_to_prefetch(&key, (PrefetchMode::Auto, 1), now_us, TIMEOUT_US), None);
    }
    assert!(prefetch.buckets.is_empty());
    let slow = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 99);
    ask(&mut prefetch, &slow, 1000, 0);
    assert!(prefetch.buckets.is_empty(), "a burst below a hundred is not prefetched");
}

#[test]
fn auto_prefetches_for_a_busy_subject_and_only_above_half_the_burst() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    ask(&mut prefetch, &quota, 40, 1_000_000);
    assert_eq!(
        amount_to_prefetch(&mut prefetch, 1_000_000),
        None,
        "it is busy from the thirty-second on, and forty of those are needed"
    );
    ask(&mut prefetch, &quota, 44, 1_000_001);
    assert_eq!(amount_to_prefetch(&mut prefetch, 1_000_001), None, "nothing was heard of Redis");
    prefetch.record_redis_state(KEY, 500_000, (1_000_002, 1_000_002));
    assert_eq!(amount_to_prefetch(&mut prefetch, 1_000_002), None, "half of it is left");
    prefetch.record_redis_state(KEY, 480_000, (1_000_003, 1_000_003));
    assert_eq!(amount_to_prefetch(&mut prefetch, 1_000_003), Some(20), "what is beyond half of it");
    assert!(prefetch.record_prefetched(KEY, far(20, 1_000_004), 1_000_004));
    prefetch.record_redis_state(KEY, 500_000, (1_000_004, 1_000_004));
    assert_eq!(prefetch.take_excess(KEY, PrefetchMode::Auto, (1_000_003, 1_000_004)), None);
    let ConsumeOutcome::Consumed(reply) = prefetch.consume(KEY, (&quota, PrefetchMode::Auto), 1, 1_000_004)
    else {
        panic!("short")
    };
    assert_eq!((reply.remaining, reply.reset_us), (519, 481_000), "the limit's, and not what is held of it");
    let ConsumeOutcome::Consumed(reply) = prefetch.consume(KEY, (&quota, PrefetchMode::Auto), 1, 1_010_004)
    else {
        panic!("short")
    };
    assert_eq!(reply.remaining, 528, "time brought ten back");
    prefetch.record_redis_state(KEY, 0, (1_010_003, 1_010_004));
    let ConsumeOutcome::Consumed(reply) = prefetch.consume(KEY, (&quota, PrefetchMode::Auto), 0, 1_010_004)
    else {
        panic!("short")
    };
    assert_eq!(reply.remaining, 1000, "no newer state was received");
    prefetch.record_redis_state(KEY, 600_000, (1_010_005, 1_010_005));
    prefetch.record_redis_state(KEY, 0, (1_010_004, 1_010_005));
    assert_eq!(
        prefetch.take_excess(KEY, PrefetchMode::Auto, (1_010_004, 1_010_005)),
        Some(held(quota, 18)),
        "others drew, too"
    );
}

#[test]
fn a_reclaim_takes_all_and_nothing_is_prefetched_until_redis_answers() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    ask(&mut prefetch, &quota, 110, 0);
    prefetch.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut prefetch, 0), Some(50));
    prefetch.record_prefetched(KEY, far(50, 0), 0);
    assert_eq!(prefetch.reclaim(KEY, 1), Some(held(quota, 50)));
    assert_eq!((prefetch.reclaim(KEY, 1), prefetch.reclaim("other", 1)), (None, None));
    assert_eq!(amount_to_prefetch(&mut prefetch, 2), None);
    prefetch.record_redis_state(KEY, 0, (3, 3));
    assert_eq!(amount_to_prefetch(&mut prefetch, 3), Some(50));
}

#[test]
fn passed_time_is_neither_consumed_nor_returned() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    ask(&mut prefetch, &quota, 110, 0);
    prefetch.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut prefetch, 0), Some(50));
    // The burst was unused before: time takes the charge of fifty in fifty milliseconds.
    let draw = PrefetchReply { requests: 50, reset_us: 50_000, sent_us: 0, was_subscribed: true };
    assert!(prefetch.record_prefetched(KEY, Some(draw), 1_000));
    assert!(prefetch.holds_enough(KEY, 40, 10_000) && !prefetch.holds_enough(KEY, 41, 10_000));
    assert!(matches!(
        prefetch.consume(KEY, (&quota, PrefetchMode::Auto), 10, 10_000),
        ConsumeOutcome::Consumed(_)
    ));
    assert!(prefetch.holds_enough(KEY, 30, 20_000), "what was consumed lay before it");
    assert_eq!(
        prefetch.reclaim(KEY, 30_500),
        Some(QuotaReturn { quota, time_us: 19_500 }),
        "a part of a request, too"
    );
    assert_eq!(prefetch.reclaim(KEY, 50_000), None);
}

#[test]
fn a_prefetch_in_flight_during_a_reclaim_is_returned_when_answered() {
    let (quota, mut prefetch) = (quota(1000), fresh());
    ask(&mut prefetch, &quota, 110, 0);
    prefetch.record_redis_state(KEY, 0, (0, 0));
    assert_eq!(amount_to_prefetch(&mut prefetch, 10), Some(50));
    assert_eq!(prefetch.reclaim(KEY, 20), None, "nothing is held yet");
    assert!(prefetch.record_prefetched(KEY, far(50, 10), 30));
    prefetch.record_redis_state(KEY, 0, (10, 30));
    assert_eq!(prefetch.take_excess(KEY, PrefetchMode::Auto, (10, 30)), Some(held(quota, 50)));
    assert!(prefetch.record_prefetched(KEY, far(50, 40), 50));
    prefetch.record_redis_state(KEY, 0, (40, 50));
    assert_eq!(prefetch.take_excess(KEY, PrefetchMode::Auto, (40, 50)), None, "that one was sent later");
}

/// Workers, each with its own table, and one Redis with one arrival time.
struct Fleet {
    quota: Quota,
    workers: Vec<(QuotaPrefetch, PrefetchMode)>,
    tat_us: Option<u64>,
    /// The arrival time of the allowed requests alone.
    real_us: Option<u64>,
    /// One return of so many is lost; 0: none is.
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

    /// As through Redis: in chunks, of each of which all workers are notified.
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
            self.workers.iter_mut().for_each(|(prefetch, _)| prefetch.on_quota_returned(KEY, now_us));
        }
    }

    fn go_back(&mut self, now_us: u64) {
        for number in 0..self.workers.len() {
            let (prefetch, lease) = &mut self.workers[number];
            let held = prefetch.take_expired(KEY, *lease, now_us);
            self.refund(held, now_us);
        }
    }

    /// One request of one worker, as the limiter decides it; returns whether it is allowed.
    fn ask(&mut self, number: usize, now_us: u64) -> bool {
        self.go_back(now_us);
        let (quota, (prefetch, lease)) = (self.quota, &mut self.workers[number]);
        let lease = *lease;
        let paid = matches!(prefetch.consume(KEY, (&quota, lease), 1, now_us), ConsumeOutcome::Consumed(_));
        if let Some(requested) = prefetch.amount_to_prefetch(KEY, (lease, 1), now_us, TIMEOUT_US) {
            let room = gcra::decide(self.tat_us, now_us, &quota, 0).reply.remaining;
            let requests = requested.min(room);
            let reset_us = self.charge(requests, now_us).reset_us;
            let prefetch = &mut self.workers[number].0;
            prefetch.record_prefetched(
                KEY,
                Some(PrefetchReply { requests, reset_us, sent_us: now_us, was_subscribed: true }),
                now_us,
            );
            prefetch.record_redis_state(KEY, reset_us, (now_us, now_us));
            let held = prefetch.take_excess(KEY, lease, (now_us, now_us));
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

    /// Whether the allowed requests, this one included, stay within burst and rate in every window.
    fn admits(&mut self, now_us: u64) -> bool {
        let decision = gcra::decide(self.real_us, now_us, &self.quota, 1);
        self.real_us = decision.tat_us.or(self.real_us);
        decision.reply.allowed
    }
}

/// Prefetching always, with and without a maximum, and by default.
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
    /// The same arrivals with and without prefetching, and with workers of a release without it: never more is allowed,
    /// and no request is denied that Redis alone would allow, but for what was held unused for a while.
    #[test]
    fn a_leased_limit_allows_what_redis_alone_would(
        workers in prop::sample::select(vec![1usize, 2, 16]),
        leasing in 0..4usize,
        burst in prop::sample::select(vec![100u64, 1000]),
        arrivals in prop::collection::vec((0..16usize, 0..600u64), 1..3000),
    ) {
        // No quota comes back within the test, so that counting shows which worker has the last one.
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
                // It does not prefetch, and calls nothing back.
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

    /// The same where time brings quota back: in no window is more allowed than burst and rate, whatever is prefetched,
    /// left, called back or lost.
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

    /// By default a client is not denied while it stays half a second's quota below its burst.
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
