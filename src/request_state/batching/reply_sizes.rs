//! How large recent replies were: over a slow connection a large reply takes longer than the silence timeout.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use crate::redis::wire::Value;

/// From this size on a reply may take longer than the silence timeout, because it counts only once it is complete.
const LARGE: usize = 64 * 1024;

/// About how many bytes the largest recent replies had per entry.
pub(super) struct ReplySizes(AtomicUsize);

impl ReplySizes {
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// A call with this many entries got this reply.
    pub(super) fn answered(&self, entries: usize, reply: &Value) {
        let before = self.0.load(Relaxed);
        let each = wire_size(reply) / entries.max(1);
        self.0.store(each.max(before - before.div_ceil(16)), Relaxed);
    }

    /// Whether the reply to a call with this many entries may be large.
    pub(super) fn is_large(&self, entries: usize) -> bool {
        self.0.load(Relaxed).saturating_mul(entries) >= LARGE
    }
}

/// About how many bytes a reply had on the wire.
fn wire_size(reply: &Value) -> usize {
    match reply {
        Value::Array(parts) => parts.iter().map(wire_size).sum(),
        part => part.as_bytes().map_or(8, <[u8]>::len),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_replies_are_expected_for_a_while() {
        let (sizes, large) =
            (ReplySizes::new(), Value::Array(vec![vec![b'x'; LARGE].as_slice().into(), Value::Null]));
        assert!(!sizes.is_large(64));
        sizes.answered(2, &large);
        assert_eq!([1, 2].map(|entries| sizes.is_large(entries)), [false, true]);
        (0..200).for_each(|_| sizes.answered(1, &Value::Integer(1)));
        assert!(!sizes.is_large(64));
    }
}
