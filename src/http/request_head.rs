//! What a request's head must be beside what hyper sees to: whose it is (RFC 9112 §3.2, RFC 9113 §8.3.1), how its body
//! comes, and how much of it there is.
//!
//! Guarantees that a handler finds one valid `Host` at most, and that it names what the target does. Own code and not
//! [`http::uri::Authority`], which copies what it looks at, lets user information pass, and lets no `%` pass.

use std::net::Ipv6Addr;

use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version};

use crate::http::problem::Problem;

/// Most header fields of a request, over whichever protocol: hyper's bound for HTTP/1, which it reads them within
/// without a heap. Apache and Tomcat have the same, `HAProxy` 101, gunicorn 100, actix 96.
const FIELDS_MAX: usize = 100;

/// Most names that are compared one by one, which for so few costs less than hashing the one that is looked for.
const LINEAR_SEARCH_MAX: usize = 16;

/// Whether a header with this name was sent. Most that are looked for were not.
pub(super) fn has_header(headers: &HeaderMap, name: &HeaderName) -> bool {
    match headers.keys_len() <= LINEAR_SEARCH_MAX {
        true => headers.keys().any(|sent| sent == name),
        false => headers.contains_key(name),
    }
}

/// Whether one of a header's values, which commas separate, is this word.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, expected: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|token| token.trim().eq_ignore_ascii_case(expected))
}

/// The first value of a header, and whether it was sent again.
fn first_value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> (Option<&'h HeaderValue>, bool) {
    // Walking over a header's values costs more than looking it up, and in next to every request no name comes twice.
    let is_repeated = headers.len() > headers.keys_len() && headers.get_all(name).iter().nth(1).is_some();
    (headers.get(name), is_repeated)
}

/// Checks a head, and sets `Host` to what the target names; `has_body`: a body follows.
///
/// # Errors
/// The response to a head that is none; it must reach no handler, and nothing may be counted for it.
pub(super) fn check_head(parts: &mut Parts, has_body: bool) -> Result<(), Problem> {
    let Parts { method, version, uri, headers, .. } = parts;
    if headers.len() > FIELDS_MAX {
        let detail = format!("a request may have {FIELDS_MAX} header fields");
        return Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail));
    }
    if *method == Method::CONNECT {
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "this is no proxy: CONNECT leads nowhere"));
    }
    check_target(*version, method, uri).map_err(|detail| Problem::new(StatusCode::BAD_REQUEST, detail))?;
    check_host(*version, uri, headers).map_err(|detail| Problem::new(StatusCode::BAD_REQUEST, detail))?;
    if *version < Version::HTTP_2 {
        if let Some(Ok(named)) = uri.authority().map(|authority| HeaderValue::try_from(authority.as_str())) {
            // §3.2.2: what the target names counts, whatever the field holds.
            headers.insert(HOST, named);
        }
        if has_body {
            check_transfer_encoding(headers)?;
        }
    }
    Ok(())
}

/// Whether the target has the form that its method demands (RFC 9112 §3.2).
fn check_target(version: Version, method: &Method, uri: &Uri) -> Result<(), &'static str> {
    let is_authority = uri.scheme().is_none() && uri.authority().is_some();
    if is_authority && version < Version::HTTP_2 {
        return Err("a target is a path, which begins with a slash, or a whole URL");
    }
    if uri.path() == "*" && *method != Method::OPTIONS {
        return Err("only OPTIONS can be about the whole server");
    }
    Ok(())
}

/// Whether it names its host as its protocol demands.
fn check_host(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), &'static str> {
    let (field, is_repeated) = first_value(headers, &HOST);
    let named = uri.authority().map(|authority| authority.as_str().as_bytes());
    if is_repeated {
        return Err("a request has one Host, not several");
    }
    if !field.is_none_or(|field| is_host(field.as_bytes())) {
        return Err("this Host is neither a name nor an address");
    }
    // An empty one is no host where a target is written out.
    if !named.is_none_or(|named| !named.is_empty() && !named.starts_with(b":") && is_host(named)) {
        return Err("the target names neither a host nor an address");
    }
    match (field, named) {
        (None, _) if version == Version::HTTP_11 => Err("a request of HTTP/1.1 has a Host"),
        (None, None) if version == Version::HTTP_2 => Err("a request has an :authority or a Host"),
        (Some(field), Some(named))
            if version == Version::HTTP_2 && !is_same_host(uri, field.as_bytes(), named) =>
        {
            Err("Host and :authority name different hosts")
        }
        _ => Ok(()),
    }
}

