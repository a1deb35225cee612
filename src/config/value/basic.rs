//! Numbers, times, sizes and words as they are written in a configuration.

use std::time::Duration;

/// Why a text is not a value; completes the sentence "… is X, but …".
pub(in crate::config) type InvalidValue = String;

pub(in crate::config) fn not_allowed() -> InvalidValue {
    "that is not allowed".into()
}

/// Longest time that a setting may be.
pub const DURATION_MAX: Duration = Duration::from_secs(3660 * 24 * 60 * 60);

pub(in crate::config) fn duration(text: &str) -> Result<Duration, InvalidValue> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a unit is missing".into());
    }
    let duration = humantime::parse_duration(text).map_err(|source| source.to_string())?;
    if duration > DURATION_MAX { Err("that is more than ten years".into()) } else { Ok(duration) }
}

pub(in crate::config) fn positive_duration(text: &str) -> Result<Duration, InvalidValue> {
    let duration = duration(text)?;
    if duration.is_zero() { Err("it must be longer than nothing".into()) } else { Ok(duration) }
}

pub(in crate::config) fn size(text: &str) -> Result<usize, InvalidValue> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: usize = number.parse().map_err(|_| not_allowed())?;
    let unit = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err("the unit is unknown".into()),
    };
    match number.checked_mul(unit) {
        Some(0) | None => Err("it is out of range".into()),
        Some(bytes) => Ok(bytes),
    }
}

pub(in crate::config) fn number(text: &str, max: u64) -> Result<u64, InvalidValue> {
    let number: u64 = text.parse().map_err(|_| "that is not a number in range".to_owned())?;
    if (1..=max).contains(&number) { Ok(number) } else { Err("it is out of range".into()) }
}

/// A number, or 0 for none.
pub(in crate::config) fn number_or_none(text: &str) -> Result<Option<u64>, InvalidValue> {
    if text == "0" { Ok(None) } else { number(text, 1_000_000_000_000).map(Some) }
}

/// A number, or 0.
pub(in crate::config) fn number_or_zero(text: &str) -> Result<u64, InvalidValue> {
    number_or_none(text).map(Option::unwrap_or_default)
}

/// A size, or 0 for none.
pub(in crate::config) fn size_or_none(text: &str) -> Result<Option<u64>, InvalidValue> {
    if text == "0" { Ok(None) } else { size(text).map(|bytes| Some(bytes as u64)) }
}

/// A duration, or 0 for none.
pub(in crate::config) fn duration_or_none(text: &str) -> Result<Option<Duration>, InvalidValue> {
    duration(text).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
}

/// A share of a hundred as one of one.
pub(in crate::config) fn percent(text: &str) -> Result<f64, InvalidValue> {
    let number = number(text.strip_suffix('%').unwrap_or(text).trim_end(), 100)?;
    Ok(number as f64 / 100.0)
}

/// A number of places, up to `max`.
pub(in crate::config) fn capacity(text: &str, max: u64) -> Result<usize, InvalidValue> {
    number(text, max).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
}

pub(in crate::config) fn word(text: &str, max: usize, also: &str) -> Result<String, InvalidValue> {
    let fits = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    match text.len() {
        0 => Err("it is empty".into()),
        len if len > max => Err("it is too long".into()),
        _ if !text.chars().all(fits) => Err("it has a character that is not allowed".into()),
        _ => Ok(text.to_owned()),
    }
}

/// One word of a fixed set.
pub(in crate::config) fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, InvalidValue> {
    let found = choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, value)| *value).ok_or_else(not_allowed)
}

pub(in crate::config) fn flag(text: &str) -> Result<bool, InvalidValue> {
    choice(text, &[("true", true), ("false", false)])
}

pub(in crate::config) fn policy_name(text: &str) -> Result<String, InvalidValue> {
    word(text, 32, "-_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_refuse_what_is_ambiguous() {
        assert_eq!(size("64KiB").unwrap(), 65536);
        assert!(size("64kb").is_err() && size("0").is_err() && size("").is_err());
        assert!(duration("5").is_err() && duration("-1s").is_err());
        assert_eq!(duration("1m 30s").unwrap(), Duration::from_secs(90));
        assert_eq!((size_or_none("0"), duration_or_none("0s")), (Ok(None), Ok(None)));
        assert_eq!((number_or_none("0"), number_or_none("7")), (Ok(None), Ok(Some(7))));
        assert_eq!((percent("50%"), percent("7")), (Ok(0.5), Ok(0.07)));
        assert!(percent("0%").is_err() && percent("101%").is_err() && percent("x").is_err());
    }
}
