//! The lock for migrations, and its fence: a process that lost the lock writes nothing more.
//!
//! A holder that was suspended does not know that its lock expired and that another process took over. Therefore every
//! write to keys is a script that first compares the lock's token and the fencing number with the caller's, and renews
//! the lock. Loading a library cannot be part of a script; it follows such a check, and a late one does no harm,
//! because it never replaces anything and its text is always the same.

use std::pin::pin;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fred::types::Value;
use ring::rand::{SecureRandom, SystemRandom};

use crate::redis::error::RedisError;
use crate::redis::keys;
use crate::redis::migrations::ledger::{EntryState, LedgerEntry, WalkPosition};
use crate::redis::migrations::migration::Migration;
use crate::redis::transport::RedisTransport;

/// A lock that is not renewed for this long is lost, ms.
pub(super) const LOCK_MS: &str = "5000";
/// How often the lock is renewed during a step; a third of its lifetime, so that one lost renewal does no harm.
const RENEW_INTERVAL: Duration = Duration::from_millis(1600);

/// A script that works only for the holder: KEYS ledger, lock, fence; ARGV token, fencing number, lock ms. Replies 0
/// when the lock is lost.
macro_rules! fenced {
    ($work:expr) => {
        concat!(
            "if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end\n\
             redis.call('PEXPIRE', KEYS[2], ARGV[3])\n",
            $work
        )
    };
}
pub(super) use fenced;

/// Takes the lock and the next fencing number in the same step: between two steps the lock could be lost and the number
/// would stop its new holder. KEYS lock, fence. ARGV token, lock ms. Replies the number, or 0 if it is taken.
///
/// A lock with more than the full lifetime left was taken before the server's clock stepped back: its lifetime is
/// shortened, because otherwise a dead holder would keep workers from booting until the clock catches up.
const ACQUIRE_SCRIPT: &str = "if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return redis.call('INCR', KEYS[2]) end \
                    if redis.call('PTTL', KEYS[1]) > tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0";
/// Releases the lock, if it is still the caller's. KEYS lock. ARGV token.
const RELEASE_SCRIPT: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";
const RENEW_SCRIPT: &str = fenced!("return 1");
/// More ARGV: number, entry.
const RECORD_SCRIPT: &str = fenced!("redis.call('HSET', KEYS[1], ARGV[4], ARGV[5]) return 1");
/// More ARGV: number.
const REMOVE_SCRIPT: &str = fenced!("redis.call('HDEL', KEYS[1], ARGV[4]) return 1");

/// What the lock protects; each scope has its own, so that a new release can load its libraries while an older one
/// walks over a million keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LockScope {
    Libraries,
    Walks,
}

/// The lock, held.
pub(super) struct MigrationLock<'a> {
    pub(super) transport: &'a RedisTransport,
    worker: &'a str,
    ledger_key: String,
    lock_key: String,
    fence_key: String,
    token: String,
    fence: i64,
}

