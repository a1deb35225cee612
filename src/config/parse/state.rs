//! What the shared state's settings may be: Redis and sessions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::parse::Reason;
use crate::config::parse::choice;
use crate::config::parse::number;
use crate::config::parse::word;
use crate::config::place::Place;
use crate::config::schema::Create;
use crate::config::schema::Mode;
use crate::config::schema::RedisUrl;
use crate::config::schema::Secret;
use crate::config::schema::Secure;

/// Fewest bytes of a signing key: the digest's size, as RFC 2104 §3 asks.
const SECRET_MIN: usize = 32;

pub(in crate::config) fn redis_url(text: &str) -> Result<RedisUrl, Reason> {
    Place::read(text).map(|_| RedisUrl(text.to_owned()))
}

pub(in crate::config) fn prefix(text: &str) -> Result<String, Reason> {
    word(text, 64, "-_.:")
}

pub(in crate::config) fn cookie_name(text: &str) -> Result<String, Reason> {
    word(text, 32, "-_")
}

pub(in crate::config) fn policy_name(text: &str) -> Result<String, Reason> {
    word(text, 32, "-_")
}

/// A key as base64 behind `base64:`, or as plain text.
pub(in crate::config) fn secret(text: &str) -> Result<Secret, Reason> {
    let bytes = match text.strip_prefix("base64:") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "it is not base64".to_owned())?,
        None => text.as_bytes().to_vec(),
    };
    match bytes.len() {
        len if len < SECRET_MIN => Err(format!("a key has {len} bytes, fewer than {SECRET_MIN}")),
        _ => Ok(Secret(bytes)),
    }
}

pub(in crate::config) fn create(text: &str) -> Result<Create, Reason> {
    choice(text, &[("return", Create::Return), ("write", Create::Write)])
}

/// Sessions of one user, or 0 for any number.
pub(in crate::config) fn sessions(text: &str) -> Result<u64, Reason> {
    if text == "0" { Ok(0) } else { number(text, 1000) }
}

pub(in crate::config) fn secrets(items: &[String]) -> Result<Vec<Secret>, Reason> {
    items.iter().map(|item| secret(item)).collect()
}

pub(in crate::config) fn mode(text: &str) -> Result<Mode, Reason> {
    let choices =
        [("auto", Mode::Auto), ("fcall", Mode::Fcall), ("evalsha", Mode::Evalsha), ("plain", Mode::Plain)];
    choice(text, &choices)
}

pub(in crate::config) fn secure(text: &str) -> Result<Secure, Reason> {
    choice(text, &[("auto", Secure::Auto), ("always", Secure::Always), ("never", Secure::Never)])
}
