//! Decides when a connection is silent: calls wait on it, and for a while nothing at all was answered. No I/O.
//!
//! Guarantees that one silence is one failure however many calls it affects, that any reply ends it, and that time in
//! which the worker itself was stopped proves nothing: an overdue reply is looked for once more before it counts as
//! missing. Times are passed in, since a fixed moment.

use std::time::Duration;

/// The calls of one connection, and since when they wait.
#[derive(Debug, Clone)]
pub(super) struct SilenceDetector {
    /// Longest time without a reply, and the longest while a call is under way whose reply may be large.
    timeouts: [Duration; 2],
    in_flight: usize,
    /// Those of them whose replies may be large.
    long_in_flight: usize,
    /// When the first of them was sent, or the last reply arrived; meaningless without calls.
    since: Duration,
    responses: u64,
    silent: bool,
    /// Whether the watching task waits for a call.
    watcher_idle: bool,
}

/// What the watching task does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SilenceCheck {
    /// No call is under way: check again when one is sent.
    Idle,
    /// Check again at this time.
    At(Duration),
    /// A reply is overdue: let the socket be read, then call [`SilenceDetector::confirm_silence`] with this number.
    Overdue(u64),
}

impl SilenceDetector {
    /// A connection without calls. `limit` is the longest time without a reply, `long` the longest for large ones.
    pub(super) fn new(limit: Duration, long: Duration) -> Self {
        let limits = [limit, long.max(limit)];
        Self {
            timeouts: limits,
            in_flight: 0,
            long_in_flight: 0,
            since: Duration::ZERO,
            responses: 0,
            silent: false,
            watcher_idle: false,
        }
    }

    /// A call is sent; returns whether the watching task must be woken.
    pub(super) fn on_call_sent(&mut self, long: bool, now: Duration) -> bool {
        if self.in_flight == 0 {
            self.since = now;
        }
        self.in_flight += 1;
        self.long_in_flight += usize::from(long);
        std::mem::take(&mut self.watcher_idle)
    }

    /// A call was answered; returns whether that ended a silence.
    pub(super) fn on_response(&mut self, long: bool, now: Duration) -> bool {
        self.on_call_dropped(long);
        self.since = now;
        self.responses = self.responses.wrapping_add(1);
        std::mem::take(&mut self.silent)
    }

    /// A call's caller has left; no task waits for its reply.
    pub(super) fn on_call_dropped(&mut self, long: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.long_in_flight = self.long_in_flight.saturating_sub(usize::from(long));
    }

    /// Checks for silence at this time.
    pub(super) fn check(&mut self, now: Duration) -> SilenceCheck {
        if self.in_flight == 0 {
            self.watcher_idle = true;
            return SilenceCheck::Idle;
        }
        let due = self.since + self.timeouts[usize::from(self.long_in_flight > 0)];
        if now < due { SilenceCheck::At(due) } else { SilenceCheck::Overdue(self.responses) }
    }

    /// The socket was read since `check` reported an overdue reply; returns whether none has arrived, which is a
    /// silence.
    pub(super) fn confirm_silence(&mut self, answers: u64) -> bool {
        self.silent = self.in_flight > 0 && self.responses == answers;
        self.silent
    }

    /// Since when calls wait.
    pub(super) fn waiting_since(&self) -> Duration {
        self.since
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(250);
    const LONG: Duration = Duration::from_secs(1);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn overdue(silence: &mut SilenceDetector, now: Duration) -> Option<u64> {
        match silence.check(now) {
            SilenceCheck::Overdue(answers) => Some(answers),
            SilenceCheck::Idle | SilenceCheck::At(_) => None,
        }
    }

    #[test]
    fn one_reply_counts_for_every_call() {
        let mut silence = SilenceDetector::new(LIMIT, LONG);
        assert_eq!(silence.check(ms(0)), SilenceCheck::Idle);
        assert!(silence.on_call_sent(false, ms(1000)), "the first call wakes whoever looks");
        assert!((0..511).all(|_| !silence.on_call_sent(false, ms(1000))));
        // A queue of five hundred calls, one reply every 240 ms: slow, and not silent.
        for nth in 1..=512 {
            let now = ms(1000 + 240 * nth);
            assert_eq!(overdue(&mut silence, now), None);
            silence.on_response(false, now);
        }
        assert_eq!(silence.check(ms(1_000_000)), SilenceCheck::Idle, "at rest nothing is overdue");
    }

    #[test]
    fn a_response_found_on_the_second_check_was_never_missing() {
        let mut silence = SilenceDetector::new(LIMIT, LONG);
        silence.on_call_sent(false, ms(0));
        silence.on_call_sent(false, ms(0));
        // The worker was stopped for a second.
        let seen = overdue(&mut silence, ms(1000)).unwrap();
        silence.on_response(false, ms(1000));
        assert!(!silence.confirm_silence(seen));
        assert_eq!(silence.check(ms(1000)), SilenceCheck::At(ms(1250)));
        let seen = overdue(&mut silence, ms(1250)).unwrap();
        assert!(silence.confirm_silence(seen));
        assert_eq!(silence.waiting_since(), ms(1000));
        assert!(silence.on_response(false, ms(1300)), "an answer ends it");
        assert!(!silence.confirm_silence(seen), "nothing is under way");
    }

    #[test]
    fn a_large_answer_may_take_longer() {
        let mut silence = SilenceDetector::new(LIMIT, LONG);
        silence.on_call_sent(false, ms(0));
        silence.on_call_sent(true, ms(0));
        assert_eq!(silence.check(ms(999)), SilenceCheck::At(LONG));
        silence.on_response(true, ms(999));
        assert_eq!(silence.check(ms(999)), SilenceCheck::At(ms(1249)));
        silence.on_call_dropped(false);
        assert_eq!(silence.check(ms(5000)), SilenceCheck::Idle);
    }

    proptest! {
        /// A server that answers within the limit is never silent, whatever the worker's own pauses do to when replies
        /// are seen.
        #[test]
        fn no_silence_while_answers_come(
            gaps in proptest::collection::vec((0..249_u64, 0..3000_u64), 1..100),
            crowd in 1..20_usize,
        ) {
            let mut silence = SilenceDetector::new(LIMIT, LONG);
            let mut now = Duration::ZERO;
            (0..crowd).for_each(|_| { silence.on_call_sent(false, now); });
            for (gap, pause) in gaps {
                // It answers after `gap`, and the worker sees that after `pause` more, and checks first.
                now += ms(gap + pause);
                let seen = overdue(&mut silence, now);
                silence.on_response(false, now);
                silence.on_call_sent(false, now);
                if let Some(seen) = seen {
                    prop_assert!(!silence.confirm_silence(seen));
                }
            }
        }

        /// A server that answers nothing is found at the first check after the limit.
        #[test]
        fn silence_is_found(crowd in 1..20_usize, late in 0..10_000_u64) {
            let mut silence = SilenceDetector::new(LIMIT, LONG);
            (0..crowd).for_each(|_| { silence.on_call_sent(false, ms(10)); });
            let seen = overdue(&mut silence, ms(260 + late));
            prop_assert!(seen.is_some_and(|seen| silence.confirm_silence(seen)));
        }
    }
}
