//! Distinct counters: how many different items were inserted, within ± 0.81 % (standard error) and 12 KiB.

use std::time::Duration;

use crate::counters::commands::{InsertItems, InsertOutcome};
use crate::counters::{CounterError, CounterName, keys};
use crate::redis;
use crate::redis::RedisClient;

/// Most items of one call.
pub const ITEMS_MAX: usize = 1000;

/// Shortest window.
pub const WINDOW_MIN: Duration = Duration::from_secs(1);

/// Inserts items, or only counts when there are none; returns whether any was new, and how many there are.
///
/// With a window only the items of the present one count, by Redis's clock. `unix` is the worker's clock, from which
/// the window is guessed.
///
/// # Errors
///
/// [`CounterError::InvalidAmount`] for more than [`ITEMS_MAX`] items or a window below [`WINDOW_MIN`], or
/// [`CounterError::Redis`]; a repetition is safe.
///
/// # Cancel safety
/// Dropping the future leaves it unknown whether they were inserted.
pub async fn insert(
    redis: &RedisClient,
    prefix: &str,
    name: &CounterName,
    window: Option<Duration>,
    items: &[&[u8]],
    unix: Duration,
) -> Result<(bool, u64), CounterError> {
    if items.len() > ITEMS_MAX || window.is_some_and(|window| window < WINDOW_MIN) {
        return Err(CounterError::InvalidAmount);
    }
    let Some(length_ms) = window.map(|window| u64::try_from(window.as_millis()).unwrap_or(u64::MAX)) else {
        let keys = [keys::distinct(prefix, name.as_str(), None)];
        return into_counts(redis.insert_distinct(&InsertItems { keys: &keys, window: None, items }).await?)
            .ok_or_else(window_mismatch);
    };
    let mut number = u64::try_from(unix.as_millis()).unwrap_or(0) / length_ms;
    // If this host's clock is off, Redis returns the number of its window, and the second call uses that.
    for _ in 0..2 {
        let key = |number| keys::distinct(prefix, name.as_str(), Some((length_ms, number)));
        let keys = [number.saturating_sub(1), number, number + 1].map(key);
        match redis
            .insert_distinct(&InsertItems { keys: &keys, window: Some((length_ms, number)), items })
            .await?
        {
            InsertOutcome::WindowMoved(moved) => number = moved,
            InsertOutcome::Counted { new, count } => return Ok((new, count)),
        }
    }
    Err(window_mismatch())
}

fn into_counts(outcome: InsertOutcome) -> Option<(bool, u64)> {
    match outcome {
        InsertOutcome::Counted { new, count } => Some((new, count)),
        InsertOutcome::WindowMoved(_) => None,
    }
}

/// Two replies in a row name different windows.
fn window_mismatch() -> CounterError {
    CounterError::Redis(redis::RedisError::Unavailable { reason: "its clock jumps".to_owned() })
}
