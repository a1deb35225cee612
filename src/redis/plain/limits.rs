//! Limits by plain commands: fixed windows of the burst's length, in which at most the burst is admitted.
//!
//! A window begins with its first request: `SET … NX PX` makes the key with its expiry, `INCRBY` counts. A count after
//! the key expired between the two would never expire, so every request that finds such a key sets its expiry.

use fred::types::Value;

use crate::redis::begin::{LimitParameters, RateLimitCheck, RateLimitDecision};
use crate::redis::error::RedisError;
use crate::redis::keys;
use crate::redis::limiter_commands::{LimitCharge, LimitStatus};
use crate::redis::transport::RedisTransport;
use crate::redis::wire::{PipelinedCommand, command, integer, number, text};

/// A limit as a fixed window.
struct FixedWindow {
    key: String,
    /// Its length, ms, ≥ 1.
    length_ms: u64,
    /// Most requests in it.
    max: u64,
    interval_us: u64,
    cost: u64,
}

impl FixedWindow {
    fn from_check(check: &RateLimitCheck) -> Result<Self, RedisError> {
        let LimitParameters::Rate { interval_us, tolerance_us } = check.parameters else {
            return Err(RedisError::Unsupported { what: "a limit on concurrency" });
        };
        Ok(Self::from_quota(&check.key, interval_us, tolerance_us, check.cost))
    }

    fn from_charge(amount: &LimitCharge) -> Self {
        Self::from_quota(&amount.key, amount.interval_us, amount.tolerance_us, amount.requests)
    }

    fn from_quota(key: &str, interval_us: u64, tolerance_us: u64, cost: u64) -> Self {
        Self {
            key: keys::limit_window(key),
            length_ms: tolerance_us.div_ceil(1000).max(1),
            max: tolerance_us / interval_us.max(1),
            interval_us,
            cost,
        }
    }

