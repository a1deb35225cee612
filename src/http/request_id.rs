//! The ids of a worker's requests.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::HeaderValue;

use crate::sessions::cookie;

/// Length of an id.
const REQUEST_ID_LEN: usize = 25;

/// Ids that are written at once, into one piece of memory, which is kept until the last of them is gone.
const IDS_PER_BATCH: u32 = 64;

/// Ids of requests: a random start for each worker, then counting, so that one costs no random bytes.
pub(super) struct RequestIdGenerator {
    worker: [u8; 16],
    batch: Mutex<IdBatch>,
}

/// Ids that are written.
struct IdBatch {
    ids: Bytes,
    /// Number of the first one that is not.
    next: u64,
}

impl RequestIdGenerator {
    pub(super) fn new(pid: u32) -> Self {
        // Without random bytes ids repeat between instances, which only makes logs harder to read.
        let bits = cookie::new_id().map_or(u64::from(pid), |id| {
            id.0.to_le_bytes()[..8].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte))
        });
        Self::from(hex(bits), 0)
    }

    fn from(worker: [u8; 16], next: u64) -> Self {
        Self { worker, batch: Mutex::new(IdBatch { ids: Bytes::new(), next }) }
    }

    pub(super) fn next(&self) -> HeaderValue {
        // Whole after any panic: ids are taken, or replaced when none is left.
        let mut ready = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.ids.is_empty() {
            let end = ready.next + u64::from(IDS_PER_BATCH);
            let mut ids = Vec::with_capacity(REQUEST_ID_LEN * IDS_PER_BATCH as usize);
            (ready.next..end).for_each(|number| ids.extend_from_slice(&self.id(number)));
            ready.ids = Bytes::from(ids);
            ready.next = end;
        }
        let id = ready.ids.split_to(REQUEST_ID_LEN);
        drop(ready);
        HeaderValue::from_maybe_shared(id).unwrap_or(HeaderValue::from_static("-"))
    }

    fn id(&self, number: u64) -> [u8; REQUEST_ID_LEN] {
        let mut id = [b'-'; REQUEST_ID_LEN];
        id[..16].copy_from_slice(&self.worker);
        // Eight digits: a worker's ids repeat after four thousand million requests.
        id[17..].copy_from_slice(&hex::<8>(number));
        id
    }
}

/// The last digits of a number.
fn hex<const DIGITS: usize>(bits: u64) -> [u8; DIGITS] {
    std::array::from_fn(|digit| b"0123456789abcdef"[(bits >> (4 * (DIGITS - 1 - digit)) & 15) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_differ_and_have_one_form() {
        let ids = RequestIdGenerator::from(hex(0x0123_4567_89ab_cdef), 254);
        assert_eq!(ids.next(), "0123456789abcdef-000000fe");
        assert_eq!(ids.next(), "0123456789abcdef-000000ff");
        (0..IDS_PER_BATCH - 2).for_each(|_| drop(ids.next()));
        assert_eq!(ids.next(), "0123456789abcdef-0000013e", "of the next batch");
        assert_ne!(RequestIdGenerator::new(1).next(), RequestIdGenerator::new(1).next());
    }
}
