//! A request's start in a cluster: one call for each slot, all at once, and all or nothing in the end.
//!
//! Limits, session and counters lie on several nodes, which know nothing of each other. Each is asked at the same time,
//! so that a request still waits for one round trip; if one denies or fails, what the others granted is taken back. While
//! that is under way another request may see a charge, a view or a session that will be gone: it may be refused too early,
//! or go on with a session that is gone then, and is never allowed too much.

use std::borrow::Cow;

use fred::types::Value;
use futures_util::future::join_all;

use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::begin::CounterArg;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::begin::SessionArg;
use crate::redis::begin::SessionReply;
use crate::redis::begin::TicketArg;
use crate::redis::error::Error;
use crate::redis::guard::Again;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;
use crate::redis::topology;

/// News that quota of a rate limit was given back.
const GIVEN_BACK: char = 'l';
/// How long it is known that something was taken back, ms: longer than a call is sent again, which is `redis.patience` and
/// a minute at most.
const MARK_MS: i64 = 65_000;

/// What of a request lies in one slot, and where in the request it stands.
#[derive(Debug, Default)]
struct Part<'a> {
    slot: u16,
    limits: Vec<LimitArg>,
    limits_at: Vec<usize>,
    session: Option<Cow<'a, SessionArg>>,
    counters: Vec<CounterArg>,
    counters_at: Vec<usize>,
}

impl Part<'_> {
    /// The key of a mark of this name in the part's slot: beside any of its keys.
    fn mark(&self, name: &str) -> String {
        let limit = self.limits.first().map(|limit| limit.key.as_str());
        let session = self.session.as_deref().map(|session| session.key.as_str());
        let counter = self.counters.first().map(|counter| counter.key.as_str());
        keys::beside(limit.or(session).or(counter).unwrap_or_default(), name)
    }

    fn request<'b>(&'b self, token: &'b str) -> Request<'b> {
        Request { limits: &self.limits, session: self.session.as_deref(), counters: &self.counters, token }
    }
}

/// Decides and does everything a request needs at its start.
///
/// # Errors
/// The first failure of any call; what the others granted is taken back as far as their nodes can be reached.
pub(super) async fn begin(redis: &Redis, request: &Request<'_>) -> Result<Reply, Error> {
    let parts = parts(&redis.inner.prefix, request);
    if parts.len() < 2 {
        return at_once(redis, request).await;
    }
    let calls = parts.iter().map(|part| async move { at_once(redis, &part.request(request.token)).await });
    let replies = join_all(calls).await;
    let granted = replies.iter().all(|reply| matches!(reply, Ok(Reply::Granted { .. })));
    if !granted {
        let undone = parts.iter().zip(&replies).filter_map(|(part, reply)| undo(part, reply.as_ref().ok()?));
        join_all(undone.map(|part| async move { take_back(redis, &part, request.token).await })).await;
    }
    // A denial that was heard holds, whatever became of the rest: nobody may be let in by a node that is away.
    let denied = replies.iter().any(|reply| matches!(reply, Ok(Reply::Denied { .. })));
    let silent = |part: &Part<'_>| Reply::Denied { limits: part.limits.iter().map(unheard).collect() };
    let heard = parts.iter().zip(replies).map(|(part, reply)| match reply {
        Err(_) if denied => Ok(silent(part)),
        reply => reply,
    });
    join(request, &parts, heard.collect::<Result<_, _>>()?, granted)
}

/// All of it on the one node that has all its keys.
async fn at_once(redis: &Redis, request: &Request<'_>) -> Result<Reply, Error> {
    let encode = |entry| begin::encode(request, entry);
    let call = |live: Live, _| async move { redis.execute(&live, Entry::Begin, encode).await };
    begin::decode(request, redis.guard_counted(Kind::Begin, Again::Never, call).await?)
}

/// The request in pieces, one for each slot.
fn parts<'a>(prefix: &str, request: &Request<'a>) -> Vec<Part<'a>> {
    let slot = |key: &str| match keys::in_cluster(prefix, key) {
        Some(name) => topology::slot_of(&name),
        None => topology::slot_of(key),
    };
    let mut parts: Vec<Part<'a>> = Vec::with_capacity(3);
    let mut at = |slot: u16, put: &mut dyn FnMut(&mut Part<'a>)| {
        let index = parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
            parts.push(Part { slot, ..Part::default() });
            parts.len() - 1
        });
        put(&mut parts[index]);
    };
    if let Some(session) = request.session {
        at(slot(&session.key), &mut |part| part.session = Some(Cow::Borrowed(session)));
    }
    for (index, counter) in request.counters.iter().enumerate() {
        at(slot(&counter.key), &mut |part| {
            part.counters.push(counter.clone());
            part.counters_at.push(index);
        });
    }
    for (index, limit) in request.limits.iter().enumerate() {
        at(slot(&limit.key), &mut |part| {
            part.limits.push(limit.clone());
            part.limits_at.push(index);
        });
    }
    parts
}

