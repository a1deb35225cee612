//! Counters that do not travel with a request's first call: batched, bounded and unique ones.
//!
//! Plain data and its wire form, described at the head of `migrations/0005_regatta_counter_v1.lua`.

use fred::types::Value;

use crate::redis::RedisClient;
use crate::redis::error::RedisError;
use crate::redis::functions::ServerFunction;

/// How long Redis remembers the numbers of a fleet's batches after the last one, ms: no outage is longer.
const LEDGER_TTL_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// How long the token of a taking or giving back is remembered, ms.
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
    /// What is to be added, by key.
    pub sums: &'a [(String, i64)],
}

/// The answer to a [`Flush`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushOutcome {
    /// It was added now; false if an earlier sending had been executed.
    pub applied_now: bool,
    /// The counters' values, in the batch's order; none for one that cannot be added to.
    pub values: Vec<Option<i64>>,
}

/// A taking from, or giving back to, a bounded counter.
#[derive(Debug, Clone, Copy)]
pub struct BoundedChange<'a> {
    /// Key of the counter.
    pub key: &'a str,
    /// Key of the token under which it is done at most once, if it has one.
    pub token: Option<&'a str>,
    /// How much, from 1 to 2^53.
    pub count: u64,
}

/// What became of a [`Share`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoundedOutcome {
    /// Done; how much is taken now.
    Applied(u64),
    /// Done before with the same token; how much is taken now.
    AlreadyApplied(u64),
    /// There is not so much left; how much is taken.
    Rejected(u64),
}

/// A look at a unique counter, or something to be counted there.
#[derive(Debug, Clone, Copy)]
pub struct InsertItems<'a> {
    /// One key, or those of three windows in a row.
    pub keys: &'a [String],
    /// Length of a window in ms and number of the middle one; none: there are no windows.
    pub window: Option<(u64, u64)>,
    /// What was seen; empty only looks.
    pub items: &'a [&'a [u8]],
}

/// The answer to a [`See`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InsertOutcome {
    /// Counted.
    Counted {
        /// Whether anything was new, as far as the counter can tell.
        new: bool,
        /// How much was seen, ± 0.81 % (standard error).
        count: u64,
    },
    /// Nothing was done: by Redis's clock it is this window.
    WindowMoved(u64),
}

impl RedisClient {
    /// Adds a batch, once however often it is sent.
    ///
    /// # Errors
    /// See [`Error`]; after any of them the same batch is to be sent again.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was added; the same batch is to be sent again.
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

    /// A counter's value, and for each of these journals the number of its last batch that is part of it.
    ///
    /// # Errors
    /// See [`Error`].
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

    /// Takes from what there is `max` of, all or nothing.
    ///
    /// # Errors
    /// See [`Error`]; after [`Error::Timeout`] it may have been taken, and a repetition with the same token is safe.
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

    /// Gives back, and never more than is taken.
    ///
    /// # Errors
    /// As [`Redis::take`].
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

    /// Counts what is different. Repeating it changes nothing.
    ///
    /// # Errors
    /// See [`Error`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether it was counted; a repetition is safe.
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

/// The beginning of a call: the entry's name, the number of keys, the keys.
pub(super) fn with_keys<'a>(entry: Value, keys: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
    let mut args = vec![entry, Value::Integer(0)];
    args.extend(keys.into_iter().map(Value::from));
    args[1] = Value::Integer(i64::try_from(args.len() - 2).unwrap_or(i64::MAX));
    args
}

pub(super) fn number(value: u64) -> Value {
    Value::Integer(i64::try_from(value).unwrap_or(i64::MAX))
}

/// A reply of at least `least` parts.
pub(super) fn list(reply: Value, least: usize) -> Result<impl Iterator<Item = Value>, RedisError> {
    match reply {
        Value::Array(parts) if parts.len() >= least => Ok(parts.into_iter()),
        _ => Err(RedisError::protocol("a function did not answer with the list it has")),
    }
}

pub(super) fn signed(part: Option<Value>) -> Result<i64, RedisError> {
    let number = part.and_then(|part| part.as_i64());
    number.ok_or_else(|| RedisError::protocol("a number is missing in the reply"))
}

fn unsigned(part: Option<Value>) -> Result<u64, RedisError> {
    Ok(u64::try_from(signed(part)?).unwrap_or(0))
}
