//! What answers were like of late: large ones take longer than a server may be silent over a line that is not fast.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;

use fred::types::Value;

/// Answers from so many bytes on may take longer than a server may be silent: a call's answer counts when all of it is
/// there.
const LARGE: usize = 64 * 1024;

/// About how many bytes the largest answers of late had, an entry.
pub(super) struct ReplySizes(AtomicUsize);

impl ReplySizes {
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// So many entries were answered by that.
    pub(super) fn answered(&self, entries: usize, reply: &Value) {
        let before = self.0.load(Relaxed);
        let each = wire_size(reply) / entries.max(1);
        self.0.store(each.max(before - before.div_ceil(16)), Relaxed);
    }

    /// Whether as many may be answered at length.
    pub(super) fn is_large(&self, entries: usize) -> bool {
        self.0.load(Relaxed).saturating_mul(entries) >= LARGE
    }
}

/// About how many bytes an answer had on the wire.
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
    fn what_was_large_is_expected_to_be_large_for_a_while() {
        let (sizes, large) =
            (ReplySizes::new(), Value::Array(vec![vec![b'x'; LARGE].as_slice().into(), Value::Null]));
        assert!(!sizes.is_large(64));
        sizes.answered(2, &large);
        assert_eq!([1, 2].map(|entries| sizes.is_large(entries)), [false, true]);
        (0..200).for_each(|_| sizes.answered(1, &Value::Integer(1)));
        assert!(!sizes.is_large(64));
    }
}
