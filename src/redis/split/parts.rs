//! A request's start in pieces, one for each slot, and one answer out of theirs; what is taken back of them. Pure.

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
use crate::redis::keys;
use crate::redis::topology;

/// What of a request lies in one slot, and where in the request it stands. Keys have the names that they have in a cluster.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) slot: u16,
    pub(super) limits: Vec<LimitArg>,
    limits_at: Vec<usize>,
    session: Option<SessionArg>,
    counters: Vec<CounterArg>,
    counters_at: Vec<usize>,
}

impl Part {
    /// The key of a mark of this name in the part's slot: beside any of its keys.
    pub(super) fn mark(&self, name: &str) -> String {
        let limit = self.limits.first().map(|limit| limit.key.as_str());
        let session = self.session.as_ref().map(|session| session.key.as_str());
        let counter = self.counters.first().map(|counter| counter.key.as_str());
        keys::beside(limit.or(session).or(counter).unwrap_or_default(), name)
    }

    pub(super) fn request<'a>(&'a self, token: &'a str) -> Request<'a> {
        Request { limits: &self.limits, session: self.session.as_ref(), counters: &self.counters, token }
    }

    /// What has to be taken back of it if it was granted; `None` if it changed nothing.
    pub(super) fn undo(&self, reply: &Reply) -> Option<Self> {
        let Reply::Granted { limits, session, .. } = reply else { return None };
        let charged = self.limits.iter().zip(limits).filter(|(limit, reply)| reply.allowed && limit.cost > 0);
        let charged: Vec<_> = charged.map(|(limit, _)| limit).collect();
        // All limits are decided before any is charged: of those with one key the last one's charge is what stands there.
        let stands = |at: usize| charged[at + 1..].iter().all(|later| later.key != charged[at].key);
        let undo = Self {
            slot: self.slot,
            limits: (0..charged.len()).filter(|at| stands(*at)).map(|at| charged[at].clone()).collect(),
            session: self.session.as_ref().and_then(|arg| undone_session(arg, session)),
            counters: self.counters.iter().filter(|counter| counter.by != 0).cloned().collect(),
            ..Self::default()
        };
        let nothing = undo.limits.is_empty() && undo.session.is_none() && undo.counters.is_empty();
        (!nothing).then_some(undo)
    }
}

/// The request in pieces, one for each slot.
pub(super) fn of(prefix: &str, request: &Request<'_>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::with_capacity(3);
    let mut put = |key: &str, put: &mut dyn FnMut(&mut Part, String)| {
        let name = keys::in_cluster(prefix, key).unwrap_or_else(|| key.to_owned());
        let slot = topology::slot_of(&name);
        let index = parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
            parts.push(Part { slot, ..Part::default() });
            parts.len() - 1
        });
        put(&mut parts[index], name);
    };
    if let Some(session) = request.session {
        put(&session.key, &mut |part, key| {
            let (generation, ticket) = (session.generation.clone(), session.ticket.clone());
            part.session = Some(SessionArg { key, generation, ticket, ..*session });
        });
    }
    for (index, counter) in request.counters.iter().enumerate() {
        put(&counter.key, &mut |part, key| {
            part.counters.push(CounterArg { key, ..*counter });
            part.counters_at.push(index);
        });
    }
    for (index, limit) in request.limits.iter().enumerate() {
        put(&limit.key, &mut |part, key| {
            part.limits.push(LimitArg { key, ..*limit });
            part.limits_at.push(index);
        });
    }
    parts
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

/// What was answered, or the first failure. A denial that was heard holds, whatever became of the rest: a node that is away
/// lets no request in.
///
/// # Errors
/// That failure.
pub(super) fn heard(parts: &[Part], replies: Vec<Result<Reply, Error>>) -> Result<Vec<Reply>, Error> {
    let denied = replies.iter().any(|reply| matches!(reply, Ok(Reply::Denied { .. })));
    let silent = |part: &Part| Reply::Denied { limits: part.limits.iter().map(unheard).collect() };
    let heard = parts.iter().zip(replies).map(|(part, reply)| match reply {
        Err(_) if denied => Ok(silent(part)),
        reply => reply,
    });
    heard.collect()
}

/// What is said of a limit whose node did not answer while another one denied.
fn unheard(_: &LimitArg) -> LimitReply {
    LimitReply { allowed: true, remaining: 0, retry_after_us: None, reset_us: 0 }
}

/// One answer out of those of all parts.
pub(super) fn join(
    request: &Request<'_>,
    parts: &[Part],
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
        let parts = of("p", &request);
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
            session: Some(session),
            counters: vec![CounterArg { key: "c".into(), by: 0 }],
            ..Part::default()
        };
        let refused = LimitReply { allowed: false, ..allowed(0, 0) };
        let limits = vec![allowed(1, 1), allowed(1, 1), refused];
        let session = SessionReply::Gone;
        let gone = Reply::Granted { limits: limits.clone(), session, counters: vec![1], now_ms: 7 };
        let undone = part.undo(&gone).unwrap();
        assert_eq!(undone.limits, [limit("a", 1)]);
        assert!(undone.session.is_none() && undone.counters.is_empty());
        assert!(part.undo(&Reply::Denied { limits }).is_none());
    }

    #[test]
    fn of_limits_with_one_key_the_last_charge_is_taken_back() {
        let limits = vec![limit("a", 3), limit("b", 1), limit("a", 2), limit("a", 0)];
        let replies = vec![allowed(1, 1); limits.len()];
        let part = Part { limits, ..Part::default() };
        let granted =
            Reply::Granted { limits: replies, session: SessionReply::None, counters: vec![], now_ms: 7 };
        assert_eq!(part.undo(&granted).unwrap().limits, [limit("b", 1), limit("a", 2)]);
    }

    #[test]
    fn a_denied_answer_tells_how_limits_stand_without_the_charge() {
        let limits = [limit("p:l:a:v:x", 1), limit("p:l:b:v:y", 1)];
        let request = Request { limits: &limits, ..Request::default() };
        let parts = of("p", &request);
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
