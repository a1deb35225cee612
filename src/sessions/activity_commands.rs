//! How many sessions were active recently: one HyperLogLog for each minute, by plain commands, which every server has.

use crate::redis::wire::Value;
use crate::redis::{CallKind, RedisClient, RedisError, RepeatPolicy};
use crate::sessions::keys;

impl RedisClient {
    /// Records sessions by a hash in the slice of this minute, which is kept for as many slices as are counted.
    ///
    /// # Errors
    /// See [`RedisError`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether they were recorded.
    pub async fn record_active_sessions(
        &self,
        minute: u64,
        slices: u64,
        hashes: &[u64],
    ) -> Result<(), RedisError> {
        let key = keys::active_sessions(self.prefix(), minute);
        let items = hashes.iter().map(|hash| Value::Bytes(hash.to_le_bytes().to_vec().into()));
        let added: Vec<Value> = std::iter::once(Value::from(key.as_str())).chain(items).collect();
        let kept_s = (slices + 1) * 60;
        let expiry = vec![Value::from(key.as_str()), Value::from(kept_s.to_string())];
        // Adding the same hash twice changes nothing.
        self.send_with_policy(CallKind::Write, RepeatPolicy::Always, |active, _| {
            let both = vec![("PFADD", added.clone()), ("EXPIRE", expiry.clone())];
            async move {
                let answers = active.transport.pipeline(both).await?;
                answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
            }
        })
        .await
    }

    /// The number of sessions in this minute and the slices before it, ± 0.81 % (standard error).
    ///
    /// # Errors
    /// See [`RedisError`].
    pub async fn count_active_sessions(&self, minute: u64, slices: u64) -> Result<u64, RedisError> {
        let first = minute.saturating_sub(slices.saturating_sub(1));
        let keys = (first..=minute).map(|minute| Value::from(keys::active_sessions(self.prefix(), minute)));
        let keys: Vec<Value> = keys.collect();
        self.send(CallKind::Read, |active| {
            let keys = keys.clone();
            async move {
                let count = active.transport.send("PFCOUNT", keys).await?;
                count.as_u64().ok_or_else(|| RedisError::protocol("PFCOUNT did not answer with a number"))
            }
        })
        .await
    }
}
