//! Splits a request's begin by hash slot, merges the parts' replies, and computes what a compensation undoes. No I/O.

use crate::counters::commands::CounterIncrement;
use crate::limiter::commands::{LimitParameters, RateLimitCheck, RateLimitDecision};
use crate::redis::{RedisError, hash_slots, keys};
use crate::request_state::begin::{BeginReply, BeginRequest};
use crate::request_state::keys::compensation_mark;
use crate::sessions::query::{ProvisionalSessionQuery, SessionLookup, SessionQuery};

/// What of a request is in one hash slot, and its position in the request. Keys have their names in a cluster.
#[derive(Debug, Default)]
pub(super) struct ShardPart {
    pub(super) slot: u16,
    pub(super) limits: Vec<RateLimitCheck>,
    limits_at: Vec<usize>,
    session: Option<SessionQuery>,
    counters: Vec<CounterIncrement>,
    counters_at: Vec<usize>,
}

impl ShardPart {
    /// The key of a mark with this name in the part's slot.
    pub(super) fn mark_key(&self, name: &str) -> String {
        let limit = self.limits.first().map(|limit| limit.key.as_str());
        let session = self.session.as_ref().map(|session| session.key.as_str());
        let counter = self.counters.first().map(|counter| counter.key.as_str());
        compensation_mark(limit.or(session).or(counter).unwrap_or_default(), name)
    }

    pub(super) fn request<'a>(&'a self, token: &'a str) -> BeginRequest<'a> {
        BeginRequest { limits: &self.limits, session: self.session.as_ref(), counters: &self.counters, token }
    }

    /// What has to be undone if the part was granted; `None` if it changed nothing.
    pub(super) fn compensation(&self, reply: &BeginReply) -> Option<Self> {
        let BeginReply::Granted { limits, session, .. } = reply else { return None };
        let charged = self.limits.iter().zip(limits).filter(|(limit, reply)| reply.allowed && limit.cost > 0);
        let charged: Vec<_> = charged.map(|(limit, _)| limit).collect();
        // All limits are decided before any is charged: if several have one key, the last one's charge is stored.
        let stands = |at: usize| charged[at + 1..].iter().all(|later| later.key != charged[at].key);
        let undo = Self {
            slot: self.slot,
            limits: (0..charged.len()).filter(|at| stands(*at)).map(|at| charged[at].clone()).collect(),
            session: self.session.as_ref().and_then(|arg| session_compensation(arg, session)),
            counters: self.counters.iter().filter(|counter| counter.by != 0).cloned().collect(),
            ..Self::default()
        };
        let nothing = undo.limits.is_empty() && undo.session.is_none() && undo.counters.is_empty();
        (!nothing).then_some(undo)
    }
}

/// Splits the request, one part for each slot.
pub(super) fn split_by_hash_slot(prefix: &str, request: &BeginRequest<'_>) -> Vec<ShardPart> {
    let mut parts: Vec<ShardPart> = Vec::with_capacity(3);
    let mut put = |key: &str, put: &mut dyn FnMut(&mut ShardPart, String)| {
        let name = keys::cluster_name(prefix, key).unwrap_or_else(|| key.to_owned());
        let slot = hash_slots::hash_slot(&name);
        let index = parts.iter().position(|part| part.slot == slot).unwrap_or_else(|| {
            parts.push(ShardPart { slot, ..ShardPart::default() });
            parts.len() - 1
        });
        put(&mut parts[index], name);
    };
    if let Some(session) = request.session {
        put(&session.key, &mut |part, key| {
            let (generation, provisional) = (session.generation.clone(), session.provisional.clone());
            part.session = Some(SessionQuery { key, generation, provisional, ..*session });
        });
    }
    for (index, counter) in request.counters.iter().enumerate() {
        put(&counter.key, &mut |part, key| {
            part.counters.push(CounterIncrement { key, ..*counter });
            part.counters_at.push(index);
        });
    }
    for (index, limit) in request.limits.iter().enumerate() {
        put(&limit.key, &mut |part, key| {
            part.limits.push(RateLimitCheck { key, ..*limit });
            part.limits_at.push(index);
        });
    }
    parts
}

