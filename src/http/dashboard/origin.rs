//! Whether a page or a form was opened under this machine's own name. Pure.

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
}
