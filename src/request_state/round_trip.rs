//! The calls of every request: one round trip at its start, one for what it changed in its session.

use futures_util::future::BoxFuture;
use tokio::task::AbortHandle;

use crate::counters::commands::CounterIncrement;
use crate::counters::{CounterError, CounterName, keys};
use crate::redis::functions::ServerFunction;
use crate::redis::wire::MAX_EXACT_INTEGER;
use crate::redis::{ActiveConnection, CallKind, RedisError};
use crate::request_state::batching::MAX_SHARED_COMMIT_BYTES;
use crate::request_state::begin::{BeginReply, BeginRequest};
use crate::request_state::state_client::StateClient;
use crate::request_state::{batching, begin_cluster, begin_plain};
use crate::sessions::commit::{CommitOutcome, CommitSession};
use crate::sessions::{commit, plain};

impl StateClient {
    /// Connects and sends in the background, for as long as the runtime lives or until both tasks are aborted; to be
    /// called once.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self) -> [AbortHandle; 2] {
        let batches = tokio::spawn(batching::run(self.clone()));
        [batches.abort_handle(), self.redis().start()]
    }

    /// Does everything a request needs at its start, in one round trip.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::ConnectionLost`] it may have been done.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was done.
    pub async fn begin(&self, request: &BeginRequest<'_>) -> Result<BeginReply, RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Begin, async |transport| begin_plain::begin(transport, request).await)
                .await;
        }
        if self.is_cluster() {
            let split: BoxFuture<'_, _> = Box::pin(begin_cluster::begin(self, request));
            return split.await;
        }
        self.begin_batched(request).await
    }

    /// Stores what a request changed in its session, in one round trip, which other requests may share.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::ConnectionLost`] it may have been stored.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was stored.
    pub async fn commit(&self, request: &CommitSession<'_>) -> Result<CommitOutcome, RedisError> {
        if self.is_plain() {
            let work = async |transport: &_| plain::commit_session(transport, request).await;
            return self.call_plain(CallKind::Write, work).await;
        }
        let bytes = request.bytes();
        if bytes <= MAX_SHARED_COMMIT_BYTES && !self.is_cluster() {
            return self.commit_batched(request, bytes).await;
        }
        let alone = self.call(ServerFunction::Commit, |function| commit::encode(request, function));
        commit::decode(&Box::pin(alone).await?)
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn delete(&self, key: &str) -> Result<(), RedisError> {
        if self.is_plain() {
            return self
                .call_plain(CallKind::Delete, async |transport| plain::delete_session(transport, key).await)
                .await
                .map(|_| ());
        }
        // UNLINK frees large values outside the server's main thread.
        let call = |active: ActiveConnection| async move { active.transport.call("UNLINK", [key]).await };
        self.send(CallKind::Delete, call).await.map(|_| ())
    }

    /// Adds to the number under this key and returns the sum; 0 only reads, and a missing number is 0.
    ///
    /// # Errors
    /// [`RedisError::Overflow`] when the sum does not fit; see [`RedisError`].
    pub async fn increment(&self, key: &str, by: i64) -> Result<i64, RedisError> {
        match by {
            0 => self.read_counter(key).await,
            by if !self.is_plain() => self.increment_deduplicated(key, by).await,
            by => self.increment_plain(key, by).await,
        }
    }

    /// Adds to a counter outside a request's begin and returns the sum; 0 only reads.
    ///
    /// # Errors
    /// [`CounterError::Overflow`], or [`CounterError::Redis`]; after a timeout it is unknown whether it was added.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added.
    pub async fn add_to_counter(
        &self,
        prefix: &str,
        name: &CounterName,
        by: i64,
    ) -> Result<i64, CounterError> {
        Ok(self.increment(&keys::counter(prefix, name.as_str()), by).await?)
    }

    /// Adds in the way a request's start does, so that a repeated sending adds once.
    async fn increment_deduplicated(&self, key: &str, by: i64) -> Result<i64, RedisError> {
        let counters = [CounterIncrement { key: key.to_owned(), by }];
        let reply = self.begin(&BeginRequest { counters: &counters, ..Default::default() }).await?;
        match reply {
            // A larger sum is not exact in the reply and is read again.
            BeginReply::Granted { counters, .. } => match counters.first() {
                Some(sum) if sum.unsigned_abs() < MAX_EXACT_INTEGER => Ok(*sum),
                _ => Box::pin(self.read_counter(key)).await,
            },
            BeginReply::Denied { .. } => Err(RedisError::protocol("a counter was denied")),
        }
    }
}
