//! Clocks, read only at the edges; cores take the time as a value.

use std::time::Duration;

use nix::time::ClockId;

/// The monotonic clock, the same in every process of the machine; `clock_gettime(2)`.
pub fn monotonic() -> Duration {
    read(ClockId::CLOCK_MONOTONIC)
}

/// Unix time; only for people to read, because it can step.
pub fn unix() -> Duration {
    read(ClockId::CLOCK_REALTIME)
}

/// CPU time this process has used.
pub fn cpu() -> Duration {
    read(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

/// Time from `now` on the monotonic clock to the next multiple of `period`; a whole one at a multiple.
///
/// Whatever looks around now and then and does so at multiples of a shared period wakes a process once for all of it.
pub fn to_multiple(now: Duration, period: Duration) -> Duration {
    let into = now.as_nanos().checked_rem(period.as_nanos()).unwrap_or(0);
    period.saturating_sub(Duration::from_nanos(u64::try_from(into).unwrap_or(0)))
}

fn read(clock: ClockId) -> Duration {
    // These clocks exist on every Linux; a failure would mean another kernel.
    nix::time::clock_gettime(clock).map(Duration::from).unwrap_or_default()
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
