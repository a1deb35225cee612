//! A request's begin in a cluster: its parts are sent at the same time, one for each hash slot, and the result is all
//! or nothing.
//!
//! Limits, session and counters are on several nodes, which do not know each other. The parts of a request are joined
//! with those of other requests of the turn (`request_state/batching/cluster_queue.rs`), so a request waits for one round trip. If
//! one part is denied or fails, the granted parts are compensated, even if the caller leaves meanwhile. During that
//! time another request may see a charge, a view or a session that is about to be undone: it may be denied too early,
//! or use a session that ends, but is never allowed too much.

mod shard_part;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::join_all;
use shard_part::ShardPart;
use tokio::runtime::Handle;

use crate::limiter::commands::LIMIT_REPLENISHED;
use crate::redis::functions::ServerFunction;
use crate::redis::wire::Value;
use crate::redis::{ActiveConnection, CallKind, RedisError, RepeatPolicy, keys};
use crate::request_state::batching::PendingPart;
use crate::request_state::begin;
use crate::request_state::begin::{BeginReply, BeginRequest};
use crate::request_state::state_client::StateClient;

/// How long a compensation is remembered, ms: longer than a call is repeated, which is `redis.patience` and one minute
/// at most.
const COMPENSATION_MARK_MS: i64 = 65_000;

/// Decides and does everything a request needs at its start.
///
/// # Errors
/// The first failure of any part; the granted parts are compensated as far as their nodes can be reached.
pub(in crate::request_state) async fn begin(
    redis: &StateClient,
    request: &BeginRequest<'_>,
) -> Result<BeginReply, RedisError> {
    let parts = shard_part::split_by_hash_slot(redis.prefix(), request);
    if parts.is_empty() {
        return begin_without_keys(redis, request).await;
    }
    let _permit = redis.acquire_call_permit()?;
    redis.wait_while_held().await?;
    let (parts, replies) = PendingBegin::enqueue(redis, parts, request.token).await;
    let granted = all_granted(&replies);
    if !granted {
        compensate_granted(redis, &parts, &replies, request.token).await;
    }
    shard_part::merge_replies(request, &parts, shard_part::resolve_replies(&parts, replies)?, granted)
}

/// A request without keys goes to any node, which reports the time.
async fn begin_without_keys(
    redis: &StateClient,
    request: &BeginRequest<'_>,
) -> Result<BeginReply, RedisError> {
    let encode = |entry| begin::encode(request, entry);
    let call = |active: ActiveConnection, _| async move {
        redis.invoke(&active, ServerFunction::Begin, encode).await
    };
    begin::decode(request, redis.send_with_policy(CallKind::Begin, RepeatPolicy::Never, call).await?)
}

fn all_granted(replies: &[Result<BeginReply, RedisError>]) -> bool {
    replies.iter().all(|reply| matches!(reply, Ok(BeginReply::Granted { .. })))
}

/// The parts of a request that are under way together. Dropped before all are answered, they are withdrawn if none was
/// sent; if one may have been, a task of its own completes them, because a granted part would stay while another is
/// denied.
struct PendingBegin {
    redis: StateClient,
    parts: Vec<ShardPart>,
    pending: Vec<PendingPart>,
    token: String,
    /// Whether that task has taken over.
    detached: bool,
}

impl PendingBegin {
    fn enqueue(redis: &StateClient, parts: Vec<ShardPart>, token: &str) -> Self {
        let pending =
            redis.batches.cluster_begins.enqueue(parts.iter().map(|part| (part.slot, part.request(token))));
        Self { redis: redis.clone(), parts, pending, token: token.to_owned(), detached: false }
    }

    fn detach(&mut self) -> Self {
        Self {
            redis: self.redis.clone(),
            parts: std::mem::take(&mut self.parts),
            pending: std::mem::take(&mut self.pending),
            token: std::mem::take(&mut self.token),
            detached: true,
        }
    }
}

