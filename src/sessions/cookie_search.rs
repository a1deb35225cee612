//! Which of a request's cookies is ours.
//!
//! Guarantees that a genuine cookie is found whatever stands around it: others of any number and length, forged ones of
//! the same name, values in quotes, pairs in one header line or in many (RFC 9113 §8.2.3), bytes that are no text. Only
//! where more values than [`CANDIDATES_MAX`] have to be checked is none taken, and that is an error: such a request is
//! rejected: with no session it would get a new one at every request.

use crate::sessions::cookie::{CookieKeyring, CookieRecognition};
use crate::sessions::cookie_value::is_provisional;
use crate::sessions::verified_cookie_cache::RecognizedCookie;

/// Most values that are checked: each of them has the right form and names a key of ours, and was not signed with it.
pub const CANDIDATES_MAX: usize = 32;

/// More values of our cookie's name than can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {CANDIDATES_MAX} cookies have the session's name and form, and none of the first is genuine"
)]
pub struct TooManyCookies;

/// What one name's cookies say.
pub type CookieLookup = Result<Option<RecognizedCookie>, TooManyCookies>;

/// The visitors that the request's `Cookie` headers name under these names, in one pass.
///
/// Of several genuine ones of a name the first counts, a session's before a provisional one. `None` in place of a name asks for
/// nothing.
pub fn find_session_cookies<'a, const N: usize>(
    keyring: &CookieKeyring,
    headers: impl IntoIterator<Item = &'a [u8]>,
    names: [Option<&str>; N],
) -> [CookieLookup; N] {
    let mut searches = names.map(|name| name.map(Search::new));
    for pair in headers.into_iter().flat_map(pairs) {
        for search in searches.iter_mut().flatten() {
            if let Some(value) = value(pair, search.name) {
                search.check(keyring, value);
            }
        }
    }
    searches.map(|search| search.map_or(Ok(None), Search::into_result))
}

/// What was found under one name so far.
struct Search<'a> {
    name: &'a str,
    session: Option<RecognizedCookie>,
    provisional: Option<RecognizedCookie>,
    forged: usize,
}

impl<'a> Search<'a> {
    fn new(name: &'a str) -> Self {
        Self { name, session: None, provisional: None, forged: 0 }
    }

    fn check(&mut self, keyring: &CookieKeyring, value: &[u8]) {
        // Found, or more than can be checked: nothing that follows is checked. Nor is a provisional cookie behind another one: each
        // is verified anew, and one header has room for hundreds.
        let is_found = self.session.is_some() || self.provisional.is_some() && is_provisional(value);
        if is_found || self.forged > CANDIDATES_MAX {
            return;
        }
        match keyring.recognize(self.name, value) {
            CookieRecognition::Genuine(known) if known.cookie.provisional.is_none() => {
                self.session = Some(known)
            }
            CookieRecognition::Genuine(known) => self.provisional = self.provisional.or(Some(known)),
            CookieRecognition::Forged => self.forged += 1,
            CookieRecognition::Foreign => {}
        }
    }

    fn into_result(self) -> CookieLookup {
        match self.session.or(self.provisional) {
            None if self.forged > CANDIDATES_MAX => Err(TooManyCookies),
            cookie => Ok(cookie),
        }
    }
}

/// All cookies of a header. Commas separate as well as semicolons: our values have none, and some proxies join header
/// lines with them.
fn pairs(header: &[u8]) -> impl Iterator<Item = &[u8]> {
    header.split(|byte| matches!(byte, b';' | b','))
}

