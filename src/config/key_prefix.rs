//! The prefix of every key: a name that no other prefix can nest in.
//!
//! Guarantees that no key of a fleet is a key of another one whose prefix differs, whatever counters, topics and other
//! things are called. A key is the prefix, `:`, the name of a family ([`FAMILIES`]) and whatever belongs there. For a key
//! of `shop` to be one of `shop:x` as well, `x` would have to be a family: so no segment of a prefix but the first may be
//! called like one. In the first segment there is nothing to be confused with.
//!
//! **Room for more.** A family that is added must have a name that this rule refuses already, or that no prefix can
//! contain, because prefixes that were valid stay so: one small letter, or a word that begins with `{` or `@`. A test in
//! `tests/it/fast/redis/key_names.rs` holds it to that.

use crate::config::value::basic::word;

/// Longest prefix, bytes.
const MAX: usize = 64;

/// What the keys of a family begin with behind the prefix, beside those of one small letter.
pub const FAMILIES: &[&str] = &["bt", "dw", "io", "mig", "news", "once", "secret"];

/// Whether a segment is, or may come to be, the name of a family of keys.
pub fn is_family(segment: &str) -> bool {
    matches!(segment.as_bytes(), [b'a'..=b'z']) || FAMILIES.contains(&segment)
}

/// Reads the prefix of every key.
///
/// # Errors
/// What is wrong with it, and what to choose instead.
pub fn parse(text: &str) -> Result<String, String> {
    let text = word(text, MAX, "-_.:")?;
    let segments = text.split(':');
    if segments.clone().any(str::is_empty) {
        return Err("a part between its colons is empty".into());
    }
    match segments.skip(1).find(|segment| is_family(segment)) {
        None => Ok(text),
        Some(family) => Err(format!(
            "its part {family:?} is the name of one of our own families of keys, so that its keys could be those of a \
             fleet with a shorter prefix: write {:?}, or choose a longer word",
            spelled(&text)
        )),
    }
}

/// A prefix like this one that is allowed: the parts that are not go together with the one before.
fn spelled(text: &str) -> String {
    let mut segments = text.split(':');
    let mut spelled = segments.next().unwrap_or_default().to_owned();
    for segment in segments {
        spelled.push(if is_family(segment) { '-' } else { ':' });
        spelled.push_str(segment);
    }
    spelled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_chosen_sensibly_stays_valid() {
        for good in
            ["regatta", "a", "s", "c", "secret", "myapp:prod", "team:app:eu", "a.b_c-D:1", "x:v2", "x:C"]
        {
            assert_eq!(parse(good).as_deref(), Ok(good));
        }
    }

    #[test]
    fn a_prefix_that_could_nest_is_refused_and_another_one_named() {
        for (bad, instead) in [
            ("shop:c", "shop-c"),
            ("shop:secret", "shop-secret"),
            ("a:mig:bx", "a-mig:bx"),
            ("a:b:z", "a-b-z"),
            ("a:eu:news", "a:eu-news"),
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(refused.contains(&format!("{instead:?}")), "{bad}: {refused}");
            assert_eq!(parse(instead).as_deref(), Ok(instead));
        }
        for empty in ["a:", ":a", "a::b", ":", "::"] {
            assert!(parse(empty).unwrap_err().contains("empty"), "{empty}");
        }
        for strange in ["", "a*", "a{b}", "a b", "a?", "[a]", "a@1", "a\n", "é"] {
            assert!(parse(strange).is_err(), "{strange}");
        }
    }
}
