//! The breaker's rules one by one, and its promises over random histories.

use std::time::Duration;

use proptest::prelude::*;

use super::Breaker;
use super::OPEN_MAX;
use super::OPEN_UNABLE_MAX;
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
    let Ok(pass) = breaker.ask(now, 0.0) else { return false };
    breaker.settle(pass, outcome, now, 1.0);
    true
}

fn opened() -> Breaker {
    let mut breaker = Breaker::default();
    for _ in 0..5 {
        assert!(call(&mut breaker, Outcome::Failed, START));
    }
    assert_eq!(breaker.position(START), Position::Open);
    breaker
}

#[test]
fn five_failures_in_a_row_open_it_and_four_do_not() {
    let mut breaker = Breaker::default();
    for _ in 0..50 {
        for _ in 0..4 {
            assert!(call(&mut breaker, Outcome::Failed, START));
        }
        for _ in 0..10 {
            assert!(call(&mut breaker, Outcome::Done, START));
        }
    }
    assert_eq!(breaker.opened(), 0);
    assert_eq!(opened().opened(), 1);
}

#[test]
fn half_of_twenty_calls_within_a_second_open_it_be_they_lost_or_slow() {
    for bad in [Outcome::Failed, Outcome::Slow] {
        let mut breaker = Breaker::default();
        for n in 0..9 {
            assert!(call(&mut breaker, Outcome::Done, START + ms(n)));
            assert!(call(&mut breaker, bad, START + ms(n)));
        }
        // A second later the first are forgotten: nineteen calls say nothing.
        let mut later = breaker.clone();
        assert!(call(&mut later, Outcome::Done, START + ms(1100)));
        assert!(call(&mut later, bad, START + ms(1100)));
        assert_eq!(later.position(START + ms(1100)), Position::Closed);
        assert!(call(&mut breaker, Outcome::Done, START + ms(10)));
        assert!(call(&mut breaker, bad, START + ms(10)));
        assert_eq!(breaker.position(START + ms(10)), Position::Open, "{bad:?}");
    }
}

#[test]
fn a_server_that_says_no_opens_it_at_once_and_for_a_short_time() {
    let mut breaker = Breaker::default();
    let mut now = START;
    for _ in 0..10 {
        assert!(call(&mut breaker, Outcome::Unable, now));
        assert!(!call(&mut breaker, Outcome::Done, now));
        now += OPEN_UNABLE_MAX;
        assert_eq!(breaker.position(now), Position::HalfOpen);
    }
}

#[test]
fn the_time_open_doubles_to_its_cap() {
    let mut breaker = opened();
    let mut now = START;
    for longest in [100, 200, 400, 800, 1600, 2000, 2000] {
        assert!(breaker.ask(now + ms(longest - 1), 0.0).is_err(), "{longest}");
        now += ms(longest);
        assert!(call(&mut breaker, Outcome::Failed, now));
    }
    // Once it has been closed for all, it begins anew.
    for _ in 0..3 {
        assert!(call(&mut breaker, Outcome::Done, now + OPEN_MAX));
    }
    now += OPEN_MAX + ms(1000);
    for _ in 0..5 {
        assert!(call(&mut breaker, Outcome::Failed, now));
    }
    assert!(breaker.ask(now + ms(100), 0.0).is_ok());
}

#[test]
fn half_open_lets_one_call_through_at_a_time_and_three_close_it() {
    let mut breaker = opened();
    let now = START + ms(100);
    for _ in 0..3 {
        let pass = breaker.ask(now, 0.0).unwrap();
        assert_eq!(breaker.position(now), Position::HalfOpen);
        assert!(breaker.ask(now, 0.0).is_err());
        breaker.settle(pass, Outcome::Done, now, 1.0);
    }
    assert_eq!(breaker.position(now), Position::Closed);
}

#[test]
fn a_probe_whose_caller_left_makes_room_for_the_next() {
    let mut breaker = opened();
    let now = START + ms(100);
    let pass = breaker.ask(now, 0.0).unwrap();
    breaker.settle(pass, Outcome::Void, now, 1.0);
    assert!(breaker.ask(now, 0.0).is_ok());
}

