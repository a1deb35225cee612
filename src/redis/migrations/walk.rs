//! A migration that walks over keys: in small steps, at its leisure, and on from where it was when it is interrupted.
//!
//! SCAN gives the keys; one script a step converts at most [`BATCH`] of them, stops after [`STEP_US`] of the server's
//! time, and puts the cursor into the ledger, all behind the fence. A run that is killed repeats at most the keys of
//! its last step. A key that SCAN gives twice is converted twice, so a conversion must not mind keys it has done.
//! The worker that serves never waits for a walk: `regatta migrate` runs them.

use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::error::RedisError;
use crate::redis::migrations::Migration;
use crate::redis::migrations::ledger::{EntryState, WalkPosition};
use crate::redis::migrations::lock::{MigrationLock, fenced, server_time_ms};
use crate::redis::transport::RedisTransport;

/// Most keys of one step.
const KEYS_PER_STEP: usize = 100;
/// Time of the server after which a step takes no further key, µs.
const STEP_US: &str = "1000";
/// Pause after a step in multiples of the time it took, as seen from here: a busy server is asked less often.
const PAUSE_FACTOR: u32 = 3;
/// SCANs that found nothing before the lock is renewed and the cursor saved all the same.
const MAX_EMPTY_SCANS: u32 = 64;

/// Before and after the migration's text, which defines `convert(key)`: true if it changed the key.
/// More KEYS: the keys. More ARGV: most µs, number or nothing, record to write under it when all keys are done.
/// Replies done, changed; and for a key that failed: its name, why.
const HEAD: &str =
    fenced!("local function us() local t = redis.call('TIME') return t[1] * 1000000 + t[2] end\n");
const TAIL: &str = "
local began, done, changed = us(), 0, 0
for i = 4, #KEYS do
  if done > 0 and us() - began >= tonumber(ARGV[4]) then return { done, changed } end
  local fine, answer = pcall(convert, KEYS[i])
  if not fine then
    if type(answer) == 'table' then answer = answer.err end
    return { done, changed, KEYS[i], tostring(answer) }
  end
  done = done + 1
  if answer then changed = changed + 1 end
end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], ARGV[5], ARGV[6]) end
return { done, changed }";

/// How far a walk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkProgress {
    /// The migration's file.
    pub file: String,
    /// Keys looked at, those of earlier runs included.
    pub keys: u64,
    /// Keys changed.
    pub changed: u64,
    /// Keys of the whole database when this run began: about where it ends if all are the walk's.
    pub total: u64,
}

/// Walks to the end, from the beginning or from where an earlier run was interrupted.
///
/// # Errors
/// `Fenced` when the lock was lost; `Key` when a key cannot be converted; what the server said. In each case the
/// ledger says how far it came and the next run goes on there.
pub(super) async fn run_walk(
    run: &MigrationLock<'_>,
    migration: &Migration,
    pattern: &str,
    before: Option<WalkPosition>,
    on_progress: &mut dyn FnMut(&WalkProgress),
) -> Result<(), RedisError> {
    let server = server_run_id(run).await;
    let total = run.transport.call("DBSIZE", []).await?.as_u64().unwrap_or(0);
    let start = WalkPosition { cursor: "0".to_owned(), server: server.clone(), ..WalkPosition::default() };
    let mut at = before.filter(|at| !server.is_empty() && at.server == server).unwrap_or(start);
    let mut empty = 0;
    let steps = WalkSteps {
        lock: run,
        migration,
        script: walk_script(migration.text),
        started_at_ms: server_time_ms(run.transport).await?,
    };
    run.record_entry(migration, EntryState::Running, Some(at.clone())).await?;
    loop {
        let started = Instant::now();
        let (next, keys) = scan_once(run.transport, &at.cursor, pattern, &KEYS_PER_STEP.to_string()).await?;
        let ends = next == "0";
        empty = if keys.is_empty() { empty + 1 } else { 0 };
        at.cursor = next;
        if !keys.is_empty() || empty == MAX_EMPTY_SCANS {
            empty = 0;
            steps.convert(keys, &mut at).await?;
            on_progress(&WalkProgress { file: migration.file(), keys: at.keys, changed: at.changed, total });
        }
        if ends {
            break;
        }
        tokio::time::sleep(started.elapsed() * PAUSE_FACTOR).await;
    }
    run.record_entry(migration, EntryState::Applied, Some(at)).await
}

