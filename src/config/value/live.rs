//! What the live parts' settings may be.

use std::time::Duration;

use url::Url;

use crate::config::value::{InvalidValue, duration, number, size};

/// Largest message that is passed on: each client's copy goes through a connection's buffer.
const MESSAGE_MAX: usize = 1 << 20;

pub(in crate::config) fn message_size(text: &str) -> Result<usize, InvalidValue> {
    let size = size(text)?;
    if size <= MESSAGE_MAX { Ok(size) } else { Err("it is out of range".into()) }
}

/// A number of places, up to `max`.
pub(in crate::config) fn capacity(text: &str, max: u64) -> Result<usize, InvalidValue> {
    number(text, max).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

pub(in crate::config) fn task_concurrency(text: &str) -> Result<usize, InvalidValue> {
    if text == "0" { Ok(0) } else { capacity(text, 64) }
}

/// Not so short that a busy machine loses its tasks, nor so long that nobody would wait for it.
pub(in crate::config) fn task_lease(text: &str) -> Result<Duration, InvalidValue> {
    let lease = duration(text)?;
    let allowed = Duration::from_secs(1)..=Duration::from_secs(60);
    if allowed.contains(&lease) { Ok(lease) } else { Err("it is out of range".into()) }
}

/// Origins as browsers send them: scheme, host, and a port that is not the scheme's own (RFC 6454 §6.2).
pub(in crate::config) fn origins(items: &[String]) -> Result<Vec<String>, InvalidValue> {
    let origin = |item: &String| match Url::parse(item).map(|url| url.origin().ascii_serialization()) {
        Ok(origin) if origin == item.trim_end_matches('/') && origin != "null" => Ok(origin),
        _ => Err(format!("{item} is no origin")),
    };
    items.iter().map(origin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_as_browsers_send_them() {
        let read = |text: &str| origins(&[text.to_owned()]);
        assert_eq!(read("https://example.org/").unwrap(), ["https://example.org"]);
        assert_eq!(read("http://localhost:8080").unwrap(), ["http://localhost:8080"]);
        for wrong in ["example.org", "https://example.org/path", "https://example.org:443", "*", "file:///x"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_lease_is_neither_too_short_nor_too_long() {
        assert_eq!(task_lease("3s").unwrap(), Duration::from_secs(3));
        assert!(task_lease("999ms").is_err() && task_lease("61s").is_err());
    }
}
