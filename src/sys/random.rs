//! Random numbers from the kernel, and thread generators after a fork.
//!
//! A generator that a library keeps per thread is memory, and a fork copies memory: two workers would draw the same
//! numbers. So nothing here keeps one, `clippy.toml` forbids those of `rand` and `fastrand`, and what the application
//! may have used in `main` is seeded anew in each worker.

use std::fs::File;
use std::io;
use std::io::Read;
use std::ops::RangeInclusive;

use crate::sys::time;

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

/// A number from 0 to below 1, for delays that are to differ. Where the kernel gives none, the clock's last digits
/// have to do.
pub fn jitter() -> f64 {
    const STEPS: u32 = 1 << 20;
    let number = number().unwrap_or_else(|_| u64::from(time::monotonic().subsec_nanos()));
    let step = u32::try_from(number % u64::from(STEPS)).unwrap_or(0);
    f64::from(step) / f64::from(STEPS)
}

/// A number of the range, for delays that are to differ.
pub fn within(range: RangeInclusive<u64>) -> u64 {
    let width = range.end().saturating_sub(*range.start()).saturating_add(1);
    let number = number().unwrap_or_else(|_| u64::from(time::monotonic().subsec_nanos()));
    range.start() + number % width
}

/// Seeds anew every thread generator that this program may share with its application; to be called in a worker before
/// any line of the application runs.
///
/// Not in reach, and documented in `Fleet::run`: a generator that the application holds itself, or one of a library
/// this program does not know. `rand` 0.8 notices a fork by itself. ring, getrandom and uuid ask the kernel each time.
///
/// # Errors
/// When the kernel gives no random numbers.
#[allow(clippy::disallowed_methods, reason = "the application's generators are reached by these names")]
pub fn seed_thread_generators() -> io::Result<()> {
    rand::rng().reseed().map_err(io::Error::other)?;
    rand_0_10::rng().reseed().map_err(io::Error::other)?;
    fastrand::seed(number()?);
    Ok(())
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