/// The value of a cookie if it has this name.
fn value<'a>(pair: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let rest = pair.trim_ascii_start().strip_prefix(name.as_bytes())?;
    let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tower_sessions::session::Id;

    use super::*;
    use crate::sessions::cookie::new_id;
    use crate::sessions::cookie_value::ProvisionalCookie;

    fn ring() -> CookieKeyring {
        CookieKeyring::new([&b"a secret of thirty-two bytes, new"[..]]).unwrap()
    }

    fn found(ring: &CookieKeyring, headers: &[&[u8]]) -> Option<Id> {
        let [found] = find_session_cookies(ring, headers.iter().copied(), [Some("sid")]);
        found.unwrap().map(|known| known.cookie.id)
    }

    #[test]
    fn ours_is_found_whatever_stands_around_it() {
        let (ring, id) = (ring(), new_id().unwrap());
        let own = ring.sign("sid", id, None);
        let other = |count: usize| format!("other={}", "x".repeat(count));
        let forged = "sid=forged; sid=; sid=v1.a.b.c; ".repeat(100);
        for header in [
            format!("sid={own}"),
            format!("{}; sid={own}; {}", other(19_500), other(60_000)),
            format!("{forged}sid={own}"),
            format!("sid=\"{own}\""),
            format!("  sid = {own} ;"),
            format!("$Version=1; sid={own}; $Path=/"),
            format!("a=1, sid={own}, b=2"),
            format!("sid2={own}x; si={own}; xsid={own}y; sid={own}; SID=1"),
            format!("noequals; =; ;; sid={own}"),
        ] {
            assert_eq!(found(&ring, &[header.as_bytes()]), Some(id), "{}", &header[..header.len().min(80)]);
        }
        let lines: [&[u8]; 4] = [b"a=\xff\xfe", b"sid=\xff", format!("sid={own}").leak().as_bytes(), b"b=1"];
        assert_eq!(found(&ring, &lines), Some(id));
        for none in [format!("sid2={own}"), format!("xsid={own}"), format!("SID={own}"), "sid".to_owned()] {
            assert_eq!(found(&ring, &[none.as_bytes()]), None);
        }
    }

    #[test]
    fn a_session_counts_before_a_provisional_one_and_that_before_nothing() {
        let (ring, session, provisional) = (ring(), new_id().unwrap(), new_id().unwrap());
        let (one, other) = (
            ring.sign("sid", session, None),
            ring.sign_provisional("sid", provisional, ProvisionalCookie { issued_ms: 7, viewed: false }),
        );
        assert_eq!(found(&ring, &[format!("sid={other}; sid={one}").as_bytes()]), Some(session));
        assert_eq!(found(&ring, &[format!("sid={other}; sid=x").as_bytes()]), Some(provisional));
    }

    #[test]
    fn more_forgeries_than_can_be_checked_are_an_error_and_never_a_stranger() {
        let ring = ring();
        let own = ring.sign("sid", new_id().unwrap(), None);
        let forgery = || format!("sid={}", ring.sign("other", new_id().unwrap(), None));
        let flood: Vec<String> = (0..=CANDIDATES_MAX).map(|_| forgery()).collect();
        let header = format!("{}; sid={own}", flood.join("; "));
        assert_eq!(find_session_cookies(&ring, [header.as_bytes()], [Some("sid")]), [Err(TooManyCookies)]);
        let header = format!("{}; sid={own}", flood[1..].join("; "));
        assert!(found(&ring, &[header.as_bytes()]).is_some());
    }

    #[test]
    fn a_forged_one_beside_a_genuine_one_that_is_cached_is_still_forged() {
        let (ring, id) = (ring(), new_id().unwrap());
        let own = ring.sign("sid", id, None);
        let mut forged = own.clone().into_bytes();
        // The end of its signature, by which it is found, is the genuine one's.
        forged[40] = if forged[40] == b'A' { b'B' } else { b'A' };
        let forged = String::from_utf8(forged).unwrap();
        for _ in 0..3 {
            assert_eq!(found(&ring, &[format!("sid={forged}; sid={own}").as_bytes()]), Some(id));
            assert_eq!(found(&ring, &[format!("sid={forged}").as_bytes()]), None);
            let both = format!("__Host-sid={own}; sid={own}");
            let read = find_session_cookies(&ring, [both.as_bytes()], [Some("__Host-sid"), Some("sid")]);
            let [Ok(None), Ok(Some(known))] = read else { panic!("{read:?}") };
            assert_eq!((known.cookie.id, known.digest), (id, crate::sessions::digest(id)));
        }
    }

    #[test]
    fn of_many_provisional_ones_the_first_counts_and_a_session_behind_them() {
        let (ring, first, second, session) =
            (ring(), new_id().unwrap(), new_id().unwrap(), new_id().unwrap());
        let provisional =
            |id| ring.sign_provisional("sid", id, ProvisionalCookie { issued_ms: 7, viewed: false });
        let cookies = format!(
            "sid={}",
            [vec![provisional(first)], vec![provisional(second); 300]].concat().join("; sid=")
        );
        assert_eq!(found(&ring, &[cookies.as_bytes()]), Some(first));
        let header = format!("{cookies}; sid={}", ring.sign("sid", session, None));
        assert_eq!(found(&ring, &[header.as_bytes()]), Some(session));
    }

    #[test]
    fn what_one_keyring_has_cached_another_does_not_know() {
        let secret = |text: &'static str| text.as_bytes();
        let (old, new) =
            (secret("an old secret of thirty-two bytes"), secret("a new secret with thirty-two bytes"));
        let id = new_id().unwrap();
        let before = CookieKeyring::new([old]).unwrap();
        let own = format!("sid={}", before.sign("sid", id, None));
        let known = |ring: &CookieKeyring| {
            let [first] = find_session_cookies(ring, [own.as_bytes()], [Some("sid")]);
            let [again] = find_session_cookies(ring, [own.as_bytes()], [Some("sid")]);
            assert_eq!(first, again);
            again.unwrap()
        };
        assert!(known(&before).is_some_and(|known| !known.cookie.re_sign));
        assert!(known(&CookieKeyring::new([new, old]).unwrap()).is_some_and(|known| known.cookie.re_sign));
        assert_eq!(known(&CookieKeyring::new([new]).unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(header in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(find_session_cookies(&ring(), [header.as_slice()], [Some("sid"), None]), [Ok(None), Ok(None)]);
        }
    }
}
