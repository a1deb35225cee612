//! What is wrong with the words of a command line, told without what may be a secret among them.

use std::ffi::OsString;

use clap::error::ErrorKind;

use crate::config::settings::RedisUrl;

/// What is wrong with these words, without what may be a secret among them: it may be logged.
pub(super) fn usage_error(error: &clap::Error, arguments: &[OsString]) -> String {
    if error.kind() == ErrorKind::InvalidUtf8 {
        let nth = arguments.iter().position(|word| word.to_str().is_none()).unwrap_or(0);
        let before = nth.checked_sub(1).and_then(|before| arguments.get(before)?.to_str());
        let before = before.filter(|word| word.starts_with('-')).map(|flag| format!("{flag} "));
        let word = arguments.get(nth).map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
        let shown = format!("{}{}…", before.unwrap_or_default(), leading_name(&word));
        return format!("error: the argument {shown} is not valid UTF-8\n");
    }
    let urls = arguments.iter().filter_map(|word| word.to_str()).filter(|word| word.contains(['@', ':']));
    urls.fold(error.to_string(), |text, url| text.replace(url, &RedisUrl::redact(url)))
}

/// The part of a word that is a flag's or a setting's name, and so no value.
pub(super) fn leading_name(word: &str) -> &str {
    let end = word.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.*".contains(c)));
    &word[..end.unwrap_or(word.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::read;

    #[test]
    fn a_mistake_in_the_words_is_reported_without_their_values() {
        use std::os::unix::ffi::OsStringExt;
        let text_for = |words: &[&[u8]]| {
            let words: Vec<_> = words.iter().map(|word| OsString::from_vec(word.to_vec())).collect();
            usage_error(&read(&words).unwrap_err(), &words)
        };
        let cases: [(&[&[u8]], &str); 4] = [
            (&[b"r", b"--set", b"session.secrets=hunter22\xff"], "--set session.secrets…"),
            (&[b"r", b"--redis-url=redis://:hunter22\xff@h"], "--redis-url…"),
            (&[b"r", b"--set", b"redis.url", b"redis://:hunter22@h"], "redis://***@h:6379"),
            (&[b"r", b"hunt#://:hunter22@h"], "***"),
        ];
        for (words, part) in cases {
            let text = text_for(words);
            assert!(text.contains(part) && !text.contains("hunter22"), "{text}");
        }
        let settings = |pair: &str| {
            let line = read(&["r", "--set", pair].map(OsString::from)).unwrap();
            line.settings.inputs().unwrap_err()
        };
        assert!(!settings("redis.url:redis://:hunter22@h").contains("hunter22"));
        assert!(settings("drain.grace").contains("--set drain.grace=VALUE"));
    }
}
