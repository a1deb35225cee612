//! Limits by plain commands: fixed windows of the burst's length, in which at most the burst is admitted.
//!
//! A window begins with its first request: `SET … NX PX` makes the key with its end, `INCRBY` counts. A count that
//! found the key gone between the two would have no end; whoever sees such a key gives it one.

use fred::types::Value;

use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::link::Caller;
use crate::redis::plain::Command;
use crate::redis::plain::command;
use crate::redis::plain::integer;
use crate::redis::plain::number;
use crate::redis::plain::text;

/// A limit as a window.
struct Window<'a> {
    arg: &'a LimitArg,
    key: String,
    /// Its length, ms, ≥ 1.
    length_ms: u64,
    /// Most requests in it.
    most: u64,
}

impl<'a> Window<'a> {
    fn new(arg: &'a LimitArg) -> Result<Self, Error> {
        let LimitKind::Rate { interval_us, tolerance_us } = arg.kind else {
            return Err(Error::Unsupported { what: "a limit on concurrency" });
        };
        Ok(Self {
            arg,
            key: keys::window(&arg.key),
            length_ms: tolerance_us.div_ceil(1000).max(1),
            most: tolerance_us / interval_us.max(1),
        })
    }

    /// Charges, or looks if it costs nothing.
    fn charge(&self) -> Vec<Command> {
        let ttl = command("PTTL", [text(&self.key)]);
        match self.arg.cost {
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
        vec![self.open(), command("DECRBY", [text(&self.key), number(self.arg.cost)])]
    }

    /// What was found, with its charge.
    fn reply(&self, count: i64, ttl_ms: i64) -> LimitReply {
        let (most, cost) = (i64::try_from(self.most).unwrap_or(i64::MAX), self.arg.cost);
        let allowed = count <= most;
        let left = if allowed { most - count } else { most - count + signed(cost) };
        let reset_us = match count {
            0 => 0,
            _ => u64::try_from(ttl_ms).unwrap_or(self.length_ms).saturating_mul(1000),
        };
        LimitReply {
            allowed,
            remaining: u64::try_from(left).unwrap_or(0),
            retry_after_us: (!allowed && cost <= self.most).then_some(reset_us.max(1)),
            reset_us,
        }
    }

    /// What an allowing limit says when another one refuses, and no charge is made.
    fn uncharged(&self, reply: LimitReply) -> LimitReply {
        match reply.allowed {
            true => LimitReply { remaining: reply.remaining.saturating_add(self.arg.cost), ..reply },
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
        if window.arg.cost > 0 {
            answers.next();
        }
        let (count, ttl) = (answers.next().unwrap_or(Value::Null), answers.next().unwrap_or(Value::Null));
        let count = if count == Value::Null { 0 } else { integer(&count)? };
        let ttl = integer(&ttl)?;
        if ttl == -1 {
            endless.push(command("PEXPIRE", [text(&window.key), number(window.length_ms)]));
        }
        replies.push(window.reply(count, ttl));
    }
    let granted = replies.iter().zip(args).all(|(reply, arg)| reply.allowed || arg.shadow);
    let taken_back = windows.iter().zip(&replies).filter(|(_, reply)| !granted || !reply.allowed);
    let charged =
        taken_back.filter(|(window, _)| window.arg.cost > 0).flat_map(|(window, _)| window.refund());
    endless.extend(charged);
    if !endless.is_empty() {
        caller.together(endless).await?;
    }
    if !granted {
        replies = windows.iter().zip(replies).map(|(window, reply)| window.uncharged(reply)).collect();
    }
    Ok((granted, replies))
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
        let arg = arg(5, 1);
        let window = Window::new(&arg).unwrap();
        let last = window.reply(5, 3);
        assert_eq!((last.allowed, last.remaining, last.retry_after_us, last.reset_us), (true, 0, None, 3000));
        let next = window.reply(6, 3);
        assert_eq!((next.allowed, next.remaining, next.retry_after_us), (false, 0, Some(3000)));
    }

    #[test]
    fn what_costs_more_than_the_burst_is_never_told_to_come_again() {
        let arg = arg(5, 6);
        let reply = Window::new(&arg).unwrap().reply(6, 5);
        assert_eq!((reply.allowed, reply.remaining, reply.retry_after_us), (false, 5, None));
    }

    #[test]
    fn concurrency_is_refused_by_name() {
        let kind = LimitKind::Concurrency { lease_us: 1, max: 1 };
        let refused = Window::new(&LimitArg { kind, ..arg(1, 1) }).err().unwrap();
        assert!(refused.to_string().contains("concurrency"), "{refused}");
    }
}
