//! How much one client may send over its WebSocket: so many messages a second, twice as many at once.
//!
//! Pure: time is passed in.

use std::time::Duration;
use std::time::Instant;

/// A client that was told may have sent more before it could hear of it.
const GRACE: Duration = Duration::from_secs(1);

/// After so long it is told again instead of being sent away.
const FORGIVEN: Duration = Duration::from_secs(10);

/// What one client has left.
#[derive(Debug)]
pub(super) struct Allowance {
    per_second: f64,
    left: f64,
    at: Instant,
    told: Option<Instant>,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is taken.
    Taken,
    /// It is not, and the client has to be told.
    Tell,
    /// It is not, and the client was told already.
    Ignored,
    /// The client was told and goes on.
    Close,
}

impl Allowance {
    /// A client that has sent nothing yet.
    pub(super) fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        Self { per_second, left: 2.0 * per_second, at: now, told: None }
    }

    /// Decides on a message that has come.
    pub(super) fn take(&mut self, now: Instant) -> Verdict {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * self.per_second).min(2.0 * self.per_second);
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Verdict::Taken;
        }
        match self.told.map(|told| now.saturating_duration_since(told)) {
            Some(since) if since <= GRACE => Verdict::Ignored,
            Some(since) if since < FORGIVEN => Verdict::Close,
            _ => {
                self.told = Some(now);
                Verdict::Tell
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_sends_too_much_is_told_and_whoever_goes_on_is_sent_away() {
        let begin = Instant::now();
        let at = |ms: u64| begin + Duration::from_millis(ms);
        let mut allowance = Allowance::new(10, begin);
        let burst: Vec<_> = (0..22).map(|_| allowance.take(begin)).collect();
        assert_eq!(burst[..20], [Verdict::Taken; 20]);
        assert_eq!(burst[20..], [Verdict::Tell, Verdict::Ignored]);
        assert_eq!(allowance.take(at(100)), Verdict::Taken);
        assert_eq!(allowance.take(at(100)), Verdict::Ignored);
        let later: Vec<_> = (0..30).map(|_| allowance.take(at(1200))).collect();
        assert_eq!(later[..11], [Verdict::Taken; 11]);
        assert_eq!(later[11], Verdict::Close);
    }

    #[test]
    fn a_slip_is_forgiven_after_a_while() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(1, begin);
        assert_eq!([(); 3].map(|()| allowance.take(begin))[2], Verdict::Tell);
        let later = begin + Duration::from_secs(20);
        assert_eq!([(); 3].map(|()| allowance.take(later)), [Verdict::Taken, Verdict::Taken, Verdict::Tell]);
    }

    #[test]
    fn a_steady_client_within_its_rate_is_never_told() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(20, begin);
        let taken = |n: u64| allowance.take(begin + Duration::from_millis(50 * n)) == Verdict::Taken;
        assert!((0..1000).all(taken));
    }
}
