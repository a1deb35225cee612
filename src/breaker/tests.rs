//! The breaker's rules one by one, and its promises over random histories.

use std::time::Duration;

use proptest::prelude::*;

use super::Breaker;
use super::OPEN_MAX;
use super::Outcome;
use super::Pass;
use super::Position;
use super::State;

const START: Duration = Duration::from_secs(1000);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A call with this outcome at this time, if it is let through.
fn call(breaker: &mut Breaker, outcome: Outcome, now: Duration) -> bool {
    let Ok(pass) = breaker.ask(now) else { return false };
    breaker.settle(pass, outcome, now, || 1.0);
    true
}

fn opened() -> Breaker {
    let mut breaker = Breaker::default();
    assert!(call(&mut breaker, Outcome::Unable, START));
    assert_eq!(breaker.position(START), Position::Open);
    breaker
}

#[test]
fn what_is_unknown_never_opens_it() {
    let mut breaker = Breaker::default();
    for _ in 0..1000 {
        assert!(call(&mut breaker, Outcome::Void, START));
    }
    assert_eq!((breaker.opened(), breaker.position(START)), (0, Position::Closed));
}

#[test]
fn a_server_that_says_no_opens_it_at_once_and_for_a_short_time() {
    let mut breaker = Breaker::default();
    let mut now = START;
    for longest in [100, 200, 400, 400, 400] {
        assert!(call(&mut breaker, Outcome::Unable, now));
        assert!(breaker.ask(now + ms(longest - 1)).is_err(), "{longest}");
        now += ms(longest);
        assert_eq!(breaker.position(now), Position::HalfOpen);
    }
    assert_eq!(breaker.opened(), 5);
    // Once it has been closed, it begins anew.
    assert!(call(&mut breaker, Outcome::Done, now));
    assert!(call(&mut breaker, Outcome::Unable, now));
    assert!(breaker.ask(now + ms(100)).is_ok());
}

#[test]
fn half_open_lets_one_call_through_and_its_success_opens_the_way_for_all_however_late() {
    let mut breaker = opened();
    let now = START + ms(100);
    let pass = breaker.ask(now).unwrap();
    assert_eq!(breaker.position(now), Position::HalfOpen);
    assert!(breaker.ask(now).is_err());
    breaker.settle(pass, Outcome::Done, now + ms(60_000), || 1.0);
    assert_eq!(breaker.position(now), Position::Closed);
    assert!((0..1000).all(|_| breaker.ask(now).is_ok()));
}

#[test]
fn a_probe_whose_caller_left_makes_room_for_the_next() {
    let mut breaker = opened();
    let now = START + ms(100);
    let pass = breaker.ask(now).unwrap();
    breaker.settle(pass, Outcome::Void, now, || 1.0);
    assert!(breaker.ask(now).is_ok());
}

#[test]
fn what_was_called_before_it_opened_changes_nothing_any_more() {
    let mut breaker = Breaker::default();
    let old: Vec<Pass> = (0..100).map(|_| breaker.ask(START).unwrap()).collect();
    for pass in &old {
        breaker.settle(*pass, Outcome::Unable, START, || 1.0);
    }
    assert_eq!(breaker.opened(), 1);
    let probe = breaker.ask(START + ms(100)).unwrap();
    breaker.settle(old[0], Outcome::Done, START + ms(100), || 1.0);
    assert!(breaker.ask(START + ms(100)).is_err(), "the probe is still under way");
    breaker.settle(probe, Outcome::Done, START + ms(100), || 1.0);
    breaker.settle(old[1], Outcome::Unable, START + ms(100), || 1.0);
    assert_eq!(breaker.position(START + ms(100)), Position::Closed);
}

#[test]
fn a_new_connection_is_tried_at_once() {
    let mut breaker = opened();
    breaker.reconnected();
    assert_eq!(breaker.position(START), Position::HalfOpen);
    assert!(breaker.ask(START).is_ok());
    // It makes nothing of a breaker that is closed, or whose probe is under way.
    breaker.reconnected();
    assert!(breaker.ask(START).is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Pass(u64),
    Ask,
    Settle(usize, Outcome, f64),
    Reconnect,
    Trip(f64),
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Done),
        4 => Just(Outcome::Unable),
        1 => Just(Outcome::Void),
    ];
    prop_oneof![
        2 => (0..500u64).prop_map(Act::Pass),
        6 => Just(Act::Ask),
        6 => (any::<usize>(), outcome, 0.0..=1.0f64).prop_map(|(nth, outcome, random)| Act::Settle(nth, outcome, random)),
        1 => Just(Act::Reconnect),
        1 => (0.0..=1.0f64).prop_map(Act::Trip),
    ]
}

/// Lives through a history; the calls still under way at its end, and the time.
fn live(breaker: &mut Breaker, acts: Vec<Act>) -> (Vec<Pass>, Duration) {
    let (mut under_way, mut now) = (Vec::<Pass>::new(), START);
    for act in acts {
        match act {
            Act::Pass(time) => now += ms(time),
            Act::Ask => under_way.extend(breaker.ask(now).ok()),
            Act::Settle(nth, outcome, random) if !under_way.is_empty() => {
                let pass = under_way.swap_remove(nth % under_way.len());
                breaker.settle(pass, outcome, now, || random);
            }
            Act::Settle(..) => {}
            Act::Reconnect => breaker.reconnected(),
            Act::Trip(random) => breaker.trip(now, random),
        }
        let current = under_way.iter().filter(|pass| pass.epoch == breaker.epoch).count();
        match breaker.state {
            State::HalfOpen { probing } => assert_eq!(current, usize::from(probing)),
            State::Open { until } => {
                assert_eq!(current, 0);
                assert!(until <= now + OPEN_MAX);
            }
            State::Closed => {}
        }
    }
    (under_way, now)
}

proptest! {
    #[test]
    fn there_is_never_more_than_one_probe_and_it_always_recovers(acts in proptest::collection::vec(act(), 0..300)) {
        let mut breaker = Breaker::default();
        let (under_way, now) = live(&mut breaker, acts);
        for pass in under_way {
            breaker.settle(pass, Outcome::Void, now, || 1.0);
        }
        // From here on the server is well: the first call after the longest time open closes it for all.
        let now = now + OPEN_MAX;
        prop_assert!(call(&mut breaker, Outcome::Done, now));
        prop_assert!(matches!(breaker.state, State::Closed), "{:?}", breaker.state);
        prop_assert_eq!(breaker.round, 0);
    }

    #[test]
    fn a_server_that_is_well_is_never_refused(gaps in proptest::collection::vec(0..300u64, 0..300)) {
        let mut breaker = Breaker::default();
        let mut now = START;
        for gap in gaps {
            now += ms(gap);
            prop_assert!(call(&mut breaker, Outcome::Done, now));
        }
        prop_assert_eq!(breaker.opened(), 0);
    }
}
