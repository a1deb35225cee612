//! Warns of peers that seem to be proxies and are not trusted: all their clients count as one.
//!
//! The sign is the forwarding header, which any client may send. So it counts only for a peer with a private address, as
//! proxies have, or after many different values of one peer; and an instance logs it once, so that no client can fill the
//! log. Nothing else depends on it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};

use http::HeaderMap;
use http::header::FORWARDED;

use crate::config::settings::{ForwardedHeader, ProxyConfig};
use crate::http::header_names::X_FORWARDED_FOR;
use crate::http::real_ip::ClientInfo;
use crate::http::request_head::has_header;
use crate::scoreboard::Scoreboard;

/// Most peers with public addresses that are observed at the same time.
const PEERS_WATCHED: usize = 8;

/// Different values of one peer, of 64 that are distinguished, after which it counts as a proxy.
const DISTINCT_VALUES_MIN: u32 = 24;

/// Such peers, as one worker observes them.
#[derive(Debug, Default)]
pub(crate) struct UntrustedProxyDetector {
    reported: AtomicBool,
    hasher: RandomState,
    watched: Mutex<Vec<(IpAddr, u64)>>,
}

/// What the operator can do, in one sentence.
pub(super) fn advice(peer: IpAddr) -> String {
    format!(
        "requests from {peer} name their clients in a forwarding header, but {peer} is not in proxy.trusted, so that all \
         of them count as one client: if it is your proxy, add it there (REGATTA_PROXY__TRUSTED=127.0.0.0/8,::1/128,{peer})"
    )
}

impl UntrustedProxyDetector {
    /// Records a request whose peer is not trusted and sends the header of those that are.
    pub(super) fn record_request(
        &self,
        client: &ClientInfo,
        headers: &HeaderMap,
        proxy: &ProxyConfig,
        scoreboard: &Scoreboard,
    ) {
        if client.proxied || self.reported.load(Relaxed) {
            return;
        }
        let name = match proxy.header {
            ForwardedHeader::XForwardedFor => X_FORWARDED_FOR,
            ForwardedHeader::Forwarded => FORWARDED,
        };
        if !has_header(headers, &name) {
            return;
        }
        let Some(value) = headers.get(&name) else { return };
        if !is_private(client.address) && !self.has_many_values(client.address, value.as_bytes()) {
            return;
        }
        self.reported.store(true, Relaxed);
        if scoreboard.untrusted_proxy().is_none_or(|known| proxy.trusts(known))
            && scoreboard.record_untrusted_proxy(client.address)
        {
            let peer = client.address;
            tracing::warn!(%peer, header = %name, "{}", advice(peer));
        }
    }

    /// Whether a peer has sent many different values, this one included.
    fn has_many_values(&self, peer: IpAddr, value: &[u8]) -> bool {
        let bit = 1 << (self.hasher.hash_one(value) % 64);
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let at = match watched.iter().position(|(known, _)| *known == peer) {
            Some(at) => at,
            None => {
                if watched.len() == PEERS_WATCHED {
                    let least = (0..PEERS_WATCHED).min_by_key(|at| watched[*at].1.count_ones()).unwrap_or(0);
                    watched.swap_remove(least);
                }
                watched.push((peer, 0));
                watched.len() - 1
            }
        };
        watched[at].1 |= bit;
        watched[at].1.count_ones() >= DISTINCT_VALUES_MIN
    }
}

/// Whether an address is one of a private network, of this host, or of a provider's inside (RFC 1918, 4193, 6598).
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let shared = matches!(address.octets(), [100, 64..=127, ..]);
            address.is_private() || address.is_loopback() || address.is_link_local() || shared
        }
        IpAddr::V6(address) => {
            address.is_unique_local() || address.is_loopback() || address.is_unicast_link_local()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_networks_are_known() {
        for text in [
            "10.0.0.7",
            "172.20.0.2",
            "192.168.1.1",
            "127.0.0.1",
            "100.100.0.1",
            "169.254.1.1",
            "fd00::7",
            "fe80::1",
            "::1",
        ] {
            assert!(is_private(text.parse().unwrap()), "{text}");
        }
        for text in ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2001:db8::1"] {
            assert!(!is_private(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_public_peer_is_believed_after_many_values_however_many_others_try() {
        let detector = UntrustedProxyDetector::default();
        let proxy: IpAddr = "9.9.9.9".parse().unwrap();
        for n in 0..1000u32 {
            let stranger = IpAddr::V4((0x0800_0000 + n).into());
            assert!(!detector.has_many_values(stranger, b"1.2.3.4"));
            if detector.has_many_values(proxy, &n.to_le_bytes()) {
                return assert!(n >= DISTINCT_VALUES_MIN - 1);
            }
        }
        panic!("never");
    }

    #[test]
    fn one_repeated_value_is_no_proxy() {
        let detector = UntrustedProxyDetector::default();
        assert!((0..1000).all(|_| !detector.has_many_values("9.9.9.9".parse().unwrap(), b"1.2.3.4")));
    }
}
