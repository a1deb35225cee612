//! Numbered changes of what lies on the server: applied once by the whole fleet, recorded, never edited afterwards.
//!
//! A file is known by its number and by the SHA-256 of its text; the ledger in Redis says which were applied. Whoever
//! comes first takes a lock, which it renews with each step and loses if it stops; its fencing number then bars it
//! from writing to the ledger. Loading a library needs no fence: the text under a name never changes.

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fred::types::Value;
use ring::digest;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;
use serde::Deserialize;
use serde::Serialize;
use tokio::time::Instant;

use crate::redis::Redis;
use crate::redis::error::Error;
use crate::redis::keys;
use crate::redis::library;
use crate::redis::library::Form;
use crate::redis::library::Library;
use crate::redis::link::Caller;
use crate::redis::link::Link;

/// A holder that renews nothing for this long has lost the lock, ms. Every step is far shorter.
const LOCK_MS: &str = "5000";
/// How long a worker waits for another one that runs the migrations, and how often it looks.
const WAIT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Writes to the ledger and renews the lock, if both the lock and the fence are still the caller's.
/// KEYS ledger, lock, fence. ARGV token, fencing number, field, value, lock ms. Replies 1 written, 0 lost.
const RECORD: &str = "if redis.call('GET', KEYS[2]) ~= ARGV[1] or redis.call('GET', KEYS[3]) ~= ARGV[2] then return 0 end \
     redis.call('PEXPIRE', KEYS[2], ARGV[5]) redis.call('HSET', KEYS[1], ARGV[3], ARGV[4]) return 1";
/// Gives the lock back, if it is still the caller's. KEYS lock. ARGV token.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0";

/// A library's file in the source tree.
fn file(library: &Library) -> String {
    format!("migrations/{}_{}.lua", library.number, library.name)
}

/// A migration and whether it is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its file in the source tree.
    pub file: String,
    /// SHA-256 of its text, hex.
    pub sha256: String,
    /// Whether it is done.
    pub status: Status,
}

/// Whether a migration is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Nobody began it.
    Pending,
    /// A worker began it and has not finished, or died.
    Begun {
        /// The worker's name.
        by: String,
    },
    /// It is done.
    Applied {
        /// The worker's name.
        by: String,
        /// When, ms since 1970 by Redis's clock.
        at_ms: u64,
    },
}

/// One field of the ledger.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    name: String,
    sha256: String,
    state: State,
    by: String,
    at_ms: u64,
    fence: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    Applied,
}

/// SHA-256 of a text, hex, as if every line ended with LF: a checkout with other line ends is the same file.
pub fn checksum(text: &str) -> String {
    let normal = text.replace("\r\n", "\n");
    library::hex(digest::digest(&digest::SHA256, normal.as_bytes()).as_ref())
}

/// Every migration and whether it is done; changes nothing. Needs no started connection.
///
/// # Errors
/// `Diverged` if a file was edited after it was applied; otherwise what the server said.
pub async fn plan(redis: &Redis) -> Result<Vec<Step>, Error> {
    let link = Link::open(&redis.inner).await?;
    steps(&read(&link.patient(), &redis.inner.prefix).await?)
}

/// The migrations that are not done; changes nothing. Needs no started connection.
///
/// # Errors
/// Like [`plan`].
pub async fn check(redis: &Redis) -> Result<Vec<Step>, Error> {
    let mut steps = plan(redis).await?;
    steps.retain(|step| !matches!(step.status, Status::Applied { .. }));
    Ok(steps)
}

/// Applies what is not done and returns the state afterwards. Needs no started connection.
///
/// # Errors
/// `Diverged` as in [`plan`]; `Locked` if another worker holds the lock for too long; what the server said.
pub async fn apply(redis: &Redis) -> Result<Vec<Step>, Error> {
    let inner = &redis.inner;
    let link = Link::open(inner).await?;
    let form = link.form(inner.mode).await?;
    bring_up(&link.patient(), form, &inner.prefix, &inner.name).await?;
    steps(&read(&link.patient(), &inner.prefix).await?)
}

