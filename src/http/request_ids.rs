//! The ids of a worker's requests.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderValue;

use crate::session::cookie;

/// Ids of requests: a random start for each worker, then counting, so that one costs no random bytes.
pub(super) struct RequestIds {
    worker: [u8; 16],
    next: AtomicU64,
}

impl RequestIds {
    pub(super) fn new(pid: u32) -> Self {
        // Without random bytes ids repeat between machines, which only makes logs harder to read.
        let bits = cookie::new_id().map_or(u64::from(pid), |id| {
            id.0.to_le_bytes()[..8].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
        });
        Self { worker: hex(bits), next: AtomicU64::new(0) }
    }

    pub(super) fn next(&self) -> HeaderValue {
        let number = hex(self.next.fetch_add(1, Relaxed));
        let mut id = [b'-'; 25];
        id[..16].copy_from_slice(&self.worker);
        // Eight digits: a worker's ids repeat after four thousand million requests.
        id[17..].copy_from_slice(&number[8..]);
        HeaderValue::from_bytes(&id).unwrap_or(HeaderValue::from_static("-"))
    }
}

fn hex(bits: u64) -> [u8; 16] {
    std::array::from_fn(|digit| b"0123456789abcdef"[(bits >> (60 - 4 * digit) & 15) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_differ_and_have_one_form() {
        let ids = RequestIds { worker: hex(0x0123_4567_89ab_cdef), next: AtomicU64::new(254) };
        assert_eq!(ids.next(), "0123456789abcdef-000000fe");
        assert_eq!(ids.next(), "0123456789abcdef-000000ff");
        assert_ne!(RequestIds::new(1).next(), RequestIds::new(1).next());
    }
}
