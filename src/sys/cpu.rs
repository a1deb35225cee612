//! How many cores this process may use, the smaller of affinity and cgroup quota; and which thread comes first.

use std::io;
use std::num::NonZeroUsize;

/// How much the work in the background stands back: where both want a core, the event loop gets nine tenths of it.
const BACKGROUND_NICE: i32 = 10;

/// Cores allowed by `sched_getaffinity(2)` and the CPU quota of cgroup v1 or v2, rounded down, at least 1.
///
/// The standard library reads both; where `/proc` or `/sys` is hidden it knows only the affinity.
pub fn available_cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Has the calling thread stand back behind the others of its process when they want the same core.
///
/// # Errors
/// The kernel's error; nothing was changed then.
pub fn lower_thread_priority() -> io::Result<()> {
    // SAFETY: it takes numbers only; on Linux process 0 is the calling thread (setpriority(2), notes).
    let set = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BACKGROUND_NICE) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stands_back_for_itself_alone() {
        let nice = |thread: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{thread}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = nice("thread-self");
        std::thread::spawn(move || {
            lower_thread_priority().unwrap();
            assert_eq!(nice("thread-self"), BACKGROUND_NICE);
        })
        .join()
        .unwrap();
        assert_eq!(nice("thread-self"), before);
    }
}
