//! Which slot a client's address belongs to: a table of buckets; pure.
//!
//! An address is hashed to a bucket and a bucket belongs to a slot. So a slot that is away, comes back, or is new
//! moves the addresses of its own buckets and no others.

/// Buckets of a fleet up to [`FEW_SLOTS`]; the program made of them fits the socket memory of any kernel.
const BUCKETS: usize = 512;

/// Buckets of a larger one.
const MANY_BUCKETS: usize = 1024;

const FEW_SLOTS: usize = 256;

/// How many buckets a fleet of this many slots has: at least two a slot, or one if there are more than 512 slots.
pub fn bucket_count(slots: usize) -> usize {
    if slots <= FEW_SLOTS { BUCKETS } else { MANY_BUCKETS }
}

/// The slot of each bucket, over the slots that are open; over all if none is. Empty without slots.
///
/// With all slots open, two slots differ by one bucket at most. A slot more or less at the end moves only its own
/// share; a closed one has its buckets spread over the others, and gets the very same ones back.
pub fn bucket_table(open: &[bool], buckets: usize) -> Vec<u32> {
    let slots: Vec<u32> = (0..).zip(open).map(|(slot, _)| slot).collect();
    let is_open = |slot: &u32| open[*slot as usize];
    let candidates: Vec<u32> = match slots.iter().any(is_open) {
        true => slots.iter().copied().filter(is_open).collect(),
        false => slots.clone(),
    };
    let stand_in = |bucket| candidates.iter().copied().max_by_key(|slot| rendezvous_weight(bucket, *slot));
    let at_home = home_slots(slots.len(), buckets);
    let assigned = (0..).zip(at_home).filter_map(|(bucket, owner)| match candidates.binary_search(&owner) {
        Ok(_) => Some(owner),
        Err(_) => stand_in(bucket),
    });
    assigned.collect()
}

/// The slot of each bucket when all are open: each new slot takes its share from those that have most.
fn home_slots(slots: usize, buckets: usize) -> Vec<u32> {
    if slots == 0 {
        return Vec::new();
    }
    let mut owned: Vec<Vec<usize>> = vec![(0..buckets).collect()];
    for slot in 1..slots {
        let mut share = Vec::new();
        for _ in 0..buckets / (slot + 1) {
            // Of several that have most the first gives; what it gives lies together, which keeps the program short.
            let giver = owned.iter_mut().rev().max_by_key(|buckets| buckets.len());
            share.extend(giver.and_then(Vec::pop));
        }
        owned.push(share);
    }
    let mut owners = vec![0; buckets];
    for (slot, buckets) in (0..).zip(owned) {
        for bucket in buckets {
            owners[bucket] = slot;
        }
    }
    owners
}

/// How much a bucket likes a slot; the open slot it likes best stands in for its own (rendezvous hashing).
fn rendezvous_weight(bucket: u32, slot: u32) -> u32 {
    let mut x = bucket.wrapping_mul(0x9E37_79B1) ^ slot.wrapping_mul(0x85EB_CA77);
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(table: &[u32], slots: usize) -> Vec<usize> {
        (0..slots).map(|slot| table.iter().filter(|owner| **owner as usize == slot).count()).collect()
    }

    fn moved(before: &[u32], after: &[u32]) -> usize {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    }

    proptest! {
        #[test]
        fn all_open_is_even_and_one_slot_more_moves_only_its_share(slots in 1_usize..64) {
            let (before, after) = (bucket_table(&vec![true; slots], 512), bucket_table(&vec![true; slots + 1], 512));
            let counts = counts(&after, slots + 1);
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{:?}", counts);
            prop_assert_eq!(moved(&before, &after), 512 / (slots + 1));
            let newcomer = u32::try_from(slots).unwrap();
            prop_assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == newcomer));
        }

        #[test]
        fn closing_one_slot_moves_only_its_buckets(mut open in prop::collection::vec(any::<bool>(), 2..40), at: prop::sample::Index) {
            let slot = at.index(open.len());
            open[slot] = true;
            let before = bucket_table(&open, 512);
            open[slot] = false;
            prop_assume!(open.iter().any(|open| *open));
            let after = bucket_table(&open, 512);
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(open[*after as usize]);
                prop_assert!(before == after || *before as usize == slot);
            }
        }
    }

    #[test]
    fn the_buckets_of_a_closed_slot_are_spread_among_the_others() {
        let mut open = [true; 8];
        open[3] = false;
        let counts = counts(&bucket_table(&open, 512), 8);
        assert_eq!(counts[3], 0);
        assert!(
            counts.iter().enumerate().all(|(slot, count)| slot == 3 || (65..90).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn without_an_open_slot_every_client_waits_at_its_own() {
        assert_eq!(bucket_table(&[false; 4], 512), bucket_table(&[true; 4], 512));
        assert!(bucket_table(&[], 512).is_empty());
    }

    #[test]
    fn the_largest_fleet_has_a_bucket_for_every_slot() {
        let table = bucket_table(&[true; 1024], bucket_count(1024));
        assert!(counts(&table, 1024).iter().all(|count| *count == 1));
    }
}
