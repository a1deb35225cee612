//! How many sessions were seen lately: one HyperLogLog a minute, on plain commands, so that every server has it.

use fred::types::Value;

use crate::redis::Redis;
use crate::redis::error::Error;
use crate::redis::guard::Again;
use crate::redis::keys;
use crate::redis::lanes::Kind;

impl Redis {
    /// Notes sessions by a hash of theirs in the slice of this minute, which is kept for as many slices as are counted.
    ///
    /// # Errors
    /// See [`Error`]; a repetition is safe.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown whether they were noted.
    pub async fn see_sessions(&self, minute: u64, slices: u64, hashes: &[u64]) -> Result<(), Error> {
        let key = keys::sessions_seen(&self.inner.prefix, minute);
        let items = hashes.iter().map(|hash| Value::Bytes(hash.to_le_bytes().to_vec().into()));
        let added: Vec<Value> = std::iter::once(Value::from(key.as_str())).chain(items).collect();
        let kept_s = (slices + 1) * 60;
        let expiry = vec![Value::from(key.as_str()), Value::from(kept_s.to_string())];
        // Noted twice is noted once.
        self.guard_counted(Kind::Commit, Again::Always, |live, _| {
            let both = vec![("PFADD", added.clone()), ("EXPIRE", expiry.clone())];
            async move {
                let answers = live.caller.together(both).await?;
                answers.into_iter().try_for_each(|answer| answer.map(|_| ()))
            }
        })
        .await
    }

    /// How many there were in this minute and the slices before it, ± 0.81 % (standard error).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sessions_seen(&self, minute: u64, slices: u64) -> Result<u64, Error> {
        let first = minute.saturating_sub(slices.saturating_sub(1));
        let keys =
            (first..=minute).map(|minute| Value::from(keys::sessions_seen(&self.inner.prefix, minute)));
        let keys: Vec<Value> = keys.collect();
        self.guard_as(Kind::Read, |live| {
            let keys = keys.clone();
            async move {
                let count = live.caller.send("PFCOUNT", keys).await?;
                count.as_u64().ok_or_else(|| Error::protocol("PFCOUNT did not answer with a number"))
            }
        })
        .await
    }
}
