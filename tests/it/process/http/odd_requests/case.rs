//! The odd requests as they stand in `tests/odd/*.txt`.
//!
//! `[name] source`, with `@all` if it means the same over HTTP/2. Then what is sent: `> a line`, `>> no whole line`, and
//! `|fin` if the client ends its side behind it; `\r \n \t \0 \\ \xHH` are bytes, `{3*text}` is text three times,
//! `{cookie}` a known visitor's. What is refused would have added to the counter `orders`. Then the right answers, `|` between those that are:
//! `=` for all, `nginx =` behind nginx: statuses in their order (`h`: an answer to HEAD; `/`: either), and `open` (the
//! connection answers the next request), `close` (without a reset), or `wait` (for more). `~ text` is in what comes,
//! `!~ text` is not. Frames of HTTP/2 are described in `frames.rs`.

use std::fs;

use crate::support::repository::root;

/// One request, or several.
#[derive(Debug, Clone, Default)]
pub(super) struct Case {
    pub(super) name: String,
    /// Whether it can be asked over HTTP/2 as well.
    pub(super) everywhere: bool,
    /// Lines as they stand, without their sign; whether they end.
    pub(super) lines: Vec<(String, bool)>,
    /// Whether the client ends its side.
    pub(super) ends: bool,
    pub(super) right: String,
    pub(super) right_behind_nginx: Option<String>,
    pub(super) said: Vec<String>,
    pub(super) unsaid: Vec<String>,
}

/// The cases of a file.
pub(super) fn read(file: &str) -> Vec<Case> {
    let text = fs::read_to_string(root().join("tests/odd").join(file)).unwrap();
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[') {
            let (name, source) = head.split_once(']').unwrap_or_else(|| panic!("{line}"));
            let everywhere = source.ends_with("@all");
            cases.push(Case { name: name.into(), everywhere, ..Case::default() });
            continue;
        }
        let case = cases.last_mut().unwrap_or_else(|| panic!("{file}: {line}"));
        let (sign, rest) = line.split_once(' ').unwrap_or((line, ""));
        match sign {
            ">" => case.lines.push((rest.into(), true)),
            ">>" => case.lines.push((rest.into(), false)),
            "|fin" => case.ends = true,
            "=" => case.right = rest.into(),
            "nginx" => case.right_behind_nginx = Some(rest.trim_start_matches("= ").into()),
            "~" => case.said.push(rest.to_lowercase()),
            "!~" => case.unsaid.push(rest.to_lowercase()),
            _ => panic!("{file}: {line}"),
        }
    }
    assert!(cases.iter().all(|case| !case.right.is_empty()), "{file}: a case without an answer");
    cases
}

impl Case {
    /// What is sent, over HTTP/1.
    pub(super) fn bytes(&self, cookie: &str) -> Vec<u8> {
        let line =
            |(text, ends): &(String, bool)| [expand(&text.replace("{cookie}", cookie)), end(*ends)].concat();
        self.lines.iter().flat_map(line).collect()
    }
}

fn end(ends: bool) -> Vec<u8> {
    if ends { b"\r\n".to_vec() } else { Vec::new() }
}

/// Bytes of a text with repetitions and escapes.
pub(super) fn expand(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.find('{') {
        let Some((count, inner)) = repetition(&rest[begin + 1..]) else {
            bytes.extend(unescape(&rest[..=begin]));
            rest = &rest[begin + 1..];
            continue;
        };
        bytes.extend(unescape(&rest[..begin]));
        bytes.extend(expand(inner).repeat(count));
        rest = &rest[begin + 1 + count.to_string().len() + 1 + inner.len() + 1..];
    }
    bytes.extend(unescape(rest));
    bytes
}

/// `3*text}`: how often, and what.
fn repetition(text: &str) -> Option<(usize, &str)> {
    let (count, rest) = text.split_once('*')?;
    let count = count.parse().ok()?;
    let mut depth = 1;
    let end = rest.char_indices().find(|(_, letter)| {
        depth += i32::from(*letter == '{') - i32::from(*letter == '}');
        depth == 0
    });
    end.map(|(end, _)| (count, &rest[..end]))
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut letters = text.bytes();
    while let Some(byte) = letters.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match letters.next().unwrap() {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'x' => {
                let digits = [letters.next().unwrap(), letters.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    bytes
}

/// Whether what was found is one of the right answers.
pub(super) fn is_right(right: &str, found: &[String]) -> bool {
    right.split('|').any(|alternative| {
        let wanted: Vec<&str> = alternative.split_whitespace().collect();
        wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| fits(wanted, found))
    })
}

/// `1:200/404` and `200h/404h` are several; what a stream is asked for comes first.
fn fits(wanted: &str, found: &str) -> bool {
    let (stream, of) = wanted.split_once(':').map_or(("", wanted), |(stream, of)| (stream, of));
    let bare =
        if stream.is_empty() { found } else { found.strip_prefix(&format!("{stream}:")).unwrap_or("") };
    of.split('/').any(|one| one.trim_end_matches('h') == bare || one == bare)
}

#[test]
fn what_stands_in_the_files_is_read_as_it_is_meant() {
    assert_eq!(expand(r"a\r\n\x41{3*bc}{2*{2*x}\n}"), b"a\r\nAbcbcbcxx\nxx\n");
    assert_eq!(expand("{cookie"), b"{cookie");
    let found = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    assert!(is_right("400 close | 200/204 open", &found(&["204", "open"])));
    assert!(!is_right("400 close", &found(&["400", "open"])) && !is_right("400", &found(&["400", "close"])));
    assert!(is_right("1:200/404 open", &found(&["1:404", "open"])) && is_right("200h", &found(&["200"])));
}