impl<'a> MigrationLock<'a> {
    /// Takes the lock; `None` if it is taken.
    pub(super) async fn acquire(
        transport: &'a RedisTransport,
        prefix: &str,
        by: &'a str,
        work: LockScope,
    ) -> Result<Option<Self>, RedisError> {
        let mut bytes = [0; 16];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| RedisError::unavailable("the operating system has no random bytes"))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let (lock, fence_key) = match work {
            LockScope::Libraries => (keys::migration_lock(prefix), keys::migration_fence(prefix)),
            LockScope::Walks => (keys::walk_lock(prefix), keys::walk_fence(prefix)),
        };
        let taken = transport.call("EVAL", [ACQUIRE_SCRIPT, "2", &lock, &fence_key, &token, LOCK_MS]).await?;
        match taken.as_i64() {
            None => Err(RedisError::protocol("the lock of the migrations did not answer with a number")),
            Some(0) => Ok(None),
            Some(fence) => Ok(Some(Self {
                transport,
                worker: by,
                ledger_key: keys::migration_ledger(prefix),
                lock_key: lock,
                fence_key,
                token,
                fence,
            })),
        }
    }

    /// Writes one field of the ledger.
    ///
    /// # Errors
    /// `MigrationLockLost` if the lock was lost; nothing was written.
    pub(super) async fn record_entry(
        &self,
        migration: &Migration,
        state: EntryState,
        walk: Option<WalkPosition>,
    ) -> Result<(), RedisError> {
        let text = self.entry_text(migration, state, walk).await?;
        self.run_fenced(RECORD_SCRIPT, &[migration.number, &text]).await
    }

    /// An entry with the current time, as the ledger stores it.
    pub(super) async fn entry_text(
        &self,
        migration: &Migration,
        state: EntryState,
        walk: Option<WalkPosition>,
    ) -> Result<String, RedisError> {
        let at_ms = server_time_ms(self.transport).await?;
        self.entry_text_at(migration, state, walk, at_ms)
    }

    pub(super) fn entry_text_at(
        &self,
        migration: &Migration,
        state: EntryState,
        walk: Option<WalkPosition>,
        at_ms: u64,
    ) -> Result<String, RedisError> {
        let record = LedgerEntry {
            name: migration.name.to_owned(),
            sha256: migration.checksum(),
            state,
            by: self.worker.to_owned(),
            at_ms,
            fence: self.fence,
            walk,
        };
        serde_json::to_string(&record).map_err(|error| RedisError::protocol(error.to_string()))
    }

    /// Removes one field of the ledger.
    pub(super) async fn remove_entry(&self, migration: &Migration) -> Result<(), RedisError> {
        self.run_fenced(REMOVE_SCRIPT, &[migration.number]).await
    }

    /// Renews the lock.
    ///
    /// # Errors
    /// `MigrationLockLost` if it was lost.
    pub(super) async fn renew(&self) -> Result<(), RedisError> {
        self.run_fenced(RENEW_SCRIPT, &[]).await
    }

    /// Runs one step while renewing the lock, however long it takes.
    ///
    /// # Errors
    /// Those of the step; `MigrationLockLost` if the lock was lost before or during it.
    pub(super) async fn while_renewing<T>(
        &self,
        step: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, RedisError> {
        self.renew().await?;
        let mut step = pin!(step);
        loop {
            tokio::select! {
                outcome = &mut step => return outcome,
                () = tokio::time::sleep(RENEW_INTERVAL) => self.renew().await?,
            }
        }
    }

    pub(super) async fn release(&self) {
        // A lock that cannot be released expires by itself.
        let _ = self.transport.call("EVAL", [RELEASE_SCRIPT, "1", &self.lock_key, &self.token]).await;
    }

    async fn run_fenced(&self, script: &str, more: &[&str]) -> Result<(), RedisError> {
        let args = self.fenced_args(script, &[], more.iter().map(|text| Value::from(*text)));
        match self.transport.send("EVAL", args).await?.as_i64() {
            Some(1) => Ok(()),
            _ => Err(RedisError::MigrationLockLost),
        }
    }

    /// The arguments of EVAL for a script made with [`fenced`]; more keys and arguments follow its own.
    pub(super) fn fenced_args(
        &self,
        script: &str,
        keys: &[Value],
        more: impl Iterator<Item = Value>,
    ) -> Vec<Value> {
        let count = (3 + keys.len()).to_string();
        let fence = self.fence.to_string();
        let own = [script, &count, &self.ledger_key, &self.lock_key, &self.fence_key];
        let mut args: Vec<Value> = own.into_iter().map(Value::from).collect();
        args.extend_from_slice(keys);
        args.extend([self.token.as_str(), &fence, LOCK_MS].map(Value::from));
        args.extend(more);
        args
    }
}

/// Redis's clock, ms since 1970.
pub(super) async fn server_time_ms(transport: &RedisTransport) -> Result<u64, RedisError> {
    let Value::Array(parts) = transport.call("TIME", []).await? else {
        return Err(RedisError::protocol("TIME did not answer with a list"));
    };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}
