//! Numbers and times as the page shows them: short and with a unit. Pure.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// An unknown value.
pub(super) const UNKNOWN: &str = "–";

const CLOCK: &[BorrowedFormatItem<'static>] = format_description!("[hour]:[minute]:[second]");
const STAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");

/// A number with thin spaces between its thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push('\u{2009}');
        }
        grouped.push(digit);
    }
    grouped
}

/// A rate per second.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate for people")]
pub(super) fn rate(per_second: Option<f64>) -> String {
    match per_second {
        None => UNKNOWN.to_owned(),
        Some(rate) if rate <= 0.0 => "0".to_owned(),
        Some(rate) if rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => count(rate.round() as u64),
    }
}

/// A share, 0 to 100.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| UNKNOWN.to_owned(), |share| format!("{:.0}\u{2009}%", share.clamp(0.0, 100.0)))
}

/// A time in microseconds.
#[allow(clippy::cast_precision_loss, reason = "a time for people")]
pub(super) fn micros(us: Option<u64>) -> String {
    match us {
        None => UNKNOWN.to_owned(),
        Some(us) if us < 1000 => format!("{us}\u{2009}µs"),
        Some(us) if us < 9950 => format!("{:.1}\u{2009}ms", us as f64 / 1e3),
        Some(us) if us < 999_500 => format!("{:.0}\u{2009}ms", us as f64 / 1e3),
        Some(us) => format!("{:.1}\u{2009}s", us as f64 / 1e6),
    }
}

/// A size in bytes.
#[allow(clippy::cast_precision_loss, reason = "a size for people")]
pub(super) fn bytes(size: u64) -> String {
    match size {
        0 => UNKNOWN.to_owned(),
        size if size < 10 << 20 => format!("{:.1}\u{2009}MiB", size as f64 / f64::from(1 << 20)),
        size if size < 1 << 30 => format!("{:.0}\u{2009}MiB", size as f64 / f64::from(1 << 20)),
        size => format!("{:.1}\u{2009}GiB", size as f64 / f64::from(1 << 30)),
    }
}

/// A duration, its two largest units.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}\u{2009}s"),
        60..3600 => format!("{minutes}\u{2009}min"),
        3600..86_400 => format!("{hours}\u{2009}h {}\u{2009}min", minutes % 60),
        _ => format!("{days}\u{2009}d {}\u{2009}h", hours % 24),
    }
}

/// The time of day, UTC, of a Unix time in milliseconds.
pub(super) fn clock(unix_ms: u64) -> String {
    at(unix_ms).and_then(|at| at.format(CLOCK).ok()).unwrap_or_else(|| UNKNOWN.to_owned())
}

/// Date and time, UTC, RFC 3339.
pub(super) fn stamp(unix_ms: u64) -> String {
    at(unix_ms).and_then(|at| at.format(STAMP).ok()).unwrap_or_default()
}

fn at(unix_ms: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000).ok()
}

/// "1 worker", "2 workers".
pub(super) fn counted(number: usize, one: &str, more: &str) -> String {
    format!("{} {}", count(number as u64), if number == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        assert_eq!([0, 999, 1_234_567].map(count), ["0", "999", "1\u{2009}234\u{2009}567"]);
        let rates = [None, Some(0.0), Some(0.04), Some(9.94), Some(9.96), Some(12_345.6)].map(rate);
        assert_eq!(rates, ["–", "0", "0.0", "9.9", "10", "12\u{2009}346"]);
        let times = [None, Some(340), Some(1_240), Some(45_400), Some(999_600)].map(micros);
        assert_eq!(times, ["–", "340\u{2009}µs", "1.2\u{2009}ms", "45\u{2009}ms", "1.0\u{2009}s"]);
        let sizes = [0, 5 << 20, 300 << 20, 3 << 30].map(bytes);
        assert_eq!(sizes, ["–", "5.0\u{2009}MiB", "300\u{2009}MiB", "3.0\u{2009}GiB"]);
        let ages = [59, 61, 3_661, 90_000].map(age);
        assert_eq!(ages, ["59\u{2009}s", "1\u{2009}min", "1\u{2009}h 1\u{2009}min", "1\u{2009}d 1\u{2009}h"]);
        assert_eq!([None, Some(0.4), Some(250.0)].map(percent), ["–", "0\u{2009}%", "100\u{2009}%"]);
        assert_eq!(
            (counted(1, "worker", "workers"), counted(2, "worker", "workers")),
            ("1 worker".into(), "2 workers".into())
        );
    }

    #[test]
    fn a_time_beyond_the_calendar_is_none() {
        assert_eq!(
            (clock(1_700_000_000_123), stamp(1_700_000_000_123)),
            ("22:13:20".into(), "2023-11-14T22:13:20Z".into())
        );
        assert_eq!((clock(u64::MAX), stamp(u64::MAX)), (UNKNOWN.to_owned(), String::new()));
    }
}