/// How a session is undone: `provisional` shows that this call created it, and its limit that it was charged for that. A
/// session that existed before only loses its view, and is never deleted for a denied request.
fn session_compensation(arg: &SessionQuery, reply: &SessionLookup) -> Option<SessionQuery> {
    let SessionLookup::Found { .. } = reply else { return None };
    let made = arg.provisional.as_ref().filter(|_| reply.is_created());
    let provisional = made.map(|source| ProvisionalSessionQuery {
        limit: source.limit.clone().filter(|_| !reply.is_unconfirmed()),
        ..source.clone()
    });
    let undone = SessionQuery { provisional, ..arg.clone() };
    undone.changes().then_some(undone)
}

/// The replies, or the first failure. A denial holds whatever happened to the other parts: a node that is down lets no
/// request in.
///
/// # Errors
/// That failure.
pub(super) fn resolve_replies(
    parts: &[ShardPart],
    replies: Vec<Result<BeginReply, RedisError>>,
) -> Result<Vec<BeginReply>, RedisError> {
    let denied = replies.iter().any(|reply| matches!(reply, Ok(BeginReply::Denied { .. })));
    let silent =
        |part: &ShardPart| BeginReply::Denied { limits: part.limits.iter().map(unanswered).collect() };
    let resolved = parts.iter().zip(replies).map(|(part, reply)| match reply {
        Err(_) if denied => Ok(silent(part)),
        reply => reply,
    });
    resolved.collect()
}

/// The decision reported for a limit whose node did not answer while another one denied.
fn unanswered(_: &RateLimitCheck) -> RateLimitDecision {
    RateLimitDecision { allowed: true, remaining: 0, retry_after_us: None, reset_us: 0 }
}

/// Merges the replies of all parts.
pub(super) fn merge_replies(
    request: &BeginRequest<'_>,
    parts: &[ShardPart],
    replies: Vec<BeginReply>,
    granted: bool,
) -> Result<BeginReply, RedisError> {
    let mut limits: Vec<Option<RateLimitDecision>> = vec![None; request.limits.len()];
    let mut counters = vec![0; request.counters.len()];
    let (mut session, mut now_ms) = (SessionLookup::NotRequested, 0);
    for (part, reply) in parts.iter().zip(replies) {
        let decided = match reply {
            BeginReply::Denied { limits } => limits,
            BeginReply::Granted { limits, session: found, counters: values, now_ms: now } => {
                now_ms = now_ms.max(now);
                for (at, value) in part.counters_at.iter().zip(values) {
                    counters[*at] = value;
                }
                if part.session.is_some() {
                    session = found;
                }
                match granted {
                    true => limits,
                    false => part
                        .limits
                        .iter()
                        .zip(limits)
                        .map(|(arg, reply)| without_charge(arg, reply))
                        .collect(),
                }
            }
        };
        for (at, reply) in part.limits_at.iter().zip(decided) {
            limits[*at] = Some(reply);
        }
    }
    let limits: Option<Vec<_>> = limits.into_iter().collect();
    let limits = limits.ok_or_else(|| RedisError::protocol("begin did not answer for every limit"))?;
    Ok(match granted {
        true => BeginReply::Granted { limits, session, counters, now_ms },
        false => BeginReply::Denied { limits },
    })
}

