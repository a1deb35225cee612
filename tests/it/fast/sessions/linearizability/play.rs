//! Steps on the real thing: names, keys, and answers in the model's words.

use std::collections::BTreeMap;

use bytes::Bytes;
use regatta::__internals::counters::commands::CounterIncrement;
use regatta::__internals::limiter::commands::{LimitParameters, RateLimitCheck, RateLimitDecision};
use regatta::__internals::redis::RedisError;
use regatta::__internals::request_state::begin;
use regatta::__internals::sessions::commit;
use regatta::__internals::sessions::query::{SessionAccess, SessionLookup, SessionQuery};

use crate::fast::sessions::linearizability::model::{AT_ONCE, Answer, BURST, FIELDS, Index, Seen, Step, Use};
use crate::support::redis::new_session;
use regatta::__internals::request_state::StateClient;

/// So long that nothing comes back, ends or is touched during a test.
const HOUR_US: u64 = 3_600_000_000;
const DAY_MS: u64 = 86_400_000;

/// Names of fields, chosen for what could go wrong: those with underscores are stored with one more.
const NAMES: [(&str, usize); 5] = [("a", 1), ("_x", 3), ("_", 2), ("nn", 2), ("c", 1)];

/// How many names of fields there are.
pub(crate) const NAME_COUNT: Index = 5;

/// Bytes of a field's name as stored.
pub(crate) fn stored_length(name: Index) -> usize {
    NAMES[usize::from(name)].1
}

fn field(name: Index) -> String {
    NAMES[usize::from(name)].0.to_owned()
}

fn index(name: &str) -> Index {
    let at = NAMES.iter().position(|(known, _)| *known == name);
    Index::try_from(at.unwrap_or_else(|| panic!("a field {name:?} that nobody set"))).unwrap()
}

/// Does one step among the keys of one space.
pub(crate) async fn play(redis: &StateClient, space: &str, step: &Step) -> Answer {
    match step {
        Step::Begin { session, rates, leases, counters, token } => {
            let rate = |(limit, cost, shadow): &(Index, u64, bool)| RateLimitCheck {
                key: format!("{space}:l:{limit}"),
                parameters: LimitParameters::Rate { interval_us: HOUR_US, tolerance_us: HOUR_US * BURST },
                shadow: *shadow,
                cost: *cost,
            };
            let lease = |(limit, shadow): &(Index, bool)| RateLimitCheck {
                key: format!("{space}:b:{limit}"),
                parameters: LimitParameters::Concurrency { lease_us: HOUR_US, max: AT_ONCE },
                shadow: *shadow,
                cost: 1,
            };
            let limits: Vec<_> = rates.iter().map(rate).chain(leases.iter().map(lease)).collect();
            let session = session.map(|how| session_arg(space, how));
            let counter = |(counter, by): &(Index, i64)| CounterIncrement {
                key: format!("{space}:c:{counter}"),
                by: *by,
            };
            let counters: Vec<_> = counters.iter().map(counter).collect();
            let token = token.to_string();
            let session = session.as_ref();
            let request =
                begin::BeginRequest { limits: &limits, session, counters: &counters, token: &token };
            begun(redis.begin(&request).await)
        }
        Step::Commit { key, create, expect, set, add, remove, max_bytes } => {
            let value = |text: &String| Bytes::from(text.clone());
            let expect: Vec<_> =
                expect.iter().map(|(name, wanted)| (field(*name), wanted.as_ref().map(value))).collect();
            let set: Vec<_> = set.iter().map(|(name, text)| (field(*name), value(text))).collect();
            let add: Vec<_> = add.iter().map(|(name, by)| (field(*name), *by)).collect();
            let remove: Vec<_> = remove.iter().map(|name| field(*name)).collect();
            let made =
                commit::NewSession { created_ms: None, views: 0, idle_ms: DAY_MS, absolute_ms: DAY_MS };
            let request = commit::CommitSession {
                key: &format!("{space}:s:{key}"),
                create: create.then_some(made),
                expect: &expect,
                set: &set,
                add: &add,
                remove: &remove,
                max_fields: FIELDS as u64,
                max_bytes: *max_bytes,
            };
            committed(redis.commit(&request).await)
        }
        Step::Delete(key) => {
            redis.delete(&format!("{space}:s:{key}")).await.unwrap();
            Answer::Done
        }
        Step::Revoke => {
            redis.increment(&format!("{space}:g"), 1).await.unwrap();
            Answer::Done
        }
    }
}

fn session_arg(space: &str, how: Use) -> SessionQuery {
    SessionQuery {
        key: format!("{space}:s:{}", how.key),
        generation: how.user.then(|| format!("{space}:g")),
        access: if how.visit { SessionAccess::CountView } else { SessionAccess::Read },
        provisional: how.create.then(new_session),
        idle_ms: DAY_MS,
        absolute_ms: DAY_MS,
    }
}

fn begun(reply: Result<begin::BeginReply, RedisError>) -> Answer {
    let told = |limits: Vec<RateLimitDecision>| {
        limits.iter().map(|limit| (limit.allowed, limit.remaining)).collect()
    };
    match reply {
        Ok(begin::BeginReply::Denied { limits }) => Answer::Denied(told(limits)),
        Ok(begin::BeginReply::Granted { limits, session, counters, .. }) => {
            Answer::Granted { limits: told(limits), session: seen(session), counters }
        }
        Err(RedisError::Overflow) => Answer::Overflow,
        Err(error) => panic!("{error}"),
    }
}

fn seen(session: SessionLookup) -> Seen {
    match session {
        SessionLookup::NotRequested => Seen::None,
        SessionLookup::Gone => Seen::Gone,
        SessionLookup::Revoked => Seen::Revoked,
        SessionLookup::Found { views, fields, .. } => {
            let text = |value: Bytes| String::from_utf8(value.to_vec()).unwrap();
            let fields: BTreeMap<_, _> =
                fields.into_iter().map(|(name, value)| (index(&name), text(value))).collect();
            Seen::Live { views, fields }
        }
        other => panic!("nobody rotates or damages sessions here: {other:?}"),
    }
}

fn committed(reply: Result<commit::CommitOutcome, RedisError>) -> Answer {
    match reply.unwrap() {
        commit::CommitOutcome::Committed { sums } => Answer::Committed(sums),
        commit::CommitOutcome::Gone => Answer::Gone,
        commit::CommitOutcome::Exists => Answer::Exists,
        commit::CommitOutcome::TooLarge => Answer::Full,
        commit::CommitOutcome::Conflict => Answer::Conflict,
        commit::CommitOutcome::NotANumber => Answer::NoSum,
        other => panic!("nobody rotates sessions here: {other:?}"),
    }
}
