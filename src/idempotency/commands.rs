//! Requests that must be executed once: which attempt executes them, and the stored response.
//!
//! The wire form is described at the head of `migrations/0005_regatta_counter_v1.lua`; a claim is in
//! `0011_regatta_counter_v2.lua`, the names of a record in `0016_regatta_once_v1.lua`.

use std::time::Duration;

use bytes::Bytes;

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, list, number, signed, with_keys};
use crate::redis::{RedisClient, RedisError};

/// The names under which a request's record is found.
#[derive(Debug, Clone, Copy)]
pub struct IdempotencyNames<'a> {
    /// Keys of the names: the request's own, then those under which it may have been sent before.
    pub keys: &'a [String],
    /// How many of them are its own, at least 1.
    pub own_count: usize,
    /// Digest of the request.
    pub fingerprint: &'a str,
    /// Key of a new record, used if none is found.
    pub record: &'a str,
    /// How long the names are kept, at least 1 ms.
    pub lifetime: Duration,
}

/// An attempt to execute a request.
#[derive(Debug, Clone, Copy)]
pub struct ClaimRequest<'a> {
    /// Key of the request's record.
    pub key: &'a str,
    /// Digest of the request: another request with the same key is refused.
    pub fingerprint: &'a str,
    /// The attempt, unique.
    pub owner: &'a str,
    /// How long other attempts are kept out without a renewal, at least 1 ms.
    pub lease: Duration,
    /// How long the record is kept, at least 1 ms.
    pub lifetime: Duration,
}

/// The reply to a [`ClaimRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimOutcome {
    /// This attempt may execute it.
    Granted,
    /// Another attempt executes it, and may for this long without a renewal.
    InProgress(Duration),
    /// The key belongs to another request.
    KeyReused,
    /// It was executed.
    Completed(StoredResponse),
}

/// A stored response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredResponse {
    /// HTTP status; 0 if the response was not stored.
    pub status: u16,
    /// Its headers, in the caller's encoding.
    pub headers: Bytes,
    /// Its body.
    pub body: Bytes,
}

impl RedisClient {
    /// The key of a request's record, which from then on is found under the request's own names.
    ///
    /// # Errors
    /// See [`RedisError`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether the names are stored.
    pub async fn find_record(&self, names: &IdempotencyNames<'_>) -> Result<String, RedisError> {
        let answer = self
            .call(ServerFunction::IdempotencyFind, |entry| {
                let mut args = with_keys(entry, names.keys.iter().map(String::as_str));
                args.extend([number(names.own_count as u64), Value::from(names.fingerprint)]);
                args.extend([Value::from(names.record), ms(names.lifetime)]);
                args
            })
            .await?;
        answer.as_string().ok_or_else(|| RedisError::protocol("a record has no name"))
    }

    /// Claims a request that must be executed once.
    ///
    /// # Errors
    /// See [`RedisError`]; a repetition by the same owner is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was granted; the lease ends by itself.
    pub async fn claim(&self, claim: &ClaimRequest<'_>) -> Result<ClaimOutcome, RedisError> {
        let answer = self
            .call(ServerFunction::IdempotencyClaim, |entry| {
                let mut args = with_keys(entry, [claim.key]);
                args.extend([Value::from(claim.fingerprint), Value::from(claim.owner)]);
                args.extend([ms(claim.lease), ms(claim.lifetime)]);
                args
            })
            .await?;
        let mut parts = list(answer, 1)?;
        match signed(parts.next())? {
            1 => Ok(ClaimOutcome::Granted),
            2 => Ok(ClaimOutcome::InProgress(Duration::from_millis(
                u64::try_from(signed(parts.next())?).unwrap_or(0),
            ))),
            3 => Ok(ClaimOutcome::KeyReused),
            _ => {
                let status = u16::try_from(signed(parts.next())?).unwrap_or(0);
                let mut bytes = || parts.next().and_then(Value::into_bytes).unwrap_or_default();
                Ok(ClaimOutcome::Completed(StoredResponse { status, headers: bytes(), body: bytes() }))
            }
        }
    }

    /// Extends the lease; false if it was lost.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was extended.
    pub async fn renew_claim(&self, key: &str, owner: &str, lease: Duration) -> Result<bool, RedisError> {
        self.call_as_owner(ServerFunction::IdempotencyRenew, key, [Value::from(owner), ms(lease)].into())
            .await
    }

    /// Stores the response; false if the claim was lost.
    ///
    /// # Errors
    /// See [`RedisError`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was stored.
    pub async fn complete_claim(
        &self,
        key: &str,
        owner: &str,
        lifetime: Duration,
        kept: &StoredResponse,
    ) -> Result<bool, RedisError> {
        let bytes = |bytes: &Bytes| Value::Bytes(bytes.clone());
        let kept = [number(u64::from(kept.status)), bytes(&kept.headers), bytes(&kept.body)];
        let args = [Value::from(owner), ms(lifetime)].into_iter().chain(kept).collect();
        self.call_as_owner(ServerFunction::IdempotencyComplete, key, args).await
    }

    /// Gives up the claim, so that the request can be executed again; false if it was lost.
    ///
    /// # Errors
    /// See [`RedisError`]; the lease ends by itself.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given up.
    pub async fn abandon_claim(&self, key: &str, owner: &str) -> Result<bool, RedisError> {
        self.call_as_owner(ServerFunction::IdempotencyAbandon, key, vec![Value::from(owner)]).await
    }

    async fn call_as_owner(
        &self,
        entry: ServerFunction,
        key: &str,
        args: Vec<Value>,
    ) -> Result<bool, RedisError> {
        let answer = self
            .call(entry, |entry| {
                let mut call = with_keys(entry, [key]);
                call.extend_from_slice(&args);
                call
            })
            .await?;
        Ok(signed(Some(answer))? == 1)
    }
}

fn ms(time: Duration) -> Value {
    number(u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1))
}
