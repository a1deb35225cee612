//! Whether no other site sent a form. Pure.

use http::HeaderMap;
use http::Uri;
use http::header;

/// The host that a request names, its port included.
fn host<'a>(headers: &'a HeaderMap, uri: &'a Uri) -> Option<&'a str> {
    let named = headers.get(header::HOST).map(|value| value.to_str().unwrap_or("unreadable"));
    named.or_else(|| uri.authority().map(|authority| authority.as_str()))
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