    /// Commands that charge, or only read if the cost is 0.
    fn charge(&self) -> Vec<PipelinedCommand> {
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
    fn refund_commands(&self) -> Vec<PipelinedCommand> {
        vec![self.open(), command("DECRBY", [text(&self.key), number(self.cost)])]
    }

    /// The decision for the count found, this charge included.
    fn to_decision(&self, count: i64, ttl_ms: i64) -> RateLimitDecision {
        let allowed = count <= signed(self.max);
        // A denied request is not charged.
        let used = if allowed { count } else { count.saturating_sub(signed(self.cost)) };
        let (left_us, used) = (self.left_us(ttl_ms), u64::try_from(used).unwrap_or(0));
        RateLimitDecision {
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
    fn without_charge(&self, reply: RateLimitDecision) -> RateLimitDecision {
        let worth = self.cost.saturating_mul(self.interval_us);
        match reply.allowed {
            true => RateLimitDecision {
                remaining: reply.remaining.saturating_add(self.cost).min(self.max),
                reset_us: reply.reset_us.saturating_sub(worth),
                ..reply
            },
            false => reply,
        }
    }
}

fn signed(cost: u64) -> i64 {
    i64::try_from(cost).unwrap_or(i64::MAX)
}

/// Charges every limit, or none if one that counts denies; returns whether all allow, and each decision.
pub(super) async fn check_limits(
    transport: &RedisTransport,
    checks: &[RateLimitCheck],
) -> Result<(bool, Vec<RateLimitDecision>), RedisError> {
    if checks.is_empty() {
        return Ok((true, Vec::new()));
    }
    let windows = checks.iter().map(FixedWindow::from_check).collect::<Result<Vec<_>, _>>()?;
    let replies = transport.pipeline(windows.iter().flat_map(FixedWindow::charge).collect()).await?;
    let mut replies = replies.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
    let (mut decisions, mut endless) = (Vec::with_capacity(checks.len()), Vec::new());
    for window in &windows {
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
        decisions.push(window.to_decision(count, ttl));
    }
    let granted = decisions.iter().zip(checks).all(|(decision, check)| decision.allowed || check.shadow);
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

/// Gives requests back to a limit and notifies every worker; returns what remains.
pub(in crate::redis) async fn refund_limit(
    transport: &RedisTransport,
    channel: &str,
    amount: &LimitCharge,
) -> Result<u64, RedisError> {
    let window = FixedWindow::from_charge(amount);
    let mut commands = window.refund_commands();
    commands.push(replenished_notification(channel, &amount.key));
    let replies = transport.pipeline(commands).await?;
    let count = replies.into_iter().nth(1).unwrap_or(Ok(Value::Null))?;
    Ok(window.max.saturating_sub(u64::try_from(integer(&count)?).unwrap_or(0)).min(window.max))
}

/// Makes a limit unused and notifies every worker; returns whether it was in use.
pub(in crate::redis) async fn reset_limit(
    transport: &RedisTransport,
    channel: &str,
    key: &str,
) -> Result<bool, RedisError> {
    let commands =
        vec![command("DEL", [text(&keys::limit_window(key))]), replenished_notification(channel, key)];
    let deleted = transport.pipeline(commands).await?.into_iter().next().unwrap_or(Ok(Value::Null))?;
    Ok(deleted.as_u64() == Some(1))
}

/// The state of a limit.
pub(in crate::redis) async fn limit_status(
    transport: &RedisTransport,
    check: &RateLimitCheck,
) -> Result<LimitStatus, RedisError> {
    let (_, replies) = check_limits(transport, &[RateLimitCheck { cost: 0, ..check.clone() }]).await?;
    let reply = replies.first().ok_or_else(|| RedisError::protocol("a limit is missing in the answer"))?;
    Ok(LimitStatus { remaining: reply.remaining, reset_us: reply.reset_us })
}

/// Charges what was allowed locally, however much that is; the mark prevents charging it twice.
pub(in crate::redis) async fn apply_deferred_charge(
    transport: &RedisTransport,
    mark: &str,
    mark_ms: u64,
    amount: &LimitCharge,
) -> Result<bool, RedisError> {
    let args = [text(mark), text("1"), text("PX"), number(mark_ms), text("NX")];
    if transport.send("SET", args.into()).await? == Value::Null {
        return Ok(false);
    }
    for reply in transport.pipeline(FixedWindow::from_charge(amount).charge()).await? {
        reply?;
    }
    Ok(true)
}

/// Makes every worker drop what it knows of a limit.
fn replenished_notification(channel: &str, key: &str) -> PipelinedCommand {
    command("PUBLISH", [text(channel), Value::from(format!("l {key}"))])
}

/// Undoes what [`check_limits`] charged, when the request is not executed after all.
pub(super) async fn refund_checks(
    transport: &RedisTransport,
    checks: &[RateLimitCheck],
) -> Result<(), RedisError> {
    let charged = checks.iter().filter(|check| check.cost > 0);
    let windows = charged.map(FixedWindow::from_check).collect::<Result<Vec<_>, _>>()?;
    let commands: Vec<PipelinedCommand> = windows.iter().flat_map(FixedWindow::refund_commands).collect();
    if !commands.is_empty() {
        transport.pipeline(commands).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(burst: u64, cost: u64) -> RateLimitCheck {
        let kind = LimitParameters::Rate { interval_us: 1000, tolerance_us: 1000 * burst };
        RateLimitCheck { key: "p:l:a".into(), parameters: kind, shadow: false, cost }
    }

    #[test]
    fn the_last_of_a_burst_is_allowed_and_the_next_is_denied_until_the_window_ends() {
        let window = FixedWindow::from_check(&check(5, 1)).unwrap();
        let last = window.to_decision(5, 3);
        assert_eq!((last.allowed, last.remaining, last.retry_after_us, last.reset_us), (true, 0, None, 3000));
        let next = window.to_decision(6, 3);
        assert_eq!((next.allowed, next.remaining, next.retry_after_us), (false, 0, Some(3000)));
    }

    #[test]
    fn local_denials_never_deny_what_is_allowed() {
        let window = FixedWindow::from_check(&check(5, 1)).unwrap();
        for count in 1..=6 {
            for ttl in 1..=5 {
                let reply = window.to_decision(count, ttl);
                // What GCRA says about one more request.
                let next = reply.reset_us + 1000 <= 5000;
                assert!(next || reply.remaining == 0, "{count} in {ttl} ms: {reply:?}");
            }
        }
    }

    #[test]
    fn a_cost_above_the_burst_gets_no_retry_time() {
        let reply = FixedWindow::from_check(&check(5, 6)).unwrap().to_decision(6, 5);
        assert_eq!((reply.allowed, reply.remaining, reply.retry_after_us), (false, 5, None));
    }

    #[test]
    fn concurrency_is_refused_by_name() {
        let kind = LimitParameters::Concurrency { lease_us: 1, max: 1 };
        let refused =
            FixedWindow::from_check(&RateLimitCheck { parameters: kind, ..check(1, 1) }).err().unwrap();
        assert!(refused.to_string().contains("concurrency"), "{refused}");
    }
}
