//! Simulated turns: crowds, floods, pauses.

use proptest::prelude::*;

use super::*;

const TURN: Duration = Duration::from_millis(4);

/// A worker whose turns let in a fixed number of requests, with a queue in front of it.
struct Simulation {
    shed: LoadShedder,
    now: Duration,
    /// When each waiting request came.
    queue: std::collections::VecDeque<Duration>,
    served: usize,
    refused: usize,
    /// Longest wait of a request that was served since this was last reset.
    longest: Duration,
}

impl Simulation {
    fn new() -> Self {
        Self {
            shed: LoadShedder::new(Duration::ZERO),
            now: Duration::ZERO,
            queue: std::collections::VecDeque::new(),
            served: 0,
            refused: 0,
            longest: Duration::ZERO,
        }
    }

    fn come(&mut self) {
        if self.shed.max_waiting().is_some_and(|most| self.queue.len() >= most) {
            self.shed.record_refusal(self.now);
            self.refused += 1;
        } else {
            self.queue.push_back(self.now);
        }
    }

    /// One turn of this length that lets in up to `begun`; those served come again at once if it is a closed loop.
    fn turn(&mut self, length: Duration, started: usize, closed: bool) -> Option<ShedChange> {
        let too_old = self.shed.max_age();
        while let (Some(bound), Some(came)) = (too_old, self.queue.front()) {
            if self.now - *came <= bound {
                break;
            }
            self.queue.pop_front();
            self.shed.record_refusal(self.now);
            self.refused += 1;
        }
        let started = started.min(self.queue.len());
        for came in self.queue.drain(..started) {
            self.longest = self.longest.max(self.now - came);
        }
        self.served += started;
        self.now += length;
        if closed {
            (0..started).for_each(|_| self.come());
        }
        self.shed.record_turn(self.now, length, u32::try_from(started).unwrap(), self.queue.len())
    }
}

#[test]
fn a_crowd_that_waits_for_three_seconds_is_never_refused() {
    let mut played = Simulation::new();
    (0..3000).for_each(|_| played.come());
    for _ in 0..10_000 {
        assert_eq!(played.turn(TURN, 4, true), None);
    }
    assert_eq!(played.refused, 0);
    assert!(played.longest < Duration::from_secs(4), "{:?}", played.longest);
}

#[test]
fn twice_the_capacity_is_shed_and_what_is_served_waits_shortly() {
    let mut played = Simulation::new();
    let mut started = None;
    for _ in 0..10_000 {
        (0..8).for_each(|_| played.come());
        if let Some(ShedChange::Started(wait)) = played.turn(TURN, 4, false) {
            assert!(wait > MAX_PREDICTED_WAIT && wait < MAX_PREDICTED_WAIT * 2, "{wait:?}");
            started = Some(played.now);
            played.longest = Duration::ZERO;
        }
    }
    let started = started.expect("it is shed");
    assert!(started < Duration::from_secs(10), "{started:?}");
    assert!(played.longest <= SHEDDING_MAX_AGE, "{:?}", played.longest);
    assert!(played.served > 9_900 * 4, "every turn is used: {}", played.served);
    // The load goes away: ten seconds later all is calm.
    let stopped = (0..10_000).find_map(|_| played.turn(TURN, 4, false));
    assert_eq!((stopped, played.shed.state()), (Some(ShedChange::Stopped), ShedState::Normal));
}

#[test]
fn a_handler_that_blocked_is_no_overload() {
    let mut played = Simulation::new();
    (0..3000).for_each(|_| played.come());
    (0..500).for_each(|_| _ = played.turn(TURN, 4, true));
    assert_eq!(played.turn(Duration::from_secs(6), 4, true), None);
    for _ in 0..5_000 {
        assert_eq!(played.turn(TURN, 4, true), None);
    }
}

#[test]
fn a_crowd_on_a_host_that_has_other_work_is_not_refused_and_a_flood_is() {
    // A third of the time is the worker's.
    let third = |closed: bool, coming: usize| {
        let mut played = Simulation::new();
        (0..3000).for_each(|_| played.come());
        (0..4000).find_map(|turn| {
            if turn % 8 == 0 {
                played.shed.record_starvation(TURN * 2, TURN * 3);
            }
            (0..coming).for_each(|_| played.come());
            played.turn(TURN * 3, 4, closed)
        })
    };
    assert_eq!(third(true, 0), None);
    assert!(matches!(third(false, 8), Some(ShedChange::Started(_))));
}

#[test]
fn few_that_wait_for_slow_handlers_are_no_overload() {
    let mut played = Simulation::new();
    (0..64).for_each(|_| played.come());
    for _ in 0..100 {
        assert_eq!(played.turn(Duration::from_secs(2), 4, true), None);
    }
}

#[test]
fn a_sudden_crowd_after_quiet_is_judged_by_its_own_rate() {
    let mut played = Simulation::new();
    // A request now and then: the turn before it was long, because nothing happened.
    for _ in 0..100 {
        played.come();
        played.turn(Duration::from_secs(1), 1, false);
    }
    (0..3000).for_each(|_| played.come());
    for _ in 0..2_000 {
        assert_eq!(played.turn(TURN, 4, true), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn bounds_hold_whatever_the_load(
        load in prop::collection::vec((0_usize..12, 1_u64..9), 40),
        begun in 2_usize..8,
    ) {
        let mut played = Simulation::new();
        for (coming, millis) in load {
            for _ in 0..200 {
                (0..coming).for_each(|_| played.come());
                let was = played.shed.max_age();
                played.longest = Duration::ZERO;
                played.turn(Duration::from_millis(millis), begun, false);
                if let Some(bound) = was {
                    prop_assert!(played.longest <= bound);
                    prop_assert!(bound <= SHEDDING_MAX_AGE.max(Duration::from_millis(9 * 8)));
                }
            }
        }
        // However long the overload was, it ends without load.
        for _ in 0..3_000 {
            played.turn(TURN, begun, false);
        }
        prop_assert_eq!(played.shed.state(), ShedState::Normal);
        prop_assert!(played.queue.is_empty());
    }
}
