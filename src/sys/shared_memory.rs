//! Memory that forked processes share: words of a memfd, and nothing but atomics.

use std::ffi::CStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::{fmt, io};

use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{MapFlags, ProtFlags};

/// A fixed number of 64-bit words, zero at first, that every process forked later sees and may change.
///
/// The words live in a memfd (`memfd_create(2)`), so they can also be handed to another program by descriptor.
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
    file: OwnedFd,
}

// SAFETY: the mapping is plain shared memory that is only reachable as atomics, valid until the drop.
unsafe impl Send for SharedWords {}
// SAFETY: as above; every access through `&Words` is atomic.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Makes `len` words, all zero; untouched pages cost nothing.
    ///
    /// # Errors
    /// When the kernel refuses the memory.
    pub fn create(name: &CStr, len: NonZeroUsize) -> io::Result<Self> {
        let file = nix::sys::memfd::memfd_create(name, MFdFlags::MFD_CLOEXEC);
        let file = file.map_err(crate::sys::named("memfd_create"))?;
        let bytes = len.checked_mul(NonZeroUsize::new(size_of::<AtomicU64>()).unwrap_or(NonZeroUsize::MIN));
        let bytes = bytes.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let file = File::from(file);
        file.set_len(bytes.get() as u64)?;
        Self::map(file.into(), bytes)
    }

    /// Takes over the words that another program made, all of them.
    ///
    /// # Errors
    /// When it is no memory of whole words, or the kernel refuses to map it.
    pub fn adopt(file: OwnedFd) -> io::Result<Self> {
        let wrong = || io::Error::other("the shared memory does not consist of whole words");
        let file = File::from(file);
        let bytes = usize::try_from(file.metadata()?.len()).ok().and_then(NonZeroUsize::new);
        match bytes {
            Some(bytes) if bytes.get().is_multiple_of(size_of::<AtomicU64>()) => {
                Self::map(file.into(), bytes)
            }
            _ => Err(wrong()),
        }
    }

    fn map(file: OwnedFd, bytes: NonZeroUsize) -> io::Result<Self> {
        let len = bytes.get() / size_of::<AtomicU64>();
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe { nix::sys::mman::mmap(None, bytes, access, MapFlags::MAP_SHARED, &file, 0) }?;
        Ok(Self { start: start.cast(), len, file })
    }
}

impl Deref for SharedWords {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `len` aligned words, any bit pattern is an AtomicU64, and it lives as long as self.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours, and no borrow of it outlives self. A failure leaves it mapped, which is harmless.
        let _ = unsafe { nix::sys::mman::munmap(self.start.cast(), bytes) };
    }
}

impl fmt::Debug for SharedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Words").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn adopted_words_are_the_same_words() {
        let words = SharedWords::create(c"test", NonZeroUsize::new(8).unwrap()).unwrap();
        words[3].store(5, Ordering::Relaxed);
        let taken = SharedWords::adopt(words.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!(taken.len(), 8);
        taken[3].fetch_add(1, Ordering::Relaxed);
        assert_eq!(words[3].load(Ordering::Relaxed), 6);
        let odd = crate::sys::exec::sealed_memfd(c"odd", &[0; 12]).unwrap();
        let empty = crate::sys::exec::sealed_memfd(c"empty", &[]).unwrap();
        assert!(SharedWords::adopt(odd).is_err() && SharedWords::adopt(empty).is_err());
    }

    #[test]
    fn words_begin_at_zero_and_keep_what_is_stored() {
        let words = SharedWords::create(c"test", NonZeroUsize::new(1000).unwrap()).unwrap();
        assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        words[999].fetch_add(7, Ordering::Relaxed);
        assert_eq!(words[999].load(Ordering::Relaxed), 7);
    }
}
