//! The value of an `Idempotency-Key`. Pure.

use http::HeaderMap;

use crate::http::header_names::IDEMPOTENCY_KEY;

/// Longest key, bytes.
pub(super) const KEY_MAX: usize = 255;

/// The header's value: a string of Structured Fields (RFC 9651), or the bare text that most clients send.
pub(super) fn parse_key(headers: &HeaderMap) -> Option<String> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (single_value, None) = (values.next()?.to_str().ok()?.trim(), values.next()) else { return None };
    let text = match single_value.strip_prefix('"') {
        Some(rest) => unescape(rest.strip_suffix('"')?)?,
        None => single_value.to_owned(),
    };
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    ((1..=KEY_MAX).contains(&text.len()) && visible).then_some(text)
}

/// The inside of a quoted string.
fn unescape(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => text.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            '"' => return None,
            c => text.push(c),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn parse_values(values: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        values
            .iter()
            .for_each(|value| _ = headers.append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).unwrap()));
        parse_key(&headers)
    }

    #[test]
    fn a_key_is_a_quoted_string_or_bare_text() {
        let cases: [(&[&str], Option<&str>); 10] = [
            (&["8e03978e-40d5-43e8-bc93-6894a57f9324"], Some("8e03978e-40d5-43e8-bc93-6894a57f9324")),
            (&["\"8e03978e\""], Some("8e03978e")),
            (&["\"a\\\"b\\\\c\""], Some("a\"b\\c")),
            (&["\"a b\""], Some("a b")),
            (&[""], None),
            (&["\"\""], None),
            (&["\"a"], None),
            (&["\"a\"b\""], None),
            (&["\"a\\n\""], None),
            (&["a", "b"], None),
        ];
        for (values, expected) in cases {
            assert_eq!(parse_values(values).as_deref(), expected, "{values:?}");
        }
        assert_eq!(parse_values(&[&"x".repeat(KEY_MAX)]).map(|key| key.len()), Some(KEY_MAX));
        assert_eq!(parse_values(&[&"x".repeat(KEY_MAX + 1)]), None);
    }
}
