//! Buckets of the latency histogram: four to each doubling, from 32 µs to 67 s.
//!
//! A bucket's bounds are at most 25 % apart, so a quantile read from it is at most that far off.

/// Number of buckets; the last one holds everything longer.
pub const BUCKETS: usize = 86;

const SHORTEST_LOG2: u32 = 5;

/// The bucket of a latency in microseconds.
pub fn bucket(us: u64) -> usize {
    if us < 1 << SHORTEST_LOG2 {
        return 0;
    }
    let log2 = u64::BITS - 1 - us.leading_zeros();
    let quarter = (us >> (log2 - 2)) & 3;
    let index = ((log2 - SHORTEST_LOG2) * 4) as usize + quarter as usize + 1;
    index.min(BUCKETS - 1)
}

/// First latency, in microseconds, that a bucket no longer holds; `None` for the last.
pub fn upper_us(bucket: usize) -> Option<u64> {
    if bucket >= BUCKETS - 1 {
        return None;
    }
    let log2 = SHORTEST_LOG2 as usize + bucket / 4;
    Some((4 + bucket as u64 % 4) << (log2 - 2))
}

/// The latency, in microseconds, that a share of all requests stayed below; `None` without requests.
pub fn quantile_us(buckets: &[u64], share: f64) -> Option<u64> {
    let total: u64 = buckets.iter().sum();
    if total == 0 {
        return None;
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rank"
    )]
    let rank = ((total as f64 * share).ceil() as u64).clamp(1, total);
    let mut seen = 0;
    let found = buckets.iter().position(|count| {
        seen += count;
        seen >= rank
    })?;
    Some(upper_us(found).unwrap_or(1 << 26))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_below_its_buckets_bound_and_not_below_the_one_before() {
        for us in (0..200_000).chain([1 << 25, (1 << 26) - 1, 1 << 26, u64::MAX]) {
            let found = bucket(us);
            assert!(upper_us(found).is_none_or(|upper| us < upper), "{us}");
            assert!(found == 0 || upper_us(found - 1).unwrap() <= us, "{us}");
        }
    }

    #[test]
    fn a_quantile_is_the_bound_of_the_bucket_that_holds_it() {
        let mut buckets = [0; BUCKETS];
        buckets[bucket(100)] = 99;
        buckets[bucket(10_000)] = 1;
        assert!(quantile_us(&buckets, 0.5).unwrap().abs_diff(100) <= 25);
        assert!(quantile_us(&buckets, 0.999).unwrap().abs_diff(10_000) <= 2_500);
        assert_eq!(quantile_us(&[0; BUCKETS], 0.5), None);
    }
}
