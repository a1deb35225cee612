//! Memory that forked processes share: a memfd, and nothing but atomics in it.

use std::ffi::CStr;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::{fmt, io};

use nix::sys::memfd::MFdFlags;
use nix::sys::mman::{MapFlags, ProtFlags};

use crate::sys::atomic_memory::AtomicMemory;

/// A mapping of fixed length, zero at first, that every process forked later sees and may change.
///
/// It lives in a memfd (`memfd_create(2)`), so that it can also be handed to another program by descriptor.
pub struct SharedMapping {
    /// The mapped memory.
    pub memory: AtomicMemory,
    /// The memfd it lies in.
    pub file: OwnedFd,
}

/// Unmaps its memory when it is dropped.
struct Mapped(NonNull<u8>, NonZeroUsize);

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
        let start = start.cast();
        // SAFETY: a mapping begins at a page, has this length until it is unmapped, and what else maps the file is a
        // program of ours, which reaches it as atomics too. Any thread may unmap it.
        let memory = unsafe { AtomicMemory::from_owner(start, bytes, Box::new(Mapped(start, bytes))) };
        Ok(Self { memory, file })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no borrow of it outlives the memory. A failure leaves it mapped, which is
        // harmless.
        let _ = unsafe { nix::sys::mman::munmap(self.0.cast(), self.1.get()) };
    }
}

impl fmt::Debug for SharedMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMapping").field("memory", &self.memory).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn an_adopted_mapping_is_the_same_memory() {
        let mapping = SharedMapping::create(c"test", NonZeroUsize::new(64).unwrap()).unwrap();
        mapping.memory.get::<AtomicU64>(48).store(5, Relaxed);
        let taken = SharedMapping::adopt(mapping.file.try_clone().unwrap()).unwrap();
        assert_eq!(taken.memory.len().get(), 64);
        taken.memory.get::<AtomicU64>(48).fetch_add(1, Relaxed);
        assert_eq!(mapping.memory.get::<AtomicU64>(48).load(Relaxed), 6);
        let odd = crate::sys::exec::sealed_memfd(c"odd", &[0; 12]).unwrap();
        let empty = crate::sys::exec::sealed_memfd(c"empty", &[]).unwrap();
        assert!(SharedMapping::adopt(odd).is_err() && SharedMapping::adopt(empty).is_err());
    }
}
