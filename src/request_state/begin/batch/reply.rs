//! Each entry's reply out of a batch's reply.

use bytes::Bytes;

use crate::limiter::commands::RateLimitDecision;
use crate::redis::RedisError;
use crate::redis::wire::{MAX_EXACT_INTEGER, ReplyReader, Value};
use crate::request_state::begin::batch::entry::{BeginEntry, CompactEntry};
use crate::request_state::begin::batch::layout::BatchPlan;
use crate::request_state::begin::request::BeginReply;
use crate::sessions::query::{SessionLookup, found_session, lookup_without_session};

/// How the batch was executed: now, before, or each entry on its own.
const EXECUTED_AT_ONCE: u64 = 0;

/// Stands in place of the views of a session with fields.
const WITH_FIELDS: i64 = -100;

pub(super) fn decode(
    entries: &[&BeginEntry],
    plan: &BatchPlan<'_>,
    reply: Value,
) -> Result<Vec<Result<BeginReply, RedisError>>, RedisError> {
    let (packed, bits, lists) = parts(reply)?;
    let mut numbers = ReplyReader::new(&packed);
    let now_us = numbers.unsigned()?;
    let at_once = numbers.unsigned()? == EXECUTED_AT_ONCE;
    let mut lists = lists.into_iter();
    let mut replies: Vec<_> =
        entries.iter().map(|_| Err(RedisError::protocol("an entry has no answer"))).collect();
    let plain = plan.compact.iter().map(|(at, _)| *at);
    if at_once {
        let mut batch = SharedState::read(plan, &mut numbers, &bits, now_us / 1000)?;
        for (number, (at, plain)) in plan.compact.iter().enumerate() {
            replies[*at] = Ok(batch.next(number, plain, &mut numbers, &mut lists)?);
        }
    }
    let alone = plain.filter(|_| !at_once).chain(plan.standalone.iter().copied());
    for (number, at) in alone.enumerate() {
        let number = if at_once { number + plan.compact.len() } else { number };
        let answer =
            lists.next().ok_or_else(|| RedisError::protocol("a batch did not answer for every entry"))?;
        replies[at] = decode_standalone(entries[at], answer, granted(&bits, number))?;
    }
    Ok(replies)
}

/// The numbers, the bits of granted entries, and the lists that do not fit into numbers.
fn parts(reply: Value) -> Result<(Bytes, Bytes, Vec<Value>), RedisError> {
    let wrong = || RedisError::protocol("a batch did not answer with numbers");
    let Value::Array(mut parts) = reply else {
        return Ok((reply.into_bytes().ok_or_else(wrong)?, Bytes::new(), Vec::new()));
    };
    if parts.len() < 2 {
        return Err(wrong());
    }
    let lists = parts.split_off(2);
    let bits = parts.pop().and_then(Value::into_bytes).ok_or_else(wrong)?;
    Ok((parts.pop().and_then(Value::into_bytes).ok_or_else(wrong)?, bits, lists))
}

/// Whether the entry was granted; without bits all were.
fn granted(bits: &[u8], at: usize) -> bool {
    bits.is_empty() || bits.get(at) == Some(&b'1')
}

/// The reply to an entry that was executed as a separate call.
fn decode_standalone(
    entry: &BeginEntry,
    answer: Value,
    granted: bool,
) -> Result<Result<BeginReply, RedisError>, RedisError> {
    if let Value::Array(parts) = &answer
        && let [failure] = parts.as_slice()
    {
        let failure = failure.as_string().unwrap_or_default();
        return Ok(Err(RedisError::from_text("", &failure)));
    }
    let mut reply = entry.decode(answer)?;
    if let BeginReply::Denied { limits } = &mut reply
        && !granted
    {
        ensure_denied(limits);
    }
    Ok(Ok(reply))
}

/// Makes sure that a limit refuses what was denied: in a repeated reply every limit may allow it by then.
fn ensure_denied(limits: &mut [RateLimitDecision]) {
    if limits.iter().all(|limit| limit.allowed)
        && let Some(limit) = limits.iter_mut().max_by_key(|limit| limit.reset_us)
    {
        (limit.allowed, limit.retry_after_us) = (false, Some(1));
    }
}

/// What entries share, as it is after those that were read so far.
struct SharedState<'a> {
    bits: &'a [u8],
    plan: &'a BatchPlan<'a>,
    now_ms: u64,
    ahead: Vec<u64>,
    totals: Vec<i64>,
    values: Vec<i64>,
    limits_at: std::slice::Iter<'a, u8>,
    counters_at: std::slice::Iter<'a, u8>,
}

