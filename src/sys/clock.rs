//! Clocks, read only at the edges; cores take the time as a value.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// The monotonic clock, the same in every process of the host; `clock_gettime(2)`.
pub fn monotonic() -> Duration {
    read_clock(libc::CLOCK_MONOTONIC)
}

/// Time until a moment of the monotonic clock; zero if it has passed.
pub fn until(moment: Duration) -> Duration {
    moment.saturating_sub(monotonic())
}

/// Unix time; only for people to read, because it can step.
pub fn wall_clock() -> Duration {
    read_clock(libc::CLOCK_REALTIME)
}

/// CPU time this process has used.
pub fn cpu_time() -> Duration {
    read_clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// The period of ticks: looks that come now and then begin at multiples of it.
///
/// So a process is woken once for all of them. tokio's timer sorts what is due later than in 64 ms into slots of 64 ms and wakes up once more when such a
/// slot begins: only for a deadline at a slot's begin are both the same moment.
pub const TICK: Duration = Duration::from_millis(64);

/// From when on ticks are counted, nanoseconds on the monotonic clock.
static TICKS_START_NS: AtomicU64 = AtomicU64::new(0);

/// Counts ticks from now on; to be called right before the runtime is made, whose timer begins with it.
pub fn start_ticks() {
    TICKS_START_NS.store(u64::try_from(monotonic().as_nanos()).unwrap_or(0), Relaxed);
}

/// Time until the next multiple of `period` since ticks are counted; `period` is a multiple of [`TICK`].
pub fn until_tick(period: Duration) -> Duration {
    to_multiple(monotonic().saturating_sub(Duration::from_nanos(TICKS_START_NS.load(Relaxed))), period)
}

/// Time until the first tick that is at least `after` away.
pub fn after_tick(after: Duration) -> Duration {
    let from = Duration::from_nanos(TICKS_START_NS.load(Relaxed));
    let due = (monotonic() + after).saturating_sub(from);
    match to_multiple(due, TICK) {
        TICK => after,
        rest => after + rest,
    }
}

/// Time from `now` to the next multiple of `period`; a whole one at a multiple.
fn to_multiple(now: Duration, period: Duration) -> Duration {
    let into = now.as_nanos().checked_rem(period.as_nanos()).unwrap_or(0);
    period.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(0)))
}

fn read_clock(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // These clocks exist on every Linux; a failure would mean another kernel, and leaves zero.
    // SAFETY: the kernel writes one `timespec` into the one that is borrowed for the call.
    let _ = unsafe { libc::clock_gettime(clock, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_at_odd_moments_meets_at_multiples() {
        let ms = Duration::from_millis;
        for now in [0, 1, 123, 499, 500, 999] {
            assert_eq!((ms(now) + to_multiple(ms(now), ms(500))).as_millis() % 500, 0, "{now}");
        }
        assert_eq!(to_multiple(ms(500), ms(500)), ms(500));
        assert_eq!(to_multiple(ms(1), Duration::ZERO), Duration::ZERO);
    }
}
