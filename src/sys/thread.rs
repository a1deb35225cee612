//! Another process seen from outside, as proc(5) shows it: what it does and what it gets of the CPUs.

use std::time::Duration;

use crate::sys::process::Pid;

/// What a thread does at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadState {
    /// It runs or waits for a CPU.
    Runnable,
    /// It sleeps until something happens: a lock, a timer, a socket.
    Sleeping,
    /// It waits within the kernel and cannot be disturbed: for a disk, or for memory that was swapped out.
    Uninterruptible,
    /// It was stopped by a signal or a debugger.
    Stopped,
    /// It has ended.
    Exited,
}

/// A process's first thread: for a worker, the one that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadSample {
    /// What it does.
    pub state: ThreadState,
    /// CPU time it has had since its start.
    pub cpu: Duration,
    /// Time it has waited for a CPU since its start; brought up to date when it gets one. Zero where the kernel
    /// does not keep it.
    pub cpu_wait: Duration,
}

/// Unit of the times in `/proc/PID/stat` on every architecture this program runs on.
const TICKS_PER_SECOND: u64 = 100;

/// The first thread of a process; none when there is no such process, or it may not be looked at.
pub fn main_thread(pid: Pid) -> Option<ThreadSample> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
    let (state, ticks) = stat_fields(&stat)?;
    let schedstat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).ok();
    let times = schedstat.as_deref().and_then(schedstat_fields);
    let (cpu, waited) = times
        .unwrap_or((Duration::from_millis(ticks.saturating_mul(1000 / TICKS_PER_SECOND)), Duration::ZERO));
    Some(ThreadSample { state, cpu, cpu_wait: waited })
}

/// The state, and user and system time in ticks. The name of a program may hold anything, brackets and spaces too.
fn stat_fields(text: &str) -> Option<(ThreadState, u64)> {
    let mut fields = text.rsplit_once(") ")?.1.split_ascii_whitespace();
    let state = match fields.next()? {
        "R" => ThreadState::Runnable,
        "D" => ThreadState::Uninterruptible,
        "T" | "t" => ThreadState::Stopped,
        "Z" | "X" => ThreadState::Exited,
        _ => ThreadState::Sleeping,
    };
    let mut times = fields.skip(10).map(str::parse::<u64>);
    Some((state, times.next()?.ok()?.saturating_add(times.next()?.ok()?)))
}

/// Time on a CPU and time waiting for one.
/// How long the calling thread has been ready to run and was given no CPU, since its start; none where the kernel does
/// not say; proc(5).
pub fn own_cpu_wait() -> Option<Duration> {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    schedstat_fields(&schedstat).map(|(_, waited)| waited)
}

fn schedstat_fields(text: &str) -> Option<(Duration, Duration)> {
    let mut fields = text.split_ascii_whitespace().map(|field| field.parse().ok().map(Duration::from_nanos));
    Some((fields.next()??, fields.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    #[test]
    fn a_name_with_brackets_and_spaces_hides_nothing() {
        let text = "7 (a) R b) T 1 7 7 0 -1 4194304 91 0 0 0 12 30 0 0 20 0 1 0 5 0 0";
        assert_eq!(stat_fields(text), Some((ThreadState::Stopped, 42)));
        assert_eq!(stat_fields("7 (cut) S 1"), None);
        assert_eq!(stat_fields(""), None);
    }

    #[test]
    fn schedstat_is_cpu_and_waiting_in_nanoseconds() {
        let expected = (Duration::from_nanos(143_464), Duration::from_nanos(9));
        assert_eq!(schedstat_fields("143464 9 1\n"), Some(expected));
        assert_eq!(schedstat_fields("143464"), None);
    }

    #[test]
    fn this_process_can_be_sampled_and_a_missing_one_cannot() {
        let task = main_thread(process::pid()).unwrap();
        assert_ne!(task.state, ThreadState::Exited);
        assert!(main_thread(Pid::from_raw(i32::MAX)).is_none());
    }
}
