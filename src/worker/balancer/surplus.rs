//! Whether a worker has had more connections than its share for a while, and how many of them it may end.
//!
//! New connections are passed on, those that are kept stay where they are: after a rollout, in which none is passed on,
//! and after a worker's death they may be as uneven as the kernel's hash, for as long as their clients keep them. So a
//! worker that has too many closes some connections with their next answer; the clients' next ones go where
//! there is room. Pure.

/// Connections that are no surplus whatever others have: ending one of them evens out nothing that counts.
const FEW_CONNECTIONS: u64 = 4;

/// Looks in a row that must have found a surplus. One alone may be a moment's peak, or due to a worker that has just
/// died: its successor takes none yet, and what is ended now would come back.
const CHECKS_IN_A_ROW: u32 = 2;

/// A sixteenth beyond the share is let be: numbers that change by themselves must not end connections for ever.
const TOLERANCE_DIVISOR: u64 = 16;

/// A quarter of the surplus ends from one look to the next, so that clients do not all come back at once, and workers
/// that look at the same moment do not end the same surplus twice.
const CLOSE_DIVISOR: u64 = 4;

/// What a worker remembers from one look to the next.
#[derive(Debug, Default)]
pub(in crate::worker) struct SurplusDetector {
    checks: u32,
}

impl SurplusDetector {
    /// How many connections may end until the next look. `share`: what this worker should have, none if none is to be
    /// moved; `tolerated`: how many more it may have, because connections are short.
    pub(in crate::worker) fn check(&mut self, connections: u64, share: Option<u64>, tolerated: u64) -> u64 {
        let has_more = |share: &u64| {
            connections > FEW_CONNECTIONS.max(share + (share / TOLERANCE_DIVISOR).max(tolerated))
        };
        let Some(share) = share.filter(has_more) else {
            self.checks = 0;
            return 0;
        };
        self.checks = self.checks.saturating_add(1);
        if self.checks < CHECKS_IN_A_ROW {
            0
        } else {
            connections.saturating_sub(share).div_ceil(CLOSE_DIVISOR)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_check_is_not_believed() {
        let mut surplus = SurplusDetector::default();
        assert_eq!([surplus.check(30, Some(16), 0), surplus.check(30, Some(16), 0)], [0, 4]);
        assert_eq!(surplus.check(16, Some(16), 0), 0);
        assert_eq!(
            [surplus.check(30, Some(16), 0), surplus.check(30, Some(16), 0)],
            [0, 4],
            "it begins anew"
        );
    }

    #[test]
    fn nothing_ends_where_nothing_is_moved_or_little_is_gained() {
        let closed = |connections, share, tolerated| {
            let mut surplus = SurplusDetector::default();
            (0..5).map(|_| surplus.check(connections, share, tolerated)).max()
        };
        assert_eq!(closed(60, None, 0), Some(0), "two generations serve, or no other worker takes any");
        assert_eq!(closed(4, Some(1), 0), Some(0), "few");
        assert_eq!(closed(17, Some(16), 0), Some(0), "a sixteenth");
        assert_eq!(closed(18, Some(16), 0), Some(1));
        assert_eq!(closed(5, Some(4), 0), Some(1), "four for each of sixteen workers");
        assert_eq!(closed(20, Some(16), 6), Some(0), "short connections");
    }

    proptest! {
        // Clients whose connection ends come back by chance, and are passed on where the one they meet has its share.
        #[test]
        fn workers_become_even_and_then_end_nothing(
            mut workers in prop::collection::vec(0_u64..60, 2..17),
            chance in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let total: u64 = workers.iter().sum();
            let share = total.div_ceil(workers.len() as u64);
            let mut detectors: Vec<SurplusDetector> = workers.iter().map(|_| SurplusDetector::default()).collect();
            let mut chance = chance.iter().cycle();
            let mut closed = 0;
            for _ in 0..40 {
                let counts = workers.clone();
                let end: Vec<u64> =
                    detectors.iter_mut().zip(&counts).map(|(detector, has)| detector.check(*has, Some(share), 0)).collect();
                closed = end.iter().sum();
                for (worker, end) in end.iter().enumerate() {
                    for _ in 0..*end {
                        workers[worker] -= 1;
                        let met = chance.next().unwrap().index(workers.len());
                        let least = (0..workers.len()).min_by_key(|at| workers[*at]).unwrap();
                        let goes_to = if workers[met] < share { met } else { least };
                        workers[goes_to] += 1;
                    }
                }
            }
            prop_assert_eq!(closed, 0, "{:?}", &workers);
            prop_assert_eq!(workers.iter().sum::<u64>(), total);
            let most = *workers.iter().max().unwrap();
            prop_assert!(most <= FEW_CONNECTIONS.max(share + share / TOLERANCE_DIVISOR), "{workers:?}");
        }
    }
}