/// Brings a server to where this program can use it: every migration recorded, the library there.
pub(super) async fn bring_up(caller: &Caller, form: Form, prefix: &str, by: &str) -> Result<(), Error> {
    let deadline = Instant::now() + WAIT;
    loop {
        if done(&read(caller, prefix).await?)? {
            // The ledger outlives FUNCTION FLUSH; the library may be gone all the same.
            return library::ensure(caller, form).await;
        }
        if let Some(run) = Run::begin(caller, prefix, by).await? {
            let outcome = run.finish(form).await;
            run.release().await;
            match outcome {
                Err(Error::Locked) => {}
                other => return other,
            }
        }
        if Instant::now() >= deadline {
            return Err(Error::Locked);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The lock, held.
struct Run<'a> {
    caller: &'a Caller,
    prefix: &'a str,
    by: &'a str,
    token: String,
    fence: i64,
}

impl<'a> Run<'a> {
    /// Takes the lock; `None` if somebody has it.
    async fn begin(caller: &'a Caller, prefix: &'a str, by: &'a str) -> Result<Option<Self>, Error> {
        let mut bytes = [0; 16];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| Error::unavailable("the operating system has no random bytes"))?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let lock = keys::migration_lock(prefix);
        if caller.call("SET", [&lock, &token, "NX", "PX", LOCK_MS]).await? == Value::Null {
            return Ok(None);
        }
        let fence = caller.call("INCR", [&keys::migration_fence(prefix)]).await?;
        let fence = fence.as_i64().ok_or_else(|| Error::protocol("INCR did not answer with a number"))?;
        Ok(Some(Self { caller, prefix, by, token, fence }))
    }

    /// Does what is not done, in order. What a dead worker began is done again: every step may be repeated.
    async fn finish(&self, form: Form) -> Result<(), Error> {
        // Read again: somebody may have finished between our look and our lock.
        let ledger = read(self.caller, self.prefix).await?;
        for migration in library::ALL {
            if ledger.get(migration.number).is_some_and(|record| record.state == State::Applied) {
                continue;
            }
            self.record(migration, State::Running).await?;
            library::apply(self.caller, form, migration).await?;
            self.record(migration, State::Applied).await?;
            tracing::info!(file = %file(migration), by = %self.by, "migration applied");
        }
        library::ensure(self.caller, form).await
    }

    /// Writes one field of the ledger; `Locked` if the lock was lost in the meantime.
    async fn record(&self, migration: &Library, state: State) -> Result<(), Error> {
        let record = Record {
            name: migration.name.to_owned(),
            sha256: checksum(migration.text),
            state,
            by: self.by.to_owned(),
            at_ms: now_ms(self.caller).await?,
            fence: self.fence,
        };
        let value = serde_json::to_string(&record).map_err(|error| Error::protocol(error.to_string()))?;
        let (ledger, lock) = (keys::ledger(self.prefix), keys::migration_lock(self.prefix));
        let (fence_key, fence) = (keys::migration_fence(self.prefix), self.fence.to_string());
        let args =
            [RECORD, "3", &ledger, &lock, &fence_key, &self.token, &fence, migration.number, &value, LOCK_MS];
        match self.caller.call("EVAL", args).await?.as_i64() {
            Some(1) => Ok(()),
            _ => Err(Error::Locked),
        }
    }

    async fn release(&self) {
        let lock = keys::migration_lock(self.prefix);
        // If it cannot be given back it ends by itself.
        let _ = self.caller.call("EVAL", [RELEASE, "1", &lock, &self.token]).await;
    }
}

async fn now_ms(caller: &Caller) -> Result<u64, Error> {
    let Value::Array(parts) = caller.call("TIME", []).await? else {
        return Err(Error::protocol("TIME did not answer with a list"));
    };
    let part = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
    Ok(part(0) * 1000 + part(1) / 1000)
}

async fn read(caller: &Caller, prefix: &str) -> Result<HashMap<String, Record>, Error> {
    let answer = caller.call("HGETALL", [&keys::ledger(prefix)]).await?;
    let fields: HashMap<String, String> = answer.convert().map_err(Error::from)?;
    let record = |(number, text): (String, String)| {
        let record = serde_json::from_str(&text);
        let record = record
            .map_err(|error| Error::protocol(format!("the ledger's entry {number} is no record: {error}")));
        Ok((number, record?))
    };
    fields.into_iter().map(record).collect()
}

/// The steps as the ledger has them; refuses a ledger that knows another text.
fn steps(ledger: &HashMap<String, Record>) -> Result<Vec<Step>, Error> {
    let step = |migration: &Library| {
        let (file, sha256) = (file(migration), checksum(migration.text));
        let status = match ledger.get(migration.number) {
            None => Status::Pending,
            Some(record) if record.sha256 != sha256 => {
                return Err(Error::Diverged { what: file, expected: sha256, found: record.sha256.clone() });
            }
            Some(Record { state: State::Running, by, .. }) => Status::Begun { by: by.clone() },
            Some(Record { by, at_ms, .. }) => Status::Applied { by: by.clone(), at_ms: *at_ms },
        };
        Ok(Step { file, sha256, status })
    };
    library::ALL.iter().map(step).collect()
}

fn done(ledger: &HashMap<String, Record>) -> Result<bool, Error> {
    Ok(steps(ledger)?.iter().all(|step| matches!(step.status, Status::Applied { .. })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_do_not_change_a_checksum_and_anything_else_does() {
        assert_eq!(checksum("a\nb\n"), checksum("a\r\nb\r\n"));
        assert_ne!(checksum("a\nb\n"), checksum("a\nb"));
    }

    #[test]
    fn numbers_rise_without_a_gap() {
        let numbers: Vec<u32> =
            library::ALL.iter().map(|migration| migration.number.parse().unwrap()).collect();
        let expected: Vec<u32> = (1..).take(numbers.len()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn a_ledger_that_knows_another_text_is_refused() {
        let record = Record {
            name: library::ALL[0].name.into(),
            sha256: checksum("other"),
            state: State::Applied,
            by: "w".into(),
            at_ms: 1,
            fence: 1,
        };
        let error = steps(&[("0001".to_owned(), record)].into()).unwrap_err();
        assert!(error.to_string().contains("migrations/0001_regatta_v1.lua"), "{error}");
        assert!(error.to_string().contains(&checksum("other")), "{error}");
    }
}