/// Whether both name the same host, with or without the port that is the scheme's own.
fn is_same_host(uri: &Uri, one: &[u8], other: &[u8]) -> bool {
    let own: &[u8] = if uri.scheme_str() == Some("https") { b":443" } else { b":80" };
    let bare = |host: &'_ [u8]| -> usize {
        let end = host.strip_suffix(own).or_else(|| host.strip_suffix(b":"));
        end.map_or(host.len(), <[u8]>::len)
    };
    one[..bare(one)].eq_ignore_ascii_case(&other[..bare(other)])
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2.2), which may be empty.
fn is_host(bytes: &[u8]) -> bool {
    let (is_host, rest) = match bytes.strip_prefix(b"[") {
        Some(inside) => {
            let Some(end) = inside.iter().position(|byte| *byte == b']') else { return false };
            let text = std::str::from_utf8(&inside[..end]).unwrap_or_default();
            (text.parse::<Ipv6Addr>().is_ok(), &inside[end + 1..])
        }
        None => {
            // One walk ends at the colon, too, which no name has; only what is encoded is looked at again.
            let plain = bytes.iter().position(|byte| !NAME[usize::from(*byte)]).unwrap_or(bytes.len());
            match bytes.get(plain) {
                None | Some(b':') => (true, &bytes[plain..]),
                Some(_) => {
                    let end = bytes.iter().position(|byte| *byte == b':').unwrap_or(bytes.len());
                    (is_name(&bytes[..end]), &bytes[end..])
                }
            }
        }
    };
    is_host && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
}

/// Letters, digits and signs that a name is made of.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=";
    let mut at = 0;
    while at < letters.len() {
        table[letters[at] as usize] = true;
        at += 1;
    }
    table
};

