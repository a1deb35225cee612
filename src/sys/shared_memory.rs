//! Memory that forked processes share: a memfd, and nothing but atomics in it.

use std::ffi::CStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::{fmt, io};

use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{MapFlags, ProtFlags};

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
            const fn is_shared<T: $crate::sys::shared_memory::SharedLayout>() {}
            $(is_shared::<$type>();)*
            assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "the struct has padding");
        };

        #[allow(unsafe_code, reason = "the fields and the size are checked above")]
        // SAFETY: every field consists of atomics, and the fields take all of the struct.
        unsafe impl $crate::sys::shared_memory::SharedLayout for $name {}
    };
}
pub(crate) use shared_layout;

/// A mapping of fixed length, zero at first, that every process forked later sees and may change.
///
/// It lives in a memfd (`memfd_create(2)`), so that it can also be handed to another program by descriptor.
pub struct SharedMapping {
    start: NonNull<u8>,
    bytes: NonZeroUsize,
    file: OwnedFd,
}

// SAFETY: the mapping is plain shared memory that is only reachable as atomics, valid until the drop.
unsafe impl Send for SharedMapping {}
// SAFETY: as above; every access through `get` is atomic.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps so many bytes, all zero; untouched pages cost nothing.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(name: &CStr, bytes: NonZeroUsize) -> io::Result<Self> {
        let file = nix::sys::memfd::memfd_create(name, MFdFlags::MFD_CLOEXEC);
        let file = File::from(file.map_err(crate::sys::named("memfd_create"))?);
        file.set_len(bytes.get() as u64)?;
        Self::map(file.into(), bytes)
    }

    /// Maps all of what another program made.
    ///
    /// # Errors
    /// When it is empty or no memory of whole words, or the kernel refuses to map it.
    pub fn adopt(file: OwnedFd) -> io::Result<Self> {
        let file = File::from(file);
        let bytes = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
        match bytes {
            Some(bytes) if bytes.get().is_multiple_of(size_of::<AtomicU64>()) => {
                Self::map(file.into(), bytes)
            }
            _ => Err(io::Error::other("the shared memory does not consist of whole words")),
        }
    }

    fn map(file: OwnedFd, bytes: NonZeroUsize) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { nix::sys::mman::mmap(None, bytes, access, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { start: start.cast(), bytes, file })
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
        // A mapping begins at a page, so that an aligned offset is an aligned address.
        assert!(offset.is_multiple_of(align_of::<T>()), "offset {offset} is not aligned");
        let fits = self.bytes.get().checked_sub(size_of::<T>()).is_some_and(|last| offset <= last);
        assert!(fits, "offset {offset} is outside a mapping of {} bytes", self.bytes);
        // SAFETY: the whole value lies inside the mapping, as was just checked.
        let value = unsafe { self.start.add(offset) }.cast::<T>();
        // SAFETY: it is aligned, any bit pattern is a value of it, and it lives as long as the mapping.
        unsafe { value.as_ref() }
    }
}

impl AsFd for SharedMapping {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it outlives self. A failure leaves it mapped, which is harmless.
        let _ = unsafe { nix::sys::mman::munmap(self.start.cast(), self.bytes.get()) };
    }
}

impl fmt::Debug for SharedMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMapping").field("bytes", &self.bytes).finish_non_exhaustive()
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

    fn mapping(bytes: usize) -> SharedMapping {
        SharedMapping::create(c"test", NonZeroUsize::new(bytes).unwrap()).unwrap()
    }

    #[test]
    fn an_adopted_mapping_is_the_same_memory() {
        let memory = mapping(64);
        memory.get::<Pair>(32).rest[1].store(5, Relaxed);
        let taken = SharedMapping::adopt(memory.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(taken.len().get(), 64);
        taken.get::<AtomicU64>(48).fetch_add(1, Relaxed);
        assert_eq!(memory.get::<Pair>(32).rest[1].load(Relaxed), 6);
        let odd = crate::sys::exec::sealed_memfd(c"odd", &[0; 12]).unwrap();
        let empty = crate::sys::exec::sealed_memfd(c"empty", &[]).unwrap();
        assert!(SharedMapping::adopt(odd).is_err() && SharedMapping::adopt(empty).is_err());
    }

    #[test]
    fn a_value_begins_at_zero_and_has_all_its_words() {
        let memory = mapping(4096);
        let pair: &Pair = memory.get(4064);
        assert_eq!((pair.words().len(), pair.first.load(Relaxed)), (4, 0));
        pair.words()[0].store(7, Relaxed);
        pair.words()[3].store(8, Relaxed);
        assert_eq!((pair.first.load(Relaxed), pair.rest[2].load(Relaxed)), (7, 8));
    }

    #[test]
    fn nothing_outside_the_mapping_or_between_two_words_is_reached() {
        let memory = mapping(64);
        let reaches =
            |offset| catch_unwind(AssertUnwindSafe(|| memory.get::<Pair>(offset).words().len())).is_ok();
        assert!(reaches(0) && reaches(32));
        assert!(!reaches(40) && !reaches(64) && !reaches(4) && !reaches(usize::MAX & !7));
        assert!(catch_unwind(|| mapping(16).get::<Pair>(0).words().len()).is_err(), "shorter than the value");
    }
}
