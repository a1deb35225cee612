//! What others have written (a handler's error, a panic, a path, another host's name), made harmless for a terminal.
//!
//! A control character moves the cursor, changes colours or begins a line that looks like one of ours; some characters
//! turn the direction of what follows. They are shown as escapes, and everything else as it is.

use std::fmt::Write;

/// The text on one line, with every control character escaped: `\n`, `\t`, `\x1b`, `\u{9b}`.
pub fn escape_for_terminal(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            letter if letter.is_ascii_control() => _ = write!(shown, "\\x{:02x}", u32::from(letter)),
            letter if is_deceptive(letter) => _ = write!(shown, "\\u{{{:x}}}", u32::from(letter)),
            letter => shown.push(letter),
        }
    }
    shown
}

/// The same of a text of several lines: those that follow are indented, so that none looks like the first of another.
pub(super) fn escape_block(text: &str) -> String {
    let lines: Vec<String> = text.lines().map(escape_for_terminal).collect();
    lines.join("\n    ")
}

/// The same of JSON, which escapes the others already: in it such a character can stand in a string only.
pub(super) fn escape_json(text: String) -> String {
    if !text.chars().any(is_deceptive) {
        return text;
    }
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match is_deceptive(letter) {
            true => _ = write!(shown, "\\u{:04x}", u32::from(letter)),
            false => shown.push(letter),
        }
    }
    shown
}

/// DEL and the control characters beyond ASCII, ends of lines beyond ASCII, and what turns the direction of a text.
fn is_deceptive(letter: char) -> bool {
    matches!(letter,
        '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    #[test]
    fn what_is_harmless_stays() {
        assert_eq!(escape_for_terminal("naïve 漢字 \\n \"q\""), "naïve 漢字 \\n \"q\"");
        assert_eq!(
            escape_for_terminal("a\nb\r\tc\u{1b}[31m\0\u{9b}2J\u{202e}x"),
            "a\\nb\\r\\tc\\x1b[31m\\x00\\u{9b}2J\\u{202e}x"
        );
        assert_eq!(
            escape_block("one\n\u{1b}two\n12:00 INFO forged"),
            "one\n    \\x1btwo\n    12:00 INFO forged"
        );
    }

    proptest! {
        #[test]
        fn no_control_character_is_left(text in any::<String>()) {
            assert!(!escape_for_terminal(&text).chars().any(|letter| letter.is_control() || is_deceptive(letter)));
            let written = escape_json(serde_json::to_string(&text).unwrap());
            assert!(!written.chars().any(|letter| letter.is_control() || is_deceptive(letter)));
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
