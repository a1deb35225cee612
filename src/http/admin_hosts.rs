//! Whether a request to the admin listener has a host name that operators use for this instance. Pure.
//!
//! Any site may let its own name point to the operators' address and have its visitors' browsers read what is there (DNS
//! rebinding). The browser then names that site. An IP address, `localhost` and the names that the operators have chosen
//! cannot be bent so, and programs that name nothing have no visitors.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri, header};

use crate::http::problem::Problem;

/// The names of an operators' address.
#[derive(Debug, Clone, Copy)]
pub(super) struct AdminHostNames<'a> {
    /// Those of the configuration, in small letters; `*.` before one stands for all names below it.
    pub(super) configured: &'a [String],
    /// The instance's own.
    pub(super) instance: &'a str,
}

impl AdminHostNames<'_> {
    /// The answer to a request under another name: 421, as for every server that a request was not meant for
    /// (RFC 9110 §15.5.20).
    pub(super) fn reject_unknown_host(&self, headers: &HeaderMap, uri: &Uri) -> Option<Response> {
        if self.are_all_known(headers, uri) {
            return None;
        }
        let advice = "this address answers under an IP address, as localhost, or under a name in admin.allowed_hosts; \
                      add the name that this request was sent to";
        Some(Problem::new(StatusCode::MISDIRECTED_REQUEST, advice).into_response())
    }

    /// Whether every name that a request gives is one of these.
    fn are_all_known(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let named = headers.get_all(header::HOST).iter().map(|value| value.to_str().unwrap_or_default());
        let named = named.chain(uri.authority().map(|authority| authority.as_str()));
        named.into_iter().all(|host| self.contains(host))
    }

    fn contains(&self, host: &str) -> bool {
        if let Some(rest) = host.strip_prefix('[') {
            let ip = rest.split_once(']').map(|(ip, _port)| ip.split('%').next().unwrap_or(ip));
            return ip.is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
        }
        let name = host.split_once(':').map_or(host, |(name, _port)| name);
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let configured = |known: &String| match known.strip_prefix('*') {
            Some(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            None => *known == name,
        };
        name.parse::<Ipv4Addr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || (!name.is_empty() && name == self.instance.to_ascii_lowercase())
            || self.configured.iter().any(configured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(hosts: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_names_that_cannot_be_rebound_are_this_instance() {
        let configured = ["fleet.example.org".to_owned(), "*.svc.cluster.local".to_owned()];
        let names = AdminHostNames { configured: &configured, instance: "Web-1" };
        let own =
            |hosts: &[&str], uri: &'static str| names.are_all_known(&headers(hosts), &Uri::from_static(uri));
        for good in [
            "127.0.0.1:3001",
            "10.0.0.5",
            "[::1]:3001",
            "[fe80::1%25eth0]:3001",
            "localhost:3001",
            "LOCALHOST.",
            "a.localhost",
            "fleet.example.org",
            "Fleet.example.org:80",
            "a.b.svc.cluster.local:3001",
            "web-1:3001",
        ] {
            assert!(own(&[good], "/fleet"), "{good}");
        }
        for bad in [
            "evil.test",
            "evil.test:3001",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "localhost@evil.test",
            "svc.cluster.local",
            "evilsvc.cluster.local",
            "x.fleet.example.org",
            "[x]",
            "[::1",
            "0x7f.1",
            "",
            ":80",
        ] {
            assert!(!own(&[bad], "/fleet"), "{bad}");
        }
        assert!(own(&[], "/fleet"), "a program of HTTP/1.0");
        assert!(!own(&[], "http://evil.test/fleet") && own(&[], "http://127.0.0.1/fleet"));
        assert!(!own(&["localhost"], "http://evil.test/fleet"), "both have to be ours");
        assert!(!own(&["localhost", "evil.test"], "/fleet"));
    }
}
