//! Which of a request's cookies is ours.
//!
//! Guarantees that a genuine cookie is found whatever stands around it: others of any number and length, forged ones of
//! the same name, values in quotes, pairs in one header line or in many (RFC 9113 §8.2.3), bytes that are no text. Only
//! where more values than [`CANDIDATES_MAX`] have to be checked is none taken, and that is an error: such a request is
//! refused, because treating it as a stranger's would give its visitor another session at every request.

use crate::session::cookie::Keyring;
use crate::session::cookie::Visitor;

/// Most values that are checked: each of them has the right form and names a key of ours, and was not signed with it.
pub const CANDIDATES_MAX: usize = 32;

/// More values of our cookie's name than can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "more than {CANDIDATES_MAX} cookies have the session's name and form, and none of the first is genuine"
)]
pub struct TooManyCookies;

/// The visitor that the request's `Cookie` headers name under this name. Of several genuine ones the first counts, a
/// session before a ticket.
///
/// # Errors
/// [`TooManyCookies`].
pub fn read<'a>(
    keyring: &Keyring,
    headers: impl IntoIterator<Item = &'a [u8]>,
    name: &str,
) -> Result<Option<Visitor>, TooManyCookies> {
    let mut candidates = 0;
    let mut ticket = None;
    for value in headers.into_iter().flat_map(|header| values(header, name)) {
        let Ok(value) = std::str::from_utf8(value) else { continue };
        if !keyring.may_be_ours(value) {
            continue;
        }
        match keyring.verify(name, value) {
            Some(visitor) if visitor.ticket.is_none() => return Ok(Some(visitor)),
            Some(visitor) => ticket = ticket.or(Some(visitor)),
            None => candidates += 1,
        }
        if candidates > CANDIDATES_MAX {
            return ticket.map(Some).ok_or(TooManyCookies);
        }
    }
    Ok(ticket)
}

/// The values of all cookies of this name. Commas separate as well as semicolons: our values have none, and some
/// proxies join header lines with them.
fn values<'a>(header: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    header.split(|byte| matches!(byte, b';' | b',')).filter_map(move |pair| {
        let rest = pair.trim_ascii_start().strip_prefix(name.as_bytes())?;
        let value = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
        Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tower_sessions::session::Id;

    use super::*;
    use crate::session::cookie::Ticket;
    use crate::session::cookie::new_id;

    fn ring() -> Keyring {
        Keyring::new([&b"a secret of thirty-two bytes, new"[..]]).unwrap()
    }

    fn found(ring: &Keyring, headers: &[&[u8]]) -> Option<Id> {
        read(ring, headers.iter().copied(), "sid").unwrap().map(|visitor| visitor.id)
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
    fn a_session_counts_before_a_ticket_and_a_ticket_before_nothing() {
        let (ring, session, ticket) = (ring(), new_id().unwrap(), new_id().unwrap());
        let (one, other) = (
            ring.sign("sid", session, None),
            ring.sign_ticket("sid", ticket, Ticket { issued_ms: 7, viewed: false }),
        );
        assert_eq!(found(&ring, &[format!("sid={other}; sid={one}").as_bytes()]), Some(session));
        assert_eq!(found(&ring, &[format!("sid={other}; sid=x").as_bytes()]), Some(ticket));
    }

    #[test]
    fn more_forgeries_than_can_be_checked_are_an_error_and_never_a_stranger() {
        let ring = ring();
        let own = ring.sign("sid", new_id().unwrap(), None);
        let forgery = || format!("sid={}", ring.sign("other", new_id().unwrap(), None));
        let flood: Vec<String> = (0..=CANDIDATES_MAX).map(|_| forgery()).collect();
        let header = format!("{}; sid={own}", flood.join("; "));
        assert_eq!(read(&ring, [header.as_bytes()], "sid"), Err(TooManyCookies));
        let header = format!("{}; sid={own}", flood[1..].join("; "));
        assert!(found(&ring, &[header.as_bytes()]).is_some());
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(header in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(read(&ring(), [header.as_slice()], "sid"), Ok(None));
        }
    }
}
