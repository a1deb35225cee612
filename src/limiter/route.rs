//! Whether a request's path lies under a policy's route, however the path is spelled.
//!
//! The router compares paths byte by byte, but a proxy in front and layers of the application may rewrite them
//! before: they decode `%6c`, merge `//`, resolve `/../`, cut `;parameters` and trailing slashes. So a policy applies
//! if the path as sent *or* its normalized form lies under the route. At worst a request is counted too often;
//! without it clients could avoid a limit. Pure.

use std::borrow::Cow;

/// A route as configured, and normalized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LimitRoute {
    text: String,
    normalized: Vec<u8>,
}

/// A request's path as sent, and normalized.
#[derive(Debug, Clone)]
pub(super) struct RequestPath<'a> {
    raw: &'a [u8],
    normalized: Cow<'a, [u8]>,
}

impl LimitRoute {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), normalized: normalize(text.as_bytes()).into_owned() }
    }

    /// Whether the path is the route itself, or lies below it at a `/`.
    pub(super) fn covers(&self, path: &RequestPath<'_>) -> bool {
        is_below(path.raw, self.text.as_bytes()) || is_below(&path.normalized, &self.normalized)
    }
}

impl<'a> RequestPath<'a> {
    /// Allocates only for a path that has to be normalized.
    pub(super) fn new(sent: &'a str) -> Self {
        Self { raw: sent.as_bytes(), normalized: normalize(sent.as_bytes()) }
    }
}

fn is_below(path: &[u8], route: &[u8]) -> bool {
    path.strip_prefix(route)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || route.ends_with(b"/"))
}

/// The normalized form: every `%XX` decoded once, `\` as `/`, parameters cut, no empty or dot segments, no slash at
/// the end. The encoded slash is decoded too: some proxies do, and a router behind them sees two segments.
fn normalize(path: &[u8]) -> Cow<'_, [u8]> {
    if is_normalized(path) {
        return Cow::Borrowed(path);
    }
    let decoded = decode(path);
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| matches!(byte, b'/' | b'\\')) {
        let end = segment.iter().position(|byte| *byte == b';').unwrap_or(segment.len());
        match &segment[..end] {
            b"" | b"." => {}
            b".." => _ = segments.pop(),
            named => segments.push(named),
        }
    }
    let mut normalized = vec![b'/'];
    normalized.extend(segments.join(&b'/'));
    Cow::Owned(normalized)
}

/// Whether a path is normalized; true for nearly every path, so one pass must suffice.
fn is_normalized(path: &[u8]) -> bool {
    let Some((b'/', rest)) = path.split_first() else { return false };
    let mut before = b'/';
    for byte in rest {
        if matches!(byte, b'%' | b';' | b'\\') || (before == b'/' && matches!(byte, b'/' | b'.')) {
            return false;
        }
        before = *byte;
    }
    before != b'/' || rest.is_empty()
}

fn decode(path: &[u8]) -> Vec<u8> {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        if escaped.is_some() {
            rest = &after[2..];
        }
        decoded.push(escaped.unwrap_or(*first));
    }
    decoded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covers(route: &str, path: &str) -> bool {
        LimitRoute::new(route).covers(&RequestPath::new(path))
    }

    #[test]
    fn every_spelling_of_a_path_lies_under_its_route() {
        let spellings = [
            "/login",
            "/%6cogin",
            "/%6Cogin",
            "/lo%67in",
            "//login",
            "///login",
            "/./login",
            "/x/../login",
            "/login/",
            "/login//",
            "/login/.",
            "/login;v=1",
            "/;a/login",
            "/x/..;/login",
            "/%2e/login",
            "/x/%2E%2e/login",
            "/%2flogin",
            "/login%2F",
            "/../login",
            "\\login",
            "/x\\..\\login",
            "/login/x",
            "/login/%ff",
            "/login%3bv=1",
            "login",
        ];
        for spelling in spellings {
            assert!(covers("/login", spelling), "{spelling}");
            assert!(covers("/", spelling), "{spelling}");
        }
    }

    #[test]
    fn other_paths_do_not() {
        for other in [
            "/log",
            "/logins",
            "/LOGIN",
            "/x/login",
            "/login%3f",
            "/%256cogin",
            "/",
            "",
            "*",
            "/%",
            "/%6",
            "/%zz",
        ] {
            assert!(!covers("/login", other), "{other}");
        }
        assert!(!covers("/log", "/login"), "a route ends at a slash");
    }

    #[test]
    fn a_route_may_be_spelled_in_any_way_too() {
        for route in ["/login/", "//login", "/%6cogin"] {
            assert!(
                covers(route, "/login") && covers(route, "/login/x") && !covers(route, "/loginx"),
                "{route}"
            );
        }
        assert!(covers("/caf%C3%A9", "/caf%c3%a9") && covers("/caf\u{e9}", "/caf%C3%A9"));
        assert!(covers("/", "*") && covers("/", ""));
    }

    #[test]
    fn a_normalized_path_is_not_copied() {
        let is_copied = |path: &str| matches!(normalize(path.as_bytes()), Cow::Owned(_));
        assert!(["/", "/login", "/a/b.c/d"].iter().all(|path| !is_copied(path)));
        assert!(["/.", "/a/", "//", "/%61"].iter().all(|path| is_copied(path)));
    }

    proptest! {
        #[test]
        fn normalizing_twice_changes_only_what_is_encoded_twice(path in "[/a.;%2eE\\\\]{0,24}") {
            let once = normalize(path.as_bytes()).into_owned();
            prop_assert!(once.starts_with(b"/"));
            if !once.contains(&b'%') {
                prop_assert_eq!(normalize(&once).into_owned(), once.clone());
            }
            if is_normalized(path.as_bytes()) {
                prop_assert_eq!(once, path.as_bytes());
            }
        }
    }
}
