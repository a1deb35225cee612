//! A request's start in a cluster: what lies in each slot, all at once, and all or nothing in the end.
//!
//! Limits, session and counters lie on several nodes, which know nothing of each other. Each is asked at the same time,
//! together with what other requests of the turn want of that slot (`redis/gather/cluster.rs`), so that a request still
//! waits for one round trip; if one denies or fails, what the others granted is taken back, even if the caller leaves
//! meanwhile. While that is under way another request may see a charge, a view or a session that will be gone: it may be
//! refused too early, or go on with a session that is gone then, and is never allowed too much.

mod parts;

use std::future::Future;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;

use fred::types::Value;
use futures_util::future::join_all;
use tokio::runtime::Handle;

use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::begin::Reply;
use crate::redis::begin::Request;
use crate::redis::error::Error;
use crate::redis::gather::cluster::Pending;
use crate::redis::guard::Again;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::link::Live;
use parts::Part;

/// News that quota of a rate limit was given back.
const GIVEN_BACK: char = 'l';
/// How long it is known that something was taken back, ms: longer than a call is sent again, which is `redis.patience` and
/// a minute at most.
const MARK_MS: i64 = 65_000;

/// Decides and does everything a request needs at its start.
///
/// # Errors
/// The first failure of any part; what the others granted is taken back as far as their nodes can be reached.
pub(super) async fn begin(redis: &Redis, request: &Request<'_>) -> Result<Reply, Error> {
    let parts = parts::of(&redis.inner.prefix, request);
    if parts.is_empty() {
        return nothing(redis, request).await;
    }
    let _place = redis.inner.place()?;
    redis.inner.expected().await?;
    let (parts, replies) = Started::put(redis, parts, request.token).await;
    let granted = all_granted(&replies);
    if !granted {
        undo(redis, &parts, &replies, request.token).await;
    }
    parts::join(request, &parts, parts::heard(&parts, replies)?, granted)
}

/// A request that names no key goes to any node, which tells the time.
async fn nothing(redis: &Redis, request: &Request<'_>) -> Result<Reply, Error> {
    let encode = |entry| begin::encode(request, entry);
    let call = |live: Live, _| async move { redis.execute(&live, Entry::Begin, encode).await };
    begin::decode(request, redis.guard_counted(Kind::Begin, Again::Never, call).await?)
}

fn all_granted(replies: &[Result<Reply, Error>]) -> bool {
    replies.iter().all(|reply| matches!(reply, Ok(Reply::Granted { .. })))
}

/// A request's parts, which are under way together. Dropped before all are answered they leave if none was sent, and are
/// brought to their end by a task of their own if one may have been: it would stay granted while another is denied.
struct Started {
    redis: Redis,
    parts: Vec<Part>,
    pending: Vec<Pending>,
    token: String,
    /// Whether that task has them already.
    left: bool,
}

impl Started {
    fn put(redis: &Redis, parts: Vec<Part>, token: &str) -> Self {
        let pending = redis.inner.parts.put(parts.iter().map(|part| (part.slot, part.request(token))));
        Self { redis: redis.clone(), parts, pending, token: token.to_owned(), left: false }
    }

    fn take(&mut self) -> Self {
        Self {
            redis: self.redis.clone(),
            parts: std::mem::take(&mut self.parts),
            pending: std::mem::take(&mut self.pending),
            token: std::mem::take(&mut self.token),
            left: true,
        }
    }
}

impl Future for Started {
    type Output = (Vec<Part>, Vec<Result<Reply, Error>>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { redis, pending, parts, .. } = &mut *self;
        if !redis.inner.parts.poll(pending, cx) {
            return Poll::Pending;
        }
        let answer = |pending| match pending {
            Pending::Answered(answer) => answer,
            Pending::Waits(_) => Err(Error::protocol("a part has no answer")),
        };
        Poll::Ready((std::mem::take(parts), std::mem::take(pending).into_iter().map(answer).collect()))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if self.pending.is_empty() || self.redis.inner.parts.withdraw(&self.pending) {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) if !self.left => drop(runtime.spawn(finish(self.take()))),
            // The runtime ends: what is under way is as unknown as it is to any other caller then.
            _ => self.redis.inner.parts.abandon(&self.pending),
        }
    }
}

/// Brings a request to its end whose caller has gone: it keeps no place in a limit on concurrency, and what of it was
/// granted is taken back if the rest was not.
async fn finish(started: Started) {
    let (redis, token) = (started.redis.clone(), started.token.clone());
    // It counts among the calls as it did while its caller waited; it is sent already, so it is not refused now.
    let _place = redis.inner.place();
    let (parts, replies) = started.await;
    if !all_granted(&replies) {
        undo(&redis, &parts, &replies, &token).await;
        return;
    }
    let limits = parts.iter().flat_map(|part| &part.limits);
    for limit in limits.filter(|limit| limit.is_place()) {
        redis.let_go(&plain_name(&redis, &limit.key), &token).await;
    }
}

/// Takes back what was granted, in a task of its own: to its end, also if the caller leaves meanwhile.
async fn undo(redis: &Redis, parts: &[Part], replies: &[Result<Reply, Error>], token: &str) {
    let undone = parts.iter().zip(replies).filter_map(|(part, reply)| part.undo(reply.as_ref().ok()?));
    let undone: Vec<Part> = undone.collect();
    if undone.is_empty() {
        return;
    }
    let (redis, token) = (redis.clone(), token.to_owned());
    let undoing = tokio::spawn(async move {
        join_all(undone.iter().map(|part| take_back(&redis, part, &token))).await;
    });
    if let Err(error) = undoing.await {
        tracing::error!(cause = %error, "what a request was granted before it was refused may stay: {error}");
    }
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

async fn take_back(redis: &Redis, part: &Part, token: &str) {
    let request = part.request(token);
    let mark = part.mark(&redis.inner.numbers.name());
    if let Err(error) = redis.run(Entry::Undo, |entry| encode(&request, &mark, entry)).await {
        tracing::warn!(cause = %error, "what a request was granted before it was refused stays: {error}");
    }
    // Requests that were denied meanwhile on account of it may be made again.
    part.limits.iter().for_each(|limit| redis.tell(GIVEN_BACK, &plain_name(redis, &limit.key)));
}

/// A limit's name as the rest of the program has it.
fn plain_name(redis: &Redis, name: &str) -> String {
    keys::out_of_cluster(&redis.inner.prefix, name).unwrap_or_else(|| name.to_owned())
}
