//! Numbers as people read them: short, with their unit, of a width that does not jump about.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// What stands where there is no number.
pub(super) const NONE: &str = "-";

/// With separators: `1,234,567`.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In at most five characters: `12`, `1234`, `12.3k`, `1.2M`.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn abbreviated(number: u64) -> String {
    match number {
        0..10_000 => number.to_string(),
        10_000..1_000_000 => scaled(number as f64 / 1e3, "k"),
        1_000_000..1_000_000_000 => scaled(number as f64 / 1e6, "M"),
        _ => scaled(number as f64 / 1e9, "G"),
    }
}

/// A rate, rounded to what matters: `0`, `0.5`, `12`, `12.3k`.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates are small and never negative"
)]
pub(super) fn rate(per_second: f64) -> String {
    if per_second > 0.0 && per_second < 9.95 {
        format!("{per_second:.1}")
    } else {
        abbreviated(per_second.round().max(0.0) as u64)
    }
}

/// A share: `43%`.
pub(super) fn percent(share: f64) -> String {
    format!("{share:.0}%")
}

/// A latency in microseconds: `850µs`, `1.8ms`, `12ms`, `1.2s`.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us}µs"),
        1_000..1_000_000 => scaled(us as f64 / 1e3, "ms"),
        _ => scaled(us as f64 / 1e6, "s"),
    }
}

/// An age in seconds: `45s`, `12m`, `3h12m`, `5d4h`.
pub(super) fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// A size in bytes: `512B`, `9.8M`.
#[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(super) fn bytes(size: u64) -> String {
    match size {
        0..1024 => format!("{size}B"),
        1024..0x10_0000 => scaled(size as f64 / 1024.0, "K"),
        0x10_0000..0x4000_0000 => scaled(size as f64 / 1_048_576.0, "M"),
        _ => scaled(size as f64 / 1_073_741_824.0, "G"),
    }
}

fn scaled(number: f64, unit: &str) -> String {
    if number < 99.95 { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// Columns of a terminal that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

/// The text cut to so many columns, with `…` for what is missing.
pub(super) fn truncate(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let mut room = columns.saturating_sub(1);
    let fits = |letter: &char| {
        let wide = letter.width().unwrap_or(0);
        room.checked_sub(wide).map(|left| room = left).is_some()
    };
    let mut cut: String = text.chars().take_while(fits).collect();
    if columns > 0 {
        cut.push('…');
    }
    cut
}

/// Someone else's text on one line and without control characters: a reason must not move the cursor.
pub(super) fn sanitize(text: &str) -> String {
    let visible = |letter: char| if letter.is_control() { ' ' } else { letter };
    text.chars().map(visible).collect::<String>().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [9_999, 12_345, 1_200_000, 3_000_000_000].map(abbreviated),
            ["9999", "12.3k", "1.2M", "3.0G"]
        );
        assert_eq!([0.0, 0.52, 9.99, 12_345.0].map(rate), ["0", "0.5", "10", "12.3k"]);
        assert_eq!([31, 1_800, 120_400, 1_230_000].map(micros), ["31µs", "1.8ms", "120ms", "1.2s"]);
        assert_eq!([59, 61, 11_520, 446_400].map(age), ["59s", "1m1s", "3h12m", "5d4h"]);
        assert_eq!([5, 2048, 10_276_045].map(bytes), ["5B", "2.0K", "9.8M"]);
    }

    #[test]
    fn a_cut_text_never_takes_more_columns_than_there_are() {
        assert_eq!(truncate("reload", 6), "reload");
        assert_eq!(truncate("reload", 4), "rel…");
        assert_eq!(truncate("漢字漢字", 4), "漢…");
        assert_eq!(truncate("x", 0), "");
        for columns in 0..12 {
            assert!(width(&truncate("日本 ǘ and more", columns)) <= columns);
        }
    }

    #[test]
    fn somebody_elses_text_cannot_move_the_cursor() {
        assert_eq!(sanitize("it said\n\x1b[2J\tbye"), "it said [2J bye");
    }
}