/// What has to be taken back of a part that was granted; `None` if it changed nothing.
fn undo<'a>(part: &Part<'a>, reply: &Reply) -> Option<Part<'a>> {
    let Reply::Granted { limits, session, .. } = reply else { return None };
    let charged =
        |(limit, reply): (&LimitArg, &LimitReply)| (reply.allowed && limit.cost > 0).then(|| limit.clone());
    let undo = Part {
        slot: part.slot,
        limits: part.limits.iter().zip(limits).filter_map(charged).collect(),
        session: part.session.as_deref().and_then(|arg| undone_session(arg, session)).map(Cow::Owned),
        counters: part.counters.iter().filter(|counter| counter.by != 0).cloned().collect(),
        ..Part::default()
    };
    let nothing = undo.limits.is_empty() && undo.session.is_none() && undo.counters.is_empty();
    (!nothing).then_some(undo)
}

/// What is taken back of a session: its ticket says that this call made it, and the ticket's limit that it charged for
/// that. One that was there before loses its view alone: it is deleted for no request that is denied.
fn undone_session(arg: &SessionArg, reply: &SessionReply) -> Option<SessionArg> {
    let SessionReply::Live { .. } = reply else { return None };
    let made = arg.ticket.as_ref().filter(|_| reply.is_made());
    let ticket = made.map(|ticket| TicketArg {
        limit: ticket.limit.clone().filter(|_| !reply.is_unconfirmed()),
        ..ticket.clone()
    });
    let undone = SessionArg { ticket, ..arg.clone() };
    undone.changes().then_some(undone)
}

/// What is said of a limit whose node did not answer while another one denied.
fn unheard(_: &LimitArg) -> LimitReply {
    LimitReply { allowed: true, remaining: 0, retry_after_us: None, reset_us: 0 }
}

/// The call's arguments: those of the call that is undone, and the mark that keeps it from being undone twice.
fn encode(request: &Request<'_>, mark: &str, entry: Value) -> Vec<Value> {
    let mut args = begin::encode(request, entry);
    let keys = args.get(1).and_then(Value::as_u64).and_then(|keys| usize::try_from(keys).ok()).unwrap_or(0);
    if let Some(count) = args.get_mut(1) {
        *count = Value::Integer(i64::try_from(keys + 1).unwrap_or(i64::MAX));
    }
    args.insert(2 + keys, Value::from(mark));
    args.push(Value::Integer(MARK_MS));
    args
}

async fn take_back(redis: &Redis, part: &Part<'_>, token: &str) {
    let request = part.request(token);
    let mark = part.mark(&redis.inner.numbers.name());
    if let Err(error) = redis.run(Entry::Undo, |entry| encode(&request, &mark, entry)).await {
        tracing::warn!(cause = %error, "what a request was granted before it was refused stays: {error}");
    }
    // Requests that were denied meanwhile on account of it may be made again.
    part.limits.iter().for_each(|limit| redis.tell(GIVEN_BACK, &limit.key));
}

