//! Counters outside a request's begin: batched, bounded and distinct ones.
//!
//! The wire form is described at the head of `migrations/0005_regatta_counter_v1.lua`.

use crate::redis::functions::ServerFunction;
use crate::redis::wire::{Value, list, number, signed, unsigned, with_keys};
use crate::redis::{ActiveConnection, CallKind, RedisClient, RedisError};

/// How long Redis remembers the numbers of a fleet's batches after the last one, ms: longer than any outage.
const LEDGER_TTL_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// How long the token of a bounded change is remembered, ms.
const TOKEN_TTL_MS: i64 = 24 * 60 * 60 * 1000;

/// One journal's batch of additions.
#[derive(Debug, Clone, Copy)]
pub struct FlushBatch<'a> {
    /// Key of the fleet's ledger.
    pub ledger: &'a str,
    /// The journal's field there.
    pub journal: &'a str,
    /// The batch's number.
    pub seq: u64,
    /// The additions, by key.
    pub sums: &'a [(String, i64)],
}

/// The reply to a [`FlushBatch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushOutcome {
    /// Whether it was added now; false if an earlier sending was executed.
    pub applied_now: bool,
    /// The counters' values, in the batch's order; `None` for a value that is no number.
    pub values: Vec<Option<i64>>,
}

/// A change of a bounded counter: taking or giving back.
#[derive(Debug, Clone, Copy)]
pub struct BoundedChange<'a> {
    /// Key of the counter.
    pub key: &'a str,
    /// Key of the token that makes the change happen at most once, if it has one.
    pub token: Option<&'a str>,
    /// How much, from 1 to 2^53.
    pub count: u64,
}

/// The reply to a [`BoundedChange`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundedOutcome {
    /// Applied; how much is taken now.
    Applied(u64),
    /// Applied before with the same token; how much is taken now.
    AlreadyApplied(u64),
    /// There is not enough left; how much is taken.
    Rejected(u64),
}

/// Items to count in a distinct counter, or a read of it.
#[derive(Debug, Clone, Copy)]
pub struct InsertItems<'a> {
    /// One key, or those of three windows in a row.
    pub keys: &'a [String],
    /// Length of a window in ms and the number of the middle one; `None`: there are no windows.
    pub window: Option<(u64, u64)>,
    /// The items; empty only reads.
    pub items: &'a [&'a [u8]],
}

/// The reply to an [`InsertItems`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertOutcome {
    /// Counted.
    Counted {
        /// Whether any item was new, as far as the counter can tell.
        new: bool,
        /// The number of distinct items, ± 0.81 % (standard error).
        count: u64,
    },
    /// Nothing was counted: by Redis's clock this is the current window.
    WindowMoved(u64),
}

/// A counter and what to add to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterIncrement {
    /// Key of the number.
    pub key: String,
    /// What to add; 0 only reads.
    pub by: i64,
}

impl RedisClient {
    /// The number under this key; a missing number is 0.
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn read_counter(&self, key: &str) -> Result<i64, RedisError> {
        let call = |active: ActiveConnection| async move { active.transport.call("GET", [key]).await };
        decode_sum(&self.send(CallKind::Read, call).await?)
    }

    /// Adds to the number under this key without server-side code, which is not repeated, and returns the sum.
    ///
    /// # Errors
    /// [`RedisError::Overflow`] when the sum does not fit; see [`RedisError`].
    pub async fn increment_plain(&self, key: &str, by: i64) -> Result<i64, RedisError> {
        let args = vec![Value::from(key), Value::Integer(by)];
        let sum = self.send_once(CallKind::Begin, async |active| active.transport.send("INCRBY", args).await);
        decode_sum(&sum.await?)
    }

    /// Adds a batch, once however often it is sent.
    ///
    /// # Errors
    /// See [`RedisError`]; after any of them the same batch must be sent again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added; the same batch must be sent again.
    pub async fn flush_counters(&self, flush: &FlushBatch<'_>) -> Result<FlushOutcome, RedisError> {
        let keys = || std::iter::once(flush.ledger).chain(flush.sums.iter().map(|(key, _)| key.as_str()));
        let answer = self
            .call(ServerFunction::CounterFlush, |entry| {
                let mut args = with_keys(entry, keys());
                args.extend([Value::from(flush.journal), number(flush.seq), Value::Integer(LEDGER_TTL_MS)]);
                args.extend(flush.sums.iter().map(|(_, by)| Value::Integer(*by)));
                args
            })
            .await?;
        let mut parts = list(answer, flush.sums.len() + 1)?;
        let now = signed(parts.next())? == 1;
        let values = parts.map(|value| Ok(value.as_i64())).collect::<Result<_, RedisError>>()?;
        Ok(FlushOutcome { applied_now: now, values })
    }

