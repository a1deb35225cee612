//! Walks: migrations that convert keys in small steps and continue where they were interrupted.
//!
//! SCAN returns the keys; one script a step converts at most [`KEYS_PER_STEP`] of them, stops after [`STEP_US`] of the
//! server's time, and stores the cursor in the ledger, all behind the fence. A run that is killed repeats at most the
//! keys of its last step. A key that SCAN returns twice is converted twice, so a conversion must not harm converted
//! keys. Workers never wait for a walk: `regatta migrate` runs them.

use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::error::RedisError;
use crate::redis::migrations::ledger::{EntryState, WalkPosition};
use crate::redis::migrations::lock::{MigrationLock, fenced, server_time_ms};
use crate::redis::migrations::migration::Migration;
use crate::redis::transport::RedisTransport;

/// Most keys of one step.
const KEYS_PER_STEP: usize = 100;
/// Time of the server after which a step converts no further key, µs.
const STEP_US: &str = "1000";
/// Pause after a step in multiples of its duration, so that a busy server is called less often.
const PAUSE_FACTOR: u32 = 3;
/// Empty SCANs after which the lock is renewed and the cursor stored all the same.
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

/// The progress of a walk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkProgress {
    /// The migration's file.
    pub file: String,
    /// Keys converted, those of earlier runs included.
    pub keys: u64,
    /// Keys changed.
    pub changed: u64,
    /// Keys of the whole database when this run began: an upper bound.
    pub total: u64,
}

/// Walks to the end, from the start or from where an earlier run was interrupted.
///
/// # Errors
/// `MigrationLockLost`; `UnconvertibleKey`; or the server's error. In each case the ledger has the position and the
/// next run continues there.
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

/// The script of each step.
fn walk_script(text: &str) -> String {
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    format!("{HEAD}{body}{TAIL}")
}

/// One SCAN: the next cursor, "0" at the end, and the keys.
pub(super) async fn scan_once(
    transport: &RedisTransport,
    cursor: &str,
    pattern: &str,
    count: &str,
) -> Result<(String, Vec<Value>), RedisError> {
    if let Value::Array(parts) = transport.call("SCAN", [cursor, "MATCH", pattern, "COUNT", count]).await?
        && let Ok([next, Value::Array(keys)]) = <[Value; 2]>::try_from(parts)
    {
        return Ok((next.as_string().unwrap_or_default(), keys));
    }
    Err(RedisError::protocol("SCAN did not answer with a cursor and keys"))
}

/// The result of one step.
struct StepResult {
    keys: usize,
    changed: u64,
    failed: Option<(String, String)>,
}

/// What all steps of a run share.
struct WalkSteps<'a> {
    lock: &'a MigrationLock<'a>,
    migration: &'a Migration,
    script: String,
    /// When the run began, ms.
    started_at_ms: u64,
}

impl WalkSteps<'_> {
    /// Converts what one SCAN returned, in as many steps as needed; `at` has the next cursor already.
    async fn convert(&self, mut keys: Vec<Value>, at: &mut WalkPosition) -> Result<(), RedisError> {
        loop {
            // SCAN may return more than its COUNT.
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

    /// One step. Until the last keys of a SCAN are converted, the ledger keeps the cursor from before it.
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

/// The server process; empty if the server does not report it.
async fn server_run_id(run: &MigrationLock<'_>) -> String {
    let info = run.transport.call("INFO", ["server"]).await.ok().and_then(|answer| answer.as_string());
    let id = info.as_deref().and_then(|text| text.lines().find_map(|line| line.strip_prefix("run_id:")));
    id.unwrap_or_default().trim().to_owned()
}

/// About how long a walk over this many keys takes: some 5 µs a key, and three times that in pauses.
pub(super) fn estimate_time(keys: u64) -> Duration {
    Duration::from_micros(keys.saturating_mul(30))
}
