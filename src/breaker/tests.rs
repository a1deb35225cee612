//! Each rule of the breaker, and its guarantees over random histories.

use std::time::Duration;

use proptest::prelude::*;

use super::{BreakerPermit, BreakerPhase, BreakerState, CallOutcome, CircuitBreaker, OPEN_MAX};

const START: Duration = Duration::from_secs(1000);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Makes a call with this outcome at this time, if it is let through.
fn call(breaker: &mut CircuitBreaker, outcome: CallOutcome, now: Duration) -> bool {
    let Ok(pass) = breaker.acquire(now) else { return false };
    breaker.record_outcome(pass, outcome, now, || 1.0);
    true
}

fn opened_breaker() -> CircuitBreaker {
    let mut breaker = CircuitBreaker::default();
    assert!(call(&mut breaker, CallOutcome::Unavailable, START));
    assert_eq!(breaker.state(START), BreakerState::Open);
    breaker
}

#[test]
fn a_discarded_call_never_opens_it() {
    let mut breaker = CircuitBreaker::default();
    for _ in 0..1000 {
        assert!(call(&mut breaker, CallOutcome::Discarded, START));
    }
    assert_eq!((breaker.open_count(), breaker.state(START)), (0, BreakerState::Closed));
}

#[test]
fn an_unavailable_server_opens_it_at_once_and_for_a_short_time() {
    let mut breaker = CircuitBreaker::default();
    let mut now = START;
    for longest in [100, 200, 400, 400, 400] {
        assert!(call(&mut breaker, CallOutcome::Unavailable, now));
        assert!(breaker.acquire(now + ms(longest - 1)).is_err(), "{longest}");
        now += ms(longest);
        assert_eq!(breaker.state(now), BreakerState::HalfOpen);
    }
    assert_eq!(breaker.open_count(), 5);
    // After it has closed, the open time starts at its first value again.
    assert!(call(&mut breaker, CallOutcome::Success, now));
    assert!(call(&mut breaker, CallOutcome::Unavailable, now));
    assert!(breaker.acquire(now + ms(100)).is_ok());
}

#[test]
fn half_open_lets_one_call_through_and_its_success_closes_it_however_late() {
    let mut breaker = opened_breaker();
    let now = START + ms(100);
    let pass = breaker.acquire(now).unwrap();
    assert_eq!(breaker.state(now), BreakerState::HalfOpen);
    assert!(breaker.acquire(now).is_err());
    breaker.record_outcome(pass, CallOutcome::Success, now + ms(60_000), || 1.0);
    assert_eq!(breaker.state(now), BreakerState::Closed);
    assert!((0..1000).all(|_| breaker.acquire(now).is_ok()));
}

#[test]
fn a_discarded_probe_makes_room_for_the_next() {
    let mut breaker = opened_breaker();
    let now = START + ms(100);
    let pass = breaker.acquire(now).unwrap();
    breaker.record_outcome(pass, CallOutcome::Discarded, now, || 1.0);
    assert!(breaker.acquire(now).is_ok());
}

#[test]
fn outcomes_of_calls_from_before_it_opened_are_ignored() {
    let mut breaker = CircuitBreaker::default();
    let old: Vec<BreakerPermit> = (0..100).map(|_| breaker.acquire(START).unwrap()).collect();
    for pass in &old {
        breaker.record_outcome(*pass, CallOutcome::Unavailable, START, || 1.0);
    }
    assert_eq!(breaker.open_count(), 1);
    let probe = breaker.acquire(START + ms(100)).unwrap();
    breaker.record_outcome(old[0], CallOutcome::Success, START + ms(100), || 1.0);
    assert!(breaker.acquire(START + ms(100)).is_err(), "the probe is still under way");
    breaker.record_outcome(probe, CallOutcome::Success, START + ms(100), || 1.0);
    breaker.record_outcome(old[1], CallOutcome::Unavailable, START + ms(100), || 1.0);
    assert_eq!(breaker.state(START + ms(100)), BreakerState::Closed);
}

#[test]
fn a_new_connection_is_tried_at_once() {
    let mut breaker = opened_breaker();
    breaker.allow_probe();
    assert_eq!(breaker.state(START), BreakerState::HalfOpen);
    assert!(breaker.acquire(START).is_ok());
    // It changes nothing in a closed breaker or while a probe is under way.
    breaker.allow_probe();
    assert!(breaker.acquire(START).is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Advance(u64),
    Acquire,
    RecordOutcome(usize, CallOutcome, f64),
    AllowProbe,
    ForceOpen(f64),
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![
        3 => Just(CallOutcome::Success),
        4 => Just(CallOutcome::Unavailable),
        1 => Just(CallOutcome::Discarded),
    ];
    prop_oneof![
        2 => (0..500u64).prop_map(Act::Advance),
        6 => Just(Act::Acquire),
        6 => (any::<usize>(), outcome, 0.0..=1.0f64).prop_map(|(nth, outcome, random)| Act::RecordOutcome(nth, outcome, random)),
        1 => Just(Act::AllowProbe),
        1 => (0.0..=1.0f64).prop_map(Act::ForceOpen),
    ]
}

/// Replays a history; returns the calls still under way at its end, and the time.
fn replay(breaker: &mut CircuitBreaker, acts: Vec<Act>) -> (Vec<BreakerPermit>, Duration) {
    let (mut under_way, mut now) = (Vec::<BreakerPermit>::new(), START);
    for act in acts {
        match act {
            Act::Advance(time) => now += ms(time),
            Act::Acquire => under_way.extend(breaker.acquire(now).ok()),
            Act::RecordOutcome(nth, outcome, random) if !under_way.is_empty() => {
                let pass = under_way.swap_remove(nth % under_way.len());
                breaker.record_outcome(pass, outcome, now, || random);
            }
            Act::RecordOutcome(..) => {}
            Act::AllowProbe => breaker.allow_probe(),
            Act::ForceOpen(random) => breaker.force_open(now, random),
        }
        let current = under_way.iter().filter(|pass| pass.epoch == breaker.epoch).count();
        match breaker.phase {
            BreakerPhase::HalfOpen { probing } => assert_eq!(current, usize::from(probing)),
            BreakerPhase::Open { until } => {
                assert_eq!(current, 0);
                assert!(until <= now + OPEN_MAX);
            }
            BreakerPhase::Closed => {}
        }
    }
    (under_way, now)
}

proptest! {
    #[test]
    fn there_is_never_more_than_one_probe_and_it_always_recovers(acts in proptest::collection::vec(act(), 0..300)) {
        let mut breaker = CircuitBreaker::default();
        let (under_way, now) = replay(&mut breaker, acts);
        for pass in under_way {
            breaker.record_outcome(pass, CallOutcome::Discarded, now, || 1.0);
        }
        // From here on the server is healthy: the first call after the longest open time closes the breaker.
        let now = now + OPEN_MAX;
        prop_assert!(call(&mut breaker, CallOutcome::Success, now));
        prop_assert!(matches!(breaker.phase, BreakerPhase::Closed), "{:?}", breaker.phase);
        prop_assert_eq!(breaker.consecutive_opens, 0);
    }

    #[test]
    fn a_server_that_is_well_is_never_refused(gaps in proptest::collection::vec(0..300u64, 0..300)) {
        let mut breaker = CircuitBreaker::default();
        let mut now = START;
        for gap in gaps {
            now += ms(gap);
            prop_assert!(call(&mut breaker, CallOutcome::Success, now));
        }
        prop_assert_eq!(breaker.open_count(), 0);
    }
}
