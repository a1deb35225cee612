//! mimalloc as the allocator, through its shortest entry points.
//!
//! The crate of that name asks for every piece of memory with an alignment. mimalloc then looks for a block that happens
//! to lie right, and where none does it takes a larger one and marks its page, which also makes giving it back slower.
//! What it gives anyway lies right for everything of 16 bytes or less, and so needs no look.

use std::alloc::{GlobalAlloc, Layout};

use libmimalloc_sys as mimalloc;

/// What mimalloc aligns everything to that is no smaller: `MI_MAX_ALIGN_SIZE`, as C demands for `max_align_t`.
const ALIGNED: usize = 16;

/// Words are aligned to themselves whatever they are for.
const WORD: usize = align_of::<usize>();

/// The allocator of the shipped program, for programs of your own: `#[global_allocator]`. It comes with the feature
/// `app`.
///
/// ```
/// #[global_allocator]
/// static ALLOCATOR: regatta::Allocator = regatta::Allocator;
///
/// let text = String::from("from mimalloc");
/// assert_eq!(text.len(), 13);
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct Allocator;

/// Whether mimalloc's plain calls give memory that lies as this demands.
fn is_plain(size: usize, align: usize) -> bool {
    align <= WORD || align <= ALIGNED && size >= align
}

// SAFETY: mimalloc's calls give memory of at least the requested size, or null; with the requested alignment, or where none
// is requested (`is_plain`) with one that is enough. They give back what any of them gave, and never unwind.
unsafe impl GlobalAlloc for Allocator {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let memory = match is_plain(layout.size(), layout.align()) {
            // SAFETY: any size may be requested.
            true => unsafe { mimalloc::mi_malloc(layout.size()) },
            // SAFETY: as above; a layout's alignment is a power of two.
            false => unsafe { mimalloc::mi_malloc_aligned(layout.size(), layout.align()) },
        };
        memory.cast()
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let memory = match is_plain(layout.size(), layout.align()) {
            // SAFETY: any size may be requested.
            true => unsafe { mimalloc::mi_zalloc(layout.size()) },
            // SAFETY: as above; a layout's alignment is a power of two.
            false => unsafe { mimalloc::mi_zalloc_aligned(layout.size(), layout.align()) },
        };
        memory.cast()
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, _layout: Layout) {
        // SAFETY: it is from here, says the caller, and so from mimalloc.
        unsafe { mimalloc::mi_free(memory.cast()) }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let is_plain = is_plain(layout.size(), layout.align()) && is_plain(size, layout.align());
        let memory = match is_plain {
            // SAFETY: it is from mimalloc, as in `dealloc`; any size may be requested.
            true => unsafe { mimalloc::mi_realloc(memory.cast(), size) },
            // SAFETY: as above; a layout's alignment is a power of two.
            false => unsafe { mimalloc::mi_realloc_aligned(memory.cast(), size, layout.align()) },
        };
        memory.cast()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_aligned_as_requested_however_it_grows_and_shrinks() {
        let sizes = (0..200).chain([255, 256, 257, 1000, 1024, 1025, 4096, 8192, 70_000, 1 << 20]);
        let all = sizes.flat_map(|size| (0..8).map(move |power| (size.max(1), 1_usize << power)));
        for (size, align) in all {
            let layout = Layout::from_size_align(size, align).unwrap();
            // SAFETY: the size is not zero.
            let piece = unsafe { Allocator.alloc(layout) };
            // SAFETY: as above.
            let zeroed = unsafe { Allocator.alloc_zeroed(layout) };
            assert!(!piece.is_null() && !zeroed.is_null());
            assert_eq!((piece.addr() % align, zeroed.addr() % align), (0, 0), "{size} {align}");
            // SAFETY: so many bytes are there, and zero.
            assert!(unsafe { std::slice::from_raw_parts(zeroed, size) }.iter().all(|byte| *byte == 0));
            // SAFETY: so many bytes are there.
            unsafe { piece.write_bytes(7, size) };
            // SAFETY: it is from this allocator, with this layout; the new size is not zero.
            let grown = unsafe { Allocator.realloc(piece, layout, size * 3 + 1) };
            assert_eq!(grown.addr() % align, 0, "{size} {align}");
            // SAFETY: so many bytes were there before.
            assert!(unsafe { std::slice::from_raw_parts(grown, size) }.iter().all(|byte| *byte == 7));
            let larger = Layout::from_size_align(size * 3 + 1, align).unwrap();
            // SAFETY: as above.
            let shrunk = unsafe { Allocator.realloc(grown, larger, 1) };
            assert_eq!(shrunk.addr() % align, 0, "{size} {align}");
            // SAFETY: it is from this allocator, with this layout.
            unsafe { Allocator.dealloc(shrunk, Layout::from_size_align(1, align).unwrap()) };
            // SAFETY: as above.
            unsafe { Allocator.dealloc(zeroed, layout) };
        }
    }
}
