//! Limits by plain commands: fixed windows of the burst's length, in which at most the burst is admitted.
//!
//! A window begins with its first request: `SET … NX PX` makes the key with its end, `INCRBY` counts. A count that
//! found the key gone between the two would have no end; whoever sees such a key gives it one.

use fred::types::Value;

use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::limit::Amount;
use crate::redis::limit::Standing;
use crate::redis::plain::Command;
use crate::redis::plain::command;
use crate::redis::plain::integer;
use crate::redis::plain::number;
use crate::redis::plain::text;

/// A limit as a window.
struct Window {
    key: String,
    /// Its length, ms, ≥ 1.
    length_ms: u64,
    /// Most requests in it.
    most: u64,
    interval_us: u64,
    cost: u64,
}

impl Window {
    fn new(arg: &LimitArg) -> Result<Self, Error> {
        let LimitKind::Rate { interval_us, tolerance_us } = arg.kind else {
            return Err(Error::Unsupported { what: "a limit on concurrency" });
        };
        Ok(Self::over(&arg.key, interval_us, tolerance_us, arg.cost))
    }

    fn of(amount: &Amount) -> Self {
        Self::over(&amount.key, amount.interval_us, amount.tolerance_us, amount.requests)
    }

    fn over(key: &str, interval_us: u64, tolerance_us: u64, cost: u64) -> Self {
        Self {
            key: keys::window(key),
            length_ms: tolerance_us.div_ceil(1000).max(1),
            most: tolerance_us / interval_us.max(1),
            interval_us,
            cost,
        }
    }

    /// Charges, or looks if it costs nothing.
    fn charge(&self) -> Vec<Command> {
        let ttl = command("PTTL", [text(&self.key)]);
        match self.cost {
            0 => vec![command("GET", [text(&self.key)]), ttl],
            cost => vec![self.open(), command("INCRBY", [text(&self.key), number(cost)]), ttl],
        }
    }

    /// Makes the window if there is none.
    fn open(&self) -> Command {
        let args = [text(&self.key), text("0"), text("PX"), number(self.length_ms), text("NX")];
        command("SET", args)
    }

    /// Takes a charge back. The window may have ended since, and a count without an end must not be left.
    fn refund(&self) -> Vec<Command> {
        vec![self.open(), command("DECRBY", [text(&self.key), number(self.cost)])]
    }

    /// What was found, with its charge.
    fn reply(&self, count: i64, ttl_ms: i64) -> LimitReply {
        let allowed = count <= signed(self.most);
        // A request that is not allowed is not charged.
        let used = if allowed { count } else { count.saturating_sub(signed(self.cost)) };
        let (left_us, used) = (self.left_us(ttl_ms), u64::try_from(used).unwrap_or(0));
        LimitReply {
            allowed,
            remaining: self.most.saturating_sub(used),
            retry_after_us: (!allowed && self.cost <= self.most).then_some(left_us.max(1)),
            // Never more than what was used is worth: workers reckon with it what they may deny by themselves.
            reset_us: left_us.min(used.saturating_mul(self.interval_us)),
        }
    }

    /// Until the window ends, µs.
    fn left_us(&self, ttl_ms: i64) -> u64 {
        u64::try_from(ttl_ms).unwrap_or(self.length_ms).min(self.length_ms).saturating_mul(1000)
    }