/// The text that is sent with each step.
fn walk_script(text: &str) -> String {
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    format!("{HEAD}{body}{TAIL}")
}

/// One SCAN: where to go on, "0" at the end, and the keys.
pub(super) async fn scan_once(
    caller: &RedisTransport,
    cursor: &str,
    pattern: &str,
    count: &str,
) -> Result<(String, Vec<Value>), RedisError> {
    if let Value::Array(parts) = caller.call("SCAN", [cursor, "MATCH", pattern, "COUNT", count]).await?
        && let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(parts)
    {
        return Ok((next.as_string().unwrap_or_default(), keys));
    }
    Err(RedisError::protocol("SCAN did not answer with a cursor and keys"))
}

/// What one step did.
struct StepResult {
    keys: usize,
    changed: u64,
    failed: Option<(String, String)>,
}

/// What all steps of a run have in common.
struct WalkSteps<'a> {
    lock: &'a MigrationLock<'a>,
    migration: &'a Migration,
    script: String,
    /// When the run began, ms.
    started_at_ms: u64,
}

impl WalkSteps<'_> {
    /// Converts what one SCAN found, in as many steps as it takes; `at` has the cursor for afterwards already.
    async fn convert(&self, mut keys: Vec<Value>, at: &mut WalkPosition) -> Result<(), RedisError> {
        loop {
            // SCAN may give more than it was asked for.
            let rest = keys.split_off(keys.len().min(KEYS_PER_STEP));
            let done = self.step(&keys, at, rest.is_empty()).await?;
            at.keys += done.keys as u64;
            at.changed += done.changed;
            if let Some((key, reason)) = done.failed {
                return Err(RedisError::UnconvertibleKey { file: self.migration.file(), key, reason });
            }
            if done.keys == 0 && !keys.is_empty() {
                return Err(RedisError::protocol("a step of a migration did nothing"));
            }
            keys.drain(..done.keys.min(keys.len()));
            keys.extend(rest);
            if keys.is_empty() {
                return Ok(());
            }
        }
    }

    /// One step. Until the last keys of a SCAN are done, the ledger keeps the cursor from before it.
    async fn step(&self, keys: &[Value], at: &WalkPosition, last: bool) -> Result<StepResult, RedisError> {
        let number = if last { self.migration.number } else { "" };
        let after = WalkPosition { keys: at.keys + keys.len() as u64, ..at.clone() };
        let record =
            self.lock.entry_text_at(self.migration, EntryState::Running, Some(after), self.started_at_ms)?;
        let more = [STEP_US, number, &record].map(Value::from);
        let args = self.lock.fenced_args(&self.script, keys, more.into_iter());
        let Value::Array(parts) = self.lock.transport.send("EVAL", args).await? else {
            return Err(RedisError::MigrationLockLost);
        };
        let text = |index: usize| parts.get(index).and_then(Value::as_string);
        let number = |index: usize| parts.get(index).and_then(Value::as_u64).unwrap_or(0);
        let failed = text(2).map(|key| (key, text(3).unwrap_or_default()));
        Ok(StepResult { keys: usize::try_from(number(0)).unwrap_or(0), changed: number(1), failed })
    }
}

/// The server process; empty if it does not say.
async fn server_run_id(run: &MigrationLock<'_>) -> String {
    let info = run.transport.call("INFO", ["server"]).await.ok().and_then(|answer| answer.as_string());
    let id = info.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("run_id:")));
    id.unwrap_or_default().trim().to_owned()
}

/// How long a walk over so many keys takes about: three parts of rest to one of work, some 5 µs a key.
pub(super) fn estimate_time(keys: u64) -> Duration {
    Duration::from_micros(keys.saturating_mul(30))
}
