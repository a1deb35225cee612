//! Random numbers from the kernel.
//!
//! A generator that a library keeps is memory, and a fork copies memory. Workers begin in a thread of their own
//! (`sys/fork.rs`), so that they share none, but what the supervisor draws must not depend on that: `clippy.toml` forbids
//! the thread generators.

use std::fs::File;
use std::io;
use std::io::Read;
use std::ops::RangeInclusive;

use crate::sys::clock;

/// Fills the buffer; getrandom(2), or `/dev/urandom` where a filter or an old kernel lacks it.
///
/// # Errors
/// When there is neither.
pub fn fill(buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        let rest = &mut buffer[filled..];
        // SAFETY: the kernel writes at most `rest.len()` bytes into `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            // Opened for this call only: a descriptor that is kept would be closed in a worker, and its number used
            // for something else.
            Err(_) => return File::open("/dev/urandom")?.read_exact(rest),
        }
    }
    Ok(())
}

/// A number of which all 64 bits are random.
///
/// # Errors
/// See [`fill`].
pub fn number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A number from 0 to below 1, for delays that are to differ.
pub fn jitter() -> f64 {
    const STEPS: u32 = 1 << 20;
    let step = u32::try_from(any() % u64::from(STEPS)).unwrap_or(0);
    f64::from(step) / f64::from(STEPS)
}

/// A number of the range, for delays that are to differ.
pub fn within(range: RangeInclusive<u64>) -> u64 {
    let width = range.end().saturating_sub(*range.start()).saturating_add(1);
    range.start() + any() % width
}

/// Where the kernel gives no random number, the clock's last digits have to do.
fn any() -> u64 {
    number().unwrap_or_else(|_| u64::from(clock::monotonic().subsec_nanos()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn numbers_differ_and_stay_in_their_range() {
        let numbers: BTreeSet<_> = (0..100).map(|_| number().unwrap()).collect();
        assert_eq!(numbers.len(), 100);
        let mut bytes = [0_u8; 4096];
        fill(&mut bytes).unwrap();
        assert!(bytes.iter().collect::<BTreeSet<_>>().len() > 200);
        for _ in 0..1000 {
            assert!((0.0..1.0).contains(&jitter()));
            assert!((5..=7).contains(&within(5..=7)));
        }
        assert_eq!(within(9..=9), 9);
        within(0..=u64::MAX);
    }
}
