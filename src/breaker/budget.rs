//! The retry budget: repetitions are a small share of the calls, so that they never become the load themselves.

use std::time::Duration;

use crate::breaker::window::Window;

/// Ten slices of this are the window.
const SLICE: Duration = Duration::from_secs(1);
/// One repetition per so many calls of the window.
const CALLS_PER_RETRY: u32 = 10;
/// Repetitions in a window that a quiet worker may make all the same.
const FREE: u32 = 3;

const CALL: usize = 0;
const RETRY: usize = 1;

/// Calls and repetitions of the last ten seconds.
#[derive(Debug, Clone)]
pub struct Budget(Window<2>);

impl Default for Budget {
    fn default() -> Self {
        Self(Window::new(SLICE))
    }
}

impl Budget {
    /// A call is made for the first time. `now` is the time since any fixed moment.
    pub fn called(&mut self, now: Duration) {
        self.0.add(now, CALL);
    }

    /// Takes one repetition out of the budget, if there is one left.
    pub fn try_retry(&mut self, now: Duration) -> bool {
        let [calls, retries] = self.0.sums(now);
        let granted = retries < (calls / CALLS_PER_RETRY).max(FREE);
        if granted {
            self.0.add(now, RETRY);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repetition_in_ten_calls_and_a_few_for_the_quiet() {
        let now = Duration::from_secs(100);
        let mut budget = Budget::default();
        assert_eq!((0..10).filter(|_| budget.try_retry(now)).count(), 3);
        for _ in 0..1000 {
            budget.called(now);
        }
        assert_eq!((0..1000).filter(|_| budget.try_retry(now)).count(), 97);
        // After the window both the calls and the repetitions are forgotten.
        let later = now + Duration::from_secs(10);
        assert_eq!((0..10).filter(|_| budget.try_retry(later)).count(), 3);
    }
}
