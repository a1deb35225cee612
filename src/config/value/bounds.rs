//! Values with bounds of their own, and why each bound is where it is.

use std::time::Duration;

use crate::config::value::basic::{
    InvalidValue, capacity, duration, duration_or_none, not_allowed, number, percent, size,
};

/// The most slots one fleet can have: the scoreboard has a fixed number of rows.
pub const MAX_WORKERS: usize = 1024;

/// Largest message that is passed on: each client's copy goes through a connection's buffer.
const MESSAGE_MAX: usize = 1 << 20;

/// Some of all there are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ClientConnectionLimit {
    /// This part of them, 0 to 1.
    Share(f64),
    /// So many.
    Number(usize),
}

impl ClientConnectionLimit {
    /// How many of `all` that is, at least one.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "there are far fewer connections than a float has exact numbers"
    )]
    pub fn resolve(self, all: usize) -> usize {
        match self {
            Self::Share(part) => ((all as f64 * part) as usize).max(1),
            Self::Number(number) => number,
        }
    }
}

/// Longest absence of a needed service that requests may be made to wait for.
pub const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(60);

/// Longest absence of a needed service that requests are made to wait for.
pub(in crate::config) fn reconnect_wait(text: &str) -> Result<Duration, InvalidValue> {
    let wait = duration(text)?;
    if wait > RECONNECT_WAIT_MAX { Err("that is more than a minute".into()) } else { Ok(wait) }
}

/// hyper cannot read headers into a smaller buffer than 8 KiB.
pub(in crate::config) fn header_size(text: &str) -> Result<usize, InvalidValue> {
    let size = size(text)?;
    if (8 << 10..=1 << 30).contains(&size) { Ok(size) } else { Err("it is out of range".into()) }
}

/// A part of all there are, or a number of them.
pub(in crate::config) fn share(text: &str) -> Result<ClientConnectionLimit, InvalidValue> {
    match text.ends_with('%') {
        true => percent(text).map(ClientConnectionLimit::Share),
        false => number(text, 1_000_000)
            .map(|number| ClientConnectionLimit::Number(usize::try_from(number).unwrap_or(usize::MAX))),
    }
}

pub(in crate::config) fn slot_count(text: &str) -> Result<usize, InvalidValue> {
    usize::try_from(number(text, MAX_WORKERS as u64)?).map_err(|_| not_allowed())
}

/// A worker beats twice a second: with less patience every pause of a busy machine would be a hang.
pub(in crate::config) fn hang_timeout(text: &str) -> Result<Duration, InvalidValue> {
    let timeout = duration(text)?;
    match timeout < Duration::from_secs(1) && !timeout.is_zero() {
        true => Err("it is too short to tell a hang from a busy machine".into()),
        false => Ok(timeout),
    }
}

pub(in crate::config) fn autoscale_window(text: &str) -> Result<Duration, InvalidValue> {
    let window = duration(text)?;
    if window < Duration::from_secs(1) { Err("it is too short".into()) } else { Ok(window) }
}

pub(in crate::config) fn heartbeat_interval(text: &str) -> Result<Option<Duration>, InvalidValue> {
    let interval = duration_or_none(text)?;
    let allowed = Duration::from_millis(200)..=Duration::from_secs(60);
    match interval {
        Some(interval) if !allowed.contains(&interval) => Err("it is out of range".into()),
        interval => Ok(interval),
    }
}

pub(in crate::config) fn message_size(text: &str) -> Result<usize, InvalidValue> {
    let size = size(text)?;
    if size <= MESSAGE_MAX { Ok(size) } else { Err("it is out of range".into()) }
}

pub(in crate::config) fn task_concurrency(text: &str) -> Result<usize, InvalidValue> {
    if text == "0" { Ok(0) } else { capacity(text, 64) }
}

/// Not so short that a busy machine loses its tasks, nor so long that waiting for it costs more than doing it again.
pub(in crate::config) fn task_lease(text: &str) -> Result<Duration, InvalidValue> {
    let lease = duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(60);
    if allowed.contains(&lease) { Ok(lease) } else { Err("it is out of range".into()) }
}

/// Sessions of one user, or 0 for any number.
pub(in crate::config) fn sessions_per_user(text: &str) -> Result<u64, InvalidValue> {
    if text == "0" { Ok(0) } else { number(text, 1000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_neither_too_short_nor_too_long() {
        assert_eq!(task_lease("3s").unwrap(), Duration::from_secs(3));
        assert!(task_lease("999ms").is_err() && task_lease("61s").is_err());
        assert!(hang_timeout("0").is_ok() && hang_timeout("999ms").is_err() && hang_timeout("1s").is_ok());
    }
}
