//! What makes a request's first call repeatable: a number of its own, and a ledger in Redis of those that were executed.
//!
//! Guarantees that a call which is sent again, on another connection or beside a first sending that is still on its way,
//! changes what it changes once. The ledger is a string of bits, one a call; its lifetime is set by the first calls on
//! each connection, until one was answered, and again before it could end, so that the usual call costs one SETBIT.
//!
//! In a cluster nothing is noted: a call of one key would become one of two, which no node takes while their slot moves.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::Inner;
use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::guard::Again;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::library::Entry;
use crate::redis::library::Form;
use crate::sys::proc;
use crate::sys::random;

/// Calls in one key of the ledger: 512 bytes.
const BLOCK: u64 = 4096;
/// After this a ledger's lifetime is set anew: a third of what `regatta_v3_begin` sets. The rest is longer than a
/// call waits for Redis: `redis.patience` is a minute at most.
const ARMED: Duration = Duration::from_secs(60);

/// How one call stands in the ledger.
pub(super) struct Once {
    /// Key of the ledger.
    pub(super) key: Value,
    /// Its bit there.
    pub(super) bit: i64,
    /// Whether the ledger's lifetime is to be set.
    pub(super) arm: bool,
    /// Whether it may have been executed before.
    pub(super) repeated: bool,
}

/// That the lifetime of a ledger was set: of which, by which connection, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Armed {
    block: u64,
    link: u64,
    at: Instant,
}

/// Gives numbers to a worker's calls.
pub(super) struct Numbers {
    /// Drawn after the fork: no two workers, and no worker and its successor, have the same.
    life: String,
    next: AtomicU64,
    armed: Mutex<Option<Armed>>,
}

impl Numbers {
    pub(super) fn new() -> Self {
        let life = random::number().unwrap_or_else(|_| u64::from(proc::pid().as_raw().unsigned_abs()));
        Self { life: format!("{life:016x}"), next: AtomicU64::new(0), armed: Mutex::new(None) }
    }

    /// A name that nothing else has, on whatever worker.
    pub(super) fn name(&self) -> String {
        format!("{}-{}", self.life, self.take())
    }

    fn take(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// The number of a batch, higher than that of any before.
    pub(super) fn batch(&self) -> u64 {
        self.take() + 1
    }

    /// Key of the ledger of this number, in which one batch at a time is noted.
    pub(super) fn ledger(&self, prefix: &str, ledger: usize) -> Value {
        Value::from(keys::once_batch(prefix, &self.life, ledger))
    }

    /// The call with this number, as it is sent over the connection of number `link`.
    fn call(&self, prefix: &str, number: u64, link: u64, repeated: bool) -> Once {
        let block = number / BLOCK;
        let bit = i64::try_from(number % BLOCK).unwrap_or_default();
        let key = Value::from(keys::once(prefix, &self.life, block));
        Once { key, bit, arm: !self.is_armed(block, link), repeated }
    }

    fn is_armed(&self, block: u64, link: u64) -> bool {
        let armed = *self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.is_some_and(|armed| armed.block == block && armed.link == link && armed.at.elapsed() < ARMED)
    }

    /// A call with this number that set the lifetime, and was sent no earlier than `at`, was executed.
    fn armed(&self, number: u64, link: u64, at: Instant) {
        let armed = Armed { block: number / BLOCK, link, at };
        *self.armed.lock().unwrap_or_else(PoisonError::into_inner) = Some(armed);
    }
}

impl Inner {
    /// Whether our user may use bits: rules that were written for an earlier release do not say so.
    ///
    /// # Errors
    /// What the server said to it, if that is anything else.
    pub(super) async fn may_note(&self, caller: &Caller, form: Form) -> Result<bool, Error> {
        if form == Form::Plain {
            return Ok(false);
        }
        let key = keys::once(&self.prefix, &self.numbers.life, 0);
        match caller.call("GETBIT", [key.as_str(), "0"]).await {
            Err(error) if error.unsupported() => {
                tracing::warn!(
                    "the user's ACL rules forbid SETBIT and GETBIT (+@bitmap): what is under way when the connection \
                     to Redis is lost is answered 503, because it cannot be sent again"
                );
                Ok(false)
            }
            answer => answer.map(|_| true),
        }
    }
}

impl Redis {
    /// A request's start, executed once however often it is sent.
    ///
    /// # Errors
    /// `Lost` when it is not known whether it was executed, and no call waits for Redis any longer, or calls are
    /// not noted there.
    pub(super) async fn begin_once(&self, request: &begin::Request<'_>) -> Result<begin::Reply, Error> {
        let (numbers, prefix) = (&self.inner.numbers, self.inner.prefix.as_str());
        // What changes nothing leaves nothing behind.
        let changes = request.changes();
        let number = if changes { numbers.take() } else { 0 };
        self.guard_counted(Kind::Begin, Again::Noted, |live, repeated| async move {
            let once = (changes && live.notes).then(|| numbers.call(prefix, number, live.number, repeated));
            let arms = once.as_ref().is_some_and(|once| once.arm).then(Instant::now);
            let encode = |entry| begin::encode(request, once.as_ref(), entry);
            let reply = begin::decode(request, self.execute(&live, Entry::Begin, encode).await?)?;
            if let (Some(at), begin::Reply::Granted { .. }) = (arms, &reply) {
                numbers.armed(number, live.number, at);
            }
            Ok(reply)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_is_armed_by_the_first_answers_of_each_connection_and_anew_in_time() {
        let numbers = Numbers::new();
        let call = |number, link| numbers.call("p", number, link, false);
        assert!(call(0, 1).arm && call(1, 1).arm, "until one was answered");
        numbers.armed(0, 1, Instant::now());
        assert!(!call(2, 1).arm && !call(4095, 1).arm);
        assert!(call(2, 2).arm, "another connection: the server may have lost it");
        assert!(call(4096, 1).arm, "another ledger");
        numbers.armed(4096, 1, Instant::now().checked_sub(ARMED).unwrap());
        assert!(call(4097, 1).arm, "its lifetime comes to an end");
    }

    #[test]
    fn each_call_has_a_bit_of_its_own_and_each_worker_ledgers_of_its_own() {
        let (one, other) = (Numbers::new(), Numbers::new());
        let name = |numbers: &Numbers, number| {
            let once = numbers.call("p", number, 1, false);
            (once.key.as_string().unwrap(), once.bit)
        };
        let names: std::collections::HashSet<_> =
            (0..10_000).flat_map(|number| [name(&one, number), name(&other, number)]).collect();
        assert_eq!(names.len(), 20_000);
        assert_eq!((one.take(), one.take()), (0, 1));
    }
}
