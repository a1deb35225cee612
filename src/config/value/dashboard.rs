//! What the operators' page's settings may be.

use crate::config::settings::Secret;
use crate::config::value::{InvalidValue, choice};

/// Fewest bytes of a token: guessing one takes longer than anybody has.
const TOKEN_MIN: usize = 16;

/// Most bytes of a token, so that a form with one stays small.
const TOKEN_MAX: usize = 1024;

pub(in crate::config) fn flag(text: &str) -> Result<bool, InvalidValue> {
    choice(text, &[("true", true), ("false", false)])
}

/// An operator's token; what a file holds is read the same way.
pub(in crate::config) fn dashboard_token(text: &str) -> Result<Secret, InvalidValue> {
    let text = text.trim();
    match text.len() {
        len if len < TOKEN_MIN => Err(format!("a token has {len} bytes, fewer than {TOKEN_MIN}")),
        len if len > TOKEN_MAX => Err(format!("a token has {len} bytes, more than {TOKEN_MAX}")),
        _ => Ok(Secret(text.as_bytes().to_vec())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_and_never_printed() {
        assert!(dashboard_token("fifteen letters").is_err() && dashboard_token(&"x".repeat(1025)).is_err());
        let token = dashboard_token(" a token of mine too\n").unwrap_or_else(|reason| panic!("{reason}"));
        assert_eq!(token.expose(), b"a token of mine too", "what surrounds it in a file is not part of it");
        assert!(!format!("{token:?}").contains("mine"));
    }
}
