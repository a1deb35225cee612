//! Whether a page or a form was opened under this machine's own name, and by no other site. Pure.

use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use http::HeaderMap;
use http::Uri;
use http::header;

/// The host that a request names, its port included.
fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let named = headers.get(header::HOST).map(|value| value.to_str().unwrap_or("unreadable"));
    named.or_else(|| uri.authority().map(|authority| authority.as_str()))
}

/// Whether a page was opened under a name that can only mean this machine.
///
/// Any site may let its own name point here and read the answer as its own (DNS rebinding); an address or `localhost`
/// cannot be bent so. Programs that name nothing have no pages.
pub(super) fn is_own_name(headers: &HeaderMap, uri: &Uri, names: &[String], machine: &str) -> bool {
    let Some(host) = host(headers, uri) else { return true };
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, _)| address.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split_once(':').map_or(host, |(name, _port)| name).trim_end_matches('.');
    let name = name.to_ascii_lowercase();
    name.parse::<Ipv4Addr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || (!name.is_empty() && name == machine.to_ascii_lowercase())
        || names.contains(&name)
}

/// Whether no other site sent a request, as browsers say. Programs say nothing, and have no operator to abuse.
pub(super) fn is_same_origin(headers: &HeaderMap, uri: &Uri) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("unreadable"));
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return site == "same-origin" || site == "none";
    }
    let Some(origin) = text(header::ORIGIN) else { return true };
    let from = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    from.is_some() && from == host(headers, uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_names_that_cannot_be_bent_are_this_machine() {
        let names = ["fleet.example.org".to_owned()];
        let own = |host: &str| {
            is_own_name(&headers(&[("host", host)]), &Uri::from_static("/fleet"), &names, "Web-1")
        };
        for good in [
            "127.0.0.1:3001",
            "10.0.0.5",
            "[::1]:3001",
            "localhost:3001",
            "LOCALHOST.",
            "a.localhost",
            "fleet.example.org",
            "Fleet.example.org:80",
            "web-1:3001",
        ] {
            assert!(own(good), "{good}");
        }
        for bad in
            ["evil.test", "evil.test:3001", "localhost.evil.test", "127.0.0.1.evil.test", "[x]", "", ":80"]
        {
            assert!(!own(bad), "{bad}");
        }
        let authority = Uri::from_static("http://evil.test/fleet");
        assert!(!is_own_name(&HeaderMap::new(), &authority, &names, "web"));
        assert!(is_own_name(&HeaderMap::new(), &Uri::from_static("/fleet"), &names, "web"));
    }

    #[test]
    fn other_sites_are_refused_and_programs_are_not() {
        let cases: [(&[(&'static str, &str)], bool); 7] = [
            (&[("host", "a.test")], true),
            (&[("host", "a.test:1"), ("origin", "http://a.test:1")], true),
            (&[("host", "a.test"), ("origin", "https://b.test")], false),
            (&[("host", "a.test"), ("origin", "null")], false),
            (&[("host", "a.test"), ("sec-fetch-site", "same-origin")], true),
            (&[("host", "a.test"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "a.test"), ("sec-fetch-site", "same-site"), ("origin", "https://a.test")], false),
        ];
        for (pairs, expected) in cases {
            assert_eq!(is_same_origin(&headers(pairs), &Uri::from_static("/fleet")), expected, "{pairs:?}");
        }
    }
}
