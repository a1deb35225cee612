//! What all workers of a machine know because one of them found it out: how full Redis is, and which peer may be a proxy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering::Relaxed;

use crate::scoreboard::{HEAD_REDIS_MEMORY, HEAD_UNTRUSTED_PROXY, Scoreboard};

/// Set for an IPv4 address, which stands in the lower half; no /64 that is in use begins so.
const V4: u64 = 1 << 32;

impl Scoreboard {
    /// How full Redis's memory is, thousandths of its bound.
    pub fn redis_memory_permille(&self) -> u64 {
        self.head(HEAD_REDIS_MEMORY).load(Relaxed)
    }

    /// Written by the one worker that looks, and by any that is refused a write for want of memory.
    pub fn set_redis_memory_permille(&self, permille: u64) {
        self.head(HEAD_REDIS_MEMORY).store(permille, Relaxed);
    }

    /// A peer that seems to be a proxy and is not trusted; an IPv6 one by its /64.
    pub fn untrusted_proxy(&self) -> Option<IpAddr> {
        match self.head(HEAD_UNTRUSTED_PROXY).load(Relaxed) {
            0 => None,
            word if word & !u64::from(u32::MAX) == V4 => {
                let bits = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
                Some(Ipv4Addr::from_bits(bits).into())
            }
            word => Some(Ipv6Addr::from_bits(u128::from(word) << 64).into()),
        }
    }

    /// Takes note of such a peer; whether it is another one than before.
    pub fn record_untrusted_proxy(&self, peer: IpAddr) -> bool {
        let word = match peer.to_canonical() {
            IpAddr::V4(address) => V4 | u64::from(address.to_bits()),
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> 64).unwrap_or(0),
        };
        self.head(HEAD_UNTRUSTED_PROXY).swap(word, Relaxed) != word
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    #[test]
    fn a_peer_is_reported_once_by_its_network() {
        let table = Scoreboard::create(NonZeroUsize::MIN, 1, 0).unwrap();
        assert_eq!(table.untrusted_proxy(), None);
        for (peer, expected) in
            [("10.0.0.7", "10.0.0.7"), ("fd00:1:2:3::4", "fd00:1:2:3::"), ("::ffff:10.0.0.7", "10.0.0.7")]
        {
            let peer = peer.parse().unwrap();
            assert_eq!(
                (table.record_untrusted_proxy(peer), table.record_untrusted_proxy(peer)),
                (true, false)
            );
            assert_eq!(table.untrusted_proxy(), Some(expected.parse().unwrap()));
        }
        table.set_redis_memory_permille(801);
        assert_eq!(table.redis_memory_permille(), 801);
    }
}