/// `reg-name`, of which an IPv4 address is one.
fn is_name(bytes: &[u8]) -> bool {
    let plain = |bytes: &[u8]| bytes.iter().all(|byte| NAME[usize::from(*byte)]);
    let mut pieces = bytes.split(|byte| *byte == b'%');
    let encoded = |piece: &[u8]| matches!(piece, [a, b, rest @ ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() && plain(rest));
    pieces.next().is_some_and(plain) && pieces.all(encoded)
}

fn is_port(digits: &[u8]) -> bool {
    let more = |port: u32, digit: u8| digit.is_ascii_digit().then(|| port * 10 + u32::from(digit - b'0'));
    let port = digits
        .iter()
        .try_fold(0, |port, digit| more(port, *digit).filter(|port| *port <= u32::from(u16::MAX)));
    port.is_some()
}

/// A body comes as it is or in chunks: whatever else was done to it is not undone here (RFC 9112 §6.1).
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let (Some(coding), more) = (codings.next(), codings.next()) else { return Ok(()) };
    if more.is_none() && coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let codings = headers
        .get_all(TRANSFER_ENCODING)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let is_known = codings.into_iter().all(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked"));
    Err(if is_known {
        Problem::new(StatusCode::BAD_REQUEST, "a body comes in chunks once, not several times")
    } else {
        Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "this Transfer-Encoding is not understood here: send chunked alone",
        )
    })
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http::uri::Authority;
    use proptest::prelude::*;

    use super::*;

    fn checked(version: Version, target: &str, fields: &[(&'static str, &str)]) -> Result<Parts, u16> {
        let request = fields.iter().fold(Request::get(target).version(version), |request, (name, value)| {
            request.header(*name, *value)
        });
        let mut parts = request.body(()).unwrap().into_parts().0;
        check_head(&mut parts, true).map(|()| parts).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_host_is_a_name_or_an_address_with_or_without_a_port() {
        for good in [
            "",
            "a",
            "a.test",
            "A.Test:80",
            "a_b~c",
            "a:",
            "1.2.3.4:0",
            "[::1]",
            "[::1]:65535",
            "xn--bcher-kva.test",
            "a%20b",
            "a,b",
            ":8080",
            "[::ffff:1.2.3.4]:1",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
        for bad in [
            "a b",
            "a/b",
            "u@a",
            "u:p@a",
            "a b/@c",
            "a:b",
            "a:65536",
            "a:1:2",
            "[::1",
            "::1",
            "[::1]x",
            "[a]",
            "[]",
            "[fe80::1%eth0]",
            "[v1.a]",
            "a%2",
            "a%zz",
            "a?b",
            "a#b",
            "a\"b",
            "<a>",
            "a\\b",
            "\u{e4}",
            "a:-1",
            "a: 1",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn http_1_1_names_its_host_once_and_http_1_0_may() {
        let (one, zero) = (Version::HTTP_11, Version::HTTP_10);
        assert_eq!(checked(one, "/", &[]).unwrap_err(), 400);
        assert_eq!(checked(one, "/", &[("host", "a"), ("host", "a")]).unwrap_err(), 400);
        assert_eq!(checked(one, "http://a/", &[]).unwrap_err(), 400);
        assert_eq!(checked(one, "http://u@a/", &[("host", "a")]).unwrap_err(), 400);
        assert_eq!(checked(zero, "/", &[("host", "a"), ("host", "b")]).unwrap_err(), 400);
        assert_eq!(checked(zero, "/", &[("host", "a b")]).unwrap_err(), 400);
        assert!(checked(zero, "/", &[]).is_ok() && checked(one, "/", &[("host", "")]).is_ok());
        let absolute = checked(one, "http://a:3000/", &[("host", "b")]).unwrap();
        assert_eq!(absolute.headers[HOST], "a:3000", "the target counts");
    }

    #[test]
    fn a_target_has_the_form_of_its_method() {
        let fields = [("host", "a")];
        for (target, is_good) in [
            ("/", true),
            ("http://a/", true),
            ("http://a", true),
            ("*", false),
            ("a:80", false),
            ("a", false),
        ] {
            assert_eq!(checked(Version::HTTP_11, target, &fields).is_ok(), is_good, "{target}");
        }
        let check_request = |method: Method, target: &str| {
            let request = Request::builder().method(method).uri(target).header(HOST, "a");
            let mut parts = request.body(()).unwrap().into_parts().0;
            check_head(&mut parts, false).map_err(|problem| problem.status().as_u16())
        };
        assert_eq!(
            (
                check_request(Method::OPTIONS, "*").is_ok(),
                check_request(Method::CONNECT, "a:80").unwrap_err()
            ),
            (true, 501)
        );
    }

    #[test]
    fn http_2_names_the_same_host_in_both_places() {
        let two = Version::HTTP_2;
        assert_eq!(checked(two, "/", &[]).unwrap_err(), 400);
        assert!(checked(two, "/", &[("host", "a")]).is_ok() && checked(two, "http://a/", &[]).is_ok());
        for (field, is_good) in [
            ("a", true),
            ("A:80", true),
            ("a:", true),
            ("b", false),
            ("a:81", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(checked(two, "http://a/", &[("host", field)]).is_ok(), is_good, "{field}");
        }
        assert_eq!(checked(two, "http://u@a/", &[]).unwrap_err(), 400);
    }

    #[test]
    fn a_body_comes_in_chunks_or_as_it_is() {
        let coded = |values: &[&str]| {
            let fields: Vec<_> =
                values.iter().map(|value| ("transfer-encoding", *value)).chain([("host", "a")]).collect();
            checked(Version::HTTP_11, "/", &fields).map(|_| ())
        };
        assert_eq!((coded(&[]), coded(&["Chunked"])), (Ok(()), Ok(())));
        assert_eq!((coded(&["gzip, chunked"]), coded(&["gzip", "chunked"])), (Err(501), Err(501)));
        assert_eq!((coded(&["chunked, chunked"]), coded(&["chunked", "chunked"])), (Err(400), Err(400)));
    }

    #[test]
    fn a_header_is_found_among_few_and_among_many() {
        let (mut headers, sought) = (HeaderMap::new(), HeaderName::from_static("x-sought"));
        for number in 0..2 * LINEAR_SEARCH_MAX {
            assert!(!has_header(&headers, &sought) && !has_header(&headers, &HOST), "{number}");
            let with = |name: &HeaderName| {
                let mut headers = headers.clone();
                headers.insert(name, HeaderValue::from_static("a"));
                headers
            };
            assert!(has_header(&with(&sought), &sought) && has_header(&with(&HOST), &HOST), "{number}");
            let other = HeaderName::try_from(format!("x-other-{number}")).unwrap();
            headers.insert(other, HeaderValue::from_static("a"));
        }
    }

    #[test]
    fn the_number_of_fields_is_bounded() {
        let fields = vec![("x", "y"); FIELDS_MAX];
        assert_eq!(checked(Version::HTTP_2, "http://a/", &fields).map(|_| ()), Ok(()));
        assert_eq!(
            checked(Version::HTTP_2, "http://a/", &[fields, vec![("x", "y")]].concat()).unwrap_err(),
            431
        );
    }

    proptest! {
        #[test]
        fn what_is_a_host_is_an_authority_without_a_user(text in "[a-c:0-9@%\\[\\]./ ]{0,12}") {
            // Percent is the one thing that we let pass and the crate does not.
            if is_host(text.as_bytes()) && !text.is_empty() && !text.contains('%') {
                prop_assert!(text.parse::<Authority>().is_ok() && !text.contains('@'), "{}", text);
            }
        }
    }
}
