//! What the shared state's settings may be: Redis and sessions.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::redis_url::RedisAddress;
use crate::config::settings::{CookieSecurity, MaxMemory, RedisUrl, ScriptingMode, Secret, SessionCreation};
use crate::config::value::{InvalidValue, choice, number, word};

/// Fewest bytes of a signing key: the digest's size, as RFC 2104 §3 asks.
const SECRET_MIN: usize = 32;

pub(in crate::config) fn redis_url(text: &str) -> Result<RedisUrl, InvalidValue> {
    RedisAddress::parse(text).map(|_| RedisUrl(text.to_owned()))
}

pub(in crate::config) fn cookie_name(text: &str) -> Result<String, InvalidValue> {
    word(text, 32, "-_")
}

pub(in crate::config) fn maxmemory(text: &str) -> Result<MaxMemory, InvalidValue> {
    match text {
        "auto" => Ok(MaxMemory::Auto),
        text => super::size_or_none(text).map(MaxMemory::Bytes),
    }
}

pub(in crate::config) fn policy_name(text: &str) -> Result<String, InvalidValue> {
    word(text, 32, "-_")
}

/// A key as base64 behind `base64:`, or as plain text.
pub(in crate::config) fn secret(text: &str) -> Result<Secret, InvalidValue> {
    let bytes = match text.strip_prefix("base64:") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| "it is not base64".to_owned())?,
        None => text.as_bytes().to_vec(),
    };
    match bytes.len() {
        len if len < SECRET_MIN => Err(format!("a key has {len} bytes, fewer than {SECRET_MIN}")),
        _ => Ok(Secret(bytes)),
    }
}

pub(in crate::config) fn session_creation(text: &str) -> Result<SessionCreation, InvalidValue> {
    choice(text, &[("return", SessionCreation::Return), ("write", SessionCreation::Write)])
}

/// Sessions of one user, or 0 for any number.
pub(in crate::config) fn sessions_per_user(text: &str) -> Result<u64, InvalidValue> {
    if text == "0" { Ok(0) } else { number(text, 1000) }
}

pub(in crate::config) fn secrets(items: &[String]) -> Result<Vec<Secret>, InvalidValue> {
    items.iter().map(|item| secret(item)).collect()
}

pub(in crate::config) fn scripting_mode(text: &str) -> Result<ScriptingMode, InvalidValue> {
    let choices = [
        ("auto", ScriptingMode::Auto),
        ("fcall", ScriptingMode::Fcall),
        ("evalsha", ScriptingMode::Evalsha),
        ("plain", ScriptingMode::Plain),
    ];
    choice(text, &choices)
}

pub(in crate::config) fn cookie_security(text: &str) -> Result<CookieSecurity, InvalidValue> {
    choice(
        text,
        &[
            ("auto", CookieSecurity::Auto),
            ("always", CookieSecurity::Always),
            ("never", CookieSecurity::Never),
        ],
    )
}
