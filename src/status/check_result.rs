//! What a worker reports of the application's checks on its status pipe, line by line: both ends know it from here.
//!
//! Another release may be at the other end. One that knows no checks takes each line for an unknown message, and one that
//! says nothing of them counts as a worker whose checks are not known.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Longest name and reason on the pipe, bytes: with its end a line is written in one piece (`PIPE_BUF`, pipe(7)), even
/// where every byte is escaped.
const NAME_MAX: usize = 100;
const REASON_MAX: usize = 500;

/// What each line of a result begins with.
const PREFIX: &str = "check ";

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult<'a> {
    /// The check.
    pub name: Cow<'a, str>,
    /// What is wrong, if anything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl<'a> CheckResult<'a> {
    /// The line with which a worker says, before it is READY, that its application has checks.
    pub const ANNOUNCEMENT: &'static str = "checks";

    /// The line after the last result of a round.
    pub const END_LINE: &'static str = "checked";

    /// A result, as much of it as goes over the pipe.
    pub fn new(name: &'a str, mut failure: Option<String>) -> Self {
        if let Some(reason) = &mut failure {
            reason.truncate(reason.floor_char_boundary(REASON_MAX));
        }
        Self { name: Cow::Borrowed(&name[..name.floor_char_boundary(NAME_MAX)]), failure }
    }

    /// As a line, without its end.
    pub fn to_line(&self) -> String {
        format!("{PREFIX}{}", serde_json::to_string(self).unwrap_or_default())
    }

    /// Of a line, if it is one.
    pub fn from_line(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(PREFIX)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_short_line_whatever_it_says() {
        let name = "\u{1}".repeat(5000);
        let result = CheckResult::new(&name, Some("\n\u{1}é".repeat(5000)));
        let line = result.to_line();
        assert!(line.len() < 4095 && !line.contains('\n'), "{}", line.len());
        assert_eq!(CheckResult::from_line(&line), Some(result));
        let fine = CheckResult::new("database", None);
        assert_eq!(fine.to_line(), r#"check {"name":"database"}"#);
        assert_eq!(
            CheckResult::from_line("check {\"name\":\"database\",\"later\":1}"),
            Some(fine),
            "of a later release"
        );
        for wrong in ["checked", "checks", "check", "check {", "check {}", "ready"] {
            assert_eq!(CheckResult::from_line(wrong), None, "{wrong}");
        }
    }
}
