//! How much one client may send over its WebSocket: so many messages a second, twice as many at once.
//!
//! Pure: time is passed in.

use std::time::{Duration, Instant};

/// A client that was warned may have sent more before the warning arrived.
const WARNING_GRACE: Duration = Duration::from_secs(1);

/// After this long a client is warned again instead of being closed.
const WARNING_RESET: Duration = Duration::from_secs(10);

/// What one client has left.
#[derive(Debug)]
pub(crate) struct MessageRateLimiter {
    per_second: f64,
    tokens: f64,
    updated_at: Instant,
    warned_at: Option<Instant>,
}

/// What happens to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageDecision {
    /// It is accepted.
    Accept,
    /// It is dropped, and the client is warned.
    Warn,
    /// It is dropped; the client was warned already.
    Drop,
    /// The client was warned and goes on: the socket is closed.
    Close,
}

impl MessageRateLimiter {
    /// A client that has sent nothing yet.
    pub(crate) fn new(per_second: u64, now: Instant) -> Self {
        let per_second = per_second as f64;
        Self { per_second, tokens: 2.0 * per_second, updated_at: now, warned_at: None }
    }

    /// Decides on a message that arrived at `now`.
    pub(crate) fn decide(&mut self, now: Instant) -> MessageDecision {
        let passed = now.saturating_duration_since(self.updated_at).as_secs_f64();
        self.updated_at = now;
        self.tokens = (self.tokens + passed * self.per_second).min(2.0 * self.per_second);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return MessageDecision::Accept;
        }
        match self.warned_at.map(|warned_at| now.saturating_duration_since(warned_at)) {
            Some(since) if since <= WARNING_GRACE => MessageDecision::Drop,
            Some(since) if since < WARNING_RESET => MessageDecision::Close,
            _ => {
                self.warned_at = Some(now);
                MessageDecision::Warn
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_above_its_rate_is_warned_and_then_disconnected() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut limiter = MessageRateLimiter::new(10, start);
        let burst: Vec<_> = (0..22).map(|_| limiter.decide(start)).collect();
        assert_eq!(burst[..20], [MessageDecision::Accept; 20]);
        assert_eq!(burst[20..], [MessageDecision::Warn, MessageDecision::Drop]);
        assert_eq!(limiter.decide(at(100)), MessageDecision::Accept);
        assert_eq!(limiter.decide(at(100)), MessageDecision::Drop);
        let later: Vec<_> = (0..30).map(|_| limiter.decide(at(1200))).collect();
        assert_eq!(later[..11], [MessageDecision::Accept; 11]);
        assert_eq!(later[11], MessageDecision::Close);
    }

    #[test]
    fn a_warning_is_reset_after_a_while() {
        let start = Instant::now();
        let mut limiter = MessageRateLimiter::new(1, start);
        assert_eq!([(); 3].map(|()| limiter.decide(start))[2], MessageDecision::Warn);
        let later = start + Duration::from_secs(20);
        assert_eq!(
            [(); 3].map(|()| limiter.decide(later)),
            [MessageDecision::Accept, MessageDecision::Accept, MessageDecision::Warn]
        );
    }

    #[test]
    fn a_steady_client_within_its_rate_is_never_warned() {
        let start = Instant::now();
        let mut limiter = MessageRateLimiter::new(20, start);
        let accepted =
            |n: u64| limiter.decide(start + Duration::from_millis(50 * n)) == MessageDecision::Accept;
        assert!((0..1000).all(accepted));
    }
}
