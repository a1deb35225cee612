//! Limits by plain commands, for servers without server-side code: fixed windows of the burst's length, in which at most the
//! burst is admitted.
//!
//! A window begins with its first request: `SET … NX PX` makes the key with its expiry, `INCRBY` counts. A count after
//! the key expired between the two would never expire, so every request that finds such a key sets its expiry.

use crate::redis::wire::{PipelinedCommand, Value, command, integer, number, text};
use crate::redis::{RedisError, RedisTransport};

/// A window of a limit: how many may pass in it, and one charge of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedWindow {
    key: String,
    /// Its length, ms, ≥ 1.
    length_ms: u64,
    /// Most requests in it.
    max: u64,
    interval_us: u64,
    cost: u64,
}

impl FixedWindow {
    /// The window that is counted under this key. One request costs `interval_us`, and `tolerance_us` may be spent at once,
    /// which is the window's length; a cost of 0 only reads.
    pub fn new(key: String, interval_us: u64, tolerance_us: u64, cost: u64) -> Self {
        Self {
            key,
            length_ms: tolerance_us.div_ceil(1000).max(1),
            max: tolerance_us / interval_us.max(1),
            interval_us,
            cost,
        }
    }

    /// Commands that charge, or only read if the cost is 0.
    pub fn charge(&self) -> Vec<PipelinedCommand> {
        let ttl = command("PTTL", [text(&self.key)]);
        match self.cost {
            0 => vec![command("GET", [text(&self.key)]), ttl],
            cost => vec![self.open(), command("INCRBY", [text(&self.key), number(cost)]), ttl],
        }
    }

    /// Creates the window if there is none.
    fn open(&self) -> PipelinedCommand {
        let args = [text(&self.key), text("0"), text("PX"), number(self.length_ms), text("NX")];
        command("SET", args)
    }

    /// Undoes a charge. The window may have expired since, and a count without an expiry must not be left.
    pub fn refund_commands(&self) -> Vec<PipelinedCommand> {
        vec![self.open(), command("DECRBY", [text(&self.key), number(self.cost)])]
    }

    /// The decision for the count found, this charge included.
    fn decide(&self, count: i64, ttl_ms: i64) -> WindowDecision {
        let allowed = count <= signed(self.max);
        // A denied request is not charged.
        let used = if allowed { count } else { count.saturating_sub(signed(self.cost)) };
        let (left_us, used) = (self.left_us(ttl_ms), u64::try_from(used).unwrap_or(0));
        WindowDecision {
            allowed,
            remaining: self.max.saturating_sub(used),
            retry_after_us: (!allowed && self.cost <= self.max).then_some(left_us.max(1)),
            // Never more than the used requests are worth: workers use it to deny requests locally.
            reset_us: left_us.min(used.saturating_mul(self.interval_us)),
        }
    }

    /// Time until the window ends, µs.
    fn left_us(&self, ttl_ms: i64) -> u64 {
        u64::try_from(ttl_ms).unwrap_or(self.length_ms).min(self.length_ms).saturating_mul(1000)
    }

    /// The decision of an allowing limit when another one denies, so that no charge is made.
    fn without_charge(&self, reply: WindowDecision) -> WindowDecision {
        let worth = self.cost.saturating_mul(self.interval_us);
        match reply.allowed {
            true => WindowDecision {
                remaining: reply.remaining.saturating_add(self.cost).min(self.max),
                reset_us: reply.reset_us.saturating_sub(worth),
                ..reply
            },
            false => reply,
        }
    }

    /// What remains in the window after this many were counted.
    pub fn remaining(&self, count: i64) -> u64 {
        self.max.saturating_sub(u64::try_from(count).unwrap_or(0)).min(self.max)
    }
}

/// What a window says to one charge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowDecision {
    /// Whether the charge fits into it.
    pub allowed: bool,
    /// Requests that would be allowed right now.
    pub remaining: u64,
    /// When the charge would be allowed, µs from now; `None` if it is allowed, or can never be.
    pub retry_after_us: Option<u64>,
    /// When the window is unused again, µs from now.
    pub reset_us: u64,
}

fn signed(cost: u64) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX)
}

/// Charges every window, or none if one that counts denies; returns whether all allow, and each decision. `is_shadow` says of
/// a position whether that window's denial is only reported.
///
/// # Errors
/// See [`RedisError`].
pub async fn check(
    transport: &RedisTransport,
    windows: &[FixedWindow],
    is_shadow: impl Fn(usize) -> bool,
) -> Result<(bool, Vec<WindowDecision>), RedisError> {
    if windows.is_empty() {
        return Ok((true, Vec::new()));
    }
    let replies = transport.pipeline(windows.iter().flat_map(FixedWindow::charge).collect()).await?;
    let mut replies = replies.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
    let (mut decisions, mut endless) = (Vec::with_capacity(windows.len()), Vec::new());
    for window in windows {
        if window.cost > 0 {
            replies.next();
        }
        let (count, ttl) = (replies.next().unwrap_or(Value::Null), replies.next().unwrap_or(Value::Null));
        let count = if count == Value::Null { 0 } else { integer(&count)? };
        let ttl = integer(&ttl)?;
        // Without an expiry, or with one that a clock set which has stepped back since: the window gets its full
        // length.
        let is_late = u64::try_from(ttl).is_ok_and(|ttl| ttl > window.length_ms);
        if ttl == -1 || is_late {
            endless.push(command("PEXPIRE", [text(&window.key), number(window.length_ms)]));
        }
        decisions.push(window.decide(count, ttl));
    }
    let granted = decisions.iter().enumerate().all(|(at, decision)| decision.allowed || is_shadow(at));
    let taken_back = windows.iter().zip(&decisions).filter(|(_, decision)| !granted || !decision.allowed);
    let charged =
        taken_back.filter(|(window, _)| window.cost > 0).flat_map(|(window, _)| window.refund_commands());
    endless.extend(charged);
    if !endless.is_empty() {
        transport.pipeline(endless).await?;
    }
    if !granted {
        decisions =
            windows.iter().zip(decisions).map(|(window, decision)| window.without_charge(decision)).collect();
    }
    Ok((granted, decisions))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(burst: u64, cost: u64) -> FixedWindow {
        FixedWindow::new("p:l:a:w".into(), 1000, 1000 * burst, cost)
    }

    #[test]
    fn the_last_of_a_burst_is_allowed_and_the_next_is_denied_until_the_window_ends() {
        let window = window(5, 1);
        let last = window.decide(5, 3);
        assert_eq!((last.allowed, last.remaining, last.retry_after_us, last.reset_us), (true, 0, None, 3000));
        let next = window.decide(6, 3);
        assert_eq!((next.allowed, next.remaining, next.retry_after_us), (false, 0, Some(3000)));
    }

    #[test]
    fn local_denials_never_deny_what_is_allowed() {
        let window = window(5, 1);
        for count in 1..=6 {
            for ttl in 1..=5 {
                let reply = window.decide(count, ttl);
                // What GCRA says about one more request.
                let next = reply.reset_us + 1000 <= 5000;
                assert!(next || reply.remaining == 0, "{count} in {ttl} ms: {reply:?}");
            }
        }
    }

    #[test]
    fn a_cost_above_the_burst_gets_no_retry_time() {
        let reply = window(5, 6).decide(6, 5);
        assert_eq!((reply.allowed, reply.remaining, reply.retry_after_us), (false, 5, None));
    }
}
