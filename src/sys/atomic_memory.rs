//! Memory that holds nothing but atomics: shared with other processes ([`crate::sys::shared_memory`]) or this one's own.

use std::any::Any;
use std::fmt;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// A type that may lie in memory which other processes write.
///
/// [`shared_layout!`] implements it for structs; nothing outside this room can.
///
/// # Safety
/// The type consists of `AtomicU64` and nothing else, padding included, so that every bit pattern is a value of it and
/// every access is atomic.
pub unsafe trait SharedLayout: Sync + Sized {
    /// The whole value, word by word.
    fn words(&self) -> &[AtomicU64] {
        let start = std::ptr::from_ref(self).cast::<AtomicU64>();
        // SAFETY: by the trait's contract the value is a sequence of atomics, which live as long as it.
        unsafe { std::slice::from_raw_parts(start, size_of::<Self>() / size_of::<AtomicU64>()) }
    }
}

// SAFETY: it is one atomic.
unsafe impl SharedLayout for AtomicU64 {}
// SAFETY: an array has no padding between its elements, which are atomics.
unsafe impl<T: SharedLayout, const N: usize> SharedLayout for [T; N] {}

/// Declares a `#[repr(C)]` struct of shared memory: every field is one itself, and there is no padding.
macro_rules! shared_layout {
    ($(#[$attribute:meta])* $visibility:vis struct $name:ident {
        $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident: $type:ty),* $(,)?
    }) => {
        $(#[$attribute])*
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type),*
        }

        const _: () = {
            const fn is_shared<T: $crate::sys::atomic_memory::SharedLayout>() {}
            $(is_shared::<$type>();)*
            assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "the struct has padding");
        };

        #[allow(unsafe_code, reason = "the fields and the size are checked above")]
        // SAFETY: every field consists of atomics, and the fields take all of the struct.
        unsafe impl $crate::sys::atomic_memory::SharedLayout for $name {}
    };
}
pub(crate) use shared_layout;

/// Words of fixed number, zero at first, that are reached as atomics only.
pub struct AtomicMemory {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    /// Frees the memory when it is dropped.
    owner: Box<dyn Any>,
}

// SAFETY: the memory is only reachable as atomics, and any thread may drop its owner.
unsafe impl Send for AtomicMemory {}
// SAFETY: as above; every access through `get` is atomic, and of the owner only its type is ever asked for.
unsafe impl Sync for AtomicMemory {}

/// Zeroed words of the heap; untouched pages cost nothing.
struct HeapWords(NonNull<[u64]>);

impl Drop for HeapWords {
    fn drop(&mut self) {
        // SAFETY: it was made of a box, and nothing else frees it.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl AtomicMemory {
    /// At least so many bytes of this process's own memory, all zero.
    pub fn on_heap(bytes: NonZeroUsize) -> Self {
        let words = vec![0_u64; bytes.get().div_ceil(size_of::<u64>())].into_boxed_slice();
        let bytes = NonZeroUsize::new(size_of_val(&*words)).unwrap_or(bytes);
        let words = NonNull::from(Box::leak(words));
        Self { start: words.cast(), bytes, owner: Box::new(HeapWords(words)) }
    }

    /// Memory of whole words that `owner` keeps for as long as it lives.
    ///
    /// # Safety
    /// The memory begins at a multiple of 8, has so many bytes, is valid until `owner` is dropped, and is reached as
    /// atomics only, by other processes too. Any thread may drop `owner`, and nothing else is done with it.
    pub(super) unsafe fn from_owner(start: NonNull<u8>, bytes: NonZeroUsize, owner: Box<dyn Any>) -> Self {
        Self { start, bytes, owner }
    }

    /// Its length in bytes.
    pub fn len(&self) -> NonZeroUsize {
        self.bytes
    }

    /// The value at an offset in bytes.
    ///
    /// # Panics
    /// When it is not aligned, or would reach beyond the end.
    pub fn get<T: SharedLayout>(&self, offset: usize) -> &T {
        // The memory begins at a whole word, so that an aligned offset is an aligned address.
        assert!(offset.is_multiple_of(align_of::<T>()), "offset {offset} is not aligned");
        let fits = self.bytes.get().checked_sub(size_of::<T>()).is_some_and(|last| offset <= last);
        assert!(fits, "offset {offset} is outside a memory of {} bytes", self.bytes);
        // SAFETY: the whole value lies inside the memory, as was just checked.
        let value = unsafe { self.start.add(offset) }.cast::<T>();
        // SAFETY: it is aligned, any bit pattern is a value of it, and it lives as long as the memory.
        unsafe { value.as_ref() }
    }
}

impl fmt::Debug for AtomicMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_heap = self.owner.is::<HeapWords>();
        f.debug_struct("AtomicMemory").field("bytes", &self.bytes).field("is_heap", &is_heap).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    shared_layout! {
        #[derive(Debug)]
        struct Pair {
            first: AtomicU64,
            rest: [AtomicU64; 3],
        }
    }

    fn memory(bytes: usize) -> AtomicMemory {
        AtomicMemory::on_heap(NonZeroUsize::new(bytes).unwrap())
    }

    #[test]
    fn a_value_begins_at_zero_and_has_all_its_words() {
        let memory = memory(4096);
        let pair: &Pair = memory.get(4064);
        assert_eq!((pair.words().len(), pair.first.load(Relaxed)), (4, 0));
        pair.words()[0].store(7, Relaxed);
        pair.words()[3].store(8, Relaxed);
        assert_eq!((pair.first.load(Relaxed), pair.rest[2].load(Relaxed)), (7, 8));
    }

    #[test]
    fn nothing_outside_the_memory_or_between_two_words_is_reached() {
        let memory = memory(64);
        let reaches =
            |offset| catch_unwind(AssertUnwindSafe(|| memory.get::<Pair>(offset).words().len())).is_ok();
        assert!(reaches(0) && reaches(32));
        assert!(!reaches(40) && !reaches(64) && !reaches(4) && !reaches(usize::MAX & !7));
        let short = self::memory(16);
        let reaches = catch_unwind(AssertUnwindSafe(|| short.get::<Pair>(0).words().len())).is_ok();
        assert!(!reaches, "shorter than the value");
    }
}