/// One answer out of those of all parts.
fn join(
    request: &Request<'_>,
    parts: &[Part<'_>],
    replies: Vec<Reply>,
    granted: bool,
) -> Result<Reply, Error> {
    let mut limits: Vec<Option<LimitReply>> = vec![None; request.limits.len()];
    let mut counters = vec![0; request.counters.len()];
    let (mut session, mut now_ms) = (SessionReply::None, 0);
    for (part, reply) in parts.iter().zip(replies) {
        let decided = match reply {
            Reply::Denied { limits } => limits,
            Reply::Granted { limits, session: found, counters: values, now_ms: now } => {
                now_ms = now_ms.max(now);
                for (at, value) in part.counters_at.iter().zip(values) {
                    counters[*at] = value;
                }
                if part.session.is_some() {
                    session = found;
                }
                match granted {
                    true => limits,
                    false => {
                        part.limits.iter().zip(limits).map(|(arg, reply)| uncharged(arg, reply)).collect()
                    }
                }
            }
        };
        for (at, reply) in part.limits_at.iter().zip(decided) {
            limits[*at] = Some(reply);
        }
    }
    let limits: Option<Vec<_>> = limits.into_iter().collect();
    let limits = limits.ok_or_else(|| Error::protocol("begin did not answer for every limit"))?;
    Ok(match granted {
        true => Reply::Granted { limits, session, counters, now_ms },
        false => Reply::Denied { limits },
    })
}

/// What an allowing limit says once its charge is taken back.
fn uncharged(limit: &LimitArg, reply: LimitReply) -> LimitReply {
    if !reply.allowed || limit.cost == 0 {
        return reply;
    }
    match limit.kind {
        LimitKind::Rate { interval_us, tolerance_us } => {
            let reset_us = reply.reset_us.saturating_sub(interval_us.saturating_mul(limit.cost));
            let left = tolerance_us.saturating_sub(reset_us);
            LimitReply { remaining: left / interval_us.max(1), reset_us, ..reply }
        }
        LimitKind::Concurrency { max, .. } => {
            let remaining = max.min(reply.remaining + limit.cost);
            LimitReply { remaining, reset_us: if remaining == max { 0 } else { reply.reset_us }, ..reply }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::begin::SessionMode;

    fn limit(key: &str, cost: u64) -> LimitArg {
        let kind = LimitKind::Rate { interval_us: 10, tolerance_us: 100 };
        LimitArg { key: key.into(), kind, shadow: false, cost }
    }

    fn allowed(remaining: u64, reset_us: u64) -> LimitReply {
        LimitReply { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    fn session() -> SessionArg {
        SessionArg {
            key: "p:s:d".into(),
            generation: Some("p:g:u".into()),
            mode: SessionMode::Visit,
            ticket: None,
            idle_ms: 1,
            absolute_ms: 1,
        }
    }

    #[test]
    fn what_lies_in_one_slot_is_one_call() {
        let session = session();
        let limits = [limit("p:l:a:v:x", 1), limit("p:l:b:v:y", 1)];
        let counters =
            [CounterArg { key: "p:c:one".into(), by: 1 }, CounterArg { key: "p:c:two".into(), by: 2 }];
        let request = Request { limits: &limits, session: Some(&session), counters: &counters, token: "" };
        let parts = parts("p", &request);
        assert_eq!(parts.len(), 4);
        assert!(parts[0].session.is_some() && parts[0].limits.is_empty());
        assert_eq!(parts[1].counters_at, [0, 1]);
        assert_eq!((&parts[2].limits_at, &parts[3].limits_at), (&vec![0], &vec![1]));
        let slot = |key: &str| topology::slot_of(&keys::in_cluster("p", key).unwrap());
        assert_eq!(slot("p:s:d"), slot("p:g:u"), "begin names both in one call");
    }

    #[test]
    fn only_what_was_changed_is_taken_back() {
        let session = session();
        let part = Part {
            limits: vec![limit("a", 1), limit("b", 0), limit("c", 1)],
            session: Some(Cow::Borrowed(&session)),
            counters: vec![CounterArg { key: "c".into(), by: 0 }],
            ..Part::default()
        };
        let refused = LimitReply { allowed: false, ..allowed(0, 0) };
        let limits = vec![allowed(1, 1), allowed(1, 1), refused];
        let session = SessionReply::Gone;
        let gone = Reply::Granted { limits: limits.clone(), session, counters: vec![1], now_ms: 7 };
        let undone = undo(&part, &gone).unwrap();
        assert_eq!(undone.limits, [limit("a", 1)]);
        assert!(undone.session.is_none() && undone.counters.is_empty());
        assert!(undo(&part, &Reply::Denied { limits }).is_none());
    }

    #[test]
    fn a_denied_answer_tells_how_limits_stand_without_the_charge() {
        let limits = [limit("p:l:a:v:x", 1), limit("p:l:b:v:y", 1)];
        let request = Request { limits: &limits, ..Request::default() };
        let parts = parts("p", &request);
        let refused = LimitReply { allowed: false, remaining: 0, retry_after_us: Some(5), reset_us: 100 };
        let replies = vec![
            Reply::Granted {
                limits: vec![allowed(8, 20)],
                session: SessionReply::None,
                counters: vec![],
                now_ms: 7,
            },
            Reply::Denied { limits: vec![refused] },
        ];
        let joined = join(&request, &parts, replies, false).unwrap();
        assert_eq!(joined, Reply::Denied { limits: vec![allowed(9, 10), refused] });
    }
}