impl Future for PendingBegin {
    type Output = (Vec<ShardPart>, Vec<Result<BeginReply, RedisError>>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { redis, pending, parts, .. } = &mut *self;
        if !redis.batches.cluster_begins.poll(pending, cx) {
            return Poll::Pending;
        }
        let answer = |pending| match pending {
            PendingPart::Answered(answer) => answer,
            PendingPart::Waiting(_) => Err(RedisError::protocol("a part has no answer")),
        };
        Poll::Ready((std::mem::take(parts), std::mem::take(pending).into_iter().map(answer).collect()))
    }
}

impl Drop for PendingBegin {
    fn drop(&mut self) {
        if self.pending.is_empty() || self.redis.batches.cluster_begins.withdraw(&self.pending) {
            return;
        }
        match Handle::try_current() {
            Ok(runtime) if !self.detached => drop(runtime.spawn(finish(self.detach()))),
            // The runtime is shutting down: the outcome is unknown, as for any other call then.
            _ => self.redis.batches.cluster_begins.abandon(&self.pending),
        }
    }
}

/// Completes a request whose caller has left: it keeps no permit of a concurrency limit, and its granted parts are
/// compensated if the rest was not granted.
async fn finish(started: PendingBegin) {
    let (redis, token) = (started.redis.clone(), started.token.clone());
    // It counts among the calls as it did before. It is sent already, so a refused permit does not matter.
    let _permit = redis.acquire_call_permit();
    let (parts, replies) = started.await;
    if !all_granted(&replies) {
        compensate_granted(&redis, &parts, &replies, &token).await;
        return;
    }
    let limits = parts.iter().flat_map(|part| &part.limits);
    for limit in limits.filter(|limit| limit.needs_permit()) {
        redis.release_permit_or_log(&plain_name(&redis, &limit.key), &token).await;
    }
}

/// Compensates granted parts in a task of its own, which continues if the caller leaves.
async fn compensate_granted(
    redis: &StateClient,
    parts: &[ShardPart],
    replies: &[Result<BeginReply, RedisError>],
    token: &str,
) {
    let undone =
        parts.iter().zip(replies).filter_map(|(part, reply)| part.compensation(reply.as_ref().ok()?));
    let undone: Vec<ShardPart> = undone.collect();
    if undone.is_empty() {
        return;
    }
    let (redis, token) = (redis.clone(), token.to_owned());
    let undoing = tokio::spawn(async move {
        join_all(undone.iter().map(|part| compensate(&redis, part, &token))).await;
    });
    if let Err(error) = undoing.await {
        tracing::error!(cause = %error, "what a request was granted before it was refused may stay: {error}");
    }
}

/// The arguments of the call that is undone, and the mark that prevents undoing it twice.
fn encode_compensation(request: &BeginRequest<'_>, mark: &str, entry: Value) -> Vec<Value> {
    let mut args = begin::encode(request, entry);
    let keys = args.get(1).and_then(Value::as_u64).and_then(|keys| usize::try_from(keys).ok()).unwrap_or(0);
    if let Some(count) = args.get_mut(1) {
        *count = Value::Integer(i64::try_from(keys + 1).unwrap_or(i64::MAX));
    }
    args.insert(2 + keys, Value::from(mark));
    args.push(Value::Integer(COMPENSATION_MARK_MS));
    args
}

async fn compensate(redis: &StateClient, part: &ShardPart, token: &str) {
    let request = part.request(token);
    let mark = part.mark_key(&redis.batches.call_numbers.unique_name());
    if let Err(error) = redis
        .call(ServerFunction::RequestCompensate, |entry| encode_compensation(&request, &mark, entry))
        .await
    {
        tracing::warn!(cause = %error, "what a request was granted before it was refused stays: {error}");
    }
    // Requests that were denied because of it may be retried.
    part.limits
        .iter()
        .for_each(|limit| redis.publish_notification(LIMIT_REPLENISHED, &plain_name(redis, &limit.key)));
}

/// A limit's key as it is outside a cluster.
fn plain_name(redis: &StateClient, name: &str) -> String {
    keys::plain_name(redis.prefix(), name).unwrap_or_else(|| name.to_owned())
}