    /// What an allowing limit says when another one refuses, and no charge is made.
    fn uncharged(&self, reply: LimitReply) -> LimitReply {
        let worth = self.cost.saturating_mul(self.interval_us);
        match reply.allowed {
            true => LimitReply {
                remaining: reply.remaining.saturating_add(self.cost).min(self.most),
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

/// Charges every limit, or none if one that counts refuses; whether all allow, and what each says.
pub(super) async fn decide(caller: &Caller, args: &[LimitArg]) -> Result<(bool, Vec<LimitReply>), Error> {
    if args.is_empty() {
        return Ok((true, Vec::new()));
    }
    let windows = args.iter().map(Window::new).collect::<Result<Vec<_>, _>>()?;
    let answers = caller.together(windows.iter().flat_map(Window::charge).collect()).await?;
    let mut answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter();
    let (mut replies, mut endless) = (Vec::with_capacity(args.len()), Vec::new());
    for window in &windows {
        if window.cost > 0 {
            answers.next();
        }
        let (count, ttl) = (answers.next().unwrap_or(Value::Null), answers.next().unwrap_or(Value::Null));
        let count = if count == Value::Null { 0 } else { integer(&count)? };
        let ttl = integer(&ttl)?;
        // Without an end, or with one that a clock has set which is now behind: the window is as long as one is.
        let is_late = u64::try_from(ttl).is_ok_and(|ttl| ttl > window.length_ms);
        if ttl == -1 || is_late {
            endless.push(command("PEXPIRE", [text(&window.key), number(window.length_ms)]));
        }
        replies.push(window.reply(count, ttl));
    }
    let granted = replies.iter().zip(args).all(|(reply, arg)| reply.allowed || arg.shadow);
    let taken_back = windows.iter().zip(&replies).filter(|(_, reply)| !granted || !reply.allowed);
    let charged = taken_back.filter(|(window, _)| window.cost > 0).flat_map(|(window, _)| window.refund());
    endless.extend(charged);
    if !endless.is_empty() {
        caller.together(endless).await?;
    }
    if !granted {
        replies = windows.iter().zip(replies).map(|(window, reply)| window.uncharged(reply)).collect();
    }
    Ok((granted, replies))
}

/// Gives requests back to a limit and tells everybody; returns what remains.
pub(in crate::redis) async fn give_back(
    caller: &Caller,
    channel: &str,
    amount: &Amount,
) -> Result<u64, Error> {
    let window = Window::of(amount);
    let mut commands = window.refund();
    commands.push(news(channel, &amount.key));
    let answers = caller.together(commands).await?;
    let count = answers.into_iter().nth(1).unwrap_or(Ok(Value::Null))?;
    Ok(window.most.saturating_sub(u64::try_from(integer(&count)?).unwrap_or(0)).min(window.most))
}

/// Makes a limit as if never used and tells everybody; whether it was in use.
pub(in crate::redis) async fn reset(caller: &Caller, channel: &str, key: &str) -> Result<bool, Error> {
    let commands = vec![command("DEL", [text(&keys::window(key))]), news(channel, key)];
    let deleted = caller.together(commands).await?.into_iter().next().unwrap_or(Ok(Value::Null))?;
    Ok(deleted.as_u64() == Some(1))
}

/// How a limit stands.
pub(in crate::redis) async fn look(caller: &Caller, arg: &LimitArg) -> Result<Standing, Error> {
    let (_, replies) = decide(caller, &[LimitArg { cost: 0, ..arg.clone() }]).await?;
    let reply = replies.first().ok_or_else(|| Error::protocol("a limit is missing in the answer"))?;
    Ok(Standing { remaining: reply.remaining, reset_us: reply.reset_us })
}

/// Charges what was allowed elsewhere, however much that is; the mark keeps it from being charged twice.
pub(in crate::redis) async fn merge(
    caller: &Caller,
    mark: &str,
    mark_ms: u64,
    amount: &Amount,
) -> Result<bool, Error> {
    let args = [text(mark), text("1"), text("PX"), number(mark_ms), text("NX")];
    if caller.send("SET", args.into()).await? == Value::Null {
        return Ok(false);
    }
    for answer in caller.together(Window::of(amount).charge()).await? {
        answer?;
    }
    Ok(true)
}

/// Has every worker forget what it knows of a limit.
fn news(channel: &str, key: &str) -> Command {
    command("PUBLISH", [text(channel), Value::from(format!("l {key}"))])
}

/// Takes back what [`decide`] charged, when the request is not done after all.
pub(super) async fn refund(caller: &Caller, args: &[LimitArg]) -> Result<(), Error> {
    let charged = args.iter().filter(|arg| arg.cost > 0);
    let windows = charged.map(Window::new).collect::<Result<Vec<_>, _>>()?;
    let commands: Vec<Command> = windows.iter().flat_map(Window::refund).collect();
    if !commands.is_empty() {
        caller.together(commands).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arg(burst: u64, cost: u64) -> LimitArg {
        let kind = LimitKind::Rate { interval_us: 1000, tolerance_us: 1000 * burst };
        LimitArg { key: "p:l:a".into(), kind, shadow: false, cost }
    }

    #[test]
    fn the_last_of_a_burst_is_allowed_and_the_next_is_told_when_the_window_ends() {
        let window = Window::new(&arg(5, 1)).unwrap();
        let last = window.reply(5, 3);
        assert_eq!((last.allowed, last.remaining, last.retry_after_us, last.reset_us), (true, 0, None, 3000));
        let next = window.reply(6, 3);
        assert_eq!((next.allowed, next.remaining, next.retry_after_us), (false, 0, Some(3000)));
    }

    #[test]
    fn workers_that_reckon_with_the_answer_deny_nothing_that_is_allowed() {
        let window = Window::new(&arg(5, 1)).unwrap();
        for count in 1..=6 {
            for ttl in 1..=5 {
                let reply = window.reply(count, ttl);
                // What the arithmetic of sustained rates says about one more request.
                let next = reply.reset_us + 1000 <= 5000;
                assert!(next || reply.remaining == 0, "{count} in {ttl} ms: {reply:?}");
            }
        }
    }

    #[test]
    fn what_costs_more_than_the_burst_is_never_told_to_come_again() {
        let reply = Window::new(&arg(5, 6)).unwrap().reply(6, 5);
        assert_eq!((reply.allowed, reply.remaining, reply.retry_after_us), (false, 5, None));
    }

    #[test]
    fn concurrency_is_refused_by_name() {
        let kind = LimitKind::Concurrency { lease_us: 1, max: 1 };
        let refused = Window::new(&LimitArg { kind, ..arg(1, 1) }).err().unwrap();
        assert!(refused.to_string().contains("concurrency"), "{refused}");
    }
}