impl<'a> SharedState<'a> {
    fn read(
        plan: &'a BatchPlan<'a>,
        numbers: &mut ReplyReader<'_>,
        bits: &'a [u8],
        now_ms: u64,
    ) -> Result<Self, RedisError> {
        let ahead = plan.limits.iter().map(|_| numbers.unsigned()).collect::<Result<_, _>>()?;
        let totals = plan.counters.iter().map(|_| numbers.signed()).collect::<Result<Vec<_>, _>>()?;
        let mut values = totals.clone();
        // The sum before the batch, to which the entries' additions are added in turn.
        let mut at = plan.counters_at.iter();
        for (number, (_, plain)) in plan.compact.iter().enumerate() {
            for (counter, at) in plain.counters.iter().zip(at.by_ref().take(plain.counters.len())) {
                if granted(bits, number) {
                    let value = &mut values[usize::from(*at) - 1];
                    *value = value.saturating_sub(i64::from(counter.by));
                }
            }
        }
        let (limits_at, counters_at) = (plan.limits_at.iter(), plan.counters_at.iter());
        Ok(Self { bits, plan, now_ms, ahead, totals, values, limits_at, counters_at })
    }

    fn next(
        &mut self,
        number: usize,
        plain: &CompactEntry,
        numbers: &mut ReplyReader<'_>,
        lists: &mut impl Iterator<Item = Value>,
    ) -> Result<BeginReply, RedisError> {
        let granted = granted(self.bits, number);
        let limits = self.limits(plain, granted)?;
        let mut counters = Vec::with_capacity(if granted { plain.counters.len() } else { 0 });
        for (counter, at) in plain.counters.iter().zip(self.counters_at.by_ref().take(plain.counters.len())) {
            if granted {
                let at = usize::from(*at) - 1;
                let (total, value) = (self.totals[at], &mut self.values[at]);
                *value = value.saturating_add(i64::from(counter.by));
                // Beyond 2^53 the sums of single entries are not exact, and the reader reads the counter again.
                counters.push(if total.unsigned_abs() < MAX_EXACT_INTEGER { *value } else { total });
            }
        }
        if !granted {
            return Ok(BeginReply::Denied { limits });
        }
        let session = match plain.session {
            None => SessionLookup::NotRequested,
            Some(_) => session(numbers, lists)?,
        };
        let now_ms = if matches!(session, SessionLookup::Found { .. }) { 0 } else { self.now_ms };
        Ok(BeginReply::Granted { limits, session, counters, now_ms })
    }

    /// The decisions of an entry's limits, by the arithmetic of the server.
    fn limits(&mut self, plain: &CompactEntry, granted: bool) -> Result<Vec<RateLimitDecision>, RedisError> {
        let mut replies = Vec::with_capacity(plain.limits.len());
        let mut allowed = true;
        for (limit, at) in plain.limits.iter().zip(self.limits_at.by_ref().take(plain.limits.len())) {
            let at = usize::from(*at) - 1;
            let (quota, ahead) = (&self.plan.limits[at], &mut self.ahead[at]);
            let increment = quota.interval_us.saturating_mul(u64::from(limit.cost));
            let requested = ahead.saturating_add(increment);
            let fits = requested <= quota.tolerance_us;
            allowed &= fits;
            if granted {
                *ahead = requested;
            }
            replies.push(RateLimitDecision {
                allowed: fits,
                remaining: quota.tolerance_us.saturating_sub(*ahead) / quota.interval_us.max(1),
                retry_after_us: (!fits && increment <= quota.tolerance_us)
                    .then(|| requested - quota.tolerance_us),
                reset_us: *ahead,
            });
        }
        if allowed != granted {
            return Err(RedisError::protocol("a batch's limits were decided otherwise"));
        }
        Ok(replies)
    }
}

fn session(
    numbers: &mut ReplyReader<'_>,
    lists: &mut impl Iterator<Item = Value>,
) -> Result<SessionLookup, RedisError> {
    let first = numbers.signed()?;
    let (views, stored) = match first {
        WITH_FIELDS => (numbers.unsigned()?, lists.next()),
        views if views >= 0 => (views.unsigned_abs(), None),
        status => return lookup_without_session(-1 - status),
    };
    Ok(found_session(numbers.unsigned()?, views, stored))
}
