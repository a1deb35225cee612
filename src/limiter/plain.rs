//! Limits by plain commands: what a check, a charge and a limit's state are in fixed windows.

use crate::fixed_window::{self, FixedWindow, WindowDecision};
use crate::limiter::commands::{
    LIMIT_REPLENISHED, LimitCharge, LimitParameters, LimitStatus, RateLimitCheck, RateLimitDecision,
};
use crate::limiter::keys;
use crate::redis::wire::{PipelinedCommand, Value, command, integer, number, text};
use crate::redis::{RedisError, RedisTransport};

fn check_window(check: &RateLimitCheck) -> Result<FixedWindow, RedisError> {
    let LimitParameters::Rate { interval_us, tolerance_us } = check.parameters else {
        return Err(RedisError::Unsupported { what: "a limit on concurrency" });
    };
    Ok(FixedWindow::new(keys::limit_window(&check.key), interval_us, tolerance_us, check.cost))
}

fn charge_window(amount: &LimitCharge) -> FixedWindow {
    let key = keys::limit_window(&amount.key);
    FixedWindow::new(key, amount.interval_us, amount.tolerance_us, amount.requests)
}

impl From<WindowDecision> for RateLimitDecision {
    fn from(decision: WindowDecision) -> Self {
        let WindowDecision { allowed, remaining, retry_after_us, reset_us } = decision;
        Self { allowed, remaining, retry_after_us, reset_us }
    }
}

/// Charges every limit, or none if one that counts denies; returns whether all allow, and each decision.
///
/// # Errors
/// `Unsupported` for a limit on concurrency; see [`RedisError`].
pub async fn check_limits(
    transport: &RedisTransport,
    checks: &[RateLimitCheck],
) -> Result<(bool, Vec<RateLimitDecision>), RedisError> {
    let windows = checks.iter().map(check_window).collect::<Result<Vec<_>, _>>()?;
    let (granted, decisions) = fixed_window::check(transport, &windows, |at| checks[at].shadow).await?;
    Ok((granted, decisions.into_iter().map(RateLimitDecision::from).collect()))
}

/// Gives requests back to a limit and notifies every worker; returns what remains.
pub async fn refund_limit(
    transport: &RedisTransport,
    channel: &str,
    amount: &LimitCharge,
) -> Result<u64, RedisError> {
    let window = charge_window(amount);
    let mut commands = window.refund_commands();
    commands.push(replenished_notification(channel, &amount.key));
    let replies = transport.pipeline(commands).await?;
    let count = replies.into_iter().nth(1).unwrap_or(Ok(Value::Null))?;
    Ok(window.remaining(integer(&count)?))
}

/// Makes a limit unused and notifies every worker; returns whether it was in use.
pub async fn reset_limit(transport: &RedisTransport, channel: &str, key: &str) -> Result<bool, RedisError> {
    let commands =
        vec![command("DEL", [text(&keys::limit_window(key))]), replenished_notification(channel, key)];
    let deleted = transport.pipeline(commands).await?.into_iter().next().unwrap_or(Ok(Value::Null))?;
    Ok(deleted.as_u64() == Some(1))
}

/// The state of a limit.
pub async fn limit_status(
    transport: &RedisTransport,
    check: &RateLimitCheck,
) -> Result<LimitStatus, RedisError> {
    let (_, replies) = check_limits(transport, &[RateLimitCheck { cost: 0, ..check.clone() }]).await?;
    let reply = replies.first().ok_or_else(|| RedisError::protocol("a limit is missing in the answer"))?;
    Ok(LimitStatus { remaining: reply.remaining, reset_us: reply.reset_us })
}

/// Charges what was allowed locally, however much that is; the mark prevents charging it twice.
pub async fn apply_deferred_charge(
    transport: &RedisTransport,
    mark: &str,
    mark_ms: u64,
    amount: &LimitCharge,
) -> Result<bool, RedisError> {
    let args = [text(mark), text("1"), text("PX"), number(mark_ms), text("NX")];
    if transport.send("SET", args.into()).await? == Value::Null {
        return Ok(false);
    }
    for reply in transport.pipeline(charge_window(amount).charge()).await? {
        reply?;
    }
    Ok(true)
}

/// Makes every worker drop what it knows of a limit.
fn replenished_notification(channel: &str, key: &str) -> PipelinedCommand {
    command("PUBLISH", [text(channel), Value::from(format!("{LIMIT_REPLENISHED} {key}"))])
}

/// Undoes what [`check_limits`] charged, when the request is not executed after all.
pub async fn refund_checks(transport: &RedisTransport, checks: &[RateLimitCheck]) -> Result<(), RedisError> {
    let charged = checks.iter().filter(|check| check.cost > 0);
    let windows = charged.map(check_window).collect::<Result<Vec<_>, _>>()?;
    let commands: Vec<PipelinedCommand> = windows.iter().flat_map(FixedWindow::refund_commands).collect();
    if !commands.is_empty() {
        transport.pipeline(commands).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrency_is_refused_by_name() {
        let parameters = LimitParameters::Concurrency { lease_us: 1, max: 1 };
        let check = RateLimitCheck { key: "p:l:a".into(), parameters, shadow: false, cost: 1 };
        let refused = check_window(&check).unwrap_err();
        assert!(refused.to_string().contains("concurrency"), "{refused}");
    }
}