    /// A counter's value, and for each of these journals the number of its last batch that is included.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Nothing is changed.
    pub async fn read_batched(
        &self,
        ledger: &str,
        key: &str,
        journals: &[String],
    ) -> Result<(i64, Vec<u64>), RedisError> {
        let answer = self
            .call(ServerFunction::CounterReadBatched, |entry| {
                let mut args = with_keys(entry, [ledger, key]);
                args.extend(journals.iter().map(|journal| Value::from(journal.as_str())));
                args
            })
            .await?;
        let mut parts = list(answer, journals.len() + 1)?;
        let value = signed(parts.next())?;
        let batches = parts.map(|part| unsigned(Some(part))).collect::<Result<_, _>>()?;
        Ok((value, batches))
    }

    /// Takes from a bounded counter with `max`, all or nothing.
    ///
    /// # Errors
    /// See [`RedisError`]; after [`RedisError::Timeout`] it may have been taken, and a repetition with the same token
    /// is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was taken.
    pub async fn take_bounded(
        &self,
        share: &BoundedChange<'_>,
        max: u64,
    ) -> Result<BoundedOutcome, RedisError> {
        self.change_bounded(
            ServerFunction::CounterTake,
            share,
            &[number(share.count), number(max), Value::Integer(TOKEN_TTL_MS)],
        )
        .await
    }

    /// Gives back, at most what is taken.
    ///
    /// # Errors
    /// As [`RedisClient::take_bounded`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was given back.
    pub async fn give_back_bounded(&self, share: &BoundedChange<'_>) -> Result<BoundedOutcome, RedisError> {
        self.change_bounded(
            ServerFunction::CounterGiveBack,
            share,
            &[number(share.count), Value::Integer(TOKEN_TTL_MS)],
        )
        .await
    }

    async fn change_bounded(
        &self,
        entry: ServerFunction,
        share: &BoundedChange<'_>,
        numbers: &[Value],
    ) -> Result<BoundedOutcome, RedisError> {
        let answer = self
            .call(entry, |entry| {
                let mut args = with_keys(entry, std::iter::once(share.key).chain(share.token));
                args.extend_from_slice(numbers);
                args
            })
            .await?;
        let mut parts = list(answer, 2)?;
        let (outcome, taken) = (signed(parts.next())?, unsigned(parts.next())?);
        Ok(match outcome {
            0 => BoundedOutcome::Rejected(taken),
            1 => BoundedOutcome::Applied(taken),
            _ => BoundedOutcome::AlreadyApplied(taken),
        })
    }

    /// Counts distinct items. Repeating it changes nothing.
    ///
    /// # Errors
    /// See [`RedisError`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether they were counted; a repetition is safe.
    pub async fn insert_distinct(&self, insert: &InsertItems<'_>) -> Result<InsertOutcome, RedisError> {
        let (length, middle) = insert.window.unwrap_or((0, 0));
        let answer = self
            .call(ServerFunction::CounterInsert, |entry| {
                let mut args = with_keys(entry, insert.keys.iter().map(String::as_str));
                args.extend([number(length), number(middle)]);
                args.extend(insert.items.iter().map(|item| Value::Bytes(item.to_vec().into())));
                args
            })
            .await?;
        let mut parts = list(answer, 2)?;
        let (new, count) = (signed(parts.next())?, unsigned(parts.next())?);
        Ok(if new < 0 {
            InsertOutcome::WindowMoved(count)
        } else {
            InsertOutcome::Counted { new: new == 1, count }
        })
    }
}

fn decode_sum(reply: &Value) -> Result<i64, RedisError> {
    match reply {
        Value::Null => Ok(0),
        other => other.as_i64().ok_or_else(|| RedisError::protocol("the counter holds no number")),
    }
}