#[test]
fn what_was_called_before_it_opened_changes_nothing_any_more() {
    let mut breaker = Breaker::default();
    let old: Vec<Pass> = (0..100).map(|_| breaker.ask(START, 0.0).unwrap()).collect();
    for pass in &old {
        breaker.settle(*pass, Outcome::Failed, START, 1.0);
    }
    assert_eq!(breaker.opened(), 1);
    let probe = breaker.ask(START + ms(100), 0.0).unwrap();
    breaker.settle(old[0], Outcome::Done, START + ms(100), 1.0);
    assert!(breaker.ask(START + ms(100), 0.0).is_err(), "the probe is still under way");
    breaker.settle(probe, Outcome::Done, START + ms(100), 1.0);
}

#[test]
fn the_way_back_has_steps_and_a_few_calls_always_pass() {
    let mut breaker = opened();
    let mut now = START + ms(100);
    while !matches!(breaker.state, State::Ramp { .. }) {
        assert!(call(&mut breaker, Outcome::Done, now));
    }
    for share in [0.1, 0.25, 0.5, 1.0] {
        for _ in 0..10 {
            assert!(breaker.ask(now, 1.0).is_ok(), "the first ten of each step pass");
        }
        let passed = (0..100).filter(|n| breaker.ask(now, f64::from(*n) / 100.0).is_ok()).count();
        assert_eq!(passed, (share * 100.0) as usize);
        now += ms(250);
    }
    assert!(breaker.ask(now, 1.0).is_ok());
    assert!(matches!(breaker.state, State::Closed));
}

#[test]
fn a_new_connection_is_tried_at_once() {
    let mut breaker = opened();
    breaker.reconnected();
    assert_eq!(breaker.position(START), Position::HalfOpen);
    assert!(breaker.ask(START, 0.0).is_ok());
    // It makes nothing of a breaker that is closed, or whose probe is under way.
    breaker.reconnected();
    assert!(breaker.ask(START, 0.0).is_err());
}

#[derive(Debug, Clone)]
enum Act {
    Pass(u64),
    Ask(f64),
    Settle(usize, Outcome, f64),
    Reconnect,
    Trip(f64),
}

fn act() -> impl Strategy<Value = Act> {
    let outcome = prop_oneof![
        3 => Just(Outcome::Done),
        1 => Just(Outcome::Slow),
        4 => Just(Outcome::Failed),
        1 => Just(Outcome::Unable),
        1 => Just(Outcome::Void),
    ];
    prop_oneof![
        2 => (0..500u64).prop_map(Act::Pass),
        6 => (0.0..1.0f64).prop_map(Act::Ask),
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
            Act::Ask(random) => under_way.extend(breaker.ask(now, random).ok()),
            Act::Settle(nth, outcome, random) if !under_way.is_empty() => {
                let pass = under_way.swap_remove(nth % under_way.len());
                breaker.settle(pass, outcome, now, random);
            }
            Act::Settle(..) => {}
            Act::Reconnect => breaker.reconnected(),
            Act::Trip(random) => breaker.trip(now, random),
        }
        let probes = under_way.iter().filter(|pass| pass.probe && pass.epoch == breaker.epoch).count();
        match breaker.state {
            State::HalfOpen { probing, .. } => assert_eq!(probes, usize::from(probing)),
            State::Open { until } => {
                assert_eq!(probes, 0);
                assert!(until <= now + OPEN_MAX);
            }
            State::Closed | State::Ramp { .. } => assert_eq!(probes, 0),
        }
    }
    (under_way, now)
}

proptest! {
    #[test]
    fn there_is_never_more_than_one_probe_and_it_always_recovers(acts in proptest::collection::vec(act(), 0..300)) {
        let mut breaker = Breaker::default();
        let (under_way, mut now) = live(&mut breaker, acts);
        for pass in under_way {
            breaker.settle(pass, Outcome::Void, now, 1.0);
        }
        // From here on the server is well: within the longest time open and the way back every call passes.
        let well = now + OPEN_MAX + ms(1500);
        while now < well {
            if let Ok(pass) = breaker.ask(now, 0.99) {
                breaker.settle(pass, Outcome::Done, now, 1.0);
            }
            now += ms(20);
        }
        prop_assert!(matches!(breaker.state, State::Closed), "{:?}", breaker.state);
        prop_assert_eq!(breaker.round, 0);
        prop_assert!(breaker.ask(now, 1.0).is_ok());
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