/// The decision of an allowing limit after its charge is undone.
fn without_charge(limit: &RateLimitCheck, reply: RateLimitDecision) -> RateLimitDecision {
    if !reply.allowed || limit.cost == 0 {
        return reply;
    }
    match limit.parameters {
        LimitParameters::Rate { interval_us, tolerance_us } => {
            let reset_us = reply.reset_us.saturating_sub(interval_us.saturating_mul(limit.cost));
            let left = tolerance_us.saturating_sub(reset_us);
            RateLimitDecision { remaining: left / interval_us.max(1), reset_us, ..reply }
        }
        LimitParameters::Concurrency { max, .. } => {
            let remaining = max.min(reply.remaining + limit.cost);
            RateLimitDecision {
                remaining,
                reset_us: if remaining == max { 0 } else { reply.reset_us },
                ..reply
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::query::SessionAccess;

    fn limit(key: &str, cost: u64) -> RateLimitCheck {
        let kind = LimitParameters::Rate { interval_us: 10, tolerance_us: 100 };
        RateLimitCheck { key: key.into(), parameters: kind, shadow: false, cost }
    }

    fn allowed(remaining: u64, reset_us: u64) -> RateLimitDecision {
        RateLimitDecision { allowed: true, remaining, retry_after_us: None, reset_us }
    }

    fn session() -> SessionQuery {
        SessionQuery {
            key: "p:s:d".into(),
            generation: Some("p:g:u".into()),
            access: SessionAccess::CountView,
            provisional: None,
            idle_ms: 1,
            absolute_ms: 1,
        }
    }

    #[test]
    fn parts_of_one_slot_are_one_call() {
        let session = session();
        let limits = [limit("p:l:a:v:x", 1), limit("p:l:b:v:y", 1)];
        let counters = [
            CounterIncrement { key: "p:c:one".into(), by: 1 },
            CounterIncrement { key: "p:c:two".into(), by: 2 },
        ];
        let request =
            BeginRequest { limits: &limits, session: Some(&session), counters: &counters, token: "" };
        let parts = split_by_hash_slot("p", &request);
        assert_eq!(parts.len(), 4);
        assert!(parts[0].session.is_some() && parts[0].limits.is_empty());
        assert_eq!(parts[1].counters_at, [0, 1]);
        assert_eq!((&parts[2].limits_at, &parts[3].limits_at), (&vec![0], &vec![1]));
        let slot = |key: &str| hash_slots::hash_slot(&keys::cluster_name("p", key).unwrap());
        assert_eq!(slot("p:s:d"), slot("p:g:u"), "begin names both in one call");
    }

    #[test]
    fn only_changes_are_compensated() {
        let session = session();
        let part = ShardPart {
            limits: vec![limit("a", 1), limit("b", 0), limit("c", 1)],
            session: Some(session),
            counters: vec![CounterIncrement { key: "c".into(), by: 0 }],
            ..ShardPart::default()
        };
        let refused = RateLimitDecision { allowed: false, ..allowed(0, 0) };
        let limits = vec![allowed(1, 1), allowed(1, 1), refused];
        let session = SessionLookup::Gone;
        let gone = BeginReply::Granted { limits: limits.clone(), session, counters: vec![1], now_ms: 7 };
        let undone = part.compensation(&gone).unwrap();
        assert_eq!(undone.limits, [limit("a", 1)]);
        assert!(undone.session.is_none() && undone.counters.is_empty());
        assert!(part.compensation(&BeginReply::Denied { limits }).is_none());
    }

    #[test]
    fn of_limits_with_one_key_the_last_charge_is_compensated() {
        let limits = vec![limit("a", 3), limit("b", 1), limit("a", 2), limit("a", 0)];
        let replies = vec![allowed(1, 1); limits.len()];
        let part = ShardPart { limits, ..ShardPart::default() };
        let granted = BeginReply::Granted {
            limits: replies,
            session: SessionLookup::NotRequested,
            counters: vec![],
            now_ms: 7,
        };
        assert_eq!(part.compensation(&granted).unwrap().limits, [limit("b", 1), limit("a", 2)]);
    }

    #[test]
    fn a_denied_reply_reports_limits_without_the_charge() {
        let limits = [limit("p:l:a:v:x", 1), limit("p:l:b:v:y", 1)];
        let request = BeginRequest { limits: &limits, ..BeginRequest::default() };
        let parts = split_by_hash_slot("p", &request);
        let refused =
            RateLimitDecision { allowed: false, remaining: 0, retry_after_us: Some(5), reset_us: 100 };
        let replies = vec![
            BeginReply::Granted {
                limits: vec![allowed(8, 20)],
                session: SessionLookup::NotRequested,
                counters: vec![],
                now_ms: 7,
            },
            BeginReply::Denied { limits: vec![refused] },
        ];
        let joined = merge_replies(&request, &parts, replies, false).unwrap();
        assert_eq!(joined, BeginReply::Denied { limits: vec![allowed(9, 10), refused] });
    }
}
