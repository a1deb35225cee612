//! When a connection is silent: calls wait on it, and for a while nothing at all was answered.
//!
//! Guarantees that one silence is one failure however many calls it holds, that any answer ends it, and that time in
//! which the worker itself stood still proves nothing: an overdue answer is looked for once more before it is missed.
//! Pure: times are passed in, since any fixed moment.

use std::time::Duration;

/// The calls of one connection, and since when they have waited.
#[derive(Debug, Clone)]
pub(super) struct Silence {
    /// Longest time without an answer, and the longest while a call is out whose answer may be large.
    limits: [Duration; 2],
    out: usize,
    /// Those of them whose answers may be large.
    long: usize,
    /// When the first of them was sent, or the last answer came; without a meaning while none is out.
    since: Duration,
    answers: u64,
    silent: bool,
    /// The watching task sleeps until a call is sent.
    idle: bool,
}

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is under way: look again when a call is sent.
    Idle,
    /// Look again at this time.
    At(Duration),
    /// An answer is overdue: let the socket be read, then [`Silence::judge`] with this number.
    Overdue(u64),
}

impl Silence {
    /// Nothing is under way. `limit` is the longest time without an answer, `long` the longest for large ones.
    pub(super) fn new(limit: Duration, long: Duration) -> Self {
        let limits = [limit, long.max(limit)];
        Self { limits, out: 0, long: 0, since: Duration::ZERO, answers: 0, silent: false, idle: false }
    }

    /// A call is sent; whether the watching task sleeps and is to be woken.
    pub(super) fn sent(&mut self, long: bool, now: Duration) -> bool {
        if self.out == 0 {
            self.since = now;
        }
        self.out += 1;
        self.long += usize::from(long);
        std::mem::take(&mut self.idle)
    }

    /// A call was answered; whether that ended a silence.
    pub(super) fn answered(&mut self, long: bool, now: Duration) -> bool {
        self.left(long);
        self.since = now;
        self.answers = self.answers.wrapping_add(1);
        std::mem::take(&mut self.silent)
    }

    /// A call's caller has gone; no task waits for its answer.
    pub(super) fn left(&mut self, long: bool) {
        self.out = self.out.saturating_sub(1);
        self.long = self.long.saturating_sub(usize::from(long));
    }

    /// How it stands.
    pub(super) fn look(&mut self, now: Duration) -> Look {
        if self.out == 0 {
            self.idle = true;
            return Look::Idle;
        }
        let due = self.since + self.limits[usize::from(self.long > 0)];
        if now < due { Look::At(due) } else { Look::Overdue(self.answers) }
    }

    /// The socket was read since `look` said that an answer is overdue; whether none has come, which is a silence.
    pub(super) fn judge(&mut self, answers: u64) -> bool {
        self.silent = self.out > 0 && self.answers == answers;
        self.silent
    }

    /// Since when calls wait.
    pub(super) fn since(&self) -> Duration {
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

    fn overdue(silence: &mut Silence, now: Duration) -> Option<u64> {
        match silence.look(now) {
            Look::Overdue(answers) => Some(answers),
            Look::Idle | Look::At(_) => None,
        }
    }

    #[test]
    fn one_answer_speaks_for_every_call() {
        let mut silence = Silence::new(LIMIT, LONG);
        assert_eq!(silence.look(ms(0)), Look::Idle);
        assert!(silence.sent(false, ms(1000)), "the first call wakes whoever looks");
        assert!((0..511).all(|_| !silence.sent(false, ms(1000))));
        // A queue of five hundred, one answer in every 240 ms: slow, and not silent.
        for nth in 1..=512 {
            let now = ms(1000 + 240 * nth);
            assert_eq!(overdue(&mut silence, now), None);
            silence.answered(false, now);
        }
        assert_eq!(silence.look(ms(1_000_000)), Look::Idle, "at rest nothing is overdue");
    }

    #[test]
    fn an_answer_that_is_found_on_the_second_look_was_never_missing() {
        let mut silence = Silence::new(LIMIT, LONG);
        silence.sent(false, ms(0));
        silence.sent(false, ms(0));
        // The worker stood still for a second.
        let seen = overdue(&mut silence, ms(1000)).unwrap();
        silence.answered(false, ms(1000));
        assert!(!silence.judge(seen));
        assert_eq!(silence.look(ms(1000)), Look::At(ms(1250)));
        let seen = overdue(&mut silence, ms(1250)).unwrap();
        assert!(silence.judge(seen));
        assert_eq!(silence.since(), ms(1000));
        assert!(silence.answered(false, ms(1300)), "an answer ends it");
        assert!(!silence.judge(seen), "nothing is under way");
    }

    #[test]
    fn a_large_answer_may_take_longer() {
        let mut silence = Silence::new(LIMIT, LONG);
        silence.sent(false, ms(0));
        silence.sent(true, ms(0));
        assert_eq!(silence.look(ms(999)), Look::At(LONG));
        silence.answered(true, ms(999));
        assert_eq!(silence.look(ms(999)), Look::At(ms(1249)));
        silence.left(false);
        assert_eq!(silence.look(ms(5000)), Look::Idle);
    }

    proptest! {
        /// A server that answers anything within the limit of the call before it is never silent, whatever the worker's
        /// own pauses do to when that is seen.
        #[test]
        fn no_silence_while_answers_come(
            gaps in proptest::collection::vec((0..249_u64, 0..3000_u64), 1..100),
            crowd in 1..20_usize,
        ) {
            let mut silence = Silence::new(LIMIT, LONG);
            let mut now = Duration::ZERO;
            (0..crowd).for_each(|_| { silence.sent(false, now); });
            for (gap, pause) in gaps {
                // It answers after `gap`, the worker sees that after `pause` more, and looks first of all.
                now += ms(gap + pause);
                let seen = overdue(&mut silence, now);
                silence.answered(false, now);
                silence.sent(false, now);
                if let Some(seen) = seen {
                    prop_assert!(!silence.judge(seen));
                }
            }
        }

        /// A server that answers nothing is found at the first look after the limit.
        #[test]
        fn silence_is_found(crowd in 1..20_usize, late in 0..10_000_u64) {
            let mut silence = Silence::new(LIMIT, LONG);
            (0..crowd).for_each(|_| { silence.sent(false, ms(10)); });
            let seen = overdue(&mut silence, ms(260 + late));
            prop_assert!(seen.is_some_and(|seen| silence.judge(seen)));
        }
    }
}
